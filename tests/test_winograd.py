"""Convolutions with fewer products against float64, and where a network takes them."""

from __future__ import annotations

import copy
import ctypes

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from test_kernels import CPU, distance, drawn, gradients
from torch import nn

from cifarbench.kernels import library, modules, winograd
from cifarbench.kernels.library import load
from cifarbench.kernels.modules import use_kernels

pytestmark = pytest.mark.skipif(
    load(False) is None or not load(False).has_winograd(), reason="needs Linux, a C compiler with OpenMP, and AVX2"
)
# Shares of the norm: of the output, of the gradient of the input, and of that of the weight.
BOUNDS = {torch.float32: (1e-5, 1e-5, 5e-5), torch.bfloat16: (2e-3, 2e-3, 5e-5)}
EIGHTS = st.integers(1, 9).map(lambda count: 8 * count)


def worked_out(x: torch.Tensor, weight: torch.Tensor, grad: torch.Tensor, threads: int) -> tuple[torch.Tensor, ...]:
    """The output, and the gradients of the input and the weight, by so many threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        return winograd.convolved(x, weight), winograd.input_gradient(grad, weight), winograd.weight_gradient(grad, x)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("dtype", BOUNDS, ids=str)
@settings(max_examples=25, deadline=None)
@given(
    images=st.integers(1, 70),
    height=st.integers(1, 13),
    width=st.integers(1, 34),
    inputs=EIGHTS,
    outputs=EIGHTS,
    threads=st.integers(1, 3),
)
def test_products_are_those_of_float64_whatever_the_shape_and_the_threads(
    dtype, images, height, width, inputs, outputs, threads
):
    x = drawn(images, inputs, height, width, dtype=dtype)
    grad = drawn(images, outputs, height, width, seed=1, dtype=dtype)
    weight = (drawn(outputs, inputs, 3, 3, seed=2) - 1) / 16
    exact = [tensor.double().requires_grad_() for tensor in (x, weight)]
    true = F.conv2d(*exact, padding=1)
    expected = true.detach(), *torch.autograd.grad(true, exact, grad.double())
    found = worked_out(x, weight, grad, threads)
    for ours, theirs, most in zip(found, expected, BOUNDS[dtype], strict=True):
        assert ours.shape == theirs.shape
        assert distance(ours, theirs) < most
    for ours, again in zip(found, worked_out(x, weight, grad, threads % 3 + 1), strict=True):
        assert torch.equal(ours, again)  # bit for bit, by another number of threads too


@pytest.mark.skipif("avx512f" not in library._cpu().split(), reason="needs AVX-512, as the other way")
@pytest.mark.parametrize("dtype", BOUNDS, ids=str)
def test_a_cpu_with_narrower_vectors_gives_the_same_products(dtype, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    compiler = [*library._compiler(), "-mno-avx512f"]  # as on one with AVX2 alone
    narrow = ctypes.CDLL(str(library._built(compiler, ("-DBF16",) if dtype == torch.bfloat16 else ())))
    for name in ("winograd", "winograd_gradient"):
        getattr(narrow, name).argtypes = library._SIGNATURES[name]
    x, grad = drawn(9, 40, 11, 8, dtype=dtype), drawn(9, 56, 11, 8, seed=1, dtype=dtype)
    weight = (drawn(56, 40, 3, 3, seed=2) - 1) / 16
    expected = worked_out(x, weight, grad, 2)
    monkeypatch.setattr(winograd, "library_for", lambda maps: narrow)
    for ours, theirs in zip(worked_out(x, weight, grad, 2), expected, strict=True):
        assert distance(ours, theirs.double()) < 1e-4


def test_many_tiles_and_channels_go_through_in_parts_that_add_up():
    x, grad = drawn(50, 136, 16, 15), drawn(50, 104, 16, 15, seed=1)  # of both, four chunks or more
    weight = (drawn(104, 136, 3, 3, seed=2) - 1) / 32
    exact = [tensor.double().requires_grad_() for tensor in (x, weight)]
    true = F.conv2d(*exact, padding=1)
    expected = true.detach(), *torch.autograd.grad(true, exact, grad.double())
    for ours, theirs in zip(worked_out(x, weight, grad, 2), expected, strict=True):
        assert distance(ours, theirs) < 5e-5


@pytest.mark.parametrize("dtype", BOUNDS, ids=str)
def test_gradients_in_a_network_are_those_of_float64_with_a_bias_and_in_any_memory_layout(dtype):
    x, grad = drawn(5, 24, 7, 6, dtype=dtype), drawn(5, 40, 7, 6, seed=1, dtype=dtype).contiguous()
    weight, bias = (drawn(40, 24, 3, 3, seed=2) / 16).contiguous(), torch.linspace(-1, 1, 80)[::2]
    inputs = [tensor.requires_grad_() for tensor in (x, weight, bias)]
    y = winograd.Winograd.apply(*inputs)
    exact = [tensor.detach().double().requires_grad_() for tensor in inputs]
    true = F.conv2d(*exact, padding=1)
    assert distance(y.detach(), true.detach()) < BOUNDS[dtype][0]
    found, expected = torch.autograd.grad(y, inputs, grad), torch.autograd.grad(true, exact, grad.double())
    assert [gradient.dtype for gradient in (y, *found)] == [dtype, dtype, torch.float32, torch.float32]
    for ours, theirs, most in zip(found, expected, (*BOUNDS[dtype][1:], 1e-5), strict=True):
        assert distance(ours, theirs) < most


@pytest.mark.parametrize(("wanted", "unwanted"), [(0, "weight_gradient"), (1, "input_gradient")], ids=str)
def test_no_gradient_is_worked_out_that_nobody_wants(wanted, unwanted, monkeypatch):
    inputs = [drawn(2, 8, 5, 5), drawn(8, 8, 3, 3, seed=1), torch.zeros(8)]
    inputs[wanted].requires_grad_()
    monkeypatch.setattr(winograd, unwanted, lambda *words: pytest.fail("nobody wants it"))
    winograd.Winograd.apply(*inputs).sum().backward()
    assert [tensor.grad is not None for tensor in inputs] == [wanted == 0, wanted == 1, False]


@pytest.mark.parametrize("size", [8, 7, 6, 5], ids=str)
@pytest.mark.parametrize("dtype", BOUNDS, ids=str)
def test_an_image_is_worked_out_as_if_it_were_alone_and_no_number_stays_none(dtype, size):
    x, weight = drawn(3, 8, size, size, dtype=dtype), (drawn(8, 8, 3, 3, seed=1) - 1) / 8
    x[0] *= 1e6
    x[1, 3, 4, 4] = float("nan")
    y = winograd.convolved(x, weight)
    assert y[1, :, 3:6, 3:6].isnan().all()
    for image in (0, 2):
        assert y[image].isfinite().all()
        assert torch.equal(y[image], winograd.convolved(x[image : image + 1], weight)[0])
    gradient = winograd.weight_gradient(y, x)
    assert gradient.isnan().all()


def network() -> nn.Sequential:
    """Convolutions of both kinds, and what comes between them."""
    torch.manual_seed(0)
    first, second = nn.Conv2d(3, 64, 3, padding=1), nn.Conv2d(64, 72, 3, padding=1)
    net = nn.Sequential(first, nn.BatchNorm2d(64), nn.ReLU(), second, nn.MaxPool2d(2), nn.Flatten(), nn.Linear(4608, 4))
    return net.to(memory_format=torch.channels_last)


def counted_products(monkeypatch: pytest.MonkeyPatch) -> list[tuple]:
    """Takes down each product of maps from now on."""
    calls, product = [], winograd._product
    monkeypatch.setattr(winograd, "_product", lambda *words, **keys: calls.append(words) or product(*words, **keys))
    return calls


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_networks_gradients_are_as_near_to_float64_as_torchs_are(precision, monkeypatch):
    monkeypatch.setattr(modules, "_own_conv", of_no_amx)
    reference, plain, own = network().double(), network(), network()
    assert use_kernels(own, CPU, precision)
    assert type(own[3]) is modules.WinogradConv
    calls = counted_products(monkeypatch)
    images, targets = drawn(16, 3, 16, 16), torch.arange(16) % 4
    F.cross_entropy(reference(images.double()), targets).backward()
    for model in (plain, own):
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            loss = F.cross_entropy(model(images).float(), targets)
        loss.backward()
    assert len(calls) == 2  # forward and back, of the second convolution alone
    true, theirs, ours = (gradients(model, are_matrices=True) for model in (reference, plain, own))
    assert distance(ours, true) < (1e-5 if precision == "fp32" else 1.05 * distance(theirs, true))


def of_no_amx(conv: nn.Conv2d, _: object) -> type[nn.Conv2d] | None:
    """What a convolution becomes where there are wide vectors alone."""
    return modules.WinogradConv if winograd.takes(conv) else None


@pytest.mark.parametrize(
    ("conv", "is_taken"),
    [
        (nn.Conv2d(16, 24, 3, padding=1), True),
        (nn.Conv2d(12, 24, 3, padding=1), False),
        (nn.Conv2d(16, 20, 3, padding=1), False),
        (nn.Conv2d(16, 24, 3), False),
        (nn.Conv2d(16, 24, 1), False),
        (nn.Conv2d(16, 24, 3, padding=1, stride=2), False),
        (nn.Conv2d(16, 24, 3, padding=1, groups=2), False),
        (nn.Conv2d(16, 24, 3, padding=1, padding_mode="reflect"), False),
    ],
    ids=str,
)
def test_convolutions_of_3x3_windows_at_every_pixel_are_taken(conv, is_taken):
    assert winograd.takes(conv) == is_taken


@pytest.mark.parametrize(
    ("shape", "outputs", "in_fp32", "in_bf16"),
    [
        ((256, 64, 32, 32), 64, True, True),
        ((256, 64, 7, 7), 64, True, True),
        ((256, 64, 6, 6), 64, True, False),  # 36 of 64 pixels of the tiles are image
        ((256, 64, 5, 5), 64, False, False),
        ((256, 64, 1, 1), 64, False, False),
        ((4, 64, 32, 32), 64, True, True),
        ((3, 64, 32, 32), 64, False, False),  # filters are transformed for few tiles
        ((256, 32, 32, 32), 64, True, False),
        ((256, 64, 32, 32), 16, False, False),
    ],
    ids=str,
)
def test_it_is_taken_where_it_was_measured_to_be_faster(shape, outputs, in_fp32, in_bf16):
    assert winograd.is_faster(torch.empty(shape, device="meta"), outputs) == in_fp32
    assert winograd.is_faster(torch.empty(shape, device="meta", dtype=torch.bfloat16), outputs) == in_bf16


def test_evaluation_by_it_is_that_of_torch_and_so_is_that_of_a_copy(monkeypatch):
    monkeypatch.setattr(modules, "_own_conv", of_no_amx)
    plain, own = network().eval(), network().eval()
    assert use_kernels(own, CPU, "fp32")
    calls = counted_products(monkeypatch)
    images = drawn(16, 3, 16, 16)
    with torch.no_grad():
        for model in (own, copy.deepcopy(own)):
            torch.testing.assert_close(model(images), plain(images), rtol=1e-4, atol=1e-5)
    assert len(calls) == 2
    assert torch.equal(own(images), plain(images))  # with gradients: by torch's operations


CHANGES = {
    "stride": lambda conv: setattr(conv, "stride", (2, 2)),
    "bias": lambda conv: setattr(conv, "bias", nn.Parameter(conv.bias.detach().bfloat16())),
    "hook": lambda conv: conv.register_forward_hook(lambda *words: None),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_was_changed_since_or_is_watched_is_left_to_torch(change, monkeypatch):
    conv, x = nn.Conv2d(64, 64, 3, padding=1), drawn(8, 64, 32, 32, dtype=torch.bfloat16)
    own = copy.deepcopy(conv)
    own.__class__ = modules.WinogradConv
    with torch.autocast("cpu", torch.bfloat16):
        assert not torch.equal(own(x), conv(x))  # other sums
        monkeypatch.setattr(winograd.Winograd, "apply", lambda *words: pytest.fail("not torch's"))
        CHANGES[change](own)
        CHANGES[change](conv)
        assert torch.equal(own(x), conv(x))


def test_what_torch_refuses_or_has_in_other_numbers_is_left_to_it(monkeypatch):
    conv, x = nn.Conv2d(64, 64, 3, padding=1), drawn(8, 64, 32, 32)
    own = copy.deepcopy(conv)
    own.__class__ = modules.WinogradConv
    monkeypatch.setattr(winograd.Winograd, "apply", lambda *words: pytest.fail("not torch's"))
    with pytest.raises(RuntimeError, match="channels"):
        own(drawn(8, 72, 32, 32))
    assert torch.equal(own(x.contiguous()), conv(x.contiguous()))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(own(x), conv(x))  # float32 in, products in bfloat16
    assert torch.equal(own.double()(x.double()), conv.double()(x.double()))


def test_without_memory_the_error_says_what_it_was_for(monkeypatch):
    class Full:
        winograd = winograd_gradient = staticmethod(lambda *words: 1)

    monkeypatch.setattr(winograd, "library_for", lambda x: Full)
    x, weight = drawn(2, 8, 5, 5), drawn(8, 8, 3, 3)
    for product in (lambda: winograd.convolved(x, weight), lambda: winograd.weight_gradient(x, x)):
        with pytest.raises(MemoryError, match="transforms"):
            product()
