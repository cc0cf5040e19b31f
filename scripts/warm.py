"""Commands in forked processes: each is a process of its own, to kill as one likes, without the seconds of importing.

The parent imports what the commands need and computes nothing, so that it has no thread that a fork would lose.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

Main = Callable[[Sequence[str]], int]
SMALL_CNN = [
    "model=simple_cnn",
    "model.first_widths=[8,8]",
    "model.second_widths=[8,8]",
    "model.spatial_dropout=[0.0,0.0]",
]


def import_everything() -> None:
    """Import the verbs and what they load late; one thread each, as many commands share the machine."""
    import importlib
    import pkgutil

    import matplotlib.backends.backend_agg  # noqa: F401
    import torch

    import cifarbench

    torch.set_num_threads(1)
    for module in pkgutil.walk_packages(cifarbench.__path__, "cifarbench."):
        if not module.name.endswith("__main__") and ".kernels.gpu_" not in module.name:  # which need Triton
            importlib.import_module(module.name)


def start(argv: Sequence[str], cwd: Path, log: Path, prepare: Callable[[], None] = lambda: None) -> int:
    """Start `cifarbench ARGV` in `cwd`, its output appended to `log`; returns the process id.

    `prepare` is called in the new process before the command.
    """
    sys.stdout.flush()
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        from cifarbench.cli import main

        os.setsid()
        os.chdir(cwd)
        handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(handle, 1)
        os.dup2(handle, 2)
        sys.stdout, sys.stderr = os.fdopen(1, "w", encoding="utf-8"), os.fdopen(2, "w", buffering=1, encoding="utf-8")
        prepare()
        code = called(main, argv)
        sys.stdout.flush()
    finally:
        os._exit(code & 0xFF)


def called(main: Main, argv: Sequence[str]) -> int:
    """The exit code that the interpreter would make of `sys.exit(main(argv))`."""
    try:
        return int(main(argv) or 0)
    except SystemExit as leaving:
        if leaving.code is None or isinstance(leaving.code, int):
            return leaving.code or 0
        print(leaving.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
    return 1


def wait(pid: int, seconds: float, number: int = signal.SIGKILL) -> int | None:
    """The exit code (negative for a signal), after sending `number` when `seconds` are over; None: it had to be sent.

    A signal other than SIGKILL may be caught: then the code that it led to is returned.
    """
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.002)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, number)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return None if number == signal.SIGKILL else code


def run(argv: Sequence[str], cwd: Path, log: Path, seconds: float = 600) -> int:
    """Start a command and wait for its exit code; -9 where it took longer than `seconds`."""
    code = wait(start(argv, cwd, log), seconds)
    return -signal.SIGKILL if code is None else code
