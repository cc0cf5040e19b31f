"""The convolutions of `winograd.c` as a function that autograd knows, and where they are faster than torch's.

Maps are (N, C, H, W) bfloat16 or float32 in channels_last memory.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from cifarbench.kernels.functions import LAYOUT, at, is_plain, library_for

TILE, LANES = 4, 8  # of tiles.h
# Measured against torch 2.14.1 on two cores of an AMD EPYC, for 16 to 512 channels on maps of 2 to 32 px, with AVX-512
# and AVX2: (channels, share of the tiles that is image). In bfloat16 torch multiplies twice as fast as in float32.
LEAST = {torch.float32: (24, 0.4), torch.bfloat16: (64, 0.75)}
LEAST_TILES = 256  # the filters are transformed anew in each step


class Winograd(torch.autograd.Function):
    """A 3x3 convolution of stride 1 with zero padding 1, with its gradients; products and sums are in float32.

    The weights (K, C, 3, 3), both channels multiples of 8, and the bias (K,), or None, are float32.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """(N, C, H, W) to (N, K, H, W)."""
        ctx.save_for_backward(x, weight)
        return convolved(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """The gradients of x, weight and bias."""
        x, weight = ctx.saved_tensors
        grad = grad.contiguous(memory_format=LAYOUT)
        by_input, by_weight, by_bias = ctx.needs_input_grad
        dx = input_gradient(grad, weight) if by_input else None
        dbias = grad.sum((0, 2, 3), dtype=torch.float32) if by_bias else None
        return dx, weight_gradient(grad, x) if by_weight else None, dbias


def takes(conv: torch.nn.Conv2d) -> bool:
    """Whether a convolution is of the kind that can be worked out in this way."""
    return is_plain(conv) and conv.in_channels % LANES == conv.out_channels % LANES == 0


def is_faster(conv: torch.nn.Conv2d, x: Tensor) -> bool:
    """Whether that is faster than torch for maps `x` (N, C, H, W); what torch refuses is left to it."""
    images, inputs, height, width = x.shape
    area = _with_zeros(height) * _with_zeros(width)
    channels, share = LEAST[x.dtype]
    return (
        inputs == conv.in_channels
        and conv.weight.dtype == torch.float32
        and min(inputs, conv.out_channels) >= channels
        and height * width >= share * area
        and images * area >= LEAST_TILES * TILE**2
    )


def _with_zeros(side: int) -> int:
    """What a side takes up in tiles."""
    return side if side % TILE == 0 else side + 1


def convolved(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """(N, C, H, W) to (N, K, H, W)."""
    return _product(x, weight, bias, len(weight), turned=False)


def input_gradient(grad: Tensor, weight: Tensor) -> Tensor:
    """The gradient of the input (N, C, H, W) from that of the output (N, K, H, W)."""
    return _product(grad, weight, None, weight.shape[1], turned=True)


def weight_gradient(grad: Tensor, x: Tensor) -> Tensor:
    """The gradient (K, C, 3, 3) float32 of the weight from those of the output (N, K, H, W) and the input."""
    images, inputs, height, width = x.shape
    outputs = grad.shape[1]
    gradient = torch.empty((outputs, inputs, 3, 3), memory_format=LAYOUT)
    sizes = images, height, width, inputs, outputs
    _check(library_for(x).winograd_gradient(*map(at, (x, grad, gradient)), *sizes, torch.get_num_threads()))
    return gradient


def _product(maps: Tensor, weight: Tensor, bias: Tensor | None, outputs: int, *, turned: bool) -> Tensor:
    images, inputs, height, width = maps.shape
    made = torch.empty((images, outputs, height, width), dtype=maps.dtype, memory_format=LAYOUT)
    weight = weight.contiguous(memory_format=LAYOUT)
    sizes = images, height, width, inputs, outputs
    _check(library_for(maps).winograd(*map(at, (maps, weight, bias, made)), *sizes, turned, torch.get_num_threads()))
    return made


def _check(failed: int) -> None:
    if failed:
        raise MemoryError("there is no memory for the transforms of a convolution.")
