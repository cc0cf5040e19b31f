"""Learning-rate schedules: pure functions from a place in the run to a share of the peak rate.

A place is two shares of the run, `share` of the way to its end and `counted` of its planned steps, which are one where
no time limit shortens it (`cifarbench.config.durations.Span`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from cifarbench.config.durations import RunLength, Span, span
from cifarbench.config.optim import (
    ConstantConfig,
    DecayConfig,
    MultiStepConfig,
    OneCycleConfig,
    PlateauConfig,
    StepConfig,
)

_SHORTEST = 1e-9  # share of the run between two drops: below it a quotient could overflow
Factor = Callable[[float, float], float]
ScheduleConfig = ConstantConfig | StepConfig | MultiStepConfig | DecayConfig | OneCycleConfig | PlateauConfig


def half_cosine(start: float, end: float, position: float) -> float:
    """From `start` at position 0 to `end` at position 1 along half a cosine."""
    return end + (start - end) * (1 + math.cos(math.pi * min(max(position, 0.0), 1.0))) / 2


def straight(start: float, end: float, position: float) -> float:
    """From `start` at position 0 to `end` at position 1 along a line."""
    return start + (end - start) * min(max(position, 0.0), 1.0)


def factor(config: ScheduleConfig, length: RunLength) -> Factor:
    """The schedule of `config` for a run of `length`: a place in it, as (share, counted), to a share of the peak rate.

    A warm-up in epochs may take more of the way under a time limit than its share of the planned ones; the rate falls
    from where it ends, so that it reaches its peak, and never jumps.
    """
    warmup = span(config.warmup, length)
    rise, fall = _rise(config, length, warmup), _fall(config, length, warmup)
    return lambda share, counted: rise(warmup.at(share, counted)) * fall(share, counted)


def _rise(config: ScheduleConfig, length: RunLength, warmup: Span) -> Callable[[float], float]:
    """The warm-up: 1 after it."""
    if isinstance(config, OneCycleConfig):
        start = config.start
        return lambda place: half_cosine(start, 1.0, place / warmup.end) if place < warmup.end else 1.0
    # A place counts the steps before it, so the first step would have rate 0; one step more is counted.
    one_step = 1 / max(length.steps, 1)
    return lambda place: min(1.0, (place + one_step) / warmup.end) if place < warmup.end else 1.0


def _end_of(warmup: Span, share: float, counted: float) -> float:
    """Where on the way the warm-up ends, at the pace of the steps so far."""
    return min(1.0, warmup.end * (share / counted)) if warmup.is_counted and counted else warmup.end


def _fall(config: ScheduleConfig, length: RunLength, warmup: Span) -> Factor:
    """The schedule without its warm-up: 1 until then where it falls all the time (Smith and Topin, 2018, for one)."""
    if isinstance(config, StepConfig):
        every = span(config.every, length)
        width = max(every.end, _SHORTEST)
        return lambda share, counted: config.gamma ** math.floor(every.at(share, counted) / width + 1e-9)
    if isinstance(config, MultiStepConfig):
        milestones = [span(milestone, length) for milestone in config.milestones]
        return lambda share, counted: config.gamma ** sum(each.is_over(share, counted) for each in milestones)
    if isinstance(config, DecayConfig | OneCycleConfig):
        curve, final = straight if config.name == "linear" else half_cosine, config.final

        def fall(share: float, counted: float) -> float:
            begin = _end_of(warmup, share, counted)
            return curve(1.0, final, (share - begin) / max(1 - begin, 1e-9)) if share >= begin else 1.0

        return fall
    return lambda share, counted: 1.0


@dataclass
class Plateau:
    """How often the validation loss has stopped falling; `scale` multiplies the schedule's factor."""

    config: PlateauConfig | None
    scale: float = 1.0
    lowest: float = math.inf
    waited: int = 0

    def observe(self, val_loss: float) -> None:
        """Take one validation loss, and lower `scale` after more than `patience` of them without improvement."""
        if self.config is None:
            return
        if val_loss < self.lowest * (1 - self.config.threshold):
            self.lowest, self.waited = val_loss, 0
            return
        self.waited += 1
        if self.waited > self.config.patience:
            self.scale, self.waited = max(self.scale * self.config.factor, self.config.minimum), 0

    def state(self) -> dict[str, Any]:
        """Plain values that `restore` takes back."""
        return {"scale": self.scale, "lowest": self.lowest, "waited": self.waited}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a saved state."""
        self.scale, self.lowest, self.waited = state["scale"], state["lowest"], state["waited"]
