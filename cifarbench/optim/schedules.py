"""Learning-rate schedules: pure functions from progress through the run, 0 to 1, to a share of the peak rate."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from cifarbench.config.durations import RunLength, share
from cifarbench.config.optim import (
    ConstantConfig,
    DecayConfig,
    MultiStepConfig,
    OneCycleConfig,
    PlateauConfig,
    StepConfig,
)

_SHORTEST = 1e-9  # share of the run between two drops: below it a quotient could overflow
Factor = Callable[[float], float]
ScheduleConfig = ConstantConfig | StepConfig | MultiStepConfig | DecayConfig | OneCycleConfig | PlateauConfig


def half_cosine(start: float, end: float, position: float) -> float:
    """From `start` at position 0 to `end` at position 1 along half a cosine."""
    return end + (start - end) * (1 + math.cos(math.pi * min(max(position, 0.0), 1.0))) / 2


def straight(start: float, end: float, position: float) -> float:
    """From `start` at position 0 to `end` at position 1 along a line."""
    return start + (end - start) * min(max(position, 0.0), 1.0)


def drops(progress: float, milestones: tuple[float, ...], gamma: float) -> float:
    """`gamma` to the power of the milestones already reached."""
    return gamma ** sum(progress >= milestone - 1e-9 for milestone in milestones)


def one_cycle(progress: float, warmup: float, start: float, final: float) -> float:
    """Half a cosine from `start` up to 1 over the warm-up, and another down to `final` (Smith & Topin, 2018)."""
    if progress < warmup:
        return half_cosine(start, 1.0, progress / warmup)
    return half_cosine(1.0, final, (progress - warmup) / max(1 - warmup, 1e-9))


def factor(config: ScheduleConfig, length: RunLength) -> Factor:
    """The schedule of `config` for a run of `length`: progress in 0..1 to a share of the peak rate."""
    warmup = share(config.warmup, length)
    if isinstance(config, OneCycleConfig):
        return lambda progress: one_cycle(progress, warmup, config.start, config.final)
    body = _body(config, length, warmup)
    # A step's progress counts the steps before it, so the first would have rate 0; one step more is counted.
    one_step = 1 / max(length.steps, 1)
    return lambda progress: (min(1.0, (progress + one_step) / warmup) if progress < warmup else 1.0) * body(progress)


def _body(config: ScheduleConfig, length: RunLength, warmup: float) -> Factor:
    """The schedule without its warm-up."""
    if isinstance(config, StepConfig):
        every = max(share(config.every, length), _SHORTEST)
        return lambda progress: config.gamma ** math.floor(progress / every + 1e-9)
    if isinstance(config, MultiStepConfig):
        milestones = tuple(share(milestone, length) for milestone in config.milestones)
        return lambda progress: drops(progress, milestones, config.gamma)
    if isinstance(config, DecayConfig):
        curve = straight if config.name == "linear" else half_cosine
        return lambda progress: curve(1.0, config.final, (progress - warmup) / max(1 - warmup, 1e-9))
    return lambda progress: 1.0


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
