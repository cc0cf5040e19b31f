"""Command lines in processes of their own: by a new interpreter, or forked from one that has imported everything.

A new interpreter is what a user starts, and takes seconds for `import torch` alone. A forked process is no less a
process: it is killed, stopped and resumed for real, and a test that starts several of them ends much sooner.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import pkgutil
import pty
import runpy
import subprocess
import sys
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import NamedTuple

import cifarbench


class Result(NamedTuple):
    """What a command ended with."""

    code: int
    out: str
    err: str


def command(*arguments: str) -> list[str]:
    """The command line for a new interpreter."""
    return [sys.executable, "-m", "cifarbench", *arguments]


def shell(*arguments: str, cwd: Path, timeout: float = 120, **environment: str) -> Result:
    """Run a command line in a new interpreter."""
    return python("-m", "cifarbench", *arguments, cwd=cwd, timeout=timeout, **environment)


def python(*arguments: str | Path, cwd: Path, timeout: float = 400, **environment: str) -> Result:
    """Run Python in a new interpreter, as on a script of `scripts/`."""
    done = subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=cwd,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    return Result(done.returncode, done.stdout, done.stderr)


def in_terminal(*arguments: str, cwd: Path, columns: int = 80) -> tuple[int, str]:
    """Run a command line in a new interpreter on a terminal of its own; its exit code, and all that was shown."""
    ours, theirs = pty.openpty()
    environment = {**os.environ, "COLUMNS": str(columns), "TERM": "xterm-256color"}
    process = subprocess.Popen(
        command(*arguments), cwd=cwd, env=environment, stdin=theirs, stdout=theirs, stderr=theirs, close_fds=True
    )
    os.close(theirs)
    shown = bytearray()
    with contextlib.suppress(OSError):  # which is how a terminal ends on Linux
        while part := os.read(ours, 1 << 16):
            shown += part
    os.close(ours)
    return process.wait(60), shown.decode(errors="replace")


def script(path: Path, *arguments: str | Path, cwd: Path, timeout: float = 400) -> Result:
    """Run a script of `scripts/` in a forked process; what it said, to stdout and stderr, is in `out`."""
    log = cwd / f"{path.stem}.log"
    process = forked(*map(str, arguments), cwd=cwd, log=log, main=path)
    process.join(timeout)
    assert process.exitcode is not None, log.read_text()
    return Result(process.exitcode, log.read_text(), "")


def forked(
    *arguments: str, cwd: Path, log: Path, prepare: Callable[[], None] | None = None, main: Path | None = None
) -> BaseProcess:
    """Start a command line in a forked process, its output appended to `log`; `prepare` is called in it before.

    `join` waits for it, `exitcode` is negative for a signal; where the test ends before, it is ended too. With `main`
    it is that of this script.
    """
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload(_everything())
    process = server.Process(target=_enter, args=(arguments, cwd, log, prepare, main, dict(os.environ)), daemon=True)
    process.start()
    return process


def _everything() -> list[str]:
    """What commands import, also late; what is not installed is passed over."""
    ours = [module.name for module in pkgutil.walk_packages(cifarbench.__path__, "cifarbench.")]
    return ["torch", "matplotlib.backends.backend_agg", *(name for name in ours if not name.endswith("__main__"))]


def _enter(
    arguments: tuple[str, ...],
    cwd: Path,
    log: Path,
    prepare: Callable[[], None] | None,
    main: Path | None,
    environment: dict[str, str],
) -> None:
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(cwd)
    handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    if prepare is not None:
        prepare()
    if main is not None:
        sys.argv = [str(main), *arguments]
        sys.path.insert(0, str(main.parent))
        runpy.run_path(str(main), run_name="__main__")
        return
    from cifarbench import cli

    sys.exit(cli.main(list(arguments)))
