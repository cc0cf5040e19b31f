"""Jobs of a sweep in processes beside each other: a signal to the sweep reaches them all, and none outlives it."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

from cifarbench.training.signals import StopRequest, stop_requests

_FLAG = ".stop"
_LOOK_SECONDS = 0.5
_ASKING = ("SIGINT", "SIGTERM", "SIGUSR1", "SIGHUP")  # not every system has the last two


class Stopped(BaseException):
    """A signal that ends the sweep at once; no Exception, which Hydra takes for a job's result, to begin the next."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


class _Relay(StopRequest):
    """Passes the first signal on by a file in the sweep's directory, which every job watches."""

    def __init__(self, flag: Path) -> None:
        super().__init__()
        self.flag = flag

    def receive(self, number: int, frame: FrameType | None) -> None:
        """Remember the signal and raise the flag; a second SIGINT raises KeyboardInterrupt.

        While the directory is not there no job has begun, and the sweep ends at once, by Stopped.
        """
        super().receive(number, frame)
        if not self.flag.parent.is_dir():
            raise Stopped(number)
        with contextlib.suppress(OSError):
            self.flag.touch()


@contextlib.contextmanager
def relayed_signals(directory: Path) -> Iterator[StopRequest]:
    """While the block runs, a signal makes every job in `directory` save its step and end, and no other begin."""
    flag = directory / _FLAG
    flag.unlink(missing_ok=True)
    try:
        with stop_requests(_Relay(flag)) as request:
            yield request
    finally:
        flag.unlink(missing_ok=True)


class Beside:
    """What a job has to know of the sweep that started it."""

    def __init__(self, directory: Path) -> None:
        self.sweep = os.getpid()
        self.flag = directory.absolute() / _FLAG

    def is_sweep(self) -> bool:
        """Whether this process is the sweep's own."""
        return os.getpid() == self.sweep

    def is_worker(self) -> bool:
        """Whether this process was started by the sweep's own, on the same machine."""
        return not self.is_sweep() and (os.getppid() == self.sweep or _watching.is_set())

    def is_stopped(self) -> bool:
        """Whether no further job is to begin."""
        return self.flag.exists()

    def watch(self) -> None:
        """From now on, ask this process to stop when the sweep is asked to, or is gone.

        Between jobs signals are ignored: launchers take a worker that one has ended for a crash.
        """
        if not _watching.is_set():
            _watching.set()
            if threading.current_thread() is threading.main_thread():
                for name in _ASKING:
                    if hasattr(signal, name):
                        signal.signal(getattr(signal, name), signal.SIG_IGN)
            threading.Thread(target=self._watch, daemon=True).start()

    def leave_if_alone(self) -> None:
        """End this process where the sweep is gone, which would have ended it."""
        if os.getppid() != self.sweep:
            os._exit(128 + signal.SIGTERM)

    def _watch(self) -> None:
        while not _never.wait(_LOOK_SECONDS):
            if os.getppid() != self.sweep or self.flag.exists():
                os.kill(os.getpid(), signal.SIGTERM)  # again and again: a job takes note only while it trains


_watching, _never = threading.Event(), threading.Event()
