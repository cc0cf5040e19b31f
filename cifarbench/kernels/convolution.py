"""Convolutions in bfloat16 on CPUs.

With AMX: 3x3 ones of stride 1 with zero padding 1. The weight gradient is that of `weights.c`. The other products are
torch's, but for small maps with many channels: torch goes through the weights once an image, and where they do not fit
into a core's cache that is most of the time. Images put side by side, each with a column of zeros after it, are one
wide map with the same products in it.

Without AMX: those of few channels; `winograd.py` has the others. The threads of torch's weight gradient wait for each
other after every image there (seen with 3, 4 and 8 channels, not with 16 and up to 64 outputs, and with 32 and 64 at
times where the outputs are four times as many; AVX512-BF16, torch 2.14.1), and they spin: where another process has one
of the cores, each wait is as long as that process may keep it.

Maps are (N, C, H, W) bfloat16 in channels_last memory.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from cifarbench.kernels.functions import LAYOUT, at, convolution_gradients, library_for

Pair = tuple[int, ...]
_gradients = torch.ops.aten.convolution_backward

TOGETHER = 16
# Measured for 128 to 768 channels, batches of 256, on two cores with 2 MiB of cache each.
CACHE, SMALL, TINY = 2**21, 6 * 6, 2 * 2


class Convolution(torch.autograd.Function):
    """The convolution with its gradients; that of the weight is added up in float32.

    The weights (K, C, 3, 3), K a multiple of 32, and the bias (K,), or None, are float32.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """(N, C, H, W) to (N, K, H, W)."""
        rounded = weight.to(x.dtype)
        ctx.save_for_backward(x, rounded)
        return convolved(x, rounded, None if bias is None else bias.to(x.dtype))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """The gradients of x, weight and bias."""
        return convolution_gradients(ctx, grad, input_gradient, weight_gradient)


class FewChannels(torch.autograd.Function):
    """Any convolution of one group with torch's gradients; one thread works out those of the weight and the bias."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, stride: Pair, padding: Pair, dilation: Pair
    ) -> Tensor:
        """(N, C, H, W) bfloat16 to (N, K, H', W') by weights and a bias in float32."""
        rounded = weight.to(x.dtype)
        ctx.save_for_backward(x, rounded)
        ctx.geometry = stride, padding, dilation
        return torch.conv2d(x, rounded, None if bias is None else bias.to(x.dtype), stride, padding, dilation)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """The gradients of x, weight and bias."""
        x, weight = ctx.saved_tensors
        by_input, by_weight, by_bias, *_ = ctx.needs_input_grad
        given = grad, x, weight, [len(weight)], *map(list, ctx.geometry), False, [0, 0], 1
        dx = _gradients(*given, [True, False, False])[0] if by_input else None
        if not (by_weight or by_bias):
            return dx, *[None] * 5
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            _, *found = _gradients(*given, [False, by_weight, by_bias])
        finally:
            torch.set_num_threads(threads)
        return dx, *(None if gradient is None else gradient.float() for gradient in found), *[None] * 3


def convolved(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """(N, C, H, W) to (N, K, H, W) by weights (K, C, 3, 3) and a bias (K,), all bfloat16."""
    return _in_wide_maps(lambda maps: torch.conv2d(maps, weight, bias, padding=1), x, weight)


def input_gradient(grad: Tensor, weight: Tensor) -> Tensor:
    """The gradient of the input (N, C, H, W) from that of the output (N, K, H, W)."""

    def gradient(maps: Tensor) -> Tensor:
        images, _, height, width = maps.shape
        shape = torch.empty((images, weight.shape[1], height, width), dtype=maps.dtype, memory_format=LAYOUT)
        one, mask = [1, 1], [True, False, False]
        return _gradients(maps, shape, weight, None, one, one, one, False, [0, 0], 1, mask)[0]

    return _in_wide_maps(gradient, grad, weight)


def weight_gradient(grad: Tensor, x: Tensor) -> Tensor:
    """The gradient (K, C, 3, 3) float32 of the weight from those of the output (N, K, H, W) and the input."""
    images, inputs, height, width = x.shape
    outputs = grad.shape[1]
    gradient = torch.empty((outputs, inputs, 3, 3), memory_format=LAYOUT)
    sizes = images, height, width, inputs, outputs
    failed = library_for(x).weight_gradient(*map(at, (x, grad, gradient)), *sizes, torch.get_num_threads())
    if failed:
        raise MemoryError("there is no memory for the weight gradient of a convolution.")
    return gradient


def _in_wide_maps(product: Callable[[Tensor], Tensor], maps: Tensor, weight: Tensor) -> Tensor:
    """`product` of `maps`, which are put side by side for it where that is faster."""
    images, width = maps.shape[0], maps.shape[3]
    together = min(TOGETHER, images // torch.get_num_threads())
    if together < 2 or not _are_small(maps, weight):
        return product(maps)
    return apart(product(side_by_side(maps, together)), images, width)


def _are_small(maps: Tensor, weight: Tensor) -> bool:
    """Whether the weights are most of what a core reads for an image."""
    pixels = maps.shape[2] * maps.shape[3]
    return pixels <= TINY or (pixels <= SMALL and weight.numel() * weight.element_size() > CACHE)


def side_by_side(maps: Tensor, together: int) -> Tensor:
    """(N, C, H, W) to (ceil(N / together), C, H, together * (W + 1)): a column of zeros after each image."""
    images, channels, height, width = maps.shape
    wide = maps.new_zeros(-(-images // together), height, together, width + 1, channels)
    places = wide[..., :width, :].transpose(1, 2)  # (wide maps, together, H, W, C)
    pixels, whole = maps.permute(0, 2, 3, 1), images // together * together
    places[: whole // together] = pixels[:whole].unflatten(0, (-1, together))
    if whole < images:
        places[-1, : images - whole] = pixels[whole:]
    return wide.flatten(2, 3).permute(0, 3, 1, 2)


def apart(wide: Tensor, images: int, width: int) -> Tensor:
    """The maps (images, C, H, width) that were put side by side, each with a column after it."""
    pixels = wide.permute(0, 2, 3, 1).unflatten(2, (-1, width + 1))[..., :width, :]
    return pixels.transpose(1, 2).flatten(0, 1)[:images].permute(0, 3, 1, 2)
