"""Our own operations against torch's in float64, and what a model and a run are with them."""

from __future__ import annotations

import copy
import json
import os
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from conftest import TINY, manifest_of, rows_of
from hypothesis import given, settings
from hypothesis import strategies as st
from processes import shell
from torch import nn

from cifarbench.kernels import convolution, functions, modules
from cifarbench.kernels.library import load
from cifarbench.kernels.modules import use_kernels
from cifarbench.models.efficientnet_lite import EfficientNetLite
from cifarbench.models.layer_table import layer_table
from cifarbench.models.layers import Branch
from cifarbench.models.resnet import ResNet
from cifarbench.models.speednet import SpeedNet

needs_compiler = pytest.mark.skipif(load(False) is None, reason="needs Linux and a C compiler with OpenMP")
needs_amx = pytest.mark.skipif(
    load(True) is None or not load(True).has_tiles(), reason="needs a CPU with AMX, and a C compiler"
)
CPU = torch.device("cpu")
ACTS = {"identity": lambda z: z, "relu": F.relu, "gelu": F.gelu, "silu": F.silu}
SHAPES = [(4, 16, 6, 6), (3, 5, 7, 4), (1, 33, 2, 9), (40, 64, 1, 1), (2, 3, 31, 31)]
RUN = [
    *TINY,
    "trainer.precision=fp32",
    "trainer.threads=1",
    "trainer.tensorboard=false",
    "trainer.test=false",
    "hydra.run.dir=run",
]


def drawn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Normal numbers about 1, channels last."""
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(shape, generator=generator) + 1).to(dtype).contiguous(memory_format=torch.channels_last)


def of_torch(act: str, grad: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, *added):
    """act(batch norm(x) + added) and the gradients of x, weight, bias and what was added."""
    inputs = [tensor.clone().requires_grad_() for tensor in (x, weight, bias, *added)]
    z = F.batch_norm(inputs[0], None, None, inputs[1], inputs[2], training=True, eps=1e-5)
    y = ACTS[act](sum(inputs[3:], z))
    return y.detach(), *torch.autograd.grad(y, inputs, grad)


def in_float64(act: str, *tensors: torch.Tensor):
    """The same in float64."""
    return of_torch(act, *(tensor.double() for tensor in tensors))


def of_kernels(act: str, grad: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, *added):
    """The same by our operation, in the dtype of x."""
    inputs = [tensor.clone().requires_grad_() for tensor in (x, weight, bias, *added)]
    y = functions.NormActivation.apply(*inputs[:3], 1e-5, act, *inputs[3:])[0]
    return y.detach(), *torch.autograd.grad(y, inputs, grad)


def distance(found: torch.Tensor, true: torch.Tensor) -> float:
    """The norm of the difference as a share of the true norm."""
    return float((found.double() - true).norm() / true.norm().clamp_min(1e-12))


@needs_compiler
@pytest.mark.parametrize("adds", [False, True], ids=["", "shortcut"])
@pytest.mark.parametrize("act", ACTS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_norm_and_activation_in_fp32_are_those_of_float64(shape, act, adds):
    tensors = [drawn(*shape, seed=1), drawn(*shape), torch.linspace(-1, 2, shape[1]), torch.linspace(-2, 1, shape[1])]
    tensors += [drawn(*shape, seed=2)] if adds else []
    for found, true in zip(of_kernels(act, *tensors), in_float64(act, *tensors), strict=True):
        assert distance(found, true) < 1e-5


@needs_compiler
@pytest.mark.parametrize("adds", [False, True], ids=["", "shortcut"])
@pytest.mark.parametrize("act", ACTS)
def test_norm_and_activation_in_bf16_are_as_near_to_float64_as_torch_is(act, adds):
    x, grad, shortcut = (drawn(8, 24, 9, 9, seed=seed, dtype=torch.bfloat16) for seed in range(3))
    tensors = [grad, x, torch.linspace(-1, 2, 24), torch.linspace(-2, 1, 24), *([shortcut] if adds else [])]
    true, by_torch, ours = in_float64(act, *tensors), of_torch(act, *tensors), of_kernels(act, *tensors)
    assert distance(ours[0], true[0]) < 1.02 * distance(by_torch[0], true[0])
    # The derivative of the activation is stored in bf16, which is one rounding more; so is the shortcut's gradient.
    assert distance(ours[1], true[1]) < (1.5 if adds else 1.3) * distance(by_torch[1], true[1])
    assert max(distance(found, exact) for found, exact in zip(ours[2:4], true[2:4], strict=True)) < 1e-3
    if adds:
        assert distance(ours[4], true[4]) <= 1.5 * distance(by_torch[4], true[4])


@needs_compiler
def test_statistics_hold_where_the_mean_is_large_beside_the_spread():
    x = (drawn(16, 8, 8, 8) * 1e-2 + 100).requires_grad_()
    y, mean, var = functions.NormActivation.apply(x, torch.ones(8), torch.zeros(8), 1e-12, "identity")
    exact = x.detach().double()
    torch.testing.assert_close(mean.double(), exact.mean((0, 2, 3)), rtol=1e-6, atol=0)
    torch.testing.assert_close(var.double(), exact.var((0, 2, 3), correction=0), rtol=1e-3, atol=0)
    assert abs(float(y.detach().std()) - 1) < 1e-2


@needs_compiler
@pytest.mark.parametrize("act", ["gelu", "silu"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_activation_alone_is_that_of_float64_far_out_too(act, dtype):
    x = torch.cat([torch.linspace(-12, 12, 999), torch.tensor([-1e4, 1e4, 0.0])]).to(dtype)
    x = x.view(1, 2, 3, 167).contiguous(memory_format=torch.channels_last).requires_grad_()
    y = functions.Activation.apply(x, act)
    (slope,) = torch.autograd.grad(y.sum(), x)
    z = x.detach().double().requires_grad_()
    exact = ACTS[act](z)
    (steep,) = torch.autograd.grad(exact.sum(), z)
    rtol, atol = (1e-6, 5e-7) if dtype == torch.float32 else (2**-8, 5e-7)
    torch.testing.assert_close(y.double(), exact, rtol=rtol, atol=atol)
    torch.testing.assert_close(slope.double(), steep, rtol=rtol, atol=2 * atol)


@needs_compiler
@pytest.mark.parametrize("act", ACTS)
def test_what_is_no_number_stays_none(act):
    x = drawn(2, 4, 3, 3)
    x[0, 1, 2, 2] = float("nan")
    y = functions.NormActivation.apply(x, torch.ones(4), torch.zeros(4), 1e-5, act)[0]
    assert y[:, 1].isnan().all()
    assert y[:, [0, 2, 3]].isfinite().all()


@needs_compiler
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("keep_edge", [False, True], ids=["", "edge"])
@pytest.mark.parametrize("size", [(8, 8), (7, 5), (31, 31), (2, 3), (3, 2)], ids=str)
def test_pooling_is_torchs_to_the_bit_with_equal_numbers_and_odd_sides(size, keep_edge, dtype):
    x = torch.randint(-3, 4, (3, 20, *size), generator=torch.Generator().manual_seed(0)).to(dtype)
    x[0, 0, 0, 0] = x[1, 1, -1, -1] = float("nan")
    ours, theirs = (x.clone(memory_format=torch.channels_last).requires_grad_() for _ in range(2))
    y, expected = functions.MaxPool.apply(ours, keep_edge), F.max_pool2d(theirs, 2, ceil_mode=keep_edge)
    grad = drawn(*y.shape, dtype=dtype)
    y.backward(grad)
    expected.backward(grad)
    torch.testing.assert_close(y, expected, rtol=0, atol=0, equal_nan=True)
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=0, atol=0)


@needs_amx
@settings(max_examples=40, deadline=None)
@given(
    images=st.integers(1, 70),
    height=st.integers(1, 12),
    width=st.integers(1, 34),
    inputs=st.integers(16, 70),
    outputs=st.sampled_from([32, 64, 96]),
    threads=st.integers(1, 3),
)
def test_weight_gradients_are_those_of_float64_whatever_the_shape(images, height, width, inputs, outputs, threads):
    x = drawn(images, inputs, height, width, dtype=torch.bfloat16)
    grad = drawn(images, outputs, height, width, seed=1, dtype=torch.bfloat16)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        found, again = convolution.weight_gradient(grad, x), convolution.weight_gradient(grad, x)
    finally:
        torch.set_num_threads(before)
    weight = torch.zeros(outputs, inputs, 3, 3, dtype=torch.float64)
    exact = nn.grad.conv2d_weight(x.double(), weight.shape, grad.double(), padding=1)
    assert distance(found, exact) < 1e-5
    assert torch.equal(found, again)


@needs_amx
def test_a_convolution_with_a_bias_has_the_gradients_of_float64():
    x, grad = drawn(5, 24, 7, 7, dtype=torch.bfloat16), drawn(5, 32, 7, 7, seed=1, dtype=torch.bfloat16)
    weight, bias = drawn(32, 24, 3, 3, seed=2) / 16, torch.linspace(-1, 1, 32)
    inputs = [tensor.clone().requires_grad_() for tensor in (x, weight, bias)]
    y = convolution.Convolution.apply(*inputs)
    # Products are of weights in bf16, as autocast rounds them.
    exact = [tensor.bfloat16().double().requires_grad_() for tensor in (x, weight, bias)]
    true = F.conv2d(*exact, padding=1)
    assert distance(y.detach(), true.detach()) < 3e-3
    found, expected = torch.autograd.grad(y, inputs, grad), torch.autograd.grad(true, exact, grad.double())
    for ours, theirs, most in zip(found, expected, (3e-3, 1e-5, 1e-5), strict=True):
        assert distance(ours, theirs) < most


@settings(max_examples=40, deadline=None)
@given(images=st.integers(1, 40), height=st.integers(1, 7), width=st.integers(1, 7), together=st.integers(2, 16))
def test_images_side_by_side_have_the_convolution_of_each(images, height, width, together):
    x, weight = drawn(images, 5, height, width).double(), drawn(6, 5, 3, 3).double()
    wide = F.conv2d(convolution.side_by_side(x, together), weight, padding=1)
    assert wide.shape == (-(-images // together), 6, height, together * (width + 1))
    found = convolution.apart(wide, images, width)
    torch.testing.assert_close(found, F.conv2d(x, weight, padding=1), rtol=1e-12, atol=1e-12)


FEW = [
    nn.Conv2d(3, 32, 3, padding=1, bias=False),
    nn.Conv2d(3, 24, 2),
    nn.Conv2d(8, 5, (3, 1), stride=(2, 1), padding=(0, 2), dilation=(1, 2)),
]


def library_of(amx: int, vectors: int) -> SimpleNamespace:
    """What a compiled library says of its CPU."""
    return SimpleNamespace(has_tiles=lambda: amx, has_winograd=lambda: vectors)


AMX, NO_AMX, NEITHER = library_of(1, 1), library_of(0, 1), library_of(0, 0)


@pytest.fixture
def three_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


def of_few_channels(layer: nn.Conv2d) -> nn.Conv2d:
    """The layer with the gradients of a CPU without AMX."""
    few = copy.deepcopy(layer)
    few.__class__ = modules._own_conv(few, NO_AMX)
    return few


@pytest.mark.parametrize("first", [True, False], ids=["first", ""])
@pytest.mark.parametrize("layer", FEW, ids=str)
def test_a_convolution_of_few_channels_has_the_gradients_of_float64_and_one_thread_for_its_weight(
    layer, first, three_threads, monkeypatch
):
    few, true, counts = of_few_channels(layer), copy.deepcopy(layer).bfloat16().double(), []
    x = drawn(9, layer.in_channels, 12, 11).requires_grad_(not first)
    exact = x.detach().bfloat16().double().requires_grad_(not first)
    gradients = convolution._gradients
    monkeypatch.setattr(
        convolution, "_gradients", lambda *words: counts.append(torch.get_num_threads()) or gradients(*words)
    )
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = few(x)
    grad = drawn(*y.shape, seed=1, dtype=torch.bfloat16) - 1
    y.backward(grad)
    true(exact).backward(grad.double())
    assert (counts, torch.get_num_threads()) == ([1] if first else [3, 1], 3)
    given = [] if first else [(x, exact)]
    for ours, theirs in (*given, *zip(few.parameters(), true.parameters(), strict=True)):
        assert ours.grad.dtype == torch.float32
        assert distance(ours.grad, theirs.grad) < 5e-3


def test_a_convolution_of_few_channels_gives_the_threads_back_and_asks_for_no_gradient_that_nobody_wants(
    three_threads, monkeypatch
):
    few, x = of_few_channels(FEW[0]), drawn(2, 3, 6, 6).requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        free, frozen = few(x), few.requires_grad_(False)(x)
    frozen.sum().backward()
    assert few.weight.grad is None

    def fails(*words):
        raise MemoryError

    monkeypatch.setattr(convolution, "_gradients", fails)
    few.requires_grad_()
    with pytest.raises(MemoryError):
        free.sum().backward()
    assert torch.get_num_threads() == 3


def test_a_convolution_of_few_channels_is_torchs_where_no_weight_is_trained_in_bf16(monkeypatch):
    plain, few, x = FEW[0], of_few_channels(FEW[0]), drawn(2, 3, 6, 6)
    monkeypatch.setattr(modules.FewChannels, "apply", lambda *words: pytest.fail("not torch's"))
    assert torch.equal(few(x), plain(x))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(few.eval()(x), plain(x))
        few.train()
        with torch.no_grad():
            assert torch.equal(few(x), plain(x))
        assert torch.equal(few(x[0]), plain(x[0]))
        few.register_forward_hook(lambda *words: None)
        assert torch.equal(few(x), plain(x))


@needs_compiler
def test_a_network_of_bf16_works_with_the_convolutions_that_its_cpu_gains_from(monkeypatch):
    few, many = nn.Conv2d(3, 32, 3, padding=1), nn.Conv2d(16, 32, 3, padding=1)
    found = [modules._own_conv(conv, library) for library in (AMX, NO_AMX, NEITHER, None) for conv in (few, many)]
    few_ones = modules.FewChannelsConv
    assert found == [None, modules.Conv, few_ones, modules.WinogradConv, few_ones, None, None, None]
    others = [
        nn.Conv2d(8, 8, 3, groups=8), nn.Conv2d(3, 8, 3, padding="same"), nn.Conv2d(3, 8, 3, padding_mode="reflect")
    ]  # fmt: skip
    assert [modules._own_conv(other, NO_AMX) for other in others] == [None] * 3
    monkeypatch.setattr(modules, "_own_conv", lambda conv, library, own=modules._own_conv: own(conv, NO_AMX))
    net = resnet()
    assert use_kernels(net, CPU, "bf16")
    kinds = [type(module) for module in net.modules() if isinstance(module, nn.Conv2d)]
    assert kinds[0] is modules.FewChannelsConv
    assert set(kinds[1:]) == {modules.WinogradConv, nn.Conv2d}  # strides and 1x1 windows are torch's
    monkeypatch.setattr(modules.torch, "get_num_threads", lambda: 9)
    assert modules._own_conv(few, NO_AMX) is None


@needs_amx
@pytest.mark.parametrize(
    ("shape", "are_wide"), [((37, 384, 4, 4), True), ((33, 64, 2, 2), True), ((37, 64, 4, 4), False)], ids=str
)
def test_small_maps_of_many_channels_are_put_side_by_side(shape, are_wide, monkeypatch):
    calls = []
    monkeypatch.setattr(
        convolution, "side_by_side", lambda *words, put=convolution.side_by_side: calls.append(words) or put(*words)
    )
    x, grad = drawn(*shape, dtype=torch.bfloat16), drawn(*shape, seed=1, dtype=torch.bfloat16)
    weight = (drawn(shape[1], shape[1], 3, 3, seed=2) - 1) / 32
    inputs = [x.requires_grad_(), weight.requires_grad_()]
    y = convolution.Convolution.apply(*inputs, None)
    found = [y.detach(), *torch.autograd.grad(y, inputs, grad)]
    assert len(calls) == 2 * are_wide
    exact = [x.detach().double().requires_grad_(), weight.detach().bfloat16().double().requires_grad_()]
    true = F.conv2d(*exact, padding=1)
    expected = [true.detach(), *torch.autograd.grad(true, exact, grad.double())]
    for ours, theirs, most in zip(found, expected, (3e-3, 3e-3, 1e-5), strict=True):
        assert distance(ours, theirs) < most
        assert ours.is_contiguous(memory_format=torch.channels_last)


def speednet(act: str = "gelu", residual: bool = False) -> SpeedNet:
    """A small network with every module that our operations replace."""
    torch.manual_seed(0)
    net = SpeedNet(
        whitening=True, widths=(32, 32, 64), depth=2, residual=residual, pooling="max", head="global_max",
        activation=act, dirac=True, norm_momentum=0.4, norm_eps=1e-12, norm_scale=True,
    )  # fmt: skip
    return net.to(memory_format=torch.channels_last)


def resnet(act: str = "relu", shortcut: str = "projection") -> ResNet:
    """One with shortcuts, which are added between the last norms and their activations."""
    torch.manual_seed(0)
    net = ResNet(
        block="basic", blocks=(1, 1), widths=(32, 64), stem_width=0, preactivation=False, shortcut=shortcut,
        zero_init_residual=False, pooling="max", activation=act, head="global_average", dropout=0.0, whitening=False,
        dirac=False,
    )  # fmt: skip
    return net.to(memory_format=torch.channels_last)


def efficientnet() -> EfficientNetLite:
    """One with shortcuts and no activation after them."""
    torch.manual_seed(0)
    net = EfficientNetLite(
        width=0.5, depth=0.5, squeeze_excite=False, activation="relu", stochastic_depth=0.0, dropout=0.0
    )
    return net.to(memory_format=torch.channels_last)


@needs_compiler
@pytest.mark.parametrize(
    "build",
    [
        speednet,
        lambda: speednet("silu"),
        lambda: speednet(residual=True),
        resnet,
        lambda: resnet("silu", "pad"),
        lambda: resnet("tanh"),
        lambda: resnet(shortcut="none"),
        efficientnet,
    ],
    ids=["gelu", "silu", "residual", "resnet", "pad", "tanh", "plain", "efficientnet"],
)
def test_a_model_with_kernels_has_the_same_state_loss_gradients_and_statistics(build):
    plain, own = build(), build()
    assert use_kernels(own, CPU, "fp32")
    images, targets = drawn(6, 3, 32, 32), torch.arange(6)
    losses = []
    for model in (plain, own):
        losses.append(F.cross_entropy(model(images), targets))
        losses[-1].backward()
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-5, atol=0)
    for (name, ours), (_, theirs) in zip(own.named_parameters(), plain.named_parameters(), strict=True):
        if theirs.grad is not None:
            # Some gradients are zero but for roundings, as before a norm.
            are_zero = max(ours.grad.norm(), theirs.grad.norm()) < 1e-6
            assert are_zero or distance(ours.grad, theirs.grad.double()) < 1e-3, name
    states = plain.state_dict(), own.state_dict()
    assert list(states[0]) == list(states[1])
    for name in states[0]:
        torch.testing.assert_close(states[1][name], states[0][name], rtol=1e-4, atol=1e-5)


@needs_amx
def test_a_model_in_bf16_learns_from_the_gradients_that_fp32_has():
    reference, torchs, own = speednet(), speednet(), speednet()
    assert use_kernels(own, CPU, "bf16")
    images, targets = drawn(64, 3, 32, 32), torch.arange(64) % 10
    F.cross_entropy(reference(images), targets).backward()
    for model in (torchs, own):
        with torch.autocast("cpu", torch.bfloat16):
            loss = F.cross_entropy(model(images).float(), targets)
        loss.backward()
    for are_matrices, factor in ((True, 1.0), (False, 1.15)):
        true, theirs, ours = (gradients(model, are_matrices) for model in (reference, torchs, own))
        assert distance(ours, true) < factor * distance(theirs, true)


def gradients(model: nn.Module, are_matrices: bool) -> torch.Tensor:
    """The gradients of all matrices, or of all vectors, in one row."""
    found = [p.grad for p in model.parameters() if p.grad is not None and (p.ndim > 1) == are_matrices]
    return torch.cat([grad.double().flatten() for grad in found])


@needs_compiler
@pytest.mark.parametrize("build", [speednet, resnet, efficientnet], ids=["gelu", "relu", "efficientnet"])
def test_evaluation_is_torchs_and_so_is_that_of_a_copy_and_one_with_gradients(build):
    plain, own = build(), build()
    for model in (plain, own):
        generator = torch.Generator().manual_seed(1)
        for norm in (module for module in model.modules() if isinstance(module, nn.BatchNorm2d)):
            norm.running_mean.normal_(generator=generator)
            norm.running_var.uniform_(0.5, 2, generator=generator)
    assert use_kernels(own, CPU, "fp32")
    images = drawn(2, 3, 32, 32)
    expected = plain.eval()(images).detach()
    assert torch.equal(own.eval()(images), expected)  # with gradients: by torch's operations
    with torch.no_grad():
        for model in (own, copy.deepcopy(own)):
            torch.testing.assert_close(model(images), expected, rtol=1e-5, atol=1e-6)


@needs_compiler
def test_who_watches_a_module_sees_it_at_work():
    own = speednet()
    assert use_kernels(own, CPU, "fp32")
    with_shortcuts = resnet()
    assert use_kernels(with_shortcuts, CPU, "fp32")
    seen = []
    block, other = with_shortcuts.stages[0][0], with_shortcuts.stages[1][1]
    # An activation, a norm before one, a norm before a shortcut, and an activation after one.
    watched = [own.groups[0].enter[3], own.groups[1].rest[1], block.branch[-1], other.activation]
    for module in watched:
        module.register_forward_hook(lambda module, inputs, output: seen.append(module))
    own(drawn(2, 3, 32, 32))
    with_shortcuts(drawn(2, 3, 32, 32))
    assert seen == watched


@needs_compiler
def test_a_shortcut_of_another_dtype_or_layout_is_added_as_torch_does():
    own = Branch(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)).to(memory_format=torch.channels_last)
    plain = copy.deepcopy(own)
    assert use_kernels(own, CPU, "fp32")
    x = drawn(2, 8, 5, 5)
    for shortcut in (x.contiguous(), x.double(), x[:, :1], 0.0):
        torch.testing.assert_close(own(x, shortcut), plain(x, shortcut), rtol=1e-5, atol=1e-5)
    empty = Branch()
    assert use_kernels(empty, CPU, "fp32")
    assert torch.equal(empty(x, x, nn.ReLU()), (2 * x).relu())


@needs_compiler
@pytest.mark.parametrize("build", [speednet, resnet, efficientnet], ids=["speednet", "resnet", "efficientnet"])
def test_the_table_of_layers_is_the_same(build):
    plain, own = build(), build()
    assert use_kernels(own, CPU, "fp32")
    plain_rows, rows = layer_table(plain), layer_table(own)
    assert [(row.layer, row.shape, row.flops, row.field) for row in rows] == [
        (row.layer, row.shape, row.flops, row.field) for row in plain_rows
    ]


@needs_compiler
def test_a_run_with_kernels_says_so_and_trains_as_one_without(cli, tmp_path):
    rows = {}
    for kernels, known in (("auto", "own"), ("torch", "torch")):
        words = [*RUN[:-1], f"trainer.kernels={kernels}", f"hydra.run.dir={kernels}"]
        result = cli("train", *words)
        assert result.code == 0, result.err
        assert manifest_of(tmp_path / kernels)["environment"]["kernels"] == known
        rows[kernels] = rows_of(tmp_path / kernels)
    for ours, theirs in zip(rows["auto"], rows["torch"], strict=True):
        assert ours["train_loss"] == pytest.approx(theirs["train_loss"], rel=1e-3)


@needs_compiler
@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.GELU(approximate="tanh"), (2, 8, 4, 4)),
        (nn.BatchNorm2d(8, momentum=None), (2, 8, 4, 4)),
        (nn.BatchNorm2d(8, affine=False), (2, 8, 4, 4)),
        (nn.BatchNorm2d(8, track_running_stats=False), (2, 8, 4, 4)),
        (nn.BatchNorm2d(8, dtype=torch.float64), (2, 8, 4, 4)),
        (nn.MaxPool2d(3, 2), (2, 8, 7, 7)),
        (nn.MaxPool2d(2, ceil_mode=True), (2, 8, 7, 7)),
        (nn.Sequential(nn.BatchNorm2d(8), nn.GELU(approximate="tanh")), (2, 8, 4, 4)),
        (nn.Sequential(nn.BatchNorm2d(8), nn.Tanh()), (2, 8, 4, 4)),
    ],
    ids=str,
)
def test_layers_with_other_options_do_what_torch_does(layer, shape):
    own, plain = copy.deepcopy(layer), copy.deepcopy(layer)
    assert use_kernels(own, CPU, "fp32")
    x = drawn(*shape)
    x = x.double() if next(iter(layer.state_dict().values()), x).dtype == torch.float64 else x
    for _ in range(2):  # in training, then in evaluation
        torch.testing.assert_close(own(x), plain(x), rtol=1e-5, atol=1e-6)
        own.eval()
        plain.eval()


@needs_compiler
@pytest.mark.parametrize(
    ("layer", "shape"),
    [(nn.BatchNorm2d(8), (2, 16, 4, 4)), (nn.BatchNorm2d(8), (1, 8, 1, 1)), (nn.MaxPool2d(2), (2, 8, 1, 4))],
    ids=["channels", "one value", "too small"],
)
def test_what_torch_refuses_is_refused(layer, shape):
    own = copy.deepcopy(layer)
    assert use_kernels(own, CPU, "fp32")
    with pytest.raises((RuntimeError, ValueError)) as expected:
        layer(drawn(*shape))
    with pytest.raises(expected.type):
        own(drawn(*shape))


@needs_compiler
def test_indices_of_a_pooling_are_given():
    layer = nn.MaxPool2d(2, return_indices=True)
    assert use_kernels(layer, CPU, "fp32")
    assert len(layer(drawn(3, 8, 4, 4))) == 2


@needs_compiler
def test_a_library_that_others_can_write_is_not_loaded(tmp_path):
    cache = tmp_path / "cache"
    (cache / "cifarbench" / "kernels").mkdir(parents=True)
    (cache / "cifarbench" / "kernels").chmod(0o777)
    done = shell("train", *RUN, "trainer.epochs=1", cwd=tmp_path, XDG_CACHE_HOME=str(cache))
    assert done.code == 0, done.err
    assert manifest_of(tmp_path / "run")["environment"]["kernels"] == "torch"


@pytest.mark.parametrize("compiler", ["/no/such/compiler", "false", '"'])
def test_without_a_compiler_that_works_a_run_takes_torchs_operations(tmp_path, compiler):
    done = shell("train", *RUN, "trainer.epochs=1", cwd=tmp_path, CC=compiler, XDG_CACHE_HOME=str(tmp_path / "cache"))
    assert done.code == 0, done.err
    assert manifest_of(tmp_path / "run")["environment"]["kernels"] == "torch"


@needs_compiler
def test_the_library_is_compiled_once_and_then_found(tmp_path):
    cache = tmp_path / "cache"
    first = shell("train", *RUN, "trainer.epochs=1", cwd=tmp_path, XDG_CACHE_HOME=str(cache))
    assert first.code == 0, first.err
    (built,) = cache.rglob("*.so")
    before = built.stat()
    again = shell(
        "train", *RUN[:-1], "hydra.run.dir=again", "trainer.epochs=1", cwd=tmp_path, XDG_CACHE_HOME=str(cache)
    )
    assert again.code == 0, again.err
    assert [*cache.rglob("*.so")] == [built]
    assert (built.stat().st_ino, built.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert json.loads((tmp_path / "again" / "run.json").read_text())["environment"]["kernels"] == "own"
    assert os.listdir(built.parent) == [built.name]


class Halved(nn.Conv2d):
    """A convolution of one's own: a plugin may have one."""

    def forward(self, x):
        return super().forward(x) / 2


@pytest.mark.parametrize("kind", [nn.Conv2d, Halved])
def test_a_convolution_of_ones_own_is_never_taken_together_with_its_maxima(kind, monkeypatch):
    taken = []

    class Together:
        @staticmethod
        def apply(x, weight, keeps):
            taken.append(weight)
            return F.max_pool2d(F.conv2d(x, weight, padding=1), 2)

    monkeypatch.setattr(modules, "_are_one", lambda *arguments: True)  # as on a GPU
    monkeypatch.setattr(modules.gpu, "ConvPool", Together)
    layers, x = [kind(24, 64, 3, padding=1, bias=False), nn.MaxPool2d(2)], drawn(2, 24, 6, 6)
    torch.testing.assert_close(modules._through(list(layers), x), nn.Sequential(*layers)(x))
    assert len(taken) == (kind is nn.Conv2d)
