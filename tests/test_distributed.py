"""Several processes as one run, by torchrun on the CPU, against one process with the same global batch."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import TINY, manifest_of, rows_of, shell

from cifarbench.training.checkpoint import load
from cifarbench.training.distributed import World

# Batch statistics are each process's own, so the exact comparison leaves batch normalisation out.
EXACT = [*TINY, "model.norm=none", "model.bias=true", "trainer.precision=fp32", "optim.lr=0.01", "augment=standard"]


def torchrun(*arguments: str, cwd: Path) -> subprocess.CompletedProcess:
    starter = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "cifarbench"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [*starter, *arguments], cwd=cwd, env=environment, capture_output=True, text=True, timeout=150, check=False
    )


@pytest.fixture(scope="module")
def runs_of_one_and_two(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    assert shell("train", *EXACT, "hydra.run.dir=one", cwd=folder).code == 0
    done = torchrun("train", *EXACT, "hydra.run.dir=two", cwd=folder)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


def test_two_processes_leave_one_run_directory_with_counts_over_both(runs_of_one_and_two):
    manifest = manifest_of(runs_of_one_and_two / "two")
    assert manifest["status"] == "completed"
    assert manifest["environment"]["processes"] == 2
    assert manifest["test"]["openings"] == 1
    assert manifest["split"]["train"] == 864
    assert {path.name for path in runs_of_one_and_two.iterdir() if path.is_dir()} == {"one", "two"}


def test_two_processes_train_like_one(runs_of_one_and_two):
    one, two = (load(runs_of_one_and_two / name / "checkpoints" / "last.pt")["model"] for name in ("one", "two"))
    for name, weights in one.items():
        torch.testing.assert_close(two[name], weights, rtol=1e-3, atol=1e-4)
    for first, second in zip(rows_of(runs_of_one_and_two / "one"), rows_of(runs_of_one_and_two / "two"), strict=True):
        assert second["train_loss"] == pytest.approx(first["train_loss"], abs=1e-4)
        assert second["train_accuracy"] == pytest.approx(first["train_accuracy"], abs=3 / 864)
        assert second["val_loss"] == pytest.approx(first["val_loss"], abs=1e-4)


def test_a_bad_config_ends_all_processes(tmp_path):
    done = torchrun("train", *TINY, "optim.lr=-1", cwd=tmp_path)
    assert done.returncode != 0
    assert "`optim.lr` is -1" in done.stderr


def test_shares_cover_everything_once():
    items = torch.arange(11)
    parts = [World(rank, 3).share(items) for rank in range(3)]
    assert sorted(torch.cat(parts).tolist()) == items.tolist()


def test_a_world_of_one_changes_nothing():
    world, rows = World(), torch.arange(6.0).view(3, 2)
    assert torch.equal(world.gather_rows(rows, 3), rows)
    assert world.highest([1.0, 2.0]) == [1.0, 2.0]
    assert world.tell("x") == "x"
