"""The kernels for GPUs against torch in float64, on a GPU or by Triton's interpreter, which is slow: on tiny maps."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from test_augment import EVERYTHING, MEAN, OFF, STD
from test_feed import portion
from test_kernels import ACTS, SHAPES, distance, drawn, in_float64

from cifarbench.config.augment import AugmentConfig
from cifarbench.config.keys import build
from cifarbench.data import image_ops
from cifarbench.data.augment import Augment
from cifarbench.kernels import gpu
from cifarbench.optim import muon
from cifarbench.training.feed import Feed

gpu_conv, gpu_loss, gpu_muon, gpu_pool, gpu_tiles = (
    pytest.importorskip(f"cifarbench.kernels.gpu_{name}", reason="needs Triton", exc_type=ImportError)
    for name in ("conv", "loss", "muon", "pool", "tiles")
)

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
# Of numbers to bfloat16, 1.7e-3 on average; the interpreter cuts them off, which is twice that.
ROUNDING = 2.5e-3 if DEVICE.type == "cuda" else 4e-3


def of_kernels(act: str, grad, x, weight, bias, *added):
    """act(batch norm(x) + added) and the gradients of x, weight, bias and what was added; on the CPU."""
    inputs = [tensor.detach().to(DEVICE).requires_grad_() for tensor in (x, weight, bias, *added)]
    running = torch.zeros(x.shape[1], device=DEVICE), torch.ones(x.shape[1], device=DEVICE), counter()
    y = gpu.NormActivation.apply(*inputs[:3], inputs[3] if added else None, running, 1e-5, 0.1, act)
    return [value.cpu() for value in (y.detach(), *torch.autograd.grad(y, inputs, grad.to(DEVICE)))]


def counter() -> torch.Tensor:
    return torch.zeros((), dtype=torch.int64, device=DEVICE)


@pytest.mark.parametrize("adds", [False, True], ids=["", "shortcut"])
@pytest.mark.parametrize("act", ACTS)
@pytest.mark.parametrize("shape", [*SHAPES[:4], (3, 130, 5, 5)], ids=str)
def test_norm_and_activation_in_fp32_are_those_of_float64(shape, act, adds):
    tensors = [drawn(*shape, seed=1), drawn(*shape), torch.linspace(-1, 2, shape[1]), torch.linspace(-2, 1, shape[1])]
    tensors += [drawn(*shape, seed=2)] if adds else []
    for found, true in zip(of_kernels(act, *tensors), in_float64(act, *tensors), strict=True):
        assert distance(found, true) < 1e-5


@pytest.mark.parametrize("act", ACTS)
def test_norm_and_activation_in_bf16_are_rounded_once(act):
    x, grad, shortcut = (drawn(8, 24, 9, 9, seed=seed, dtype=torch.bfloat16) for seed in range(3))
    tensors = [grad, x, torch.linspace(-1, 2, 24), torch.linspace(-2, 1, 24), shortcut]
    true, rounded = in_float64(act, *tensors), (True, True, False, False, True)
    for found, exact, is_rounded in zip(of_kernels(act, *tensors), true, rounded, strict=True):
        assert distance(found, exact) < (ROUNDING if is_rounded else 1e-4)


def test_running_statistics_move_as_torchs_do():
    x, momentum = drawn(4, 6, 5, 3), 0.3
    theirs = torch.zeros(6), torch.ones(6)
    ours = (*(part.clone().to(DEVICE) for part in theirs), counter())
    for step in range(3):
        batch = x * (step + 1)
        F.batch_norm(batch, *theirs, training=True, momentum=momentum)
        ones, zeros = torch.ones(6, device=DEVICE), torch.zeros(6, device=DEVICE)
        gpu.NormActivation.apply(batch.to(DEVICE), ones, zeros, None, ours, 1e-5, momentum, "relu")
    torch.testing.assert_close(ours[0].cpu(), theirs[0], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(ours[1].cpu(), theirs[1], rtol=1e-5, atol=1e-6)
    assert ours[2] == 3


def test_statistics_hold_where_the_mean_is_large_beside_the_spread():
    x = (drawn(16, 8, 8, 8) * 1e-2 + 100).to(DEVICE)
    running = torch.zeros(8, device=DEVICE), torch.ones(8, device=DEVICE), counter()
    ones, zeros = torch.ones(8, device=DEVICE), torch.zeros(8, device=DEVICE)
    y = gpu.NormActivation.apply(x, ones, zeros, None, running, 1e-12, 1.0, "identity")
    exact = x.double()
    torch.testing.assert_close(running[0].double(), exact.mean((0, 2, 3)), rtol=1e-6, atol=0)
    torch.testing.assert_close(running[1].double(), exact.var((0, 2, 3)), rtol=1e-3, atol=0)
    assert abs(float(y.std()) - 1) < 1e-2


@pytest.mark.filterwarnings("ignore:overflow encountered in exp")  # by the interpreter, where silu is 0
@pytest.mark.parametrize("act", ["gelu", "silu"])
def test_an_activation_is_that_of_float64_far_out_too(act):
    x = torch.cat([torch.linspace(-12, 12, 999), torch.tensor([-1e4, 1e4, 0.0])]).view(1, 2, 3, 167)
    x = x.contiguous(memory_format=torch.channels_last)
    y = gpu.affine_activation(x.to(DEVICE), torch.ones(2, device=DEVICE), torch.zeros(2, device=DEVICE), act)
    torch.testing.assert_close(y.cpu().double(), ACTS[act](x.double()), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("act", ACTS)
def test_what_is_no_number_stays_none(act):
    x = drawn(2, 4, 3, 3).detach()
    x[0, 1, 2, 2] = float("nan")
    ones, zeros = torch.ones(4, device=DEVICE), torch.zeros(4, device=DEVICE)
    running = torch.zeros(4, device=DEVICE), torch.ones(4, device=DEVICE), counter()
    y = gpu.NormActivation.apply(x.to(DEVICE), ones, zeros, None, running, 1e-5, 0.1, act).cpu()
    assert y[:, 1].isnan().all()
    assert y[:, [0, 2, 3]].isfinite().all()
    assert running[1].isnan().tolist() == [False, True, False, False]


@pytest.mark.parametrize("keep_edge", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(4, 16, 6, 6), (3, 5, 7, 4), (2, 33, 2, 9), (2, 130, 5, 7)], ids=str)
def test_maxima_and_their_gradient_are_torchs(shape, dtype, keep_edge):
    x = (drawn(*shape).detach() * 4).round().to(dtype)  # with equal numbers in many windows
    x[0, 1, 2 % shape[2], 3] = float("nan")
    theirs, ours = (x.clone().to(*where).requires_grad_() for where in ((torch.float32,), (DEVICE,)))
    y, true = gpu.MaxPool.apply(ours, keep_edge), F.max_pool2d(theirs, 2, ceil_mode=keep_edge)
    torch.testing.assert_close(y.detach().cpu().float(), true.detach(), rtol=0, atol=0, equal_nan=True)
    grad = drawn(*true.shape, seed=1, dtype=dtype)
    y.backward(grad.to(DEVICE))
    true.backward(grad.float())
    assert torch.equal(ours.grad.cpu().float(), theirs.grad)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(4, 16, 2, 2), (3, 5, 7, 4), (70, 33, 1, 3), (2, 130, 1, 1)], ids=str)
def test_the_largest_number_of_a_map_and_its_gradient_are_torchs(shape, dtype):
    x = (drawn(*shape).detach() * 2).round().to(dtype)  # with several largest ones in many maps
    theirs, ours = (x.clone().to(*where).requires_grad_() for where in ((torch.float32,), (DEVICE,)))
    y, true = gpu.GlobalMax.apply(ours), theirs.amax((2, 3))
    torch.testing.assert_close(y.detach().cpu().float(), true.detach(), rtol=0, atol=0)
    grad = drawn(*true.shape, 1, 1, seed=1, dtype=dtype).flatten(1)
    y.backward(grad.to(DEVICE))
    true.backward(grad.float())
    torch.testing.assert_close(ours.grad.cpu(), theirs.grad.to(dtype), rtol=8e-3, atol=0)
    x[0, 1, -1, -1] = float("nan")
    assert gpu.GlobalMax.apply(x.to(DEVICE)).isnan().nonzero().tolist() == [[0, 1]]


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("rows", [1, 70])
def test_cross_entropy_and_the_counts_of_a_batch_are_torchs(rows, smoothing, monkeypatch):
    monkeypatch.setattr(gpu_loss, "_ROWS", 16)  # so that 70 rows are those of several programs
    monkeypatch.setattr(gpu_loss, "_PARTS", 2)
    logits = (drawn(rows, 10, 1, 1).flatten(1) * 5).round()  # with equal ones
    targets = torch.arange(rows) % 10
    totals = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64, device=DEVICE)
    ours, theirs = logits.clone().to(DEVICE).requires_grad_(), logits.double().requires_grad_()
    loss = gpu.CrossEntropy.apply(ours, targets.to(DEVICE), smoothing, totals)
    true = F.cross_entropy(theirs, targets, label_smoothing=smoothing)
    (2 * loss).backward()
    (2 * true).backward()
    assert loss.item() == pytest.approx(true.item(), rel=1e-6, abs=2e-7)
    torch.testing.assert_close(ours.grad.cpu(), theirs.grad.float(), rtol=1e-5, atol=1e-7)
    right = int((logits.argmax(1) == targets).sum())
    assert totals.tolist() == pytest.approx([1 + rows * true.item(), 2 + right, 3 + rows], rel=1e-6, abs=1e-5)


@pytest.mark.filterwarnings("ignore:invalid value")
def test_cross_entropy_takes_logits_in_bfloat16_that_lie_apart_and_shows_what_is_no_number():
    logits, targets = drawn(6, 16, 1, 1, dtype=torch.bfloat16).flatten(1)[:, :10].to(DEVICE), torch.arange(6)
    totals = torch.zeros(3, dtype=torch.float64, device=DEVICE)
    ours = logits.detach().requires_grad_()
    gpu.CrossEntropy.apply(ours, targets.to(DEVICE), 0.1, totals).backward()
    theirs = logits.cpu().float().requires_grad_()
    F.cross_entropy(theirs, targets, label_smoothing=0.1).backward()
    torch.testing.assert_close(ours.grad.cpu().float(), theirs.grad, rtol=8e-3, atol=1e-6)
    for value in (float("nan"), float("inf")):
        wrong = logits.clone()
        wrong[2, 3] = value
        assert gpu.CrossEntropy.apply(wrong, targets.to(DEVICE), 0.1, totals).isnan()


MATRICES = [(4, 3, 3, 3), (16, 2, 1, 1), (5, 7), (5, 600), (4, 3, 3, 3)]  # one alone, tall, wide, of several programs


@pytest.mark.parametrize("rescale", [True, False])
@pytest.mark.parametrize("filled", [0, 100], ids=["by shape", "together"])
def test_muons_kernels_step_as_its_own_operations_do(rescale, filled, monkeypatch):
    monkeypatch.setattr(muon, "_FILLED", filled)
    monkeypatch.setattr(gpu_muon, "_PARTS", 1)
    generator = torch.Generator().manual_seed(1)
    start = [torch.randn(shape, generator=generator) for shape in MATRICES]
    start[0] = start[0].contiguous(memory_format=torch.channels_last)
    gradients = [[torch.randn(shape, generator=generator) for shape in MATRICES] for _ in range(3)]
    found = []
    for kernels in (True, False):
        device, dtype = (DEVICE, torch.float32) if kernels else ("cpu", torch.float64)
        parameters = [torch.nn.Parameter(tensor.detach().clone().to(device, dtype)) for tensor in start]
        optimizer = muon.Muon([{"params": parameters}], 0.1, momentum=0.6, rescale=rescale, dtype=dtype)
        optimizer.kernels = kernels and gpu_muon
        optimizer.param_groups[0]["lr"] = torch.tensor(0.1, device=device, dtype=dtype)
        for each in gradients:
            for parameter, gradient in zip(parameters, each, strict=True):
                parameter.grad = gradient.to(parameter)
            optimizer.step()
        found.append([*parameters, *(optimizer.state[parameter]["momentum_buffer"] for parameter in parameters)])
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours.detach().cpu(), theirs.detach().float(), rtol=1e-4, atol=1e-5)


def test_smaller_images_are_torchs():
    for count, side, size in ((3, 32, 24), (2, 32, 28), (2, 9, 5)):
        images = drawn(count, 3, side, side)
        found = gpu.shrink(images.to(DEVICE), size).cpu()
        torch.testing.assert_close(found, image_ops.shrink(images, size), rtol=1e-5, atol=1e-5)
        assert found.is_contiguous(memory_format=torch.channels_last)


MOVED = {"flip": 0.5, "vertical_flip": 0.5, "crop_padding": 4, "cutout": 9}


@pytest.mark.parametrize("size", [24, 32])
@pytest.mark.parametrize(
    "changes",
    [{}, MOVED, {**MOVED, "crop_fill": "reflect"}, {"flip": 1.0, "flip_alternates": True}, {"cutout": 40}],
    ids=["nothing", "black", "reflected", "mirrored", "hidden"],
)
def test_images_taken_by_one_kernel_are_those_of_the_augmentation(changes, size):
    config = build(AugmentConfig, {**OFF, **changes}, "augment")
    assert config.only_moves
    augment, train = Augment(config, MEAN, STD, channels_last=True), portion(24).to(DEVICE)
    ours, theirs = Feed(augment, 3, ahead=False, kernels=True), Feed(augment, 3, ahead=False)
    every_other = torch.tensor([23, 0, 0, 5, 7, 9, 7, 3, 12, 1], device=DEVICE)[::2]  # as a process takes its share
    for epoch, positions in enumerate((every_other.contiguous(), every_other)):
        found, true = (each(train, positions, epoch, size) for each in (ours, theirs))
        torch.testing.assert_close(found[0], true[0], rtol=1e-5, atol=1e-5)
        assert torch.equal(found[1], true[1])
        assert found[0].is_contiguous(memory_format=torch.channels_last)
    assert (ours.takes, theirs.takes) == (True, False)


NO_STEPS = {"name", "flip_alternates", "crop_fill", "policy_ops", "policy_magnitude"}  # but how a step is done


@pytest.mark.parametrize("name", sorted({f.name for f in dataclasses.fields(AugmentConfig)} - {*MOVED, *NO_STEPS}))
def test_what_else_an_augmentation_does_keeps_it_from_that_kernel(name):
    value = {**EVERYTHING, "mixup": 0.4, "cutmix": 1.0}[name]
    assert not build(AugmentConfig, {**OFF, name: value}, "augment").only_moves


@pytest.mark.parametrize("act", ACTS)
def test_whitening_with_its_activation_and_the_gradient_of_its_bias_are_those_of_float64(act):
    images, weight, bias = drawn(3, 3, 11, 9), drawn(24, 3, 2, 2, seed=1) - 1, torch.linspace(-1, 1, 24)
    grad = drawn(3, 24, 10, 8, seed=2)
    ours, theirs = bias.clone().to(DEVICE).requires_grad_(), bias.double().requires_grad_()
    y = gpu.Whiten.apply(images.to(DEVICE), weight.to(DEVICE), ours, act, torch.float32)
    true = ACTS[act](F.conv2d(images.double(), weight.double(), theirs))
    y.backward(grad.to(DEVICE))
    true.backward(grad.double())
    assert distance(y.detach().cpu(), true.detach()) < 1e-6
    assert distance(ours.grad.cpu(), theirs.grad) < 1e-5


@pytest.mark.parametrize("capability", ["80", "90", "100"])
def test_the_kernels_compile_for_a_gpu(tmp_path, capability):
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    script = Path(__file__).with_name("triton_compile.py")
    environment |= {"TRITON_CACHE_DIR": str(tmp_path), "PYTHONPATH": str(script.parents[1])}
    ended = subprocess.run([sys.executable, script, capability], env=environment, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    assert int(ended.stdout) == 21


def test_where_no_kernel_can_be_built_torchs_operations_are_taken(monkeypatch):
    assert gpu._can_be_built(DEVICE)

    def fails(*arguments):
        raise RuntimeError("Failed to find C compiler.")

    monkeypatch.setattr(gpu_pool, "pool_forward", fails)
    assert not gpu._can_be_built(DEVICE)


FEW_CHANNELS = [(3, 24, 7, 9), (2, 24, 6, 6), (9, 16, 12, 4), (2, 32, 11, 11)]  # odd sides, several programs


@pytest.mark.parametrize("outputs", [64, 128])
@pytest.mark.parametrize("shape", FEW_CHANNELS, ids=str)
def test_a_convolution_and_its_maxima_in_one_kernel_are_those_of_float64(shape, outputs, monkeypatch):
    monkeypatch.setattr(gpu_conv, "processors", lambda device: 6)
    dtype = torch.bfloat16 if DEVICE.type == "cuda" else torch.float32  # of which the interpreter makes no products
    x, weight = drawn(*shape, dtype=dtype) - 1, (drawn(outputs, shape[1], 3, 3, seed=1) - 1).to(dtype)
    ours = [tensor.to(DEVICE).requires_grad_() for tensor in (x, weight.float())]
    theirs = [tensor.double().requires_grad_() for tensor in (x, weight)]
    y, true = gpu.ConvPool.apply(*ours, True), F.max_pool2d(F.conv2d(*theirs, padding=1), 2)
    grad = drawn(*true.shape, seed=2, dtype=dtype)
    gradients = torch.autograd.grad(y, ours, grad.to(DEVICE))
    expected = torch.autograd.grad(true, theirs, grad.double())
    rounding = {torch.bfloat16: ROUNDING, torch.float32: 1e-6}[dtype]
    assert distance(y.detach().cpu(), true.detach()) < rounding
    assert distance(gradients[0].cpu(), expected[0]) < rounding
    assert distance(gradients[1].cpu(), expected[1]) < 1e-5, "summed in float32"
    assert gradients[1].is_contiguous(memory_format=torch.channels_last)
    bare = gpu.ConvPool.apply(ours[0].detach(), ours[1].detach(), False)
    assert torch.equal(bare, y)


CONVOLUTIONS = {
    "few channels": (True, {}),
    "many": (False, {"in_channels": 48}),
    "odd outputs": (False, {"out_channels": 96}),
    "a bias": (False, {"bias": True}),
    "steps": (False, {"stride": 2}),
    "groups": (False, {"groups": 8}),
    "no padding": (False, {"padding": 0}),
    "another border": (False, {"padding_mode": "reflect"}),
}


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_only_convolutions_of_its_kind_are_for_that_kernel_and_only_on_large_gpus(name, monkeypatch):
    is_of_the_kind, options = CONVOLUTIONS[name]
    options = {"in_channels": 24, "out_channels": 64, "kernel_size": 3, "padding": 1, "bias": False, **options}
    conv, x = torch.nn.Conv2d(**options), torch.zeros(1, options["in_channels"], 8, 8, dtype=torch.bfloat16)
    for memory, is_large in ((232_448, True), (101_376, False)):  # of an H100 and an RTX 4090
        monkeypatch.setattr(gpu_tiles, "shared_memory", lambda device, memory=memory: memory)
        assert gpu.takes_conv_pool(conv, x) == (is_of_the_kind and is_large)
    assert not gpu.takes_conv_pool(conv, x.float())


def test_of_equal_outputs_the_first_takes_the_gradient_and_what_is_no_number_stays_none():
    x, weight = torch.zeros(1, 16, 4, 4, device=DEVICE), torch.ones(64, 16, 3, 3, device=DEVICE)
    x = x.to(torch.bfloat16 if DEVICE.type == "cuda" else torch.float32).contiguous(memory_format=torch.channels_last)
    _, which = gpu_conv.conv_pool(x, weight, True)
    assert which.unique().tolist() == [0]
    x[0, 3, 3, 3] = float("nan")
    y, _ = gpu_conv.conv_pool(x, weight, False)
    assert y.isnan().all(1).tolist() == [[[False, False], [False, True]]]
