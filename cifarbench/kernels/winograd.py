"""The convolutions of `winograd.c` as a function that autograd knows, and where they are faster than torch's.

Maps are (N, C, H, W) bfloat16 or float32 in channels_last memory.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from cifarbench.kernels.functions import LAYOUT, at, convolution_gradients, is_plain, library_for

TILE, LANES = 4, 8  # of winograd.h
# (channels, share of the tiles' area that is image): measured against torch 2.14.1 on two cores of an AMD EPYC, with
# AVX-512 and with AVX2, for 16 to 512 channels on maps of 2 to 32 px. Torch multiplies in bfloat16 twice as fast as in
# float32 there.
LEAST = {torch.float32: (24, 0.5), torch.bfloat16: (64, 0.75)}
LEAST_TILES = 256  # the weights are transformed anew in each step


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
        return convolution_gradients(ctx, grad, input_gradient, weight_gradient)


def takes(conv: torch.nn.Conv2d) -> bool:
    """Whether a convolution can be worked out in this way, by its shape and by what its parameters are now."""
    weight, bias = conv.weight, conv.bias
    return (
        is_plain(conv)
        and weight.shape == (conv.out_channels, conv.in_channels, 3, 3)
        and conv.in_channels % LANES == conv.out_channels % LANES == 0
        and all(p is None or (p.dtype, p.device.type) == (torch.float32, "cpu") for p in (weight, bias))
    )


def is_faster(x: Tensor, outputs: int) -> bool:
    """Whether that is faster than torch for maps `x` (N, C, H, W), to `outputs` channels."""
    images, inputs, height, width = x.shape
    tiles = images * -(-height // TILE) * -(-width // TILE)
    channels, share = LEAST[x.dtype]
    return (
        min(inputs, outputs) >= channels and images * height * width >= share * tiles * TILE**2 and tiles >= LEAST_TILES
    )


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
    weight, bias = weight.contiguous(memory_format=LAYOUT), None if bias is None else bias.contiguous()
    sizes = images, height, width, inputs, outputs
    _check(library_for(maps).winograd(*map(at, (maps, weight, bias, made)), *sizes, turned, torch.get_num_threads()))
    return made


def _check(failed: int) -> None:
    if failed:
        raise MemoryError("there is no memory for the transforms of a convolution.")
