"""What the fast recipes add to a run: growing resolution, a frozen stem, tail averages, whitening, several views."""

from __future__ import annotations

import json
import shutil
import time

import pytest
import torch
from conftest import TINY, manifest_of, mark_interrupted, tiny_config
from processes import shell
from test_resume import FAST, RICH, assert_same_end
from test_training import fit

from cifarbench.config.load import to_plain
from cifarbench.data.dataset import image_set
from cifarbench.data.load import load_images
from cifarbench.models.speednet import SpeedNet
from cifarbench.training.checkpoint import load
from cifarbench.training.loop import Training
from cifarbench.training.observer import Observer

SMALL = [*TINY, "model.whitening=true", "trainer.epochs=3", "trainer.tensorboard=false", "trainer.threads=1"]
SPEED = [
    "data=synthetic",
    "data.size=3000",
    "model.widths=[8,8,8]",
    "trainer.epochs=3",
    "trainer.batch_size=400",
    "trainer.micro_batch=200",
    "trainer.progress=plain",
    "trainer.report=false",
]


class Watch(Observer):
    """Keeps the whitening layer's bias and the sides of the training images, epoch by epoch."""

    def __init__(self) -> None:
        self.biases: list[torch.Tensor] = []
        self.sizes: list[set[int]] = [set()]

    def start(self, facts, model):
        self.model = model
        model.register_forward_hook(lambda module, inputs, output: self._see(inputs[0]))

    def _see(self, images):
        if self.model.training:
            self.sizes[-1].add(images.shape[-1])

    def epoch(self, row, is_best):
        (bias,) = (weight for name, weight in self.model.named_parameters() if name.endswith("stem.bias"))
        self.biases.append(bias.detach().clone())
        self.sizes.append(set())


def test_resolution_grows_and_the_stem_freezes_where_asked(tmp_path):
    spans = ["trainer.sizes=[20,28]", "trainer.size_until=[1epochs,2epochs]", "trainer.stem_bias_until=1epochs"]
    watch = Watch()
    fit(tiny_config(*SMALL, *spans), tmp_path / "run", observer=watch)
    assert watch.sizes[:3] == [{20}, {28}, {32}]
    first, second, third = watch.biases
    assert first.any()
    assert torch.equal(second, first)
    assert torch.equal(third, first)


def test_the_average_follows_until_its_start(tmp_path):
    kept: list[list[torch.Tensor]] = []

    class Averages(Observer):
        def epoch(self, row, is_best):
            state = load(tmp_path / "run" / "checkpoints" / "last.pt")
            name = "head.2.weight"
            kept.append([state["model"][name], state["ema"][f"module.{name}"]])

    arguments = ["trainer.ema=0.9", "trainer.ema_start=2epochs"]
    fit(tiny_config(*SMALL, *arguments), tmp_path / "run", observer=Averages())
    for weights, average in kept[:2]:
        assert torch.equal(weights, average)
    assert not torch.equal(*kept[2])


def test_whitening_sees_training_images_alone(tmp_path):
    config = tiny_config(*SMALL, "trainer.epochs=1")
    weights = []
    for name, data in (("as_is", load_images(config.data)), ("noise", _with_noise(config))):
        fit(config, tmp_path / name, data)
        weights.append(load(tmp_path / name / "checkpoints" / "last.pt")["model"]["stem.weight"])
    assert torch.equal(*weights)


def _with_noise(config):
    """The images of `config` with every test image replaced by noise."""
    data = load_images(config.data)
    start = len(data.images) * 48 // 60
    images = data.images.clone()
    images[start:] = torch.randint(0, 256, images[start:].shape, dtype=torch.uint8)
    return image_set(data.name, images, data.targets, data.classes)


@pytest.mark.parametrize("name", ["speed94", "speed95", "speed96", "competition"])
def test_a_fast_recipe_runs_end_to_end(cli, tmp_path, name):
    ended = cli("train", f"experiment={name}", *SPEED, "trainer.limit_batches=2", "hydra.run.dir=run")
    assert ended.code == 0, ended.err
    report = json.loads((tmp_path / "run" / "test.json").read_text())
    assert report["tta"] == "multicrop"
    again = cli("eval", "run=run")
    assert again.code == 0, again.err
    assert "reproduced exactly" in again.out


def test_views_change_the_logits_and_are_recorded(cli, tmp_path):
    assert cli("train", *SMALL, "trainer.epochs=1", "trainer.tta=flip", "hydra.run.dir=run").code == 0
    plain = cli("eval", "run=run", "tta=none")
    assert plain.code == 0
    assert "recorded test accuracy" not in plain.out  # another number of views is another measurement
    views = {path.stem for path in (tmp_path / "run" / "eval").glob("*.json")}
    assert views == {"best-test-none"}


def test_the_loss_scale_of_the_published_rates_is_folded_in_exactly():
    """Summed loss over logits / s at rate r is mean loss over plain logits at rate r·B/s², for the last layer."""
    torch.manual_seed(0)
    features, targets, scale, rate = torch.randn(20, 8).double(), torch.randint(0, 10, (20,)), 8.0, 0.01
    published = torch.randn(10, 8).double().requires_grad_()
    ours = (published.detach() / scale).clone().requires_grad_()
    torch.nn.functional.cross_entropy(features @ published.T / scale, targets, reduction="sum").backward()
    torch.nn.functional.cross_entropy(features @ ours.T, targets).backward()
    stepped = published.detach() - rate * published.grad
    torch.testing.assert_close(stepped / scale, ours.detach() - rate * 20 / scale**2 * ours.grad)


def test_speednet_is_the_model_of_the_recipes():
    from cifarbench.training.session import build_model

    for name in ("speed94", "speed95", "speed96", "competition"):
        config = tiny_config_of(name)
        assert isinstance(build_model(config), SpeedNet)
        assert to_plain(config)["split"]["val_fraction"] == 0


def tiny_config_of(name):
    from cifarbench.commands.hydra_app import compose
    from cifarbench.config.load import load as load_config
    from cifarbench.config.schema import TrainConfig

    return load_config(TrainConfig, compose("train", [f"experiment={name}"]))


# --- steps before the clock ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("words", [FAST, ["optim=adamw", "trainer.drop_last=true"]])
def test_untimed_steps_leave_no_trace(cli, tmp_path, words):
    for name, count in (("none", 0), ("some", 2)):
        run = [f"trainer.untimed_steps={count}", "trainer.epochs=2", f"hydra.run.dir={name}"]
        assert cli("train", *RICH, *words, *run).code == 0
    assert_same_end(tmp_path / "some", tmp_path / "none")


def test_untimed_steps_meet_every_size_and_no_label_and_count_in_the_cold_clock_alone(cli, tmp_path, monkeypatch):
    true = load_images(tiny_config().data).targets
    seen, step = [], Training.step

    def watched(training, positions, lr, share, counted=None):
        labels = training.setting.train.targets
        time.sleep(2 if not seen else 0)
        agreement = (labels == true[training.setting.train.indices]).double().mean().item()
        seen.append(
            (training.phases.size(share, share), len(positions), agreement, training.optimizer.param_groups[0]["lr"])
        )
        return step(training, positions, lr, share, counted)

    monkeypatch.setattr(Training, "step", watched)
    words = [*SMALL, "trainer.sizes=[20]", "trainer.size_until=[50%]", "trainer.untimed_steps=4"]
    assert cli("train", *words, "hydra.run.dir=run").code == 0
    images = manifest_of(tmp_path / "run")["split"]["train"]
    untimed, timed = seen[:16], seen[16:]
    assert [(size, count) for size, count, _, _ in untimed[::4]] == [
        (size, count) for size in (20, 32) for count in (128, images % 128)
    ]
    assert all(agreement < 0.2 and lr == 0 for _, _, agreement, lr in untimed)
    assert len(timed) == load(tmp_path / "run" / "checkpoints" / "last.pt")["progress"]["step"]
    assert all(agreement == 1 and lr > 0 for _, _, agreement, lr in timed)
    timing = manifest_of(tmp_path / "run")["timing"]
    assert timing["untimed"] > 2
    assert timing["train_test"] + timing["untimed"] < timing["cold"]


def test_a_resumed_run_keeps_what_was_not_timed_apart(cli, tmp_path):
    words = [*SMALL, "trainer.epochs=1", "trainer.untimed_steps=4", "trainer.test=false", "hydra.run.dir=run"]
    assert cli("train", *words).code == 0
    first = manifest_of(tmp_path / "run")
    mark_interrupted(tmp_path / "run")
    assert cli("train", *words).code == 0
    timing = manifest_of(tmp_path / "run")["timing"]
    assert timing["untimed"] > first["timing"]["untimed"] > 0
    assert timing["train"] + timing["untimed"] < timing["cold"]


def test_untimed_steps_and_a_time_limit_exclude_each_other(cli):
    ended = cli("train", *SMALL, "trainer.untimed_steps=1", "trainer.max_time=60s")
    assert (ended.code, "`trainer.untimed_steps`" in ended.err) == (2, True)


# --- the compiler ----------------------------------------------------------------------------------------------------


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_a_compiled_run_computes_what_an_eager_one_does(tmp_path):
    words = [*SMALL, "trainer.epochs=1", "trainer.precision=fp32", "trainer.kernels=torch", "trainer.test=false"]
    compiled = ["trainer.compile=true", "trainer.compile_mode=max-autotune"]
    rows = []
    for name, more in (("eager", []), ("compiled", compiled)):
        ended = shell("train", *words, *more, f"hydra.run.dir={name}", cwd=tmp_path)
        assert ended.code == 0, ended.err
        rows.append(json.loads((tmp_path / name / "metrics.jsonl").read_text()))
    for key in ("train_loss", "val_loss"):
        assert rows[1][key] == pytest.approx(rows[0][key], rel=1e-3), key


def test_a_mode_of_the_compiler_needs_the_compiler(cli):
    ended = cli("train", *SMALL, "trainer.compile_mode=max-autotune")
    assert ended.code == 2
    for word in ("`trainer.compile_mode` is max-autotune", "`trainer.compile` is false", "trainer.compile=true"):
        assert word in ended.err
