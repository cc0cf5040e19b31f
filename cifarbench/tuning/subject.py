"""What a study is a study of, kept with it: so no later call adds trials that do not compare with the others."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

import optuna

from cifarbench.config.history import complete
from cifarbench.config.keys import rule_of
from cifarbench.config.load import to_plain
from cifarbench.config.tune import TuneVerbConfig, dimension
from cifarbench.data.dataset import ImageSet
from cifarbench.errors import IntegrityError

_SEARCH = "cifarbench:search"
_DATASET = "cifarbench:dataset"


def claim(study: optuna.Study, config: TuneVerbConfig, typed: list[str]) -> None:
    """Note in the study what it searches; where that is noted, by this worker or another, ask for the same.

    What cannot change a trial's result may differ, and how and how long is searched. A study of an older version,
    in which nothing is noted, is taken over.

    Args:
        study: joined or just created.
        config: what is asked for now.
        typed: the overrides of every trial, as the user typed them.

    Raises:
        IntegrityError: the study is of another recipe, dataset, split, seed, space or metric.
    """
    now = _search(config, typed)
    metric = "accuracy" if study.direction == optuna.study.StudyDirection.MAXIMIZE else "loss"
    before = study.user_attrs.get(_SEARCH) or {**now, "metric": metric}
    _refuse(study, _differences(before, config, now))
    if _SEARCH not in study.user_attrs:
        study.set_user_attr(_SEARCH, now)


def claim_dataset(study: optuna.Study, data: ImageSet) -> None:
    """Note in the study whose images it trains on, or ask for the same; IntegrityError where they are others."""
    now = {"name": data.name, "fingerprint": data.fingerprint}
    before = study.user_attrs.get(_DATASET, now)
    if before != now:
        shown = [f"{each['name']} {each['fingerprint'][:12]}" for each in (before, now)]
        _refuse(study, [f"the images of `data`: {shown[0]} before, {shown[1]} now"])
    if _DATASET not in study.user_attrs:
        study.set_user_attr(_DATASET, now)


def _refuse(study: optuna.Study, lines: list[str]) -> None:
    if lines:
        raise IntegrityError(
            f"`tune.study` is {study.study_name!r}, which is a search of something else: {'; '.join(lines)}. "
            "Set `tune.study=` to another name, or ask for the same as before."
        )


def _search(config: TuneVerbConfig, typed: list[str]) -> dict[str, Any]:
    """What is kept: the config of all trials, the typed keys of searched groups, the space and the metric."""
    space = [dimension(text) for text in config.tune.space]
    names = [each.name for each in space]
    pairs = [text.lstrip("+").partition("=") for text in typed]
    return {
        "config": {name: value for name, value in to_plain(config).items() if name != "tune"},
        "typed": {name: value for name, _, value in pairs if name not in names and _is_searched(name, names)},
        "space": sorted(f"{each.name}={each.kind}({','.join(each.values)})" for each in space),
        "metric": config.tune.metric,
    }


def _is_searched(name: str, searched: list[str]) -> bool:
    """Whether a key, or the group that it belongs to, is searched."""
    return any(name == each or name.startswith(f"{each}.") for each in searched)


def _differences(before: dict[str, Any], config: TuneVerbConfig, now: dict[str, Any]) -> list[str]:
    """Lines "`augment.pad`: 4 before, 2 now" for all that makes trials incomparable, but for the searched keys."""
    searched = [dimension(text).name for text in now["space"]]
    stored = complete(before["config"])
    pairs = {name: (_at(stored, name), value) for name, value in _telling_keys(config).items()}
    pairs = {name: pair for name, pair in pairs.items() if not _is_searched(name, searched)}
    if pairs.get("model.sha256", (None,))[0] == "":  # of a version that did not record it
        del pairs["model.sha256"]
    others = {name for name, pair in pairs.items() if name.endswith(".name") and pair[0] != pair[1]}
    for name in [name for name in pairs if f"{name.split('.')[0]}.name" in others and name not in others]:
        del pairs[name]  # of another model, optimizer, …: its own keys say no more than its name
    for name in {**before["typed"], **now["typed"]}:
        pairs[name] = before["typed"].get(name), now["typed"].get(name)
    for name in ("space", "metric"):
        pairs[f"tune.{name}"] = before[name], now[name]
    return [f"`{name}`: {_shown(old)} before, {_shown(new)} now" for name, (old, new) in pairs.items() if old != new]


def _telling_keys(config: Any, path: str = "") -> dict[str, Any]:
    """Every key of a training config that can change a result, with its value as JSON holds it."""
    found: dict[str, Any] = {}
    for field in dataclasses.fields(config):
        if field.name == "tune" or ("rule" in field.metadata and rule_of(field).neutral):
            continue
        name, value = f"{path}{field.name}", getattr(config, field.name)
        nested = dataclasses.is_dataclass(value)
        found |= _telling_keys(value, f"{name}.") if nested else {name: json.loads(json.dumps(value))}
    return found


def _at(values: Any, path: str) -> Any:
    """The value of a key like `optim.lr` in nested values; None where it is not there."""
    for part in path.split("."):
        values = values.get(part) if isinstance(values, Mapping) else None
    return values


def _shown(value: Any) -> str:
    return "not given" if value is None else repr(value)
