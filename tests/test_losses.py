"""What training minimises: each loss against its formula, and what a run says of it."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from conftest import TINY, manifest_of, rows_of
from sklearn.metrics import log_loss

from cifarbench.training.losses import loss_sum

STILL = [*TINY, "trainer.epochs=1", "trainer.tensorboard=false", "optim.lr=1e-12", "optim.weight_decay=0",
         "scheduler=constant", "augment=none"]  # fmt: skip


def by_hand(logits: np.ndarray, shares: np.ndarray, name: str) -> float:
    """The sum of the images' losses in float64; `shares` are the targets, (N, K)."""
    powers = np.exp(logits - logits.max(1, keepdims=True))
    probabilities = powers / powers.sum(1, keepdims=True)
    if name == "cross_entropy":
        return -(shares * np.log(probabilities)).sum()
    distance = np.abs(probabilities - shares)
    return (distance**2 if name == "mse" else distance).mean(1).sum()


@pytest.mark.parametrize("name", ["cross_entropy", "mse", "mae"])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("mixed", [False, True])
def test_a_loss_is_its_formula_in_float64(name, smoothing, mixed):
    generator = torch.Generator().manual_seed(3)
    logits = 3 * torch.randn(7, 10, generator=generator)
    classes = torch.randint(10, (7,), generator=generator)
    shares = np.eye(10)[classes.numpy()]
    targets = classes
    if mixed:
        shares = 0.7 * shares + 0.3 * np.roll(shares, 1, axis=0)
        targets = torch.from_numpy(shares).float()
    wanted = (1 - smoothing) * shares + smoothing / 10
    found = loss_sum(logits, targets, name, smoothing)
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(by_hand(logits.double().numpy(), wanted, name), rel=1e-5)


def test_cross_entropy_is_that_of_scikit_learn():
    logits = torch.randn(50, 10, generator=torch.Generator().manual_seed(1))
    targets = torch.arange(50) % 10
    expected = log_loss(targets, logits.double().softmax(1), normalize=False)
    assert loss_sum(logits, targets, "cross_entropy", 0.0).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("name", ["mse", "mae"])
def test_the_gradient_is_that_of_finite_differences(name):
    logits = torch.randn(4, 10, dtype=torch.float64, generator=torch.Generator().manual_seed(2), requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: loss_sum(x, torch.tensor([0, 3, 3, 9]), name, 0.1), logits)


@pytest.mark.parametrize(
    ("name", "untrained"),
    [("cross_entropy", math.log(10)), ("mse", (0.9**2 + 9 * 0.1**2) / 10), ("mae", (0.9 + 9 * 0.1) / 10)],
)
def test_an_untrained_run_has_the_loss_of_ten_equal_guesses_and_validates_in_nats(cli, tmp_path, name, untrained):
    ended = cli("train", *STILL, f"trainer.loss={name}", "hydra.run.dir=run")
    assert ended.code == 0, ended.err
    (row,) = rows_of(tmp_path / "run")
    assert row["train_loss"] == pytest.approx(untrained, rel=0.15)
    assert row["val_loss"] == pytest.approx(math.log(10), rel=0.15)
    assert manifest_of(tmp_path / "run")["test"]["loss"] == pytest.approx(math.log(10), rel=0.15)
    assert (f"{name} loss" in ended.out) == (name != "cross_entropy")


@pytest.mark.parametrize("words", [["trainer.loss=mse"], ["trainer.loss=mae"], ["trainer.loss=mse", "augment=mixup"]])
def test_a_batch_is_learned_by_each_loss(cli, tmp_path, words):
    one = ["trainer.overfit_batch=true", "trainer.batch_size=32", "trainer.epochs=4", "augment=none", *words]
    ended = cli("train", *TINY, *one, "trainer.tensorboard=false", "optim=adamw", "optim.lr=0.02", "hydra.run.dir=run")
    assert ended.code == 0, ended.err
    rows = rows_of(tmp_path / "run")
    assert rows[-1]["train_loss"] < 0.7 * rows[0]["train_loss"]
    assert rows[-1]["train_accuracy"] > 0.5


def test_the_page_draws_losses_that_are_not_alike_apart(cli, tmp_path):
    for name in ("mse", "cross_entropy"):
        assert cli("train", *TINY, f"trainer.loss={name}", f"hydra.run.dir={name}").code == 0
        assert cli("report", name).code == 0
    pages = {name: (tmp_path / name / "report.html").read_text() for name in ("mse", "cross_entropy")}
    assert "Training loss, mse" in pages["mse"]
    assert "Training loss" not in pages["cross_entropy"]
    assert cli("report", "mse", "cross_entropy", "out=both.html").code == 0
    assert "Training loss" not in (tmp_path / "both.html").read_text()
    assert cli("train", *TINY, "trainer.loss=mse", "seed=1", "hydra.run.dir=second").code == 0
    assert cli("report", "mse", "second", "out=alike.html").code == 0
    assert "Training loss" in (tmp_path / "alike.html").read_text()


def test_a_loss_that_is_none_is_refused_with_those_that_are(cli):
    ended = cli("train", *TINY, "trainer.loss=mea")
    assert ended.code == 2
    assert "`trainer.loss`" in ended.err
    assert "cross_entropy, mse, mae" in ended.err


def test_sanity_learns_by_the_loss_of_the_config_and_tells_it_in_nats(cli):
    ended = cli("sanity", *TINY[:-3], "data.size=600", "optim=adamw", "optim.lr=0.02", "trainer.loss=mse", "steps=200",
                "images=20")  # fmt: skip
    assert ended.code == 0, ended.out + ended.err


def test_bench_times_the_loss_of_the_config(cli, tmp_path):
    words = ["bench.steps=1", "bench.rounds=1", "hydra.run.dir=bench"]
    ended = cli("bench", *TINY[:-3], "trainer.loss=mse", *words)
    assert ended.code == 0, ended.err
