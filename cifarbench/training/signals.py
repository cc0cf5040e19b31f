"""Signals: the first asks the run to stop after its step, a second SIGINT stops it at once; children are told too."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from types import FrameType
from typing import IO

_POLL_SECONDS = 0.2
_GRACE_SECONDS = 10  # for a process that is asked to end at once


class StopRequest:
    """Which signal has asked the run to stop; 0 while none has."""

    def __init__(self) -> None:
        self.number = 0

    def receive(self, number: int, frame: FrameType | None) -> None:
        """Remember the signal; a second SIGINT raises KeyboardInterrupt."""
        if self.number and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.number = self.number or number


@contextlib.contextmanager
def stop_requests(request: StopRequest | None = None) -> Iterator[StopRequest]:
    """Catch SIGTERM, SIGINT, SIGUSR1 and SIGHUP while the block runs; in other threads than the main one, nothing.

    SIGHUP, which a closed terminal sends, stays ignored where it is: `nohup` asks for that.
    """
    request = request or StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    previous = {number: signal.signal(number, request.receive) for number in _caught()}
    try:
        yield request
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def run_child(
    command: Sequence[str], output: IO[str], request: StopRequest, meanwhile: Callable[[], None] = lambda: None
) -> int:
    """Run a command to its end, and hand on the signal that asks this process to stop; returns the exit code.

    The child is in a session of its own, so that no signal of the terminal reaches it as well. `meanwhile` is called
    again and again. Where that fails, and on a second SIGINT, the child ends at once.
    """
    process = subprocess.Popen(command, stdout=output, stderr=output, start_new_session=os.name == "posix")
    is_told = False
    try:
        while process.poll() is None:
            if request.number and not is_told:
                process.send_signal(request.number)
                is_told = True
            meanwhile()
            time.sleep(_POLL_SECONDS)
    except BaseException:
        _end(process)
        raise
    return process.returncode


def _end(process: subprocess.Popen) -> None:
    """A SIGINT, which is the second one where a signal was handed on, and a kill where that does not help."""
    process.send_signal(signal.SIGINT)
    try:
        process.wait(timeout=_GRACE_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _caught() -> list[int]:
    """The signals that this system has, less a SIGHUP that is ignored."""
    named = (getattr(signal, name, None) for name in ("SIGTERM", "SIGINT", "SIGUSR1"))
    hang_up = getattr(signal, "SIGHUP", None)
    ignored = hang_up is None or signal.getsignal(hang_up) is signal.SIG_IGN
    return [number for number in named if number is not None] + ([] if ignored else [hang_up])
