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
    """How long a run is: the yardstick that turns spans of it into shares."""

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


def share(text: str, length: RunLength) -> float:
    """The span `text` as a share of the run: 0 at its start, 1 at its end, above 1 beyond it."""
    match = _SPAN.fullmatch(text)
    assert match, f"{text!r} was not checked"
    amount, unit = float(match[1]), match[2]
    if unit == "%":
        return amount / 100
    whole = length.epochs if unit.startswith("epoch") else length.steps
    return amount / max(whole, 1)
