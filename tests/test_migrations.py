"""What the first version wrote is still scored, resumed and compared; a newer schema is refused."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from conftest import TINY, manifest_of, mark_interrupted, rows_of, tiny_config

from cifarbench.commands.hydra_app import compose
from cifarbench.config.augment import AugmentConfig
from cifarbench.config.history import complete, shorten
from cifarbench.config.load import CHOICES, identity, load, to_plain
from cifarbench.config.own import is_as_loaded
from cifarbench.config.schema import TrainConfig, TrainerConfig
from cifarbench.errors import IntegrityError
from cifarbench.training import checkpoint
from cifarbench.training.migrations import SCHEMA, migrate

OLD = Path(__file__).parent / "schema_1"
KEYS = Path(__file__).parent / "keys.txt"  # of the newest schema


@pytest.fixture
def old(tmp_path):
    """A copy of the old run directories."""
    return shutil.copytree(OLD, tmp_path / "old")


def raw(path: Path) -> dict:
    """The state as the file has it, read by torch alone."""
    return torch.load(path, weights_only=True)


@pytest.mark.parametrize("path", ["finished/checkpoints/best.pt", "stopped/checkpoints/last.pt"])
def test_an_old_checkpoint_is_read_as_the_newest_schema_and_its_tensors_are_as_they_were(path):
    before, now = raw(OLD / path), checkpoint.load(OLD / path)
    assert (before["schema"], now["schema"]) == (1, SCHEMA)
    for part in ("model", "ema"):
        assert checkpoint.tensor_hash(now[part]) == checkpoint.tensor_hash(before[part])


def test_a_plugins_checkpoint_from_before_its_digest_is_read_and_its_file_is_unknown():
    state = migrate({"schema": 5, "config": {"model": {"name": "mynet", "width": 4}, "trainer": {}}})
    assert (state["schema"], state["config"]["model"]) == (SCHEMA, {"name": "mynet", "width": 4, "sha256": ""})
    assert is_as_loaded(SimpleNamespace(sha256="", loaded="0" * 16)) is None
    assert is_as_loaded(SimpleNamespace(sha256="1" * 16, loaded="0" * 16)) is False
    assert is_as_loaded(tiny_config().model) is None


@pytest.mark.parametrize("path", sorted(OLD.rglob("*.yaml")), ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_every_key_that_came_later_is_in_the_history_and_no_stored_value_changes(path):
    stored = yaml.safe_load(path.read_text())
    config = to_plain(load(TrainConfig, complete(stored)))
    for section, values in stored.items():
        kept = {name: config[section][name] for name in values} if isinstance(values, dict) else config[section]
        assert kept == values


@pytest.mark.parametrize("path", sorted(OLD.rglob("*.yaml")), ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_a_later_key_that_changes_nothing_leaves_a_run_the_repeat_of_its_older_ones(path):
    stored = yaml.safe_load(path.read_text())
    assert shorten(complete(stored)) == stored
    config = load(TrainConfig, complete(stored))
    other = dataclasses.replace(config, trainer=dataclasses.replace(config.trainer, fork="elsewhere"))
    assert identity(other) != identity(config)


def test_completing_a_complete_config_changes_nothing():
    config = compose("train", ["model=resnet", "trainer.tta=flip", "trainer.sizes=[24]", "trainer.size_until=[50%]"])
    assert complete(config) == config


def test_an_old_run_is_scored_as_it_was_then(cli, old):
    result = cli("eval", f"run={old / 'finished'}", "threads=1")
    assert result.code == 0, result.err
    then = json.loads((old / "finished" / "test.json").read_text())
    now = json.loads((old / "finished" / "eval" / "best-test-none.json").read_text())
    assert now["loss"] == pytest.approx(then["loss"], rel=1e-4)
    assert abs(np.array(now["confusion_matrix"]) - np.array(then["confusion_matrix"])).sum() <= 4


def test_an_old_run_that_was_stopped_goes_on_as_if_it_had_not_been(cli, old):
    result = cli("train", f"trainer.resume={old / 'stopped'}", "trainer.progress=none")
    assert result.code == 0, result.err
    expected = [json.loads(line) for line in (OLD / "stopped" / "undisturbed.jsonl").read_text().splitlines()]
    rows = rows_of(old / "stopped")
    assert [row["step"] for row in rows] == [row["step"] for row in expected]
    for row, other in zip(rows, expected, strict=True):
        assert row["lr"] == pytest.approx(other["lr"])
        assert row["train_loss"] == pytest.approx(other["train_loss"], rel=1e-3)
    assert manifest_of(old / "stopped")["status"] == "completed"


def test_old_runs_are_listed_and_reported(cli, old):
    listed = cli("leaderboard", str(old))
    assert listed.code == 0, listed.err
    assert "resnet" in listed.out
    assert cli("report", f"run={old / 'finished'}").code == 0


def test_a_checkpoint_of_the_second_schema_goes_on(cli, tmp_path):
    words = [*TINY, "trainer.epochs=1", "trainer.tensorboard=false", "trainer.test=false", "hydra.run.dir=run"]
    assert cli("train", *words).code == 0
    last = tmp_path / "run" / "checkpoints" / "last.pt"
    state = raw(last)
    del state["config"]["trainer"]["untimed_steps"], state["progress"]["untimed"]
    last.write_bytes(checkpoint.sealed_bytes({**state, "schema": 2}))
    mark_interrupted(tmp_path / "run")
    ended = cli("train", *words)
    assert ended.code == 0, ended.err
    assert "resumed from last.pt" in ended.out


def test_a_key_is_added_with_a_schema_of_its_own():
    """Where this fails, a key was added or left: tell `history.py`, raise SCHEMA with a step to it, and list it."""
    sections = {name: choices for name, choices in CHOICES.items() if name != "data"}
    keys = {
        f"{section}={option}.{field.name}"
        for section, options in sections.items()
        for option, cls in options.items()
        for field in dataclasses.fields(cls)
    }
    keys |= {f"trainer.{field.name}" for field in dataclasses.fields(TrainerConfig)}
    keys |= {f"augment.{field.name}" for field in dataclasses.fields(AugmentConfig)}
    assert KEYS.read_text().splitlines() == [f"schema {SCHEMA}", *sorted(keys)]


@pytest.mark.parametrize("schema", [0, -1, SCHEMA + 1, 10**6])
def test_a_schema_that_this_version_does_not_know_is_refused(tmp_path, schema):
    state = {**raw(OLD / "finished" / "checkpoints" / "best.pt"), "schema": schema}
    path = tmp_path / "last.pt"
    path.write_bytes(checkpoint.sealed_bytes(state))
    with pytest.raises(IntegrityError, match=f"schema {schema}; this version reads up to {SCHEMA}"):
        checkpoint.load(path)


@pytest.mark.parametrize("part", ["config", "optimizer"])
def test_an_old_checkpoint_that_is_not_what_its_schema_says_is_refused(tmp_path, part):
    state = {**raw(OLD / "finished" / "checkpoints" / "best.pt"), part: {}}
    path = tmp_path / "last.pt"
    path.write_bytes(checkpoint.sealed_bytes(state))
    with pytest.raises(IntegrityError, match="no checkpoint of schema 1"):
        checkpoint.load(path)
