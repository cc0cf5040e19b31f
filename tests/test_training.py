"""A training run: what it leaves behind, what changes its weights, and what must not."""

from __future__ import annotations

import json
import os
import re
import signal
import time
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
import yaml
from conftest import TINY, manifest_of, rows_of, tiny_config
from processes import forked
from torch import nn

from cifarbench import runs
from cifarbench.config.schema import TrainConfig
from cifarbench.data.dataset import ImageSet, image_set
from cifarbench.data.load import load_images
from cifarbench.data.split import split
from cifarbench.errors import ConfigError
from cifarbench.training import checkpoint
from cifarbench.training.checkpoint import load, save, tensor_hash
from cifarbench.training.checks import check_sizes
from cifarbench.training.clock import Clock
from cifarbench.training.distributed import World
from cifarbench.training.loop import Training
from cifarbench.training.observer import Observer, StepReport
from cifarbench.training.session import Outcome, train

RUN_KEYS = {
    *("schema", "status", "dataset", "split", "model", "seed", "environment", "timing", "best", "test"),
}
ROW_KEYS = [
    *("epoch", "step", "lr", "train_loss", "train_accuracy", "val_loss", "val_accuracy"),
    *("images_per_second", "seconds"),
]
CHECKPOINT_KEYS = {"model", "optimizer", "scheduler", "ema", "rng", "progress", "config", "passport"}


def fit(config: TrainConfig, folder: Path, data: ImageSet | None = None, observer: Observer | None = None) -> Outcome:
    """Train in `folder` without the command line."""
    run = runs.RunDirectory(folder)
    run.acquire()
    try:
        return train(config, data or load_images(config.data), run, observer or Observer(), World(), Clock())
    finally:
        run.release()


def weights_of(folder: Path, name: str = "last") -> str:
    return tensor_hash(load(folder / "checkpoints" / f"{name}.pt")["model"])


def test_a_run_leaves_every_file_of_the_contract(cli, tmp_path):
    result = cli("train", *TINY, "hydra.run.dir=run")
    assert result.code == 0, result.err
    run = tmp_path / "run"
    manifest = manifest_of(run)
    assert manifest.keys() >= RUN_KEYS
    assert manifest["status"] == "completed"
    counts = {"trainable": 960, "train": 864, "val": 96, "test": 240}
    assert {name: manifest["split"][name] for name in counts} == counts
    assert manifest["test"]["openings"] == 1
    assert manifest["dataset"]["name"] == "synthetic"
    assert yaml.safe_load((run / "config.yaml").read_text())["trainer"]["epochs"] == 2
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [list(line) for line in lines] == [ROW_KEYS] * 2
    assert [line["step"] for line in lines] == [7, 14]
    test = json.loads((run / "test.json").read_text())
    assert test["n"] == sum(map(sum, test["confusion_matrix"])) == 240
    assert manifest["test"]["accuracy"] == test["accuracy"]
    stored = np.load(run / "predictions.npz")
    assert stored["logits"].shape == (240, 10)
    assert stored["indices"].tolist() == list(range(960, 1200))
    assert float((stored["logits"].argmax(1) == stored["targets"]).mean()) == pytest.approx(test["accuracy"])
    assert (run / "confusion_matrix.png").read_bytes().startswith(b"\x89PNG")
    assert len((run / "confusion_matrix.csv").read_text().splitlines()) == 11
    for name in ("last", "best"):
        assert torch.load(run / "checkpoints" / f"{name}.pt", weights_only=True).keys() >= CHECKPOINT_KEYS
    assert list((run / "tensorboard").glob("events.*"))


def test_a_small_network_learns(tmp_path):
    config = tiny_config("data.size=2400", "model.first_widths=[8,16]", "model.second_widths=[16,16]",
                         "trainer.epochs=12", "optim.lr=0.2", "augment=flip", "trainer.batch_size=64")  # fmt: skip
    outcome = fit(config, tmp_path / "run")
    rows = rows_of_checkpoint(tmp_path / "run")
    assert rows[-1]["train_loss"] < rows[0]["train_loss"] - 0.3
    assert outcome.report["accuracy"] > 0.2


def rows_of_checkpoint(folder: Path) -> list[dict]:
    return load(folder / "checkpoints" / "last.pt")["progress"]["rows"]


def test_one_batch_can_be_learnt_by_heart(cli, tmp_path):
    result = cli("train", *TINY, "debug=overfit_batch", "trainer.epochs=4", "trainer.batch_size=32",
                 "model.first_widths=[16,32]", "model.second_widths=[32,64]", "hydra.run.dir=run")  # fmt: skip
    assert result.code == 0, result.err
    rows = rows_of(tmp_path / "run")
    assert rows[-1]["train_accuracy"] == 1.0
    assert rows[-1]["train_loss"] < 0.1
    assert manifest_of(tmp_path / "run")["test"]["openings"] == 0


@pytest.mark.parametrize("optim", ["sgd", "adamw"])
def test_the_same_seed_gives_the_same_weights_and_another_does_not(tmp_path, optim):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        fit(tiny_config(f"optim={optim}", f"seed={seed}", "trainer.epochs=1"), tmp_path / name)
    assert weights_of(tmp_path / "a") == weights_of(tmp_path / "b") != weights_of(tmp_path / "c")


def test_what_is_watched_does_not_change_the_weights(cli, tmp_path):
    common = [*TINY, "model.dropout=0.1", "trainer.ema=0.9"]
    assert cli("train", *common, "hydra.run.dir=a").code == 0
    assert cli("train", *common, "hydra.run.dir=b", "trainer.tensorboard=false", "trainer.progress=none").code == 0
    assert cli("train", *common, "hydra.run.dir=c", "trainer.validate_every=0", "trainer.test=false").code == 0
    assert cli("train", *common, "hydra.run.dir=d", "trainer.checkpoint_every=3", "trainer.progress=live").code == 0
    assert len({weights_of(tmp_path / name) for name in "abcd"}) == 1


# --- the seal --------------------------------------------------------------------------------------------------------


def leaky_config() -> TrainConfig:
    return tiny_config("augment=strong", "trainer.ema=0.9", "scheduler=plateau", "trainer.early_stopping=5")


def test_noise_in_place_of_the_test_images_leaves_weights_and_statistics_identical(tmp_path):
    config = leaky_config()
    data = load_images(config.data)
    test = split(data, config.split).test.indices
    images = data.images.clone()
    images[test] = torch.randint(0, 256, images[test].shape, dtype=torch.uint8)
    fit(config, tmp_path / "real", data)
    fit(config, tmp_path / "noise", image_set(data.name, images, data.targets, data.classes))
    real, noise = (load(tmp_path / name / "checkpoints" / "last.pt") for name in ("real", "noise"))
    assert tensor_hash(real["model"]) == tensor_hash(noise["model"])
    assert tensor_hash(real["ema"]) == tensor_hash(noise["ema"])
    assert real["passport"]["mean"] == noise["passport"]["mean"]
    assert real["progress"]["best_epoch"] == noise["progress"]["best_epoch"]
    assert real["passport"]["split"]["fingerprint"] != noise["passport"]["split"]["fingerprint"]


def test_permuted_test_labels_leave_weights_and_the_best_epoch_identical(tmp_path):
    config = leaky_config()
    data = load_images(config.data)
    test = split(data, config.split).test.indices
    targets = data.targets.clone()
    targets[test] = targets[test].roll(1) + 1
    targets %= 10
    first = fit(config, tmp_path / "real", data)
    second = fit(config, tmp_path / "permuted", image_set(data.name, data.images, targets, data.classes))
    assert weights_of(tmp_path / "real", "best") == weights_of(tmp_path / "permuted", "best")
    assert manifest_of(tmp_path / "real")["best"] == manifest_of(tmp_path / "permuted")["best"]
    assert first.report["accuracy"] != second.report["accuracy"]


def test_no_step_touches_a_test_image(tmp_path, monkeypatch):
    from cifarbench.training import feed

    touched: set[int] = set()
    original = feed.Draws

    def recording(seed, epoch, images):
        touched.update(images.tolist())
        return original(seed, epoch, images)

    monkeypatch.setattr(feed, "Draws", recording)
    config = tiny_config("augment=mixup")
    fit(config, tmp_path / "run")
    parts = split(load_images(config.data), config.split)
    assert touched == set(parts.train.indices.tolist())
    assert not touched & set(parts.test.indices.tolist())
    assert not touched & set(parts.val.indices.tolist())


# --- options of the loop ---------------------------------------------------------------------------------------------


PLAIN = ["model.norm=none", "model.bias=true", "trainer.precision=fp32", "trainer.epochs=1", "optim.lr=0.01"]


def state_of(folder: Path) -> dict[str, torch.Tensor]:
    return load(folder / "checkpoints" / "last.pt")["model"]


def test_micro_batches_add_up_to_the_batch(tmp_path):
    fit(tiny_config(*PLAIN), tmp_path / "whole")
    fit(tiny_config(*PLAIN, "trainer.micro_batch=50"), tmp_path / "parts")
    whole, parts = state_of(tmp_path / "whole"), state_of(tmp_path / "parts")
    assert all(torch.allclose(whole[name], parts[name], atol=1e-5) for name in whole)
    assert tensor_hash(whole) != tensor_hash(parts), "the option did nothing"


class Weights(Observer):
    """Keeps a copy of the first layer after each step."""

    def __init__(self) -> None:
        self.history: list[torch.Tensor] = []
        self.rates: list[float] = []

    def start(self, facts, model: nn.Module) -> None:
        self.model = model

    def step(self, report: StepReport) -> None:
        self.history.append(next(self.model.parameters()).detach().clone())
        self.rates.append(report.lr)


def test_ema_is_the_weighted_mean_of_all_steps(tmp_path):
    watch = Weights()
    fit(tiny_config("trainer.ema=0.8", "trainer.epochs=1"), tmp_path / "run", observer=watch)
    mean = watch.history[0].double()
    for weights in watch.history[1:]:
        mean = 0.8 * mean + 0.2 * weights.double()
    stored = load(tmp_path / "run" / "checkpoints" / "last.pt")["ema"]
    first = next(value for name, value in stored.items() if name != "n_averaged")
    torch.testing.assert_close(first.double(), mean, rtol=1e-4, atol=1e-6)


def test_clipping_bounds_the_update(tmp_path):
    watch = Weights()
    plain = ["optim.momentum=0", "optim.nesterov=false", "optim.weight_decay=0", "scheduler=constant"]
    config = tiny_config(*plain, "trainer.clip_norm=0.001", "trainer.epochs=1")
    fit(config, tmp_path / "run", observer=watch)
    moves = [(b - a).norm().item() for a, b in zip(watch.history, watch.history[1:], strict=False)]
    assert max(moves) <= 0.1 * 0.001 * 1.01
    assert max(moves) > 0


def test_the_rate_follows_the_schedule(tmp_path):
    watch = Weights()
    fit(tiny_config("scheduler=linear", "scheduler.warmup=0%"), tmp_path / "run", observer=watch)
    assert watch.rates == pytest.approx([0.1 * (1 - step / 14) for step in range(14)])


def test_label_smoothing_raises_the_loss_of_a_sure_answer(tmp_path):
    fit(tiny_config("trainer.epochs=1"), tmp_path / "sharp")
    fit(tiny_config("trainer.epochs=1", "trainer.label_smoothing=0.2"), tmp_path / "smooth")
    assert weights_of(tmp_path / "sharp") != weights_of(tmp_path / "smooth")


def test_early_stopping_ends_after_its_patience(tmp_path):
    config = tiny_config("trainer.epochs=30", "trainer.early_stopping=2", "optim.lr=1e-9", "optim.weight_decay=0",
                         "model.norm=none", "model.bias=true")  # fmt: skip
    fit(config, tmp_path / "run")
    rows = rows_of_checkpoint(tmp_path / "run")
    assert len(rows) == 3, "one best epoch, then two that were no better"
    assert manifest_of(tmp_path / "run")["ended"] == "early_stopping"


def test_best_is_the_first_epoch_of_highest_validation_accuracy(tmp_path):
    fit(tiny_config("trainer.epochs=4"), tmp_path / "run")
    accuracies = [row["val_accuracy"] for row in rows_of_checkpoint(tmp_path / "run")]
    best = accuracies.index(max(accuracies)) + 1
    assert manifest_of(tmp_path / "run")["best"] == {"epoch": best, "val_accuracy": max(accuracies)}
    assert load(tmp_path / "run" / "checkpoints" / "best.pt")["progress"]["epoch"] == best


def test_without_validation_the_last_epoch_is_tested(tmp_path):
    outcome = fit(tiny_config("split.val_fraction=0"), tmp_path / "run")
    assert outcome.tested == "last"
    assert manifest_of(tmp_path / "run")["best"] is None
    assert manifest_of(tmp_path / "run")["split"]["train"] == 960
    assert not (tmp_path / "run" / "checkpoints" / "best.pt").exists()


def test_a_time_limit_holds_with_the_test_inside_and_the_rate_near_its_end(cli, tmp_path):
    import time

    started = time.monotonic()
    result = cli("train", *TINY, "data.size=2400", "trainer.epochs=100000", "trainer.max_time=15s",
                 "scheduler=linear", "trainer.tensorboard=false", "hydra.run.dir=run")  # fmt: skip
    assert result.code == 0, result.err
    assert time.monotonic() - started < 16
    manifest = manifest_of(tmp_path / "run")
    assert manifest["ended"] == "max_time"
    assert manifest["test"]["accuracy"] is not None
    assert rows_of(tmp_path / "run")[-1]["lr"] < 0.1 * 0.1


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_diverging_run_ends_with_4_within_the_step_and_saves_nothing_of_it(cli, tmp_path, precision):
    result = cli("train", *TINY, "optim.lr=1000", "scheduler=constant", "model.norm=none", "model.bias=true",
                 f"trainer.precision={precision}", "optim.momentum=0.99", "trainer.epochs=50",
                 "hydra.run.dir=run")  # fmt: skip
    assert result.code == 4, result
    assert "step" in result.err
    assert "learning rate 1000" in result.err or "weight" in result.err
    assert manifest_of(tmp_path / "run")["status"] == "failed"
    for path in (tmp_path / "run" / "checkpoints").glob("*.pt"):
        assert all(torch.isfinite(value).all() for value in load(path)["model"].values())


def test_a_missing_device_is_exit_5_and_no_other_is_taken(cli):
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    result = cli("train", *TINY, "trainer.device=cuda")
    assert result.code == 5
    assert "'cuda'" in result.err


def test_an_unwritable_output_is_exit_5_before_training(cli, tmp_path):
    (tmp_path / "file").write_text("")
    for folder in ("/proc/nothing/run", "file/run"):
        result = cli("train", *TINY, f"hydra.run.dir={folder}")
        assert result.code == 5, result
        assert "Traceback" not in result.err


def test_a_directory_in_use_is_refused_and_its_holder_named(cli, tmp_path):
    assert cli("train", *TINY, "trainer.epochs=1", "hydra.run.dir=run").code == 0
    holder = runs.RunDirectory(tmp_path / "run")
    holder.acquire()
    try:
        result = cli("train", *TINY, "trainer.epochs=1", "hydra.run.dir=run")
    finally:
        holder.release()
    assert result.code == 2
    assert str(os.getpid()) in result.err


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["model=mlp", "data.size=600", "trainer.batch_size=431"], "`trainer.batch_size` is 431"),
        (["model=mlp", "data.size=600", "trainer.batch_size=2", "trainer.micro_batch=1"], "`trainer.micro_batch` 1"),
        (["model=mlp", "data.size=600", "trainer.batch_size=33", "trainer.micro_batch=2"], "`trainer.micro_batch` 2"),
        (
            [
                "model=vgg",
                "model.width=0.125",
                "model.stages=5",
                "data.size=600",
                "trainer.batch_size=431",
                "trainer.sizes=[16]",
                "trainer.size_until=[50%]",
            ],
            "`trainer.batch_size` is 431",
        ),
    ],
)
def test_a_pass_of_one_image_is_refused_where_a_norm_would_see_a_single_value(cli, words, told):
    ended = cli("train", "data=synthetic", *words, "trainer.epochs=1", "hydra.run.dir=run")
    assert (ended.code, told in ended.err) == (2, True), ended.err
    assert cli("train", *TINY[:1], *words, *TINY[-2:], "trainer.epochs=1", "trainer.limit_batches=1",
               "trainer.micro_batch=null", "hydra.run.dir=run").code == 0  # fmt: skip


def test_a_pass_of_one_image_is_tried_without_a_trace(tmp_path):
    words = ["data.size=600", "trainer.batch_size=431", "trainer.epochs=1", "trainer.threads=1"]
    fit(tiny_config(*words), tmp_path / "tried")
    with mock.patch("cifarbench.training.checks._check_norms"):
        fit(tiny_config(*words), tmp_path / "untried")
    assert weights_of(tmp_path / "tried") == weights_of(tmp_path / "untried")


def test_how_a_run_ended_is_said(cli):
    words = [*TINY, "trainer.tensorboard=false", "trainer.epochs=9", "optim.lr=1e-9", "trainer.test=false"]
    said = cli("train", *words, "trainer.early_stopping=2").out
    assert re.search(r"ended after epoch \d of 9: 2 validations in a row were no better", said)
    ended = cli("train", *TINY, "debug=overfit_batch", "trainer.epochs=1", "trainer.tensorboard=false")
    assert "the batch is not known by heart: loss 2." in ended.out


def test_a_small_batch_that_is_never_reached_is_not_refused():
    parts = split(load_images(tiny_config("data.size=600").data), tiny_config("data.size=600").split)
    assert len(parts.train) == 432
    for words in (["trainer.drop_last=true"], ["trainer.limit_batches=1"], ["trainer.overfit_batch=true"]):
        check_sizes(tiny_config("trainer.batch_size=431", *words), parts, World(0, 2))
    with pytest.raises(ConfigError, match="fewer images than the 2 processes"):
        check_sizes(tiny_config("trainer.batch_size=431"), parts, World(0, 2))


def test_what_the_config_asks_for_and_the_run_does_not_use_is_said(cli):
    ended = cli("train", *TINY, "trainer.epochs=1", "trainer.validate_every=0", "trainer.max_time=5m")
    assert "96 images are held out and nothing is validated" in ended.out
    assert "1 epochs took" in ended.out
    assert "raise trainer.epochs" in ended.out
    ended = cli("train", *TINY[:2], *TINY[8:], "model=linear", "optim=muon", "trainer.epochs=1", "split.val_fraction=0",
                "trainer.validate_every=0")  # fmt: skip
    assert "optim.lr does nothing" in ended.out
    assert "held out" not in ended.out


def test_a_place_in_the_run_that_it_never_reaches_is_said(cli):
    words = ["model=speednet", "model.widths=[8,8]", "trainer.sizes=[16]", "trainer.size_until=[3epochs]"]
    ended = cli("train", *TINY[:2], *TINY[8:], *words, "optim=muon", "trainer.epochs=1", "scheduler=cosine",
                "scheduler.warmup=2epochs", "trainer.cuda_graphs=true")  # fmt: skip
    assert ended.code == 0, ended.err
    assert "`scheduler.warmup` is 2epochs, which this run of 1 epochs never reaches" in ended.out
    assert "`trainer.size_until[0]` is 3epochs" in ended.out
    assert "stem_bias_until" not in ended.out  # whose default, 100%, is the run's end
    assert "steps are not recorded (trainer.cuda_graphs)" in ended.out


def test_sizes_that_the_network_cannot_halve_are_refused(cli):
    words = ["model=speednet", "model.widths=[8,8,8]", "trainer.sizes=[16,8]", "trainer.size_until=[30%,60%]"]
    ended = cli("train", *TINY[:2], *TINY[8:], *words)
    assert (ended.code, "model=speednet fails on images of 8 px" in ended.err) == (2, True), ended.err
    assert "`trainer.sizes` is [16, 8]" in ended.err


@pytest.mark.parametrize(
    ("name", "layers", "told"),
    [
        (
            "shapeless",
            "nn.Conv2d(3, 4, 3), nn.Linear(10, 10)",
            "model=shapeless fails on images of 32 px (RuntimeError: ",
        ),
        ("wide", "nn.Flatten(), nn.Linear(3072, 100)", "model=wide turns images (2, 3, 32, 32) into (2, 100)"),
    ],
)
def test_a_plugin_that_gives_no_logits_is_told_so(cli, tmp_path, name, layers, told):
    (tmp_path / "mynet.py").write_text(
        "from torch import nn\n"
        "from cifarbench.models.registry import register\n"
        f"@register('{name}')\n"
        "class MyNet(nn.Sequential):\n"
        "    def __init__(self) -> None:\n"
        f"        super().__init__({layers})\n"
    )
    for verb in ("train", "lr-find"):
        ended = cli(verb, "plugins=[mynet.py]", f"model={name}", "optim=sgd", "data=synthetic", "data.size=600")
        assert (ended.code, told in ended.err) == (2, True), ended.err


def test_no_step_begins_that_the_time_cannot_hold(tmp_path, monkeypatch):
    step = Training.step

    def slow(*arguments):
        time.sleep(2)
        return step(*arguments)

    monkeypatch.setattr(Training, "step", slow)
    fit(tiny_config("trainer.max_time=13s", "trainer.epochs=9", "trainer.threads=1"), tmp_path / "run")
    (row,) = load(tmp_path / "run" / "checkpoints" / "last.pt")["progress"]["rows"]
    assert row["step"] == 3  # a fourth one would end in the 6 s that are kept for the test and the files


def test_one_long_step_does_not_end_a_run(tmp_path, monkeypatch):
    step = Training.step

    def first_is_slow(training, *arguments):
        time.sleep(4 if training.progress.step == 0 else 0)
        return step(training, *arguments)

    monkeypatch.setattr(Training, "step", first_is_slow)
    fit(tiny_config("trainer.max_time=12s", "trainer.epochs=1", "trainer.threads=1"), tmp_path / "run")
    assert load(tmp_path / "run" / "checkpoints" / "last.pt")["progress"]["step"] == 7


def test_a_save_after_the_last_step_is_in_the_row(tmp_path, monkeypatch):
    config = tiny_config("trainer.epochs=1", "trainer.checkpoint_every=7", "trainer.threads=1")
    save = Training.save

    def slow(training, is_best=False):
        if not training.progress.rows:
            time.sleep(2)
        save(training, is_best)

    monkeypatch.setattr(Training, "save", slow)
    fit(config, tmp_path / "run")
    (row,) = load(tmp_path / "run" / "checkpoints" / "last.pt")["progress"]["rows"]
    assert row["step"] == 7
    assert row["seconds"] > 2
    assert row["images_per_second"] < 864 / 2


def test_a_plugin_adds_a_model_by_one_file(cli, tmp_path):
    (tmp_path / "mynet.py").write_text(
        "from torch import nn\n"
        "from cifarbench.models.registry import register\n"
        "@register('mynet')\n"
        "class MyNet(nn.Sequential):\n"
        "    def __init__(self, *, width: int = 4) -> None:\n"
        "        super().__init__(nn.Conv2d(3, width, 3), nn.Flatten(), nn.Linear(900 * width, 10))\n"
    )
    common = ["data=synthetic", "data.size=600", "trainer.epochs=1", "trainer.progress=none", "hydra.run.dir=run"]
    result = cli("train", "plugins=[mynet.py]", "model=mynet", "model.width=2", "optim.lr=0.001", *common)
    assert result.code == 0, result.err
    assert manifest_of(tmp_path / "run")["model"]["parameters"] == (27 + 1) * 2 + (1800 + 1) * 10
    assert cli("train", "plugins=[mynet.py]", "model=mynet", "model.widht=2", *common).code == 2


def test_an_edited_plugin_is_another_recipe_and_the_path_to_it_is_none(tmp_path):
    text = (
        "from torch import nn\n"
        "from cifarbench.models.registry import register\n"
        "@register('mine')\n"
        "class Mine(nn.Sequential):\n"
        "    def __init__(self) -> None:\n"
        "        super().__init__(nn.Flatten(), nn.Linear(3072, 10))\n"
    )
    (tmp_path / "mine.py").write_text(text)
    (tmp_path / "moved.py").write_text(text)
    words = ["model=mine", *TINY[:2], *TINY[8:], "trainer.epochs=1", "hydra.run.dir=run"]

    def ended(plugin: str) -> tuple[int | None, str]:
        process = forked("train", f"plugins=[{plugin}]", *words, cwd=tmp_path, log=tmp_path / "log")
        process.join(60)
        return process.exitcode, (tmp_path / "log").read_text()

    assert ended("mine.py")[0] == 0
    code, said = ended("moved.py")
    assert (code, "already complete" in said) == (0, True), said
    (tmp_path / "mine.py").write_text(text + "# edited\n")
    code, said = ended("mine.py")
    assert (code, "`model.sha256`" in said) == (3, True), said
    manifest = runs.read_manifest(tmp_path / "run")
    runs.write_json(tmp_path / "run" / "run.json", manifest | {"status": "interrupted"})
    words[:] = ["trainer.resume=run"]  # with the stored config, whose digest is that of the file before
    code, said = ended("mine.py")
    assert (code, "it was edited since" in said.split("complete")[-1]) == (3, True), said
    code, said = ended("moved.py")
    assert code == 0, said


@pytest.mark.parametrize("text", ["model: 3", "seed: 0", "model: {name: [1], sha256: ''}", "model: {sha256: ''}"])
def test_a_resume_of_a_directory_with_no_config_of_ours_is_refused(cli, tmp_path, text):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text(f"plugins: []\n{text}\n")
    ended = cli("train", "trainer.resume=run")
    assert ended.code == 2, ended.err
    assert "Traceback" not in ended.err
    assert len(ended.err.splitlines()) == 1


def test_a_resume_takes_no_plugin_from_the_directory(cli, tmp_path):
    assert cli("train", *TINY, "trainer.epochs=1", "hydra.run.dir=run").code == 0
    (tmp_path / "evil.py").write_text("from pathlib import Path\nPath('ran').touch()\n")
    path = tmp_path / "run" / "config.yaml"
    path.write_text(path.read_text().replace("plugins: []", "plugins: [evil.py]"))
    runs.write_json(tmp_path / "run" / "run.json", manifest_of(tmp_path / "run") | {"status": "interrupted"})
    ended = cli("train", "trainer.resume=run")
    assert ended.code == 0, ended.err
    assert "plugins: []" in path.read_text()  # which is what further processes are told
    assert not (tmp_path / "ran").exists()


def test_a_directory_name_with_odd_characters_works(cli, tmp_path):
    result = cli("train", *TINY, "trainer.epochs=1", "hydra.run.dir='odd é = name'")
    assert result.code == 0, result.err
    assert cli("eval", "run='odd é = name'").code == 0
    too_long = cli("train", *TINY, f"hydra.run.dir={'x' * 300}")
    assert too_long.code == 2
    assert "Traceback" not in too_long.err


# --- when checkpoints are written ------------------------------------------------------------------------------------


def saved_epochs(folder: Path, monkeypatch: pytest.MonkeyPatch, *words: str) -> list[int]:
    """The epochs after which last.pt was written."""
    epochs = []
    with monkeypatch.context() as patch:

        def noted(state: dict, path: Path) -> None:
            epochs.append(state["progress"]["epoch"])
            save(state, path)

        patch.setattr(checkpoint, "save", noted)
        fit(tiny_config("data.size=600", "trainer.epochs=5", *words), folder)
    assert load(folder / "checkpoints" / "last.pt")["progress"]["epoch"] == 5
    return epochs


def test_checkpoints_come_every_so_many_epochs_and_after_the_last(tmp_path, monkeypatch):
    blind = "trainer.validate_every=0"
    assert saved_epochs(tmp_path / "each", monkeypatch, blind) == [1, 2, 3, 4, 5]
    assert saved_epochs(tmp_path / "second", monkeypatch, blind, "trainer.checkpoint_epochs=2") == [2, 4, 5]
    assert saved_epochs(tmp_path / "last", monkeypatch, blind, "trainer.checkpoint_epochs=0") == [5]


def test_an_epoch_after_which_the_time_runs_out_is_saved(tmp_path, monkeypatch):
    """The limit is looked at before a step, so it may end a run between two epochs."""

    class TwoEpochs(Observer):
        seen = 0

        def epoch(self, row, is_best):
            self.seen += 1

    watch = TwoEpochs()
    monkeypatch.setattr(Clock, "share", lambda clock: float(watch.seen == 2))
    words = ("data.size=600", "trainer.epochs=5", "trainer.validate_every=0", "trainer.checkpoint_epochs=0")
    outcome = fit(tiny_config(*words), tmp_path, observer=watch)
    progress = load(tmp_path / "checkpoints" / "last.pt")["progress"]
    assert (progress["epoch"], progress["ended"], outcome.tested) == (2, "max_time", "last")


def test_the_epoch_that_the_time_ends_is_validated(tmp_path, monkeypatch):
    """Its weights are the last ones, so they are among those that validation chooses from."""

    class Steps(Observer):
        seen = 0

        def step(self, report):
            self.seen = report.step

    watch = Steps()
    monkeypatch.setattr(Clock, "share_after_step", lambda clock: 1.5 if watch.seen >= 8 else 0.5)
    words = ("data.size=600", "trainer.epochs=5", "trainer.validate_every=5", "trainer.max_time=5m")
    fit(tiny_config(*words), tmp_path, observer=watch)
    progress = load(tmp_path / "checkpoints" / "last.pt")["progress"]
    assert (progress["epoch"], progress["step"], progress["ended"]) == (2, 8, "max_time")
    assert [row["val_accuracy"] is None for row in progress["rows"]] == [True, False]


def test_a_signal_during_the_last_save_leaves_the_seal_closed(cli, tmp_path):
    save = Training.save

    def stopped(training, is_best=False):
        save(training, is_best)
        if training.progress.epoch == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    with mock.patch.object(Training, "save", stopped):
        ended = cli("train", *TINY, "hydra.run.dir=run")
    assert (ended.code, "stopped after step 14, saved" in ended.err) == (143, True), ended
    assert manifest_of(tmp_path / "run")["test"]["openings"] == 0
    assert cli("train", "trainer.resume=run").code == 0
    manifest = manifest_of(tmp_path / "run")
    assert (manifest["status"], manifest["test"]["openings"], "reason" in manifest) == ("completed", 1, False)


def test_a_run_that_was_not_tested_can_be_tested_later(cli, tmp_path):
    assert cli("train", *TINY, "trainer.test=false", "hydra.run.dir=run").code == 0
    weights = weights_of(tmp_path / "run")
    assert "already complete" in cli("train", "trainer.resume=run").out
    assert manifest_of(tmp_path / "run")["test"]["openings"] == 0
    before = manifest_of(tmp_path / "run")
    for openings in (1, 1):
        assert cli("train", "trainer.resume=run", "trainer.test=true").code == 0
        manifest = manifest_of(tmp_path / "run")
        assert (manifest["test"]["openings"], 0 <= manifest["test"]["accuracy"] <= 1) == (openings, True)
    assert weights_of(tmp_path / "run") == weights
    assert manifest["timing"]["train"] == before["timing"]["train"] < manifest["timing"]["train_test"]


def test_a_finished_run_that_cannot_be_tested_stays_as_it_was(cli, tmp_path):
    assert cli("train", *TINY, "trainer.test=false", "hydra.run.dir=run").code == 0
    before = manifest_of(tmp_path / "run")
    other = cli("train", *TINY, "optim.lr=0.2", "hydra.run.dir=run")
    assert (other.code, "`optim.lr`" in other.err) == (3, True), other.err
    assert manifest_of(tmp_path / "run") == before
    checkpoint.save({**load(tmp_path / "run/checkpoints/last.pt"), "model": {}}, tmp_path / "run/checkpoints/last.pt")
    assert cli("train", *TINY, "hydra.run.dir=run").code == 3
    assert manifest_of(tmp_path / "run") == before
    (tmp_path / "run/checkpoints/last.pt").unlink()
    gone = cli("train", *TINY, "hydra.run.dir=run")
    assert (gone.code, "last.pt is gone" in gone.err) == (3, True), gone.err
    assert manifest_of(tmp_path / "run") == before


def test_a_directory_that_no_run_began_in_is_tidied_before_others_may_have_it(tmp_path):
    run = runs.RunDirectory(tmp_path / "run")
    run.acquire()
    with mock.patch.object(run, "_lock") as lock:
        lock.release.side_effect = lambda: left.extend(run.path.iterdir())
        left: list[Path] = []
        run.release()
    assert lock.release.call_count == 1
    assert left == []


def test_the_best_epoch_is_saved_whenever_it_comes(tmp_path, monkeypatch):
    epochs = saved_epochs(tmp_path, monkeypatch, "trainer.checkpoint_epochs=0")
    rows = load(tmp_path / "checkpoints" / "last.pt")["progress"]["rows"]
    accuracies = [row["val_accuracy"] for row in rows]
    better = [epoch for epoch in range(1, 6) if accuracies[epoch - 1] > max([-1.0, *accuracies[: epoch - 1]])]
    assert epochs == sorted({*better, 5})
    assert load(tmp_path / "checkpoints" / "best.pt")["progress"]["epoch"] == better[-1]


def test_spans_in_epochs_are_counted_under_a_time_limit_and_shares_follow_the_time(tmp_path, monkeypatch):
    monkeypatch.setattr(Clock, "share", lambda self: 0.6)  # of the time is gone, from the first step on
    words = ["trainer.epochs=6", "trainer.max_time=5m", "scheduler=multistep", "scheduler.warmup=1epoch"]
    words += ["scheduler.milestones=[4epochs,50%]", "scheduler.gamma=0.5"]
    words += ["trainer.sizes=[16,24]", "trainer.size_until=[2epochs,3epochs]"]
    words += ["trainer.ema=0.9", "trainer.ema_start=5epochs"]
    sizes, restarts, step = [], [], Training.step

    def watched(self, positions, lr, share, counted=None):
        sizes.append(self.phases.size(share, counted))
        ended = step(self, positions, lr, share, counted)
        restarts.append(int(self.ema.n_averaged) == 1)
        return ended

    monkeypatch.setattr(Training, "step", watched)
    fit(tiny_config(*words), tmp_path / "run")
    per_epoch = len(sizes) // 6
    rows = load(tmp_path / "run" / "checkpoints" / "last.pt")["progress"]["rows"]
    rates = [row["lr"] / 0.1 for row in rows]
    assert rates == pytest.approx([0.5, 0.5, 0.5, 0.5, 0.25, 0.25])  # 50 % is over, four epochs are not
    assert sizes == [16] * 2 * per_epoch + [24] * per_epoch + [32] * 3 * per_epoch
    assert restarts == [True] * 5 * per_epoch + [False] * per_epoch
