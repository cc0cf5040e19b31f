"""The kernels of the other `gpu_….py` as functions that autograd knows, and whether they can be had.

Maps are (N, C, H, W) in channels_last memory, bfloat16 or float32; statistics and parameters of norms are (C,) float32.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from cifarbench.kernels.functions import LAYOUT, is_plain

_OLDEST = (8, 0)  # compute capability with bfloat16 products


@functools.cache
def are_there(device: torch.device) -> bool:
    """Whether the kernels run on `device`: an NVIDIA GPU since Ampere, where Triton can build them."""
    return (
        device.type == "cuda"
        and torch.version.hip is None
        and torch.cuda.get_device_capability(device) >= _OLDEST
        and _can_be_built(device)
    )


def _can_be_built(device: torch.device) -> bool:
    """Whether a small map goes through a kernel: Triton may be missing, or the C compiler that it needs."""
    try:
        from cifarbench.kernels.gpu_pool import pool_forward

        pool_forward(torch.zeros(1, 1, 2, 2, device=device), False)
    except Exception:  # of whatever kind Triton raises: torch's operations are taken instead
        return False
    return True


class NormActivation(torch.autograd.Function):
    """act(batch norm(x) + added) with the statistics of x, by which the running ones are moved in the same pass.

    Ioffe and Szegedy, "Batch Normalization" (2015). The output is rounded once, after the activation. `added` is the
    shortcut of a residual block, or None; `running` are the mean (C,), the variance (C,) and the number of steps.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, added: Tensor | None,
        running: tuple[Tensor, Tensor, Tensor], eps: float, momentum: float, act: str,
    ) -> Tensor:  # fmt: skip
        """Maps (N, C, H, W): the activated ones."""
        from cifarbench.kernels.gpu_norm import norm_forward

        y, stats, slopes = norm_forward(x, weight, bias, running, eps, momentum, act, added)
        ctx.save_for_backward(x, added if slopes is None else None, stats, slopes)
        ctx.act, ctx.adds = act, added is not None
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """The gradients of x, weight, bias and what was added."""
        from cifarbench.kernels.gpu_norm import norm_backward

        x, added, stats, slopes = ctx.saved_tensors
        grad = grad.contiguous(memory_format=LAYOUT)
        dx, dadded, dweight, dbias = norm_backward(grad, x, added, stats, slopes, ctx.act, ctx.adds)
        return dx, dweight, dbias, dadded, None, None, None, None


def affine_activation(x: Tensor, scale: Tensor, shift: Tensor, act: str, added: Tensor | None = None) -> Tensor:
    """act(x * scale + shift + added) of maps (N, C, H, W), by (C,) float32; no gradient."""
    from cifarbench.kernels import gpu_norm

    return gpu_norm.affine_activation(x, scale, shift, act, added)


class MaxPool(torch.autograd.Function):
    """2x2 maximum: (N, C, H, W) to half of both sides, odd ones rounded up with `keep_edge` and else down.

    Of equal numbers the first takes the gradient.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, keep_edge: bool = False) -> Tensor:
        """The largest number of each window."""
        from cifarbench.kernels.gpu_pool import pool_forward

        y, which = pool_forward(x, keep_edge)
        ctx.save_for_backward(which)
        ctx.size = tuple(x.shape[2:])
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        """The gradient, at the place of each window's largest number."""
        from cifarbench.kernels.gpu_pool import pool_backward

        return pool_backward(grad.contiguous(memory_format=LAYOUT), *ctx.saved_tensors, *ctx.size), None


class ConvPool(torch.autograd.Function):
    """2x2 maximum of a 3x3 convolution: (N, C, H, W) bfloat16 to (N, K, H/2, W/2), rounded down.

    Of equal numbers the first takes the gradient.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, keeps: bool) -> Tensor:
        """The largest number of each window; `keeps` what the backward pass needs."""
        from cifarbench.kernels.gpu_conv import conv_pool

        y, which = conv_pool(x, weight, keeps)
        ctx.save_for_backward(x, weight, which)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """The gradients of the map and the weights."""
        from cifarbench.kernels.gpu_conv import weight_gradient
        from cifarbench.kernels.gpu_pool import pool_backward

        x, weight, which = ctx.saved_tensors
        grad, of_x, of_weight = grad.contiguous(memory_format=LAYOUT), None, None
        if ctx.needs_input_grad[0]:
            whole = pool_backward(grad, which, *x.shape[2:])
            pairs = [1, 1], [1, 1], [1, 1]  # stride, padding, dilation
            of_x, _, _ = torch.ops.aten.convolution_backward(
                whole, x, weight.to(x.dtype), None, *pairs, False, [0, 0], 1, [True, False, False]
            )
        if ctx.needs_input_grad[1]:
            of_weight = weight_gradient(grad, which, x)
        return of_x, of_weight, None


def takes_conv_pool(conv: torch.nn.Conv2d, x: Tensor) -> bool:
    """Whether `ConvPool` is for this convolution of these maps: of few channels, in bfloat16, where memory suffices."""
    from cifarbench.kernels.gpu_conv import FEWEST, OUTPUTS, SHARED_MEMORY, SLICE
    from cifarbench.kernels.gpu_tiles import shared_memory

    return (
        x.dtype == torch.bfloat16
        and is_plain(conv)
        and conv.bias is None
        and FEWEST <= conv.in_channels <= SLICE // 4
        and conv.out_channels % OUTPUTS == 0
        and shared_memory(x.device) >= SHARED_MEMORY
    )


class GlobalMax(torch.autograd.Function):
    """The maximum over height and width, (N, C, H, W) to (N, C); equal numbers share the gradient, as torch's do."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        """The largest number of each map."""
        from cifarbench.kernels.gpu_pool import largest

        y = largest(x)
        ctx.save_for_backward(x, y)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        """The gradient, at the places of the largest numbers."""
        from cifarbench.kernels.gpu_pool import largest_backward

        return largest_backward(grad.contiguous(), *ctx.saved_tensors)


class CrossEntropy(torch.autograd.Function):
    """The mean cross-entropy of logits (B, K) and targets (B,) int64; adds the batch to `totals` (3,) float64.

    The totals are the sum of losses, the right answers and the images.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor, smoothing: float, totals: Tensor) -> Tensor:
        """A float32 scalar."""
        from cifarbench.kernels.gpu_loss import cross_entropy

        loss, grad = cross_entropy(logits, targets, smoothing, totals)
        ctx.save_for_backward(grad)
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """The gradient of the logits."""
        (of_logits,) = ctx.saved_tensors
        return of_logits * grad, None, None, None


class Whiten(torch.autograd.Function):
    """act(conv2d(images, weight, bias)) by frozen weights (C, 3, 2, 2), without gradient for the images."""

    @staticmethod
    def forward(ctx: Any, images: Tensor, weight: Tensor, bias: Tensor, act: str, dtype: torch.dtype) -> Tensor:
        """Images (N, 3, H, W) float32 to (N, C, H-1, W-1) of `dtype`."""
        from cifarbench.kernels.gpu_images import whiten

        ctx.save_for_backward(images, weight, bias)
        ctx.act = act
        return whiten(images, weight, bias, act, dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """The gradient of the bias."""
        from cifarbench.kernels.gpu_images import whitening_bias_gradient

        images, weight, bias = ctx.saved_tensors
        grad = grad.contiguous(memory_format=LAYOUT)
        return None, None, whitening_bias_gradient(grad, images, weight, bias, ctx.act), None, None


def shrink(images: Tensor, size: int) -> Tensor:
    """Images (N, 3, H, W) float32 at `size` px a side, bilinear without antialiasing; themselves if they have it."""
    from cifarbench.kernels import gpu_images

    is_there = images.shape[-1] == size
    return images if is_there else gpu_images.shrink(images.contiguous(memory_format=LAYOUT), size)


def take(
    images: Tensor, positions: Tensor, moves: Tensor, size: int, scale: Tensor, shift: Tensor, hole: int, reflects: bool
) -> Tensor:
    """Stored images (N, 3, S, S) uint8 at `positions`, augmented in one kernel: see `gpu_images.take`."""
    from cifarbench.kernels import gpu_images

    return gpu_images.take(images.contiguous(), positions.contiguous(), moves, size, scale, shift, hole, reflects)
