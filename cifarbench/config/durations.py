"""Durations in one place: "10%", "5 epochs" and "200 steps" of a run, and times such as "90s" or "35m"."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from cifarbench.errors import ConfigError

_SECONDS = {"s": 1.0, "m": 60.0, "h": 3600.0}
_TIME = re.compile(r"(\d+(?:\.\d+)?)\s*([smh])", re.ASCII)
_SPAN = re.compile(r"(\d+(?:\.\d+)?)\s*(%|epochs?|steps?)", re.ASCII)


def seconds(text: str, path: str) -> float:
    """The time limit `text` ("90s", "10m", "1.5h") in seconds; ConfigError names the key `path`."""
    match = _TIME.fullmatch(text)
    if not match or not 0 < float(match[1]) * _SECONDS[match[2]] < math.inf:
        raise ConfigError(f"`{path}` is {text!r}; it must be a time above 0 with its unit, like 90s, 10m or 1.5h.")
    return float(match[1]) * _SECONDS[match[2]]


@dataclass(frozen=True)
class RunLength:
    """How long a run is: the yardstick of its spans."""

    epochs: int
    steps_per_epoch: int

    @property
    def steps(self) -> int:
        """Optimizer steps in the whole run."""
        return self.epochs * self.steps_per_epoch


def check_span(text: str, path: str) -> None:
    """Raise ConfigError, naming the key `path`, unless `text` is a span such as "10%", "5epochs" or "200steps"."""
    match = _SPAN.fullmatch(text)
    if not match or float(match[1]) == math.inf or (match[2] == "%" and float(match[1]) > 100):
        raise ConfigError(f"`{path}` is {text!r}; it must be a span like 10%, 5epochs or 200steps, at most 100%.")


def span_amount(text: str) -> float:
    """The number of a checked span, whatever its unit."""
    match = _SPAN.fullmatch(text)
    assert match, f"{text!r} was not checked"
    return float(match[1])


@dataclass(frozen=True)
class Span:
    """A span from the start of a run to its share `end`: 1 is the run's planned end, above 1 lies beyond it.

    A place in the run is two shares: `share` of the way to its end, be that its last step or its time limit, and
    `counted`, of its planned steps. A span in epochs or steps goes by the second, one in % by the first.
    """

    end: float
    is_counted: bool

    def at(self, share: float, counted: float) -> float:
        """The one of the two shares that the span goes by."""
        return counted if self.is_counted else share

    def is_over(self, share: float, counted: float) -> bool:
        """Whether the span has ended; rounding must not let one of whole epochs last a step longer."""
        return self.at(share, counted) >= self.end - 1e-9


def span(text: str, length: RunLength) -> Span:
    """The checked span `text` of a run of `length`."""
    match = _SPAN.fullmatch(text)
    assert match, f"{text!r} was not checked"
    amount, unit = float(match[1]), match[2]
    if unit == "%":
        return Span(amount / 100, is_counted=False)
    whole = length.epochs if unit.startswith("epoch") else length.steps
    return Span(amount / max(whole, 1), is_counted=True)
