"""Properties of configs: any value at any key is taken as documented or refused by name, and every config survives."""

from __future__ import annotations

import copy
import dataclasses
import functools
import math
import tempfile
import types
import typing
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from cifarbench.commands.hydra_app import compose
from cifarbench.commands.names import conf_dir
from cifarbench.config.load import CHOICES, VERBS, load, to_plain
from cifarbench.config.schema import TrainConfig
from cifarbench.errors import ConfigError
from cifarbench.runs import RunDirectory, job_label, read_config, run_name
from cifarbench.training import checkpoint

checked = settings(derandomize=True, deadline=None, database=None)
SPANS = st.builds("{}{}".format, st.integers(0, 120), st.sampled_from(["%", "epochs", "steps", " epoch"]))
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(-2, 70)
    | st.floats()
    | st.floats(-1.5, 1.5)
    | st.text(max_size=8)
    | SPANS
    | st.sampled_from([2**63 - 1, 2**63, "auto", "none", "0s", "90s", "10m", "9" * 400 + "s", "9" * 400 + "steps"])
)
VALUES = SCALARS | st.lists(SCALARS, max_size=3) | st.dictionaries(st.text(max_size=4), SCALARS, max_size=2)
NEEDED = {
    "eval": ["run=x"],
    "export": ["run=x"],
    "predict": ["run=x", "images=[y]"],
    "report": ["run=[x]"],
    "verify": ["run=[x]"],
    "ensemble": ["run=[x,y]"],
}


def shipped(section: str) -> list[str]:
    """The names of a section's choices that `conf/` holds; a plugin of another test may have added more."""
    return sorted(path.stem for path in (conf_dir() / section).glob("*.yaml") if path.stem in CHOICES[section])


@functools.cache
def composed(verb: str) -> dict[str, Any]:
    return compose(verb, NEEDED.get(verb, []))


@functools.cache
def option(section: str, name: str) -> dict[str, Any]:
    """The shipped values of one choice of a section."""
    found = (yaml.safe_load(path.read_text()) for path in sorted((conf_dir() / section).glob("*.yaml")))
    return next(values for values in found if values["name"] == name)


def base(verb: str, section: str | None = None, name: str | None = None) -> dict[str, Any]:
    values = copy.deepcopy(composed(verb))
    if section and name:
        values[section] = copy.deepcopy(option(section, name))
    return values


def places() -> list[tuple[str, str | None, str | None, tuple[str, ...]]]:
    """(verb, section, option, path) of every key of every verb and of every choice."""
    found: list[tuple[str, str | None, str | None, tuple[str, ...]]] = []
    for verb, kind in VERBS.items():
        hints = typing.get_type_hints(kind)
        for field in dataclasses.fields(kind):
            inner = dataclasses.fields(hints[field.name]) if dataclasses.is_dataclass(hints[field.name]) else ()
            found += [(verb, None, None, (field.name, part.name)) for part in inner]
            found += [] if inner or field.name in CHOICES else [(verb, None, None, (field.name,))]
    for section, table in CHOICES.items():
        for name, kind in table.items():
            found += [("train", section, name, (section, field.name)) for field in dataclasses.fields(kind)]
    return found


PLACES = places()


def is_documented(rule: Any, hint: Any, value: Any) -> bool:
    """Whether a checked value is what its type and its documented range say: written apart from the code under test."""
    if isinstance(hint, types.UnionType):
        return value is None or is_documented(rule, hint.__args__[0], value)
    if typing.get_origin(hint) is tuple:
        inner = [kind for kind in typing.get_args(hint) if kind is not Ellipsis]
        right = Ellipsis in typing.get_args(hint) or len(value) == len(inner)
        return right and type(value) is tuple and all(is_documented(rule, inner[0], item) for item in value)
    if type(value) is not hint:
        return False
    if hint in (int, float):
        low = all(value >= bound for bound in [rule.ge] if bound is not None)
        low = low and all(value > bound for bound in [rule.gt] if bound is not None)
        high = all(value <= bound for bound in [rule.le] if bound is not None)
        return low and high and all(value < bound for bound in [rule.lt] if bound is not None) and math.isfinite(value)
    return not rule.choices or value in rule.choices


def test_every_key_is_among_the_places():
    assert len(PLACES) > 300
    assert ("train", None, None, ("trainer", "epochs")) in PLACES
    assert ("train", "optim", "sgd", ("optim", "nesterov")) in PLACES


@settings(checked, max_examples=600)
@given(place=st.sampled_from(PLACES), value=VALUES)
def test_any_value_at_any_key_becomes_what_is_documented_or_is_refused_by_name(place, value):
    verb, section, name, path = place
    values = base(verb, section, name)
    inner = functools.reduce(lambda mapping, part: mapping[part], path[:-1], values)
    inner[path[-1]] = value
    config, refusal = None, ""
    try:
        config = load(VERBS[verb], values)
    except ConfigError as refused:
        refusal = str(refused)
    if config is None:
        assert ".".join(path) in refusal or (path[-1] == "name" and path[0] in refusal), refusal
        return
    owner = functools.reduce(getattr, path[:-1], config)
    field = next(field for field in dataclasses.fields(owner) if field.name == path[-1])
    hint = typing.get_type_hints(type(owner))[field.name]
    assert is_documented(field.metadata["rule"], hint, getattr(owner, field.name)), (path, value)


@settings(checked, max_examples=80)
@given(place=st.sampled_from(PLACES), word=st.text(min_size=1, max_size=8))
def test_a_key_that_is_not_there_is_refused_by_name(place, word):
    verb, section, name, path = place
    values = base(verb, section, name)
    inner = functools.reduce(lambda mapping, part: mapping[part], path[:-1], values)
    inner[f"{word}?"] = 1
    with pytest.raises(ConfigError) as refused:
        load(VERBS[verb], values)
    assert ".".join((*path[:-1], f"{word}?")) in str(refused.value)


def valid(hint: Any, rule: Any) -> st.SearchStrategy:
    """Values that a key's type and range allow, as YAML would give them."""
    if isinstance(hint, types.UnionType):
        return st.none() | valid(hint.__args__[0], rule)
    if typing.get_origin(hint) is tuple:
        kinds = typing.get_args(hint)
        inner = valid(kinds[0], rule)
        return st.lists(inner, max_size=3) if Ellipsis in kinds else st.lists(inner, min_size=2, max_size=2).map(sorted)
    if hint is bool:
        return st.booleans()
    if hint is str:
        any_text = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
        return st.sampled_from(rule.choices) if rule.choices else SPANS | any_text
    low, high = rule.ge if rule.ge is not None else rule.gt, rule.le if rule.le is not None else rule.lt
    if hint is int:
        return st.integers(int(low or 0), int(high) - (rule.lt is not None) if high is not None else 1 << 40)
    return st.floats(low, high, exclude_min=rule.gt is not None, exclude_max=rule.lt is not None, allow_infinity=False)


@st.composite
def training_configs(draw: Any) -> TrainConfig:
    """A checked training config, a few of whose keys have values from anywhere in their ranges."""
    values = base("train")
    for section in CHOICES:
        values[section] = copy.deepcopy(option(section, draw(st.sampled_from(shipped(section)))))
    config = load(TrainConfig, values)
    for _ in range(draw(st.integers(1, 6))):
        section = draw(st.sampled_from(["data", "split", "model", "augment", "optim", "scheduler", "trainer"]))
        kind = type(getattr(config, section))
        field = draw(st.sampled_from([field for field in dataclasses.fields(kind) if field.name != "name"]))
        changed = draw(valid(typing.get_type_hints(kind)[field.name], field.metadata["rule"]))
        other = {**values, section: {**values[section], field.name: changed}}
        try:
            config, values = load(TrainConfig, other), other
        except ConfigError:  # it breaks a rule between keys
            continue
    return config


@settings(checked, max_examples=50)
@given(config=training_configs())
def test_a_config_comes_back_from_its_plain_values_its_yaml_and_its_checkpoint(config):
    assert load(TrainConfig, to_plain(config)) == config
    with tempfile.TemporaryDirectory() as folder:
        RunDirectory(Path(folder)).write_config(to_plain(config))
        assert load(TrainConfig, read_config(Path(folder))) == config
        parts = {part: {} for part in checkpoint.PARTS}
        checkpoint.save({**parts, "config": to_plain(config)}, Path(folder) / "last.pt")
        assert load(TrainConfig, checkpoint.load(Path(folder) / "last.pt")["config"]) == config


@settings(checked, max_examples=300)
@given(text=st.text() | st.text("./\\~$x", max_size=12))
def test_names_of_runs_and_jobs_never_leave_their_folder(text):
    home = Path("/outputs/train")
    for name in (run_name(text), job_label(text)):
        assert (home / name).resolve().parent == home
        assert name.isascii()
        assert name.isprintable()
        assert not name.startswith(".")
