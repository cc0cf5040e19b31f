"""The operations of `fused.c`, `pool.c` and `weights.c` as functions that autograd knows.

Maps are (N, C, H, W) in channels_last memory, bfloat16 or float32; statistics and parameters of norms are (C,) float32.
"""

from __future__ import annotations

import ctypes
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


def _at(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


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
            *map(_at, (x, added, y, slope, weight, bias, mean, var, rstd)),
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
            *map(_at, (grad, stored, x, weight, bias, mean, rstd, dadded, dx, dweight, dbias)),
            rows, channels, ACTIVATIONS[ctx.act], threads,
        )  # fmt: skip
        return dx, dweight, dbias, None, None, grad if ctx.adds and dadded is None else dadded


def affine_activation(x: Tensor, scale: Tensor, shift: Tensor, act: str, added: Tensor | None = None) -> Tensor:
    """act(x * scale + shift + added) of maps (N, C, H, W), by (C,) float32; no gradient."""
    y = torch.empty_like(x)
    rows, channels = x.numel() // x.shape[1], x.shape[1]
    library_for(x).affine_forward(
        *map(_at, (x, added, y, scale, shift)), rows, channels, ACTIVATIONS[act], torch.get_num_threads()
    )
    return y


class Activation(torch.autograd.Function):
    """act(x) of a tensor without gaps, whatever its shape."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, act: str) -> Tensor:
        """The activated tensor, in the memory layout of `x`."""
        y = torch.empty_like(x)
        slope = torch.empty_like(x) if ctx.needs_input_grad[0] else None
        library_for(x).activation_forward(
            *map(_at, (x, y, slope)), x.numel(), ACTIVATIONS[act], torch.get_num_threads()
        )
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
        library_for(x).pool_forward(*map(_at, (x, y, which)), *sizes, torch.get_num_threads())
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
        library_for(grad).pool_backward(*map(_at, (grad, which, dx)), *ctx.sizes, torch.get_num_threads())
        return dx, None


class Convolution(torch.autograd.Function):
    """3x3 convolution, stride 1, zero padding 1, bfloat16, whose weight gradient is that of `weights.c`, in float32.

    The weights (K, C, 3, 3), K a multiple of 32, and the bias (K,), or None, are float32.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """(N, C, H, W) to (N, K, H, W)."""
        rounded = weight.to(x.dtype)
        ctx.save_for_backward(x, rounded)
        return torch.conv2d(x, rounded, None if bias is None else bias.to(x.dtype), padding=1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """The gradients of x, weight and bias."""
        x, weight = ctx.saved_tensors
        grad = grad.contiguous(memory_format=LAYOUT)
        by_input, by_weight, by_bias = ctx.needs_input_grad
        dx = _input_gradient(grad, x, weight) if by_input else None
        dbias = grad.sum((0, 2, 3), dtype=torch.float32) if by_bias else None
        return dx, weight_gradient(grad, x) if by_weight else None, dbias


def _input_gradient(grad: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    one, mask = [1, 1], [True, False, False]
    return torch.ops.aten.convolution_backward(grad, x, weight, None, one, one, one, False, [0, 0], 1, mask)[0]


def weight_gradient(grad: Tensor, x: Tensor) -> Tensor:
    """The gradient (K, C, 3, 3) float32 of a 3x3 convolution from (N, K, H, W) and its input (N, C, H, W), bfloat16."""
    images, inputs, height, width = x.shape
    outputs = grad.shape[1]
    gradient = torch.empty((outputs, inputs, 3, 3), memory_format=LAYOUT)
    sizes = images, height, width, inputs, outputs
    failed = library_for(x).weight_gradient(*map(_at, (x, grad, gradient)), *sizes, torch.get_num_threads())
    if failed:
        raise MemoryError("there is no memory for the weight gradient of a convolution.")
    return gradient
