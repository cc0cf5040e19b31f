"""The operations of `fused.c` and `pool.c` as functions that autograd knows.

Maps are (N, C, H, W) in channels_last memory, bfloat16 or float32; statistics and parameters of norms are (C,) float32.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from cifarbench.kernels.library import load

LAYOUT = torch.channels_last
# Numbers of fused.c; the derivative of those in STORED is kept for the backward pass, as it is dear to work out again.
ACTIVATIONS = {"identity": 0, "relu": 1, "gelu": 2, "silu": 3}
STORED = {"gelu", "silu"}


def library_for(x: Tensor) -> ctypes.CDLL:
    """The compiled library for the dtype of `x`; it is there, or nothing would have been switched on."""
    library = load(x.dtype == torch.bfloat16)
    assert library is not None
    return library


def at(tensor: Tensor | None) -> int | None:
    """The address of the first number; None without a tensor."""
    return None if tensor is None else tensor.data_ptr()


def is_plain(conv: torch.nn.Conv2d) -> bool:
    """Whether a convolution has 3x3 windows at every pixel, zeros at the border, and sees all channels."""
    shape = conv.kernel_size, conv.stride, conv.padding, conv.dilation, conv.groups, conv.padding_mode
    return shape == ((3, 3), (1, 1), (1, 1), (1, 1), 1, "zeros")


def convolution_gradients(
    ctx: Any, grad: Tensor, by_input: Callable[..., Tensor], by_weight: Callable[..., Tensor]
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """The gradients of x, weight and bias that are wanted, where `ctx` has saved x and weight.

    Args:
        ctx: of the autograd function of a convolution.
        grad: that of the output, (N, K, H, W).
        by_input: works out that of x from those of the output and the weight.
        by_weight: works out that of the weight from that of the output and x.
    """
    x, weight = ctx.saved_tensors
    grad = grad.contiguous(memory_format=LAYOUT)
    needs_input, needs_weight, needs_bias = ctx.needs_input_grad
    dx = by_input(grad, weight) if needs_input else None
    dbias = grad.sum((0, 2, 3), dtype=torch.float32) if needs_bias else None
    return dx, by_weight(grad, x) if needs_weight else None, dbias


class NormActivation(torch.autograd.Function):
    """act(batch norm(x) + added) with the statistics of x, which are returned too: the mean and the biased variance.

    Ioffe and Szegedy, "Batch Normalization" (2015). The output is rounded once, after the activation. `added` is the
    shortcut of a residual block, or None.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float, act: str, added: Tensor | None = None
    ) -> tuple[Tensor, ...]:
        """Maps (N, C, H, W), parameters (C,): the activated maps, mean (C,) and variance (C,)."""
        y, mean, var, rstd = torch.empty_like(x), *torch.empty(3, x.shape[1]).unbind()
        slope = torch.empty_like(x) if act in STORED and any(ctx.needs_input_grad) else None
        rows, channels, threads = x.numel() // x.shape[1], x.shape[1], torch.get_num_threads()
        library_for(x).norm_forward(
            *map(at, (x, added, y, slope, weight, bias, mean, var, rstd)),
            rows, channels, eps, ACTIVATIONS[act], threads,
        )  # fmt: skip
        ctx.save_for_backward(x, y if act == "relu" and added is not None else slope, weight, bias, mean, rstd)
        ctx.act = act
        ctx.adds = added is not None
        ctx.mark_non_differentiable(mean, var)
        return y, mean, var

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        """The gradients of x, weight, bias and what was added."""
        x, stored, weight, bias, mean, rstd = ctx.saved_tensors
        grad = grad.contiguous(memory_format=LAYOUT)
        dx, (dweight, dbias) = torch.empty_like(x), torch.empty(2, x.shape[1]).unbind()
        dadded = torch.empty_like(x) if ctx.adds and ctx.act != "identity" else None
        rows, channels, threads = x.numel() // x.shape[1], x.shape[1], torch.get_num_threads()
        library_for(x).norm_backward(
            *map(at, (grad, stored, x, weight, bias, mean, rstd, dadded, dx, dweight, dbias)),
            rows, channels, ACTIVATIONS[ctx.act], threads,
        )  # fmt: skip
        return dx, dweight, dbias, None, None, grad if ctx.adds and dadded is None else dadded


def affine_activation(x: Tensor, scale: Tensor, shift: Tensor, act: str, added: Tensor | None = None) -> Tensor:
    """act(x * scale + shift + added) of maps (N, C, H, W), by (C,) float32; no gradient."""
    y = torch.empty_like(x)
    rows, channels = x.numel() // x.shape[1], x.shape[1]
    library_for(x).affine_forward(
        *map(at, (x, added, y, scale, shift)), rows, channels, ACTIVATIONS[act], torch.get_num_threads()
    )
    return y


class Activation(torch.autograd.Function):
    """act(x) of a tensor without gaps, whatever its shape."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, act: str) -> Tensor:
        """The activated tensor, in the memory layout of `x`."""
        y = torch.empty_like(x)
        slope = torch.empty_like(x) if ctx.needs_input_grad[0] else None
        library_for(x).activation_forward(*map(at, (x, y, slope)), x.numel(), ACTIVATIONS[act], torch.get_num_threads())
        ctx.save_for_backward(slope)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        """The gradient times the derivative."""
        (slope,) = ctx.saved_tensors
        return grad * slope, None


class MaxPool(torch.autograd.Function):
    """2x2 maximum: (N, C, H, W) to half of both sides, odd ones rounded up with `keep_edge` and else down.

    Of equal numbers the first takes the gradient.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, keep_edge: bool = False) -> Tensor:
        """The largest number of each window."""
        images, channels, height, width = x.shape
        halves = (height + keep_edge) // 2, (width + keep_edge) // 2
        y = torch.empty((images, channels, *halves), dtype=x.dtype, memory_format=LAYOUT)
        which = torch.empty_like(y, dtype=torch.uint8)
        sizes = images, height, width, channels, keep_edge
        library_for(x).pool_forward(*map(at, (x, y, which)), *sizes, torch.get_num_threads())
        ctx.save_for_backward(which)
        ctx.sizes = sizes
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        """The gradient, at the place of each window's largest number."""
        (which,) = ctx.saved_tensors
        images, height, width, channels, _ = ctx.sizes
        grad = grad.contiguous(memory_format=LAYOUT)
        dx = torch.empty((images, channels, height, width), dtype=grad.dtype, memory_format=LAYOUT)
        library_for(grad).pool_backward(*map(at, (grad, which, dx)), *ctx.sizes, torch.get_num_threads())
        return dx, None
