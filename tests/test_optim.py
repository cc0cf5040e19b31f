"""Optimizers: which parameters decay, and steps against the formulas in float64."""

from __future__ import annotations

import copy

import pytest
import torch
from conftest import TINY, manifest_of, rows_of
from processes import python
from torch import nn

from cifarbench.commands.hydra_app import compose
from cifarbench.config.load import load
from cifarbench.config.schema import RECORDED, TrainConfig
from cifarbench.optim.optimizers import build_optimizer, parameter_groups
from cifarbench.training.checkpoint import load as load_checkpoint
from cifarbench.training.replay import Rates


def optim_config(*overrides: str):
    return load(TrainConfig, compose("train", list(overrides))).optim


def small_net() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2))


def test_biases_and_norms_do_not_decay_unless_asked():
    model = small_net()
    weights, small = parameter_groups(model, optim_config("optim=sgd"))
    assert {id(p) for p in weights["params"]} == {id(model[0].weight), id(model[3].weight)}
    assert len(small["params"]) == 4
    assert (weights["weight_decay"], small["weight_decay"]) == (0.0005, 0.0)
    _, small = parameter_groups(model, optim_config("optim=sgd", "optim.decay_norm_bias=true"))
    assert small["weight_decay"] == 0.0005


def sgd(p, grads, lr, decay, momentum=0.9):
    velocity = torch.zeros_like(p)
    for index, grad in enumerate(grads):
        grad = grad + decay * p
        velocity = grad if index == 0 else momentum * velocity + grad
        p = p - lr * (grad + momentum * velocity)
    return p


def adam(p, grads, lr, decay, decoupled, betas=(0.9, 0.999), eps=1e-8):
    mean, square = torch.zeros_like(p), torch.zeros_like(p)
    for step, grad in enumerate(grads, 1):
        if decoupled:
            p = p * (1 - lr * decay)
        else:
            grad = grad + decay * p
        mean, square = betas[0] * mean + (1 - betas[0]) * grad, betas[1] * square + (1 - betas[1]) * grad**2
        p = p - lr * (mean / (1 - betas[0] ** step)) / ((square / (1 - betas[1] ** step)).sqrt() + eps)
    return p


def rmsprop(p, grads, lr, decay, alpha=0.99, momentum=0.9, eps=1e-8):
    square, velocity = torch.zeros_like(p), torch.zeros_like(p)
    for grad in grads:
        grad = grad + decay * p
        square = alpha * square + (1 - alpha) * grad**2
        velocity = momentum * velocity + grad / (square.sqrt() + eps)
        p = p - lr * velocity
    return p


@pytest.mark.parametrize(
    ("name", "formula"),
    [
        ("sgd", lambda p, g: sgd(p, g, 0.01, 0.1)),
        ("adam", lambda p, g: adam(p, g, 0.01, 0.1, False)),
        ("adamw", lambda p, g: adam(p, g, 0.01, 0.1, True)),
        ("rmsprop", lambda p, g: rmsprop(p, g, 0.01, 0.1)),
    ],
)
def test_steps_follow_the_papers(name, formula):
    torch.manual_seed(0)
    layer = nn.Linear(5, 4, bias=False)
    config = optim_config(f"optim={name}", "optim.lr=0.01", "optim.weight_decay=0.1")
    optimizer = build_optimizer(layer, config, torch.device("cpu"))
    grads = [torch.randn(4, 5) for _ in range(6)]
    expected = formula(layer.weight.detach().double(), [grad.double() for grad in grads])
    for grad in grads:
        layer.weight.grad = grad.clone()
        optimizer.step()
    torch.testing.assert_close(layer.weight.detach().double(), expected, rtol=1e-4, atol=1e-6)


COMPILER_LEFT_OUT = """
import sys, torch
from torch import nn
from cifarbench.cli import main
from cifarbench.commands.hydra_app import compose
from cifarbench.config.load import load
from cifarbench.config.schema import TrainConfig
from cifarbench.optim.optimizers import build_optimizer

for name in ("sgd", "adam", "adamw", "rmsprop", "muon"):
    config = load(TrainConfig, compose("train", [f"optim={name}"])).optim
    model = nn.Linear(4, 2)
    before = model.weight.detach().clone()
    optimizer = build_optimizer(model, config, torch.device("cpu"))
    model(torch.ones(3, 4)).sum().backward()
    optimizer.step()
    optimizer.zero_grad()
    optimizer.load_state_dict(optimizer.state_dict())
    assert not torch.equal(model.weight, before) and model.weight.grad is None, name
    assert type(optimizer).__name__.lower() == name
assert main(sys.argv[1:]) == 0
print([name for name in sys.modules if name.startswith(("torch._dynamo", "torch._inductor"))])
"""


def test_a_run_that_compiles_nothing_does_not_load_the_compiler(tmp_path):
    ended = python("-c", COMPILER_LEFT_OUT, "train", *TINY, "trainer.epochs=1", cwd=tmp_path)
    assert ended.code == 0, ended.err
    assert ended.out.splitlines()[-1] == "[]"


@pytest.mark.parametrize("name", RECORDED)
def test_steps_that_take_their_rate_from_the_device_are_those_of_the_schedule(name):
    generator = torch.Generator().manual_seed(1)
    l1 = [] if name == "muon" else ["optim.l1=0.3"]
    config = optim_config(f"optim={name}", "optim.weight_decay=0.01", *l1)
    ours = small_net()
    theirs = copy.deepcopy(ours)
    optimizers = [build_optimizer(net, config, torch.device("cpu")) for net in (ours, theirs)]
    rates = Rates(optimizers[0], torch.device("cpu"))
    for scale in (0.3, 1.0, 0.6, 0.2):
        for pair in zip(ours.parameters(), theirs.parameters(), strict=True):
            gradient = torch.randn(pair[0].shape, generator=generator)
            pair[0].grad, pair[1].grad = gradient, gradient.clone()
        for group in optimizers[1].param_groups:
            group["lr"] = group["initial_lr"] * scale
        rates.set(scale)
        with rates.lent():
            optimizers[0].step()
        optimizers[1].step()
    for pair in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(*pair)


@pytest.mark.parametrize("name", RECORDED)
def test_a_run_of_whole_steps_learns_and_saves_its_rates_as_numbers(cli, tmp_path, name):
    without_optimizer = [*TINY[:6], *TINY[8:]]
    words = [*without_optimizer, f"optim={name}", "scheduler=onecycle"]
    for run, whole in (("whole", True), ("parts", False)):  # on a CPU, which does what would be recorded
        ended = cli("train", *words, f"trainer.cuda_graphs={whole}", f"hydra.run.dir={run}")
        assert ended.code == 0, ended.err
    saved = [load_checkpoint(tmp_path / run / "checkpoints/last.pt")["optimizer"] for run in ("whole", "parts")]
    assert saved[0]["param_groups"] == saved[1]["param_groups"]
    first, last = (rows_of(tmp_path / "whole")[index]["train_loss"] for index in (0, -1))
    assert last < first
    assert first == pytest.approx(rows_of(tmp_path / "parts")[0]["train_loss"], rel=0.02)


def test_rates_on_the_device_follow_the_peaks_of_a_loaded_state_and_are_lent_for_a_step():
    layer = nn.Linear(3, 2)
    optimizer = build_optimizer(layer, optim_config("optim=adamw", "optim.lr=0.5"), torch.device("cpu"))
    rates = Rates(optimizer, torch.device("cpu"))
    optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))  # as a run that goes on does
    for group, peak in zip(optimizer.param_groups, (0.5, 0.25), strict=True):
        group["initial_lr"] = peak
        group["lr"] = 7.0
    rates.set(0.1)
    with rates.lent():
        assert [float(group["lr"]) for group in optimizer.param_groups] == pytest.approx([0.05, 0.025])
        assert all(isinstance(group["lr"], torch.Tensor) for group in optimizer.param_groups)
        assert all(group["capturable"] for group in optimizer.param_groups)
    assert [(group["lr"], group["capturable"]) for group in optimizer.param_groups] == [(7.0, False)] * 2


PLAIN = ("sgd", "adam", "adamw", "rmsprop")


def soft(values, threshold):
    """Soft thresholding by its definition."""
    return values.sign() * (values.abs() - threshold).clamp(min=0)


@pytest.mark.parametrize("name", PLAIN)
def test_an_l1_penalty_moves_weights_towards_0_after_the_step_and_leaves_biases_and_norms(name):
    torch.manual_seed(0)
    penalised = small_net()
    plain = copy.deepcopy(penalised)
    words = [f"optim={name}", "optim.lr=0.5", "optim.weight_decay=0.01"]
    optimizers = [
        build_optimizer(net, optim_config(*words, f"optim.l1={l1}"), torch.device("cpu"))
        for net, l1 in ((penalised, 0.01), (plain, 0.0))
    ]
    for pair in zip(penalised.parameters(), plain.parameters(), strict=True):
        gradient = 1e-3 * torch.randn(pair[0].shape)
        pair[0].grad, pair[1].grad = gradient, gradient.clone()
    for optimizer in optimizers:
        optimizer.step()
    for ours, theirs in zip(penalised.parameters(), plain.parameters(), strict=True):
        most = 0.5 * 0.01 / (0.1 if name in ("sgd", "rmsprop") else 1.0)  # a momentum of 0.9 adds up to ten times
        expected = soft(theirs.detach().double(), most) if ours.ndim >= 2 else theirs.detach().double()
        torch.testing.assert_close(ours.detach().double(), expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_an_l1_penalty_finds_the_minimum_that_is_known_with_zeros_that_are_exact(momentum):
    """The lasso of an orthogonal design: ½‖w − a‖² + λ‖w‖₁ is least at a, soft-thresholded by λ (Tibshirani, 1996)."""
    torch.manual_seed(0)
    goal = torch.randn(6, 8)
    layer = nn.Linear(8, 6, bias=False)
    nesterov = [f"optim.nesterov={momentum > 0}", f"optim.momentum={momentum}"]
    config = optim_config("optim=sgd", *nesterov, "optim.lr=0.02", "optim.weight_decay=0", "optim.l1=0.6")
    optimizer = build_optimizer(layer, config, torch.device("cpu"))
    for _ in range(1000):
        optimizer.zero_grad()
        (0.5 * (layer.weight - goal).square().sum()).backward()
        optimizer.step()
    expected = soft(goal, 0.6)
    torch.testing.assert_close(layer.weight.detach(), expected, rtol=0, atol=1e-5)
    assert torch.equal(layer.weight == 0, expected == 0)
    assert 0 < int((expected == 0).sum()) < expected.numel()


def test_a_run_with_an_l1_penalty_says_how_many_parameters_are_0_and_one_without_is_as_it_was(cli, tmp_path):
    for run, words in (("sparse", ["optim.l1=0.01"]), ("dense", [])):
        ended = cli("train", *TINY, "trainer.tensorboard=false", *words, f"hydra.run.dir={run}")
        assert ended.code == 0, ended.err
        state = load_checkpoint(tmp_path / run / "checkpoints/best.pt")["model"]
        weights = [value for name, value in state.items() if not name.endswith(("mean", "var", "tracked"))]
        zeros = sum(int((value == 0).sum()) for value in weights if value.is_floating_point())
        model = manifest_of(tmp_path / run)["model"]
        assert model["zeros"] == zeros
        assert (f"{zeros:,} of {model['parameters']:,} parameters are 0" in ended.out) == (run == "sparse")
        assert cli("report", run).code == 0
        assert (f"of them {zeros:,} are 0" in (tmp_path / run / "report.html").read_text()) == (run == "sparse")
    assert manifest_of(tmp_path / "sparse")["model"]["zeros"] > 100
    assert manifest_of(tmp_path / "dense")["model"]["zeros"] == 0
    averaged = cli("train", *TINY, "trainer.tensorboard=false", "optim.l1=0.01", "trainer.ema=0.99").out
    assert "what is tested are averages (trainer.ema), of which hardly any is 0" in " ".join(averaged.split())


@pytest.mark.parametrize("name", PLAIN)
def test_where_fp16_gradients_overflow_the_penalty_waits_as_the_step_does(name):
    layer = nn.Linear(3, 2)
    before = copy.deepcopy(layer.state_dict())
    optimizer = build_optimizer(layer, optim_config(f"optim={name}", "optim.l1=0.1"), torch.device("cpu"))
    scaler = torch.amp.GradScaler("cpu", enabled=True)
    for gradient in (float("inf"), 1.0):
        scaler.scale((layer.weight.sum() + layer.bias.sum()) * gradient).backward()
        scaler.unscale_(optimizer)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        assert torch.equal(layer.weight, before["weight"]) == (gradient != 1.0)


def test_muon_has_no_l1_penalty(cli):
    ended = cli("train", "optim=muon", "optim.l1=0.01")
    assert ended.code == 2
    assert "optim.l1" in ended.err
