"""Time: how long the run has taken, over all its sessions, and how much of its limit is left."""

from __future__ import annotations

import time
from dataclasses import dataclass, field


@dataclass
class Clock:
    """Counts a run's seconds by the monotonic clock, so that setting the wall clock changes nothing.

    `limit` is the wall-clock limit of the whole run in seconds, or None; `reserve` the seconds of it kept for what
    follows training; `before` what earlier sessions of the run took; `untimed` what steps took that were undone.
    """

    limit: float | None = None
    before: float = 0.0
    reserve: float = 0.0
    untimed: float = 0.0
    started: float = field(default_factory=time.monotonic)
    _lately: tuple[float, float] = (0.0, 0.0)

    def elapsed(self) -> float:
        """Seconds the run has taken so far."""
        return self.before + time.monotonic() - self.started

    def share(self) -> float:
        """The elapsed share of the time for training; 0 where there is no limit."""
        return self._share_at(self.elapsed())

    def note_step(self, seconds: float) -> None:
        """Remember how long a step took."""
        self._lately = (self._lately[-1], seconds)

    def share_after_step(self) -> float:
        """`share` at the end of one more step, as long as the shorter of the last two, of which one may have compiled
        or been followed by a save; 0 where there is no limit.
        """
        return self._share_at(self.elapsed() + min(self._lately))

    def _share_at(self, seconds: float) -> float:
        return 0.0 if self.limit is None else seconds / max(self.limit - self.reserve, 1e-3)
