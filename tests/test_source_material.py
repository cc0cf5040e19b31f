"""Every system that a first course shows runs by the command that the README's table names, here in small."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import pytest
from conftest import TINY
from PIL import Image

from cifarbench.cli import main

README = (Path(__file__).parents[1] / "README.md").read_text()
DRAWN = ["data=synthetic", "data.size=600"]
SHORT = [*DRAWN, "trainer.epochs=1", "trainer.limit_batches=2", "trainer.batch_size=64", "trainer.tensorboard=false"]
QUIET = [*SHORT, "trainer.progress=none", "trainer.report=false"]


def test_the_table_has_a_line_for_every_system():
    assert [number for number in range(1, 21) if not re.search(rf"\(.*\bS{number}\b.*\)", README)] == []


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> list[Path]:
    """Two tiny runs that differ in their seed."""
    folder = tmp_path_factory.mktemp("material")
    found = [folder / f"seed{seed}" for seed in (1, 2)]
    for seed, path in enumerate(found, 1):
        assert main(["train", *TINY, *QUIET, f"seed={seed}", f"hydra.run.dir={path}"]) == 0
    return found


@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param(["experiment=tutorial_cnn"], id="S1"),
        pytest.param(
            ["trainer.early_stopping=1", "optim.weight_decay=0.1", "model=simple_cnn", "model.dropout=0.1"], id="S5"
        ),
        pytest.param(["model=vgg", "optim=sgd"], id="S6-sgd"),
        pytest.param(["model=vgg", "optim=adamw"], id="S6-adamw"),
        pytest.param(["model=resnet"], id="S7-resnet"),
        pytest.param(["model=efficientnet_lite"], id="S7-efficientnet"),
        pytest.param(["experiment=linear"], id="S9-linear"),
        pytest.param(["model=mlp"], id="S9-mlp"),
        pytest.param(["model=simple_cnn", "scheduler=onecycle", "trainer.tta=multicrop"], id="S10"),
        pytest.param(["model=lenet"], id="S12-lenet"),
        pytest.param(["model=alexnet"], id="S12-alexnet"),
        pytest.param(["model=googlenet"], id="S12-googlenet"),
        pytest.param(["experiment=activations", "model.activation=maxout"], id="S13-activations"),
        pytest.param(["experiment=poolings", "model.pooling=stride"], id="S13-poolings"),
        pytest.param(["experiment=heads", "model.head=flatten", "model.hidden=[16]"], id="S13-heads"),
        pytest.param(["experiment=depths", "model.shortcut=none"], id="S13-depths"),
        pytest.param(["model=simple_cnn", "debug=overfit_batch"], id="S18-overfit"),
    ],
)
def test_what_is_trained(cli, tmp_path, arguments):
    ended = cli("train", *arguments, *QUIET, "hydra.run.dir=run")
    assert ended.code == 0, ended.err
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert all(math.isfinite(row["train_loss"]) for row in rows)


@pytest.mark.parametrize("option", ["affine", "noise", "flip"])
def test_sample_images_before_and_after_augmentation(cli, tmp_path, option):
    """S2 and S4."""
    assert cli("data", "show", *DRAWN, f"augment={option}").code == 0
    pictures = {path.name for path in (tmp_path / "outputs" / "data").glob("*.png")}
    assert pictures == {"samples.png", f"samples-{option}.png"}


def test_filters_maps_confusions_and_top_losses_are_on_the_page(cli, runs):
    """S3, S10 and S16."""
    assert cli("report", str(runs[0])).code == 0
    page = (runs[0] / "report.html").read_text().lower()
    assert [word for word in ("filter", "grad-cam", "activation", "confused", "loss") if word not in page] == []


def test_the_judge_and_the_ranking(cli, runs):
    """S8: a drawn dataset breaks rule 3 and keeps the others."""
    judged = cli("verify", str(runs[0]))
    assert judged.code == 3
    assert judged.out.count("broken") == 1
    assert cli("leaderboard", str(runs[0].parent)).code == 0


def test_nearest_neighbours(cli):
    """S9."""
    ended = cli("baseline", "knn", *DRAWN, "k=3")
    assert ended.code == 0, ended.err


def test_the_learning_rate_finder(cli):
    """S10."""
    ended = cli("lr-find", *TINY, *QUIET[:2], "optim=sgd")
    assert ended.code == 0, ended.err
    assert "optim.lr=" in ended.out


def test_time_to_accuracy(cli, tmp_path):
    """S11."""
    measured = ["bench.measure=accuracy", "bench.seeds=1", "bench.target=0.93", "hydra.run.dir=bench"]
    assert cli("bench", *TINY, *QUIET, *measured).code == 0
    assert json.loads((tmp_path / "bench" / "bench.json").read_text())["configs"][0]["target"] == 0.93


def test_the_layer_table_and_the_receptive_field(cli):
    """S14 and S15."""
    ended = cli("summary", "model=alexnet")
    assert ended.code == 0, ended.err
    assert "receptive" in ended.out.lower()


def test_the_sanity_check(cli):
    """S18: whatever its verdict on a tiny network, it gives one."""
    ended = cli("sanity", *TINY, *DRAWN, "steps=10")
    assert ended.code in (0, 1), ended.err
    assert "2.30" in ended.out


def test_ensemble_prediction_and_export(cli, runs, tmp_path):
    """S19."""
    assert cli("ensemble", *map(str, runs)).code == 0
    Image.new("RGB", (40, 32), (200, 30, 30)).save(tmp_path / "red.png")
    ended = cli("predict", f"run={runs[0]}", "red.png")
    assert ended.code == 0, ended.err
    assert "red.png" in ended.out
    assert cli("export", str(runs[0]), "format=torch_export").code == 0
