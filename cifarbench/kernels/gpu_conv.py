"""A 3x3 convolution of few channels and the 2x2 maxima after it for NVIDIA GPUs, in Triton.

Here a program holds windows of 2x2 outputs. Each looks at 4 rows of 4 pixels; the pixels of a row lie together in
channels_last memory, so that a row is one slice of 4·C numbers, and the convolution a product of such slices with the
weights of one row, in which those of the left output stand above those of the right one. The map before the maxima is
never written. On an H200, 2,000 images, 24 to 64 channels, one measurement each: 0.13 ms at 23 px and 0.22 at 31, and
0.19 and 0.34 for the weights' gradient, where torch's convolution and the maxima of `gpu_pool.py` took 0.20 and 0.36,
and 0.33 and 0.41.

Maps are bfloat16: (N, C, H, W) before and (N, K, H/2, W/2) after it; H and W are rounded down, borders are zeros.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from cifarbench.kernels.gpu_tiles import better, processors, shared, window_at

SLICE = 128  # numbers that a slice may have: 4 pixels
FEWEST = 16  # input channels: with less, a slice is mostly zeros
OUTPUTS = 64  # channels of a program, of which theirs are a multiple
FORWARD = {"WINDOWS": 128, "num_warps": 8, "num_stages": 1}
BACKWARD = {"WINDOWS": 64, "num_warps": 4, "num_stages": 2}
_FORWARD_PROGRAMS, _BACKWARD_PROGRAMS = 1, 2  # for each processor, which share the windows
# Bytes of shared memory that a program may have on the GPUs of data centres since Hopper; FORWARD takes 229,376.
SHARED_MEMORY = 232_448


@triton.jit
def _slice(x_ptr, image, row, left, there, height, width, INPUTS: tl.constexpr, SLICE: tl.constexpr):
    """Four pixels of each window's image in its `row` from column `left` on: (WINDOWS, SLICE), zeros beyond."""
    place = tl.arange(0, SLICE)
    pixel = left[:, None] + place[None, :] // INPUTS
    inside = (there & (row >= 0) & (row < height))[:, None] & (pixel >= 0) & (pixel < width)
    inside = inside & (place < 4 * INPUTS)[None, :]
    first = ((image * height + row) * width + left) * INPUTS
    return tl.load(x_ptr + first[:, None] + place[None, :], mask=inside, other=0.0)


@triton.jit
def _larger(value, best, which, number: tl.constexpr):
    """The larger of two, and which it is: the first of equal ones, and NaN rather than any other."""
    is_better = better(value, best)
    return tl.where(is_better, value, best), tl.where(is_better, number, which)


@triton.jit
def _pooled(
    x_ptr, slices_ptr, y_ptr, which_ptr, windows, height, width, tall, wide, channels, share,
    INPUTS: tl.constexpr, KEEPS: tl.constexpr, SLICE: tl.constexpr, OUTPUTS: tl.constexpr, WINDOWS: tl.constexpr,
):  # fmt: skip
    """The largest output of each of this program's `share` of the windows, and which it is, 0 to 3.

    The weights are (3, SLICE, 2·K): for each row of them, those of the left and the right output of each channel.
    """
    pair = tl.program_id(1) * 2 * OUTPUTS + tl.arange(0, 2 * OUTPUTS)
    weights = slices_ptr + tl.arange(0, SLICE)[:, None] * (2 * channels) + pair[None, :]
    weight0 = tl.load(weights)
    weight1 = tl.load(weights + SLICE * 2 * channels)
    weight2 = tl.load(weights + 2 * SLICE * 2 * channels)
    output = tl.program_id(1) * OUTPUTS + tl.arange(0, OUTPUTS)
    for start in range(0, share, WINDOWS):
        first = tl.program_id(0) * share + start
        window, image, row, column = window_at(first, tall, wide, WINDOWS)
        there = window < windows
        left = 2 * column - 1
        x0 = _slice(x_ptr, image, 2 * row - 1, left, there, height, width, INPUTS, SLICE)
        x1 = _slice(x_ptr, image, 2 * row, left, there, height, width, INPUTS, SLICE)
        x2 = _slice(x_ptr, image, 2 * row + 1, left, there, height, width, INPUTS, SLICE)
        x3 = _slice(x_ptr, image, 2 * row + 2, left, there, height, width, INPUTS, SLICE)
        upper = tl.dot(x2, weight2, tl.dot(x1, weight1, tl.dot(x0, weight0)))
        lower = tl.dot(x3, weight2, tl.dot(x2, weight1, tl.dot(x1, weight0)))
        best, second = tl.split(tl.reshape(upper, (WINDOWS, OUTPUTS, 2)))
        third, fourth = tl.split(tl.reshape(lower, (WINDOWS, OUTPUTS, 2)))
        best, which = _larger(second, best, tl.zeros((WINDOWS, OUTPUTS), tl.int32), 1)
        best, which = _larger(third, best, which, 2)
        best, which = _larger(fourth, best, which, 3)
        place = window.to(tl.int64)[:, None] * channels + output[None, :]
        tl.store(y_ptr + place, best.to(y_ptr.dtype.element_ty), mask=there[:, None])
        if KEEPS:
            tl.store(which_ptr + place, which.to(tl.uint8), mask=there[:, None])


@triton.jit
def _weight_sums(
    grad_ptr, which_ptr, x_ptr, partial_ptr, windows, height, width, tall, wide, channels, share,
    INPUTS: tl.constexpr, SLICE: tl.constexpr, OUTPUTS: tl.constexpr, WINDOWS: tl.constexpr,
):  # fmt: skip
    """Of one row of weights, the gradient by this program's `share` of the windows: partial (programs, 3, 2, SLICE, K).

    Of a window's four outputs the largest alone has a gradient; 2 are the left ones and the right ones.
    """
    tap = tl.program_id(0)
    output = tl.program_id(2) * OUTPUTS + tl.arange(0, OUTPUTS)
    left = tl.zeros((SLICE, OUTPUTS), tl.float32)
    right = tl.zeros((SLICE, OUTPUTS), tl.float32)
    for start in range(0, share, WINDOWS):
        first = tl.program_id(1) * share + start
        window, image, row, column = window_at(first, tall, wide, WINDOWS)
        there = window < windows
        place = window.to(tl.int64)[:, None] * channels + output[None, :]
        grad = tl.load(grad_ptr + place, mask=there[:, None], other=0.0)
        which = tl.load(which_ptr + place, mask=there[:, None], other=4)
        for down in tl.static_range(2):
            x = _slice(x_ptr, image, 2 * row + down + tap - 1, 2 * column - 1, there, height, width, INPUTS, SLICE)
            transposed = tl.trans(x)
            left = tl.dot(transposed, tl.where(which == 2 * down, grad, 0.0).to(x.dtype), left)
            right = tl.dot(transposed, tl.where(which == 2 * down + 1, grad, 0.0).to(x.dtype), right)
    side = partial_ptr + (tl.program_id(1) * 3 + tap) * 2 * SLICE * channels
    place = tl.arange(0, SLICE)[:, None] * channels + output[None, :]
    tl.store(side + place, left)
    tl.store(side + SLICE * channels + place, right)


# --- calls -----------------------------------------------------------------------------------------------------------


def conv_pool(x: Tensor, weight: Tensor, keeps: bool) -> tuple[Tensor, Tensor | None]:
    """The 2x2 maxima of conv2d(x, weight, padding=1), and where in its window each one was, uint8, if it `keeps` that.

    Args:
        x: map (N, C, H, W), bfloat16, channels_last, of at most SLICE / 4 channels.
        weight: (K, C, 3, 3), K a multiple of OUTPUTS.
        keeps: for the backward pass.
    """
    images, inputs, height, width = x.shape
    outputs, tall, wide = len(weight), height // 2, width // 2
    shape = images, outputs, tall, wide
    y = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
    which = torch.empty_like(y, dtype=torch.uint8) if keeps else None
    windows = images * tall * wide
    blocks = outputs // OUTPUTS
    programs, share = shared(windows, _FORWARD_PROGRAMS * processors(x.device) // blocks, FORWARD["WINDOWS"])
    _pooled[programs, blocks](
        x, _slices(weight, x.dtype), y, y if which is None else which, windows, height, width, tall, wide, outputs,
        share, inputs, keeps, SLICE, OUTPUTS, **FORWARD,
    )  # fmt: skip
    return y, which


def weight_gradient(grad: Tensor, which: Tensor, x: Tensor) -> Tensor:
    """The gradient (K, C, 3, 3) float32 of the weights, from those of the maxima and where they were."""
    images, inputs, height, width = x.shape
    outputs, tall, wide = grad.shape[1:]
    windows, blocks = images * tall * wide, outputs // OUTPUTS
    among = _BACKWARD_PROGRAMS * processors(x.device) // (3 * blocks)
    programs, share = shared(windows, among, BACKWARD["WINDOWS"])
    partial = torch.empty(programs, 3, 2, SLICE, outputs, device=x.device)
    _weight_sums[3, programs, blocks](
        grad, which, x, partial, windows, height, width, tall, wide, outputs, share, inputs, SLICE, OUTPUTS, **BACKWARD
    )
    left, right = partial.sum(0).unbind(1)
    rows = left[:, : 3 * inputs] + right[:, inputs : 4 * inputs]
    gradient = rows.view(3, 3, inputs, outputs).permute(3, 2, 0, 1)
    return gradient.contiguous(memory_format=torch.channels_last)


def _slices(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """(3, SLICE, K, 2): for each row of weights and each place in a slice, those of the left and the right output."""
    outputs, inputs = weight.shape[:2]
    rows = weight.permute(2, 3, 1, 0).reshape(3, 3 * inputs, outputs)
    slices = torch.zeros(3, SLICE, outputs, 2, dtype=dtype, device=weight.device)
    slices[:, : 3 * inputs, :, 0] = rows
    slices[:, inputs : 4 * inputs, :, 1] = rows
    return slices
