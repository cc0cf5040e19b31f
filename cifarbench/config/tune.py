"""The keys of `cifarbench tune`, and its search spaces."""

from __future__ import annotations

import re
from dataclasses import dataclass

from cifarbench.config.keys import key
from cifarbench.config.schema import TrainConfig
from cifarbench.errors import ConfigError

KINDS = ("float", "log", "int", "choice")
_LARGEST = 10**12
_GRID = 100_000  # points along one key
_DIMENSION = re.compile(r"([\w.]+)=(float|log|int|choice)\((.*)\)")


@dataclass(frozen=True)
class Dimension:
    """One config key that is searched: `kind` of `KINDS`, `values` its bounds, or its choices as typed."""

    name: str
    kind: str
    values: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class TuneSection:
    """The search: over what, how, how long, and where its study is kept."""

    space: tuple[str, ...] = key(
        "What is searched: float(low,high), log(low,high), int(low,high) or choice(a,b,…) of any config key."
    )
    metric: str = key("What is sought on the validation images, never on the test part.", choices=["accuracy", "loss"])
    sampler: str = key("How trials are proposed.", choices=["tpe", "random", "grid"])
    pruner: str = key("How poor trials are ended early.", choices=["median", "hyperband", "none"])
    trials: int = key("Trials of the study, finished or pruned, over all its workers.", ge=1, le=1_000_000)
    study: str = key("Name of the study; workers that give the same name and storage share it.")
    storage: str | None = key("Optuna storage URL, for workers on several machines; null: SQLite in its folder.")
    patience: int = key("Seconds after which a silent worker's trial is taken over.", unit="seconds", ge=2)

    def __post_init__(self) -> None:
        if not self.space:
            raise ConfigError("`tune.space` is empty; name what is searched, like ['optim.lr=log(0.01,1)'].")
        found = [dimension(text) for text in self.space]
        if self.sampler == "grid" and any(each.kind in ("float", "log") for each in found):
            raise ConfigError("`tune.sampler` is 'grid', which needs int(…) or choice(…) in all of `tune.space`.")
        wide = [each for each in found if each.kind == "int" and int(each.values[1]) - int(each.values[0]) > _GRID]
        if self.sampler == "grid" and wide:
            raise ConfigError(
                f"`tune.space` spans more than {_GRID:,} values of {wide[0].name!r}, too many for a grid."
            )
        if not re.fullmatch(r"[\w.-]+", self.study, re.ASCII) or self.study.startswith("."):
            raise ConfigError(f"`tune.study` is {self.study!r}; it must be letters, digits, `.`, `_` and `-`.")


@dataclass(frozen=True, kw_only=True)
class TuneVerbConfig(TrainConfig):
    """Everything that `cifarbench tune` needs: a training config, and what of it is searched."""

    tune: TuneSection

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (self.split.val_fraction > 0 and self.trainer.validate_every > 0):
            raise ConfigError(
                "`tune` selects on validation images, and there are none; set `split.val_fraction` and "
                "`trainer.validate_every` above 0."
            )


def dimension(text: str) -> Dimension:
    """Read one line of a search space.

    Raises:
        ConfigError: it names a test metric as its key, or is no dimension.
    """
    match = _DIMENSION.fullmatch(text.replace(" ", ""))
    if not match:
        raise ConfigError(
            f"`tune.space` holds {text!r}; write KEY=float(low,high), log(low,high), int(low,high) or choice(a,b,…)."
        )
    name, kind, inner = match.groups()
    values = _entries(inner)
    if name.split(".")[0] in ("tune", "hydra", "split", "data", "plugins"):
        raise ConfigError(f"`tune.space` holds {name!r}; data, split and the study itself stay the same over a search.")
    if kind == "choice":
        if len(values) < 2:
            raise ConfigError(f"`tune.space` holds {text!r}; a choice needs two values or more.")
        return Dimension(name, kind, values)
    _check_bounds(text, kind, values)
    return Dimension(name, kind, values)


def _entries(text: str) -> tuple[str, ...]:
    """What stands between commas, but for those inside brackets, which belong to a list."""
    entries, depth = [""], 0
    for letter in text:
        depth += (letter in "[{(") - (letter in "]})")
        if letter == "," and not depth:
            entries.append("")
        else:
            entries[-1] += letter
    return tuple(entry for entry in entries if entry)


def _check_bounds(text: str, kind: str, values: tuple[str, ...]) -> None:
    number = int if kind == "int" else float
    try:
        low, high = (number(value) for value in values)
    except ValueError as error:
        raise ConfigError(f"`tune.space` holds {text!r}; it needs a lowest and a highest number.") from error
    if max(abs(low), abs(high)) > _LARGEST:
        raise ConfigError(f"`tune.space` holds {text!r}; its numbers must be at most {_LARGEST:,}.")
    if not low < high or (kind == "log" and low <= 0):
        above = "above 0 and " if kind == "log" else ""
        raise ConfigError(f"`tune.space` holds {text!r}; its lowest number must be {above}below its highest.")
