"""From plain composed values to checked dataclasses, and back."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import typing
from collections.abc import Mapping
from typing import Any

from cifarbench.config.after import EnsembleConfig, EvalConfig, ExportConfig, PredictConfig, ReportConfig
from cifarbench.config.augment import AUGMENTS, AugmentConfig
from cifarbench.config.before import BaselineConfig, LRFindConfig, SanityConfig, SummaryConfig
from cifarbench.config.history import shorten
from cifarbench.config.judge import LeaderboardConfig, VerifyConfig
from cifarbench.config.keys import build, rule_of, unknown
from cifarbench.config.models import MODELS
from cifarbench.config.optim import OPTIMIZERS, SCHEDULERS
from cifarbench.config.schema import BenchVerbConfig, Cifar10Config, DataVerbConfig, SyntheticConfig, TrainConfig
from cifarbench.config.tune import TuneVerbConfig
from cifarbench.errors import ConfigError

DATASETS: dict[str, type] = {"cifar10": Cifar10Config, "synthetic": SyntheticConfig}
CHOICES: dict[str, dict[str, type]] = {
    "data": DATASETS,
    "model": MODELS,
    "optim": OPTIMIZERS,
    "scheduler": SCHEDULERS,
}
VERBS: dict[str, type] = {
    "train": TrainConfig,
    "bench": BenchVerbConfig,
    "data": DataVerbConfig,
    "summary": SummaryConfig,
    "sanity": SanityConfig,
    "lr-find": LRFindConfig,
    "baseline": BaselineConfig,
    "tune": TuneVerbConfig,
    "eval": EvalConfig,
    "report": ReportConfig,
    "predict": PredictConfig,
    "export": ExportConfig,
    "ensemble": EnsembleConfig,
    "leaderboard": LeaderboardConfig,
    "verify": VerifyConfig,
}

T = typing.TypeVar("T")


def load(cls: type[T], values: Mapping[str, Any]) -> T:
    """Check plain `values` and return them as `cls`, one of the dataclasses in `VERBS`.

    Raises:
        ConfigError: naming the first key that is unknown, missing, of a wrong type or out of range.
    """
    fields = {field.name for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    sections = {name: choose(name, values.get(name)) for name in CHOICES if name in fields}
    if "augment" in fields:
        sections["augment"] = augment_class(values.get("augment"))
    return build(cls, values, sections=sections)


def choose(section: str, values: Any) -> type:
    """The dataclass that the `name` in a section's values picks; ConfigError where it names none."""
    table = CHOICES[section]
    if not isinstance(values, Mapping) or not isinstance(values.get("name"), str):
        raise ConfigError(f"`{section}` is {values!r}; choose one: {', '.join(f'{section}={n}' for n in table)}.")
    if values["name"] not in table:
        raise _not_loaded(section, values) or unknown(section, values["name"], table)
    return table[values["name"]]


def augment_class(values: Any) -> type:
    """The dataclass of an augmentation: a plugin's where the `name` in the section's values is of one.

    Raises:
        ConfigError: it is of a plugin that is not loaded.
    """
    if not isinstance(values, Mapping) or not isinstance(values.get("name"), str):
        return AugmentConfig
    if values["name"] not in AUGMENTS and (error := _not_loaded("augment", values)):
        raise error
    return AUGMENTS.get(values["name"], AugmentConfig)


def _not_loaded(section: str, values: Mapping[str, Any]) -> ConfigError | None:
    """The error for a section that a plugin wrote, as its digest tells, whose file is not loaded; else None."""
    if "sha256" not in values:
        return None
    return ConfigError(f"`{section}.name` is {values['name']!r}, of a plugin that is not loaded; add plugins=[FILE].")


def to_plain(config: Any) -> dict[str, Any]:
    """The dataclass as nested dicts and lists of plain values, as YAML and checkpoints hold it."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: plain(item) for name, item in value.items()}
        return [plain(item) for item in value] if isinstance(value, tuple | list) else value

    return plain(dataclasses.asdict(config))


def identity(config: TrainConfig | BaselineConfig) -> str:
    """A hash of every key that decides what is trained, but the seed: runs that share it are repeats.

    What scores the weights, `trainer.tta`, is not in it: an `eval` may score them otherwise.
    A key that a later version adds leaves it as it is, for as long as the key has the value that changes nothing.
    """
    content = json.dumps(shorten(_telling(config)), sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def _telling(config: Any) -> Any:
    """The keys that are not neutral, as nested plain values, without the run's seed."""
    if not dataclasses.is_dataclass(config):
        return list(config) if isinstance(config, tuple) else config
    fields = [
        field for field in dataclasses.fields(config) if "rule" not in field.metadata or not rule_of(field).neutral
    ]
    kept = {field.name: _telling(getattr(config, field.name)) for field in fields}
    if isinstance(config, TrainConfig):
        del kept["seed"]
        kept["plugins"] = []  # as in every run without one; a plugin's code is told by its section's `sha256`
    return kept


def differences(stored: Any, asked: Any, path: str = "") -> list[str]:
    """Lines "`optim.lr`: 0.1 in the run, 0.2 asked for", for every key that can change the trained weights."""
    if dataclasses.is_dataclass(stored) and type(stored) is not type(asked):
        stored, asked, path = getattr(stored, "name", stored), getattr(asked, "name", asked), f"{path}.name"
    if not dataclasses.is_dataclass(stored):
        return [] if stored == asked else [f"`{path}`: {stored!r} in the run, {asked!r} asked for"]
    lines = []
    for field in dataclasses.fields(stored):
        if "rule" in field.metadata and rule_of(field).neutral:
            continue
        name = f"{path}.{field.name}" if path else field.name
        if name == "model.sha256" and not getattr(stored, field.name):
            continue  # of a version that did not record it
        lines += differences(getattr(stored, field.name), getattr(asked, field.name), name)
    return lines
