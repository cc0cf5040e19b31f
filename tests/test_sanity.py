"""The checks before training: each one passes what is sound and names what is not."""

from __future__ import annotations

import json

import pytest
import torch
from conftest import TINY, tiny_config
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from cifarbench.commands.hydra_app import compose
from cifarbench.config.load import load
from cifarbench.config.schema import TrainConfig
from cifarbench.data.load import load_images
from cifarbench.data.split import split
from cifarbench.errors import ConfigError
from cifarbench.training import sanity
from cifarbench.training.observer import Observer
from cifarbench.training.probe import prepare

SOUND = [argument for argument in TINY if not argument.startswith(("trainer.epochs", "trainer.progress"))]


def checked(*overrides):
    return load(TrainConfig, compose("train", list(overrides)))


def prepared(*overrides):
    common = ["trainer.threads=1", "trainer.precision=fp32", *overrides]
    names_model = any(override.startswith("model=") for override in overrides)
    config = checked(*TINY[:2], *common) if names_model else tiny_config(*common)
    data = load_images(config.data)
    parts = split(data, config.split)
    return prepare(config, parts, Observer()), parts, data.classes


def checks(*overrides, images=20, steps=40, change=lambda training, parts: None):
    training, parts, classes = prepared(*overrides)
    change(training, parts)
    found = sanity.run_checks(training, parts, classes, images, steps)
    assert parts.test.openings == 0
    return {check.name: check for check in found}


def failed(found):
    return {name for name, check in found.items() if not check.passed}


@pytest.mark.parametrize("optim", ["sgd", "adamw", "muon"])
@pytest.mark.parametrize("model", ["linear", "lenet"])
def test_a_sound_network_passes_at_the_default_rates(model, optim):
    found = checks(f"model={model}", f"optim={optim}", steps=60)
    assert failed(found) == set()
    assert len(found) == 6


def test_a_confident_start_is_named():
    def confident(training, parts):
        nn.init.constant_(training.model.head[-1].bias, 0)
        training.model.head[-1].bias.data[3] = 8.0

    check = checks(change=confident)["first loss"]
    assert not check.passed
    # one class in ten is right and costs nothing; the others cost 8, for a mean of about 7.2
    assert check.values["loss"] == pytest.approx(7.2, abs=0.3)


def test_vanishing_gradients_are_named_from_the_front():
    found = checks(
        "model=mlp",
        *("model.batch_norm=false", "model.activation=sigmoid"),
        f"model.hidden={[32] * 10}".replace(" ", ""),
    )
    assert "gradients" in failed(found)
    assert found["gradients"].found.startswith("vanishing in hidden.0.0")
    rms = found["gradients"].values["rms"]
    assert rms["hidden.0.0"] < sanity.FAINT * rms["classifier"]


def test_exploding_gradients_are_named():
    def steep(training, parts):
        training.model.classifier.weight.data.mul_(1e7)

    found = checks(
        "model=mlp", *("model.batch_norm=false", "model.hidden=[16,16]"), "optim=sgd", "optim.lr=1e-9", change=steep
    )
    assert "exploding in hidden.0.0" in found["gradients"].found


def test_dead_units_are_counted():
    def kill(training, parts):
        layer = training.model.hidden[0][0]
        layer.bias.data[:12] = -1e4

    found = checks("model=mlp", "model.batch_norm=false", "model.hidden=[32]", change=kill)
    assert found["dead activations"].values["share"]["hidden.0.1"] == pytest.approx(12 / 32)
    assert "dead activations" in failed(found)
    saturated = checks(
        "model=mlp", "model.batch_norm=false", "model.activation=sigmoid", "model.hidden=[32]", change=kill
    )
    assert saturated["dead activations"].values["share"]["hidden.0.1"] == pytest.approx(12 / 32)


def test_no_check_needs_float64_which_not_every_device_has():
    class Narrow(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            result = function(*args, **(kwargs or {}))
            assert getattr(result, "dtype", None) != torch.float64, function
            return result

    training, parts, classes = prepared()
    with Narrow():
        sanity.run_checks(training, parts, classes, 20, 10)


def test_as_many_images_are_learned_by_heart_as_were_asked_for():
    sizes = []

    def count(training, parts):
        training.model.register_forward_hook(lambda model, inputs, output: sizes.append(len(output)))

    checks("data.size=900", images=300, steps=10, change=count)
    assert sizes[-10:] == [300] * 10
    with pytest.raises(ConfigError, match="`images` is 649; it must be at most the 648 training images"):
        checks("data.size=900", images=649)


def test_recorded_steps_learn_at_the_rate_that_is_checked():
    found = checks("model=lenet", "optim=muon", "trainer.cuda_graphs=true")
    assert found["one batch by heart"].passed, found["one batch by heart"].found


def test_a_rate_that_is_too_high_or_too_low_fails_to_learn_the_batch():
    high = checks("optim=sgd", "optim.lr=900", "model.norm=none")["one batch by heart"]
    assert not high.passed
    assert "lower `optim.lr`" in high.advice
    low = checks("optim=sgd", "optim.lr=1e-8")["one batch by heart"]
    assert not low.passed
    assert "raise `optim.lr`" in low.advice


def test_rare_classes_are_named():
    def thin(training, parts):
        keep = parts.train.targets != 4
        keep[parts.train.targets.eq(4).nonzero()[:3]] = True
        object.__setattr__(parts.train, "targets", parts.train.targets[keep])

    check = checks(change=thin)["label balance"]
    assert not check.passed
    assert min(check.values["counts"].values()) == 3


def test_an_augmentation_that_blinds_is_named():
    assert "input scale" in failed(checks("augment.cutout=64"))


def test_dropout_is_off_while_checking_and_back_afterwards():
    training, parts, classes = prepared("model=alexnet", "model.width=0.1", "model.hidden=[16]", "model.dropout=0.9")
    found = {c.name: c for c in sanity.run_checks(training, parts, classes, 20, 40)}
    assert found["one batch by heart"].passed
    assert {m.p for m in training.model.modules() if isinstance(m, nn.Dropout)} == {0.9}


def test_the_test_part_changes_nothing():
    losses = []
    for noise in (False, True):
        training, parts, classes = prepared()
        if noise:
            parts.test._portion.images.random_(0, 256)
        found = {c.name: c for c in sanity.run_checks(training, parts, classes, 20, 12)}
        losses.append(found["one batch by heart"].values["losses"])
    assert losses[0] == losses[1]


def test_the_command_passes_with_0_and_fails_with_1(cli, tmp_path):
    words = ["model=lenet", "optim=sgd", "trainer.threads=1", "images=20", r"augment.name='crop [/4] $\frac$'"]
    result = cli("sanity", *TINY[:2], *words)
    assert result.code == 0, result.out + result.err
    assert r"lenet · sgd · crop [/4] $\frac$" in result.out
    assert "all passed" in result.out
    files = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file())
    names = ("gradients.png", "inputs.png", "sanity.json")
    assert files == [f"outputs/sanity/lenet-{name}" for name in names]
    result = cli(
        "sanity", *SOUND, "optim=sgd", "model.norm=none", "optim.lr=900", "trainer.threads=1", "steps=10", "out=bad"
    )
    assert result.code == 1
    report = json.loads((tmp_path / "bad" / "simple_cnn-sanity.json").read_text())
    assert not report["passed"]
    names = {check["name"] for check in report["checks"] if not check["passed"]}
    assert "one batch by heart" in names
    assert all(f"FAIL  {name}" in result.out for name in names)
    assert f"{len(names)} of 6 checks failed" in result.out


def test_it_takes_the_very_command_of_train(cli):
    result = cli("sanity", "experiment=speed94", "debug=limit", "--cfg", "job")
    assert result.code == 0
    assert "name: speednet" in result.out
    assert "steps: 60" in result.out
    assert cli("sanity", "model=vgg", "steps=1").code == 2


def test_numbers_that_are_not_finite_reach_the_record_as_null():
    found = checks("optim=sgd", "optim.lr=900", "model.norm=none", steps=30)
    for check in found.values():
        json.dumps(check.values, allow_nan=False)
    assert torch.isfinite(torch.tensor(found["first loss"].values["loss"]))
