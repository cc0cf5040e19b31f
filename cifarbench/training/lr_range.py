"""The learning-rate range test: the loss as the rate rises from step to step, and the rates that it suggests.

Smith, "Cyclical Learning Rates for Training Neural Networks" (2017), section 3.3, with an exponential rise and a
smoothed loss as in the finder of Howard and Gugger, "fastai" (2020).
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

import numpy as np

from cifarbench.data.batches import epoch_order
from cifarbench.errors import ConfigError, NonFiniteError
from cifarbench.training.loop import Training
from cifarbench.training.probe import Losses

_MEMORY = 0.8  # share of the past in the smoothed loss
_BLOWN_UP = 4.0  # times the lowest loss so far
_SETTLING = 5  # steps before the smoothed loss says anything


@dataclass(frozen=True)
class Curve:
    """One range test: `rates` of `optim.lr`, `losses` and `smoothed` ones, a value a step; `ended` says why."""

    rates: list[float]
    losses: list[float]
    smoothed: list[float]
    ended: str


def range_test(training: Training, losses: Losses, start: float, end: float, steps: int) -> Curve:
    """Train with a rate that rises from `start` to `end` along an exponential, until the loss blows up.

    Every parameter group's rate keeps its ratio to `optim.lr`. The steps are a run's own, on augmented training images.

    Raises:
        ConfigError: the loss blew up before it could be smoothed.
    """
    rates: list[float] = []
    smoothed: list[float] = []
    average, ended = 0.0, "end"
    for index in range(steps):
        rate = start * (end / start) ** (index / (steps - 1))
        try:
            _step(training, rate, index)
        except NonFiniteError:
            ended = "not finite"
            break
        rates.append(rate)
        average = _MEMORY * average + (1 - _MEMORY) * losses.values[index]
        smoothed.append(average / (1 - _MEMORY ** (index + 1)))
        if not math.isfinite(average) or (index > _SETTLING and smoothed[-1] > _BLOWN_UP * min(smoothed)):
            ended = "blew up"
            break
    kept = sum(math.isfinite(value) for value in smoothed)
    if kept < 2 * _SETTLING:
        raise ConfigError(f"`start` is {start:g}, at which the loss blew up within {kept} steps; start lower.")
    return Curve(rates[:kept], losses.values[:kept], smoothed[:kept], ended)


def _step(training: Training, rate: float, index: int) -> None:
    """One step at `rate`, on the batch that the run would take."""
    size, per_epoch = training.trainer.batch_size, training.length.steps_per_epoch
    training.progress.epoch, training.progress.batch = divmod(index, per_epoch)
    order = epoch_order(len(training.setting.train), training.config.seed, training.progress.epoch)
    first = training.progress.batch * size
    positions = order[first : first + size].to(training.setting.compute.device)
    training.factor = lambda share, counted: rate / training.config.optim.lr
    training.advance(positions, 0.0, time.perf_counter())


def suggestions(curve: Curve) -> dict[str, float]:
    """Rates that the curve suggests.

    Returns:
        steepest: where the smoothed loss falls fastest over the logarithm of the rate. minimum_tenth: a tenth of the
        rate with the lowest loss. valley: where half of the deepest fall is done.
    """
    lowest = int(np.argmin(curve.smoothed))
    slopes = np.gradient(curve.smoothed, np.log(curve.rates))
    falling = slice(_SETTLING, max(lowest, _SETTLING + 1))
    steepest = _SETTLING + int(np.argmin(slopes[falling]))
    first, last = deepest_fall(curve.smoothed)
    half = (curve.smoothed[first] + curve.smoothed[last]) / 2
    above = [index for index in range(first, last) if curve.smoothed[index] > half]
    valley = above[-1] + 1 if above else last  # the last crossing: noise may cross before
    return {
        "steepest": curve.rates[steepest],
        "minimum_tenth": curve.rates[lowest] / 10,
        "valley": curve.rates[valley],
    }


def fall(curve: Curve) -> float:
    """How far the smoothed loss fell, as a share of where its deepest fall began."""
    first, last = deepest_fall(curve.smoothed)
    return 1 - curve.smoothed[last] / curve.smoothed[first]


def deepest_fall(values: list[float]) -> tuple[int, int]:
    """First and last index of the largest drop from one value to a later one."""
    last = int(np.argmax(np.maximum.accumulate(values) - values))
    return int(np.argmax(values[: last + 1])), last
