"""One command line in a forked process of its own, watched: what it wrote, opened, started, said and ended with."""

from __future__ import annotations

import contextlib
import gc
import os
import resource
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import warm

DOCUMENTED = {0, 2, 3, 4, 5, 130, 138, 143}
CANARY = "canary"
_MEMORY_BYTES = 4 << 30  # that a case may take beyond its warm parent
_FILE_BYTES = 256 << 20
_READ_BYTES = 1 << 20  # of what a case printed

# Audit events whose first argument, or first two, are paths that are about to change.
_CHANGES = {"os.mkdir", "os.remove", "os.rmdir", "os.truncate", "os.chmod", "os.chown", "os.utime", "sqlite3.connect"}
_MOVES = {"os.rename", "os.link", "os.symlink"}
_STARTS = {"os.system", "os.exec", "os.posix_spawn", "os.spawn", "subprocess.Popen", "pty.spawn"}
_TALKS = {"socket.getaddrinfo", "socket.connect"}
_WATCHED = {"open", *_CHANGES, *_MOVES, *_STARTS, *_TALKS}
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_DEVICES = ("/dev/", "/proc/self/")


@dataclass(frozen=True)
class Ended:
    """How a command ended: `code` is negative for a signal; `broken` are the promises that it did not keep."""

    code: int
    seconds: float
    out: str
    err: str
    broken: tuple[str, ...]


def run(main: warm.Main, argv: Sequence[str], cwd: Path, named: Sequence[Path], limit: float, network: bool) -> Ended:
    """Fork, call `main(argv)` in `cwd` as the console script would, and judge what happened.

    Args:
        main: takes the arguments and returns the exit code.
        argv: the arguments.
        cwd: an empty or prepared folder; its sibling folders `home` and `temp` are made.
        named: paths outside `cwd` that the command line itself names, where it may write.
        limit: seconds of computing after which the command hangs, or thrice as many on the clock, so that a busy
            machine makes no difference; a run that is at work is asked to stop, and has as long again.
        network: whether a connection, which fails in any case, is no offence.
    """
    files = {name: cwd.parent / name for name in ("out", "err", "offences")}
    sys.stdout.flush()
    started = time.monotonic()
    pid = os.fork()
    if pid == 0:
        _child(main, argv, cwd, named, files)
    code, hung = _wait(pid, cwd, limit)
    seconds = time.monotonic() - started
    out, err, offences = (_text(path) for path in files.values())
    found = [line for line in offences.splitlines() if not (network and line.startswith("network"))]
    broken = tuple(dict.fromkeys([*_judge(argv, code, out, err, hung), *found, *_canary(cwd.parent)]))
    return Ended(code, seconds, out, err, broken)


def _wait(pid: int, cwd: Path, limit: float) -> tuple[int, bool]:
    """(exit code, whether it hung); nothing of the process's session is left."""
    asked, started, allowed = False, time.monotonic(), limit
    while True:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            _kill_session(pid)
            return os.waitstatus_to_exitcode(status), False
        clock = time.monotonic() - started
        if clock > allowed and (clock > 3 * allowed or _computed(pid) > allowed):
            if asked or not _is_at_work(cwd):
                _kill_session(pid)
                return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), True
            os.kill(pid, signal.SIGTERM)
            asked, allowed = True, max(clock, allowed) + limit
        time.sleep(0.003)


def _computed(pid: int) -> float:
    """Seconds that a process has computed for; infinite where this system does not tell."""
    fields = _text(Path(f"/proc/{pid}/stat")).rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK") if fields else float("inf")


def _is_at_work(cwd: Path) -> bool:
    """Whether a run has begun: what is valid and long is no hang, if it stops when asked."""
    return any('"status": "running"' in _text(path) for path in cwd.rglob("run.json"))


def _kill_session(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)


def _judge(argv: Sequence[str], code: int, out: str, err: str, hung: bool) -> list[str]:
    broken = ["hang"] if hung else []
    if code < 0 and not hung:
        broken.append(f"died of signal {-code}")
    if code >= 0 and code not in DOCUMENTED and not _may_be_1(argv, code, out, err):
        broken.append(f"exit code {code}")
    if "Traceback (most recent call last)" in err + out:
        broken.append("traceback")
    if "please report it" in err:
        broken.append("called a bug")
    if code > 0 and not (err + out).strip():
        broken.append("no word of why")
    return broken


def _may_be_1(argv: Sequence[str], code: int, out: str, err: str) -> bool:
    """Whether exit code 1 is the documented one: of a sweep with failures, or of a sanity check that failed."""
    return code == 1 and ("jobs failed" in err or argv[0] == "sanity")


def _canary(folder: Path) -> list[str]:
    return ["canary"] if any(folder.rglob(CANARY)) else []


def _text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return file.read(_READ_BYTES).decode("utf-8", "replace")
    except OSError:
        return ""


# --- in the child ----------------------------------------------------------------------------------------------------


def _child(main: warm.Main, argv: Sequence[str], cwd: Path, named: Sequence[Path], files: dict[str, Path]) -> None:
    code = 1
    try:
        os.setsid()
        gc.disable()  # a short life needs no collector
        _settle(cwd, files)
        _limit_resources()
        _Guard(cwd, named, files["offences"]).install()
        code = warm.called(main, argv)
        for thread in threading.enumerate():  # the interpreter waits for these too
            if thread is not threading.main_thread() and not thread.daemon:
                thread.join()
        sys.stdout.flush()
        sys.stderr.flush()
    except BaseException:  # of the interpreter's end, such as output that cannot be written
        code = 1
        traceback.print_exc()
    finally:
        os._exit(code & 0xFF)


def _settle(cwd: Path, files: dict[str, Path]) -> None:
    """The folder, environment and streams of the command."""
    for name, variable in (("home", "HOME"), ("temp", "TMPDIR")):
        (cwd.parent / name).mkdir(exist_ok=True)
        os.environ[variable] = str(cwd.parent / name)
    for variable in ("CIFARBENCH_DATA", "XDG_CACHE_HOME"):
        os.environ.pop(variable, None)
    tempfile.tempdir = None  # what the parent found before
    os.chdir(cwd)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for stream, name in ((1, "out"), (2, "err")):
        handle = os.open(files[name], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(handle, stream)
        os.close(handle)
    sys.stdin = os.fdopen(0, encoding="utf-8")
    sys.stdout = os.fdopen(1, "w", encoding="utf-8")
    sys.stderr = os.fdopen(2, "w", encoding="utf-8", errors="backslashreplace", buffering=1)


def _limit_resources() -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (_FILE_BYTES, _FILE_BYTES))
    pages = Path("/proc/self/statm")
    if pages.exists():
        taken = int(pages.read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (taken + _MEMORY_BYTES,) * 2)


class _Guard:
    """Python's audit events: a change outside, a process or a connection is noted as an offence, and fails."""

    def __init__(self, cwd: Path, named: Sequence[Path], offences: Path) -> None:
        self.allowed = [os.path.realpath(path) for path in (cwd, cwd.parent / "home", cwd.parent / "temp")]
        self.box = os.path.realpath(cwd.parent)
        self.named = [os.path.realpath(path) for path in named]
        self.log = os.open(offences, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        self.busy = False

    def install(self) -> None:
        """Watch from now on; an audit hook cannot be taken off."""
        sys.addaudithook(self._hook)

    def _hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event not in _WATCHED or self.busy:  # first: every `id()` is an event
            return
        self.busy = True
        try:
            self._judge(event, arguments)
        finally:
            self.busy = False

    def _judge(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            if isinstance(arguments[2], int) and arguments[2] & _WRITING and not _is_device(arguments[0]):
                self._path(arguments[0])
        elif event in _CHANGES:
            self._path(arguments[0])
        elif event in _MOVES:
            self._path(arguments[1])
            if event == "os.rename":
                self._path(arguments[0])
        elif event in _STARTS:
            self._note(f"process {arguments[0]!r}")
            raise PermissionError(1, "no process may be started here", "process")
        elif event == "socket.getaddrinfo":
            self._address(str(arguments[0]))
        elif isinstance(arguments[1], tuple):
            self._address(str(arguments[1][0]))

    def _path(self, path: Any) -> None:
        if isinstance(path, int) or path is None:
            return
        text = os.fsdecode(path)
        if text in ("", ":memory:") or text.startswith("file:"):
            return
        real = os.path.realpath(text)
        if _is_below(real, self.allowed):
            return
        if not _is_below(real, self.named):
            self._note(f"escape to {text[:200]!r}")
        if not _is_below(real, [self.box]):  # named or not, this machine stays as it is
            raise PermissionError(13, os.strerror(13), text)

    def _address(self, host: str) -> None:
        if host not in ("localhost", "127.0.0.1", "::1", ""):
            self._note(f"network {host!r}")
            raise ConnectionRefusedError(111, f"no network here: {host}")

    def _note(self, text: str) -> None:
        os.write(self.log, f"{text}\n".encode("utf-8", "backslashreplace"))


def _is_device(path: Any) -> bool:
    """Whether a path is a device or a stream that is there: it may be opened, and nothing else."""
    if not isinstance(path, str | bytes | os.PathLike):
        return False
    text = os.fsdecode(path)
    return text.startswith(_DEVICES) and os.path.exists(text)


def _is_below(path: str, folders: Sequence[str]) -> bool:
    return any(path == folder or path.startswith(f"{folder.rstrip(os.sep)}{os.sep}") for folder in folders)
