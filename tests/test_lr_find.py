"""The learning-rate range test: its steps, its suggestions on curves made by hand, and the command."""

from __future__ import annotations

import json
import math

import pytest
import torch
from conftest import TINY, tiny_config

from cifarbench.commands.lr_find import rate_overrides
from cifarbench.data.load import load_images
from cifarbench.data.split import split
from cifarbench.errors import ConfigError
from cifarbench.training.lr_range import Curve, deepest_fall, range_test, suggestions
from cifarbench.training.probe import Losses, balanced, prepare

NOWHERE = [argument for argument in TINY if not argument.startswith(("trainer.epochs", "trainer.progress"))]


def training(*overrides):
    config = tiny_config("trainer.threads=1", "trainer.precision=fp32", *overrides)
    parts = split(load_images(config.data), config.split)
    losses = Losses()
    return prepare(config, parts, losses), losses, parts


def test_rates_rise_by_equal_factors_and_reach_every_group():
    run, losses, _ = training("optim=muon", "trainer.batch_size=32")
    seen = []
    step = run.optimizer.step
    run.optimizer.step = lambda *a, **k: (seen.append([g["lr"] for g in run.optimizer.param_groups]), step(*a, **k))
    ratios = [group["initial_lr"] / run.config.optim.lr for group in run.optimizer.param_groups]
    curve = range_test(run, losses, 1e-4, 1e-2, 21)
    assert curve.rates == pytest.approx([1e-4 * 10 ** (index / 10) for index in range(21)])
    for rate, groups in zip(curve.rates, seen, strict=True):
        assert groups == pytest.approx([rate * ratio for ratio in ratios])
    assert curve.ended == "end"
    assert len(curve.losses) == len(losses.values) == 21


def test_the_smoothed_loss_is_the_weighted_mean_of_those_before():
    run, losses, _ = training("trainer.batch_size=16")
    curve = range_test(run, losses, 1e-5, 1e-3, 20)
    for index in (0, 3, 19):
        weights = [0.8 ** (index - before) for before in range(index + 1)]
        mean = sum(w * loss for w, loss in zip(weights, curve.losses, strict=False)) / sum(weights)
        assert curve.smoothed[index] == pytest.approx(mean)


def test_a_loss_that_blows_up_ends_the_test():
    run, losses, _ = training("trainer.batch_size=16", "model.norm=none", "optim=sgd")
    curve = range_test(run, losses, 1e-4, 1000, 60)
    assert curve.ended != "end"
    assert len(curve.rates) < 60
    assert all(math.isfinite(value) for value in curve.smoothed)
    wild, losses, _ = training("trainer.batch_size=16", "model.norm=none", "optim=sgd")
    with pytest.raises(ConfigError, match="`start` is 999"):
        range_test(wild, losses, 999, 1000, 20)


def curve_of(values):
    rates = [10 ** (-4 + index / 10) for index in range(len(values))]
    return Curve(rates, values, values, "end")


def test_suggestions_on_a_curve_made_by_hand():
    # flat at 2.3 for ten steps, down to 1.3 by small steps and one of 0.3, then up
    falls = [0.09] * 5 + [0.3] + [0.125] * 2
    values = [2.3] * 10
    for fall in falls:
        values.append(values[-1] - fall)
    values += [values[-1] + 0.5, values[-1] + 2]
    found = suggestions(curve_of(values))
    lowest = 10 + len(falls) - 1
    assert found["minimum_tenth"] == pytest.approx(10 ** (-4 + lowest / 10) / 10)
    assert found["steepest"] == pytest.approx(10**-2.55, rel=0.13)  # on either side of the fall of 0.3
    assert found["valley"] == pytest.approx(10**-2.5)  # 0.45 of the fall of 1.0 before it, 0.75 with it


@pytest.mark.parametrize(
    ("values", "ends"),
    [
        ([3.0, 2.0, 1.0], (0, 2)),
        ([1.0, 3.0, 2.5, 2.0, 2.2], (1, 3)),
        ([2.0, 2.0], (0, 0)),
        ([5.0, 4.9, 4.8, 4.7, 9.0, 3.0, 10.0, 6.0], (4, 5)),  # a longer descent may be a shallow one
    ],
)
def test_deepest_fall_by_hand(values, ends):
    assert deepest_fall(values) == ends


def test_a_curve_that_hardly_falls_is_said_to(cli, tmp_path):
    result = cli("lr-find", *NOWHERE, "trainer.threads=1", "steps=20", "start=1e-9", "end=1e-8")
    assert result.code == 0, result.err
    report = json.loads(next(tmp_path.glob("outputs/lr-find/*.json")).read_text())
    smoothed = [point["smoothed"] for point in report["points"]]
    falls = [1 - later / value for index, value in enumerate(smoothed) for later in smoothed[index:]]
    assert report["fall"] < 0.03
    assert report["fall"] <= max(falls)
    assert "these rates mean little" in result.out


def test_only_training_images_are_read():
    rates = []
    for noise in (False, True):
        config = tiny_config("trainer.threads=1", "trainer.batch_size=16")
        parts = split(load_images(config.data), config.split)
        if noise:
            parts.test._portion.images.random_(0, 256)
            parts.val.images.random_(0, 256)
        losses = Losses()
        rates.append(range_test(prepare(config, parts, losses), losses, 1e-4, 1e-1, 20).losses)
        assert parts.test.openings == 0
    assert rates[0] == rates[1]


def test_balanced_takes_class_after_class():
    targets = torch.tensor([3, 3, 1, 0, 1, 3, 2])
    assert balanced(targets, 5).tolist() == [3, 2, 6, 0, 4]
    assert balanced(targets, 99).tolist() == [3, 2, 6, 0, 4, 1, 5]


def test_overrides_keep_the_ratio_of_muons_rates():
    optim = tiny_config("optim=muon", "optim.lr=0.1", "optim.bias_lr=0.2", "optim.head_lr=0.05").optim
    assert rate_overrides(optim, 0.03) == "optim.lr=0.03 optim.bias_lr=0.06 optim.head_lr=0.015"
    assert rate_overrides(tiny_config("optim=adamw").optim, 0.0012) == "optim.lr=0.0012"


def test_the_command_leaves_a_picture_and_a_record_and_nothing_else(cli, tmp_path):
    result = cli("lr-find", *NOWHERE, "trainer.threads=1", "trainer.batch_size=32", "steps=40", "end=1", "optim=adamw")
    assert result.code == 0, result.err
    files = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file())
    assert files == ["outputs/lr-find/simple_cnn-adamw.json", "outputs/lr-find/simple_cnn-adamw.png"]
    report = json.loads((tmp_path / files[0]).read_text())
    assert set(report["suggestions"]) == {"steepest", "minimum_tenth", "valley"}
    assert all(1e-6 < rate <= 1 for rate in report["suggestions"].values())
    assert report["override"] == f"optim.lr={report['suggestions']['valley']:g}"
    assert f"use: {report['override']}" in result.out
    assert len(report["points"]) == 40
    assert (tmp_path / files[1]).read_bytes().startswith(b"\x89PNG")
    # what it prints can be typed
    typed = cli("train", *NOWHERE, "optim=adamw", report["override"], "--cfg", "job")
    assert f"lr: {report['suggestions']['valley']}" in typed.out


def test_a_model_with_a_dot_in_its_name_keeps_it_in_the_files(cli, tmp_path):
    (tmp_path / "own.py").write_text(
        "from torch import nn\nfrom cifarbench.models.registry import register\n"
        "@register('net1.5')\nclass Net(nn.Sequential):\n    def __init__(self):\n"
        "        super().__init__(nn.Flatten(), nn.Linear(3072, 10))\n"
    )
    data = ["data=synthetic", "data.size=600", "trainer.batch_size=32", "trainer.threads=1"]
    result = cli("lr-find", *data, "plugins=[own.py]", "model=net1.5", "optim=sgd", "steps=20")
    assert result.code == 0, result.err
    assert {path.name for path in (tmp_path / "outputs/lr-find").iterdir()} == {"net1.5-sgd.png", "net1.5-sgd.json"}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["start=1", "end=2"], ["`end` is 2", "at least 10 times"]),
        (["start=0"], ["`start` is 0", "above 0"]),
        (["steps=3"], ["`steps` is 3", "at least 20"]),
        (["stpes=30"], ["stpes", "steps"]),
        (["data=synthetic", "data.size=600", "trainer.batch_size=500"], ["trainer.batch_size", "432"]),
    ],
)
def test_bad_ranges_are_refused_in_a_sentence(cli, tmp_path, arguments, words):
    result = cli("lr-find", *arguments)
    assert result.code == 2
    assert all(word in result.err for word in words), result.err
    assert not list(tmp_path.rglob("*.json"))
