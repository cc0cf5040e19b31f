"""Signals: the first asks the run to stop after its step, a second SIGINT stops it at once."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType


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


def _caught() -> list[int]:
    """The signals that this system has, less a SIGHUP that is ignored."""
    named = (getattr(signal, name, None) for name in ("SIGTERM", "SIGINT", "SIGUSR1"))
    hang_up = getattr(signal, "SIGHUP", None)
    ignored = hang_up is None or signal.getsignal(hang_up) is signal.SIG_IGN
    return [number for number in named if number is not None] + ([] if ignored else [hang_up])
