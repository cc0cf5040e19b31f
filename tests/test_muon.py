"""Muon: the orthogonalisation against an SVD in float64, its steps against formulas, and its groups."""

from __future__ import annotations

import math

import pytest
import torch
from test_optim import optim_config, small_net
from torch import nn

from cifarbench.optim import muon
from cifarbench.optim.muon import Muon, orthogonalise
from cifarbench.optim.optimizers import build_optimizer, muon_groups


def lifted(values, steps):
    """What Newton-Schulz does to singular values, one by one."""
    for _ in range(steps):
        values = 3.4445 * values - 4.7750 * values**3 + 2.0315 * values**5
    return values


def matrices(count, rows, columns, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, rows, columns, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("shape", [(1, 5, 5), (3, 4, 9), (2, 12, 3), (2, 1, 7)])
@pytest.mark.parametrize("steps", [1, 3, 5])
def test_newton_schulz_moves_the_singular_values_and_keeps_the_vectors(shape, steps):
    given = matrices(*shape)
    left, values, right = torch.linalg.svd(given, full_matrices=False)
    norm = values.square().sum(-1, keepdim=True).sqrt()
    expected = left @ torch.diag_embed(lifted(values / norm, steps)) @ right
    torch.testing.assert_close(orthogonalise(given, steps, torch.float64), expected, rtol=1e-5, atol=1e-6)


def test_five_steps_bring_the_singular_values_of_a_random_matrix_near_one():
    values = torch.linalg.svdvals(orthogonalise(matrices(4, 16, 64), 5).double())
    assert 0.6 < values.min() < values.max() < 1.3


def test_the_scale_of_a_gradient_does_not_matter_and_zero_stays_zero():
    given = matrices(1, 6, 9).float()
    torch.testing.assert_close(orthogonalise(given * 1e4, 3), orthogonalise(given, 3), rtol=1e-4, atol=1e-5)
    assert not orthogonalise(torch.zeros(1, 3, 4), 3).any()


def test_bfloat16_products_are_close():
    given = matrices(2, 32, 288).float()
    exact, rough = orthogonalise(given, 3), orthogonalise(given, 3, torch.bfloat16).float()
    assert (rough - exact).norm() / exact.norm() < 0.03


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("decay", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("steps", [3, 5])
def test_bfloat16_products_are_close_whatever_the_spectrum(count, decay, steps):
    left, _, right = torch.linalg.svd(matrices(count, 64, 576), full_matrices=False)
    values = torch.arange(1, 65, dtype=torch.float64) ** -decay
    given = (left * values) @ right
    exact = orthogonalise(given, steps, torch.float64)
    rough = orthogonalise(given.float(), steps, torch.bfloat16).double()
    assert (rough - exact).norm() / exact.norm() < 0.06


def test_matrices_of_any_shapes_go_through_the_iteration_together():
    shapes = [(4, 9), (4, 9), (6, 6), (12, 5), (1, 14)]
    given = [matrices(1, *shape, seed=index)[0] for index, shape in enumerate(shapes)]
    together = muon._orthogonalised(given, 4, torch.float64)
    for matrix, turned in zip(given, together, strict=True):
        alone = orthogonalise(matrix[None], 4, torch.float64)[0]
        torch.testing.assert_close(turned, alone, rtol=1e-9, atol=1e-9)


def test_matrices_are_stacked_by_shape_or_where_few_zeros_fill_them_up_together():
    near = [torch.Size(shape) for shape in ((64, 576), (256, 2304), (64, 576), (2304, 256), (256, 2304))]
    assert muon._stacks(near, together=False) == [[0, 2], [1, 4], [3]]
    assert muon._stacks(near, together=True) == [[0, 1, 2, 3, 4]]
    far = [torch.Size(shape) for shape in ((8, 8), (8, 8), (8, 8), (512, 4608))]
    assert muon._stacks(far, together=True) == [[0, 1, 2], [3]]


def reference(weights, gradients, lr, momentum, steps, rescale):
    """Muon on one matrix in float64, by SVD."""
    buffer = torch.zeros_like(weights)
    for gradient in gradients:
        buffer = momentum * buffer + gradient
        left, values, right = torch.linalg.svd(gradient + momentum * buffer, full_matrices=False)
        update = left @ torch.diag(lifted(values / values.norm(), steps)) @ right
        if rescale:
            weights = weights * math.sqrt(len(weights)) / weights.norm()
        weights = weights - lr * max(1, len(weights) / weights.shape[1]) ** 0.5 * update
    return weights


def rate_on_the_device(optimizer: Muon) -> None:
    """Let the steps take their rate as recorded ones do."""
    for group in optimizer.param_groups:
        group["lr"] = torch.tensor(group["lr"], dtype=group["params"][0].dtype)


@pytest.mark.parametrize("recorded", [True, False])
@pytest.mark.parametrize("together", [True, False])
@pytest.mark.parametrize("rescale", [True, False])
@pytest.mark.parametrize("shape", [(4, 3, 3, 3), (16, 2, 1, 1), (5, 7)])
def test_steps_follow_the_formula(shape, rescale, together, recorded, monkeypatch):
    generator = torch.Generator().manual_seed(1)
    weights = torch.randn(shape, generator=generator, dtype=torch.float64)
    gradients = [torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(3)]
    parameter = nn.Parameter(weights.clone())
    twin = nn.Parameter(weights.clone())  # of the same shape: goes through the iteration in the same stack
    other = nn.Parameter(torch.ones(20, 12, dtype=torch.float64))  # in the same stack with zeros around the others
    stacks = muon._stacks
    monkeypatch.setattr(muon, "_stacks", lambda shapes, **_: stacks(shapes, together))
    monkeypatch.setattr(muon, "_FILLED", 100)
    optimizer = Muon([{"params": [parameter, twin, other]}], 0.1, momentum=0.6, rescale=rescale, dtype=torch.float64)
    if recorded:
        rate_on_the_device(optimizer)
    for gradient in gradients:
        parameter.grad, twin.grad, other.grad = gradient, -gradient, other.detach().clone()
        optimizer.step()
    rows = [tensor.flatten(1) for tensor in (weights, *gradients)]
    expected = reference(rows[0], rows[1:], 0.1, 0.6, 3, rescale)
    torch.testing.assert_close(parameter.detach().flatten(1), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("recorded", [True, False])
def test_the_other_groups_step_as_torch_sgd_does(recorded):
    generator = torch.Generator().manual_seed(2)
    start = torch.randn(6, generator=generator)
    ours, theirs = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    options = {"lr": 0.05, "momentum": 0.85, "weight_decay": 0.01}
    muon = Muon([{"params": [ours], "orthogonal": False, **options}], 1.0, momentum=0.1)
    sgd = torch.optim.SGD([theirs], nesterov=True, **options)
    if recorded:
        rate_on_the_device(muon)
    for _ in range(4):
        ours.grad = torch.randn(6, generator=generator)
        theirs.grad = ours.grad.clone()
        muon.step()
        sgd.step()
    torch.testing.assert_close(ours, theirs)


def test_convolutions_are_matrices_the_last_layer_and_the_biases_are_not():
    model = nn.Sequential(*small_net(), nn.Linear(2, 3))
    config = optim_config("optim=muon", "optim.weight_decay=0.01", "optim.bias_lr=0.5", "optim.head_lr=0.1")
    matrices, small, head = muon_groups(model, config)
    assert {id(p) for p in matrices["params"]} == {id(model[0].weight), id(model[3].weight)}
    assert [id(p) for p in head["params"]] == [id(model[4].weight)]
    assert len(small["params"]) == 5
    assert (matrices["orthogonal"], small["orthogonal"], head["orthogonal"]) == (True, False, False)
    # A step takes off lr times weight_decay, which is the share asked for.
    assert small["weight_decay"] * small["lr"] == pytest.approx(0.01)
    assert head["weight_decay"] * head["lr"] == pytest.approx(0.01)


@pytest.mark.parametrize("inputs", [64, 512, 7200])
def test_the_default_rate_converges_however_wide_the_last_layer_is(inputs):
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(512, inputs, generator=generator).relu()
    labels = torch.randint(10, (512,), generator=generator)
    model = nn.Sequential(nn.Linear(inputs, 10))
    optimizer = build_optimizer(model, optim_config("optim=muon"), torch.device("cpu"))
    losses = []
    for _ in range(40):
        loss = nn.functional.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert max(losses) == losses[0]


def test_frozen_weights_are_in_no_group():
    model = small_net()
    model[0].weight.requires_grad_(False)
    groups = muon_groups(model, optim_config("optim=muon"))
    assert id(model[0].weight) not in {id(p) for group in groups for p in group["params"]}


def test_every_group_keeps_its_own_peak_rate():
    optimizer = build_optimizer(small_net(), optim_config("optim=muon", "optim.bias_lr=7"), torch.device("cpu"))
    assert [group["initial_lr"] for group in optimizer.param_groups] == [
        optim_config("optim=muon").lr,
        7.0,
        optim_config("optim=muon").head_lr,
    ]


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
def test_a_state_in_another_memory_layout_is_gone_on_with(layout):
    generator = torch.Generator().manual_seed(3)
    start, *gradients = torch.randn(3, 8, 4, 3, 3, generator=generator)
    parameters = [nn.Parameter(start.clone().contiguous(memory_format=layout)) for _ in range(2)]
    optimizers = [Muon([{"params": [parameter]}], 0.1, momentum=0.6) for parameter in parameters]
    for step, gradient in enumerate(gradients):
        for parameter, optimizer in zip(parameters, optimizers, strict=True):
            parameter.grad = gradient.clone()
            optimizer.step()
        if not step:
            state = optimizers[0].state_dict()
            momentum = state["state"][0]["momentum_buffer"].clone()
            state["state"][0]["momentum_buffer"] = momentum.permute(1, 0, 2, 3).contiguous().permute(1, 0, 2, 3)
            optimizers[0].load_state_dict(state)
    assert torch.equal(*parameters)
    buffer = optimizers[0].state[parameters[0]]["momentum_buffer"]
    assert buffer.stride() == parameters[0].stride(), "as the kernels want it"
    assert torch.equal(buffer, optimizers[1].state[parameters[1]]["momentum_buffer"])
