"""The whitening layer with its activation, and smaller images, for NVIDIA GPUs, in Triton; layouts as in `gpu_norm.py`.

Images are (N, 3, H, W) float32 in channels_last memory.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from cifarbench.kernels.gpu_norm import activated, slope, tile_at

_ROWS = 128  # pixels of a tile
_PROGRAMS = 2048


@triton.jit
def _whitened(
    first, columns, images_ptr, weight_ptr, bias_ptr, pixels, height, width, channels,
    by_output, by_input, by_row, by_column, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """The 2x2 convolution with its bias, before the activation, at ROWS pixels from `first` on; places and mask."""
    pixel, named = first + tl.arange(0, ROWS), columns < channels
    image, y, x = (pixel // (height * width)).to(tl.int64), pixel // width % height, pixel % width
    z = tl.zeros((ROWS, COLUMNS), tl.float32) + tl.load(bias_ptr + columns, mask=named, other=0.0)[None, :]
    for tap in tl.static_range(12):
        channel, right, down = tap % 3, tap // 3 % 2, tap // 6
        place = ((image * (height + 1) + y + down) * (width + 1) + x + right) * 3 + channel
        value = tl.load(images_ptr + place, mask=pixel < pixels, other=0.0)
        weights = columns * by_output + channel * by_input + down * by_row + right * by_column
        z += value[:, None] * tl.load(weight_ptr + weights, mask=named, other=0.0)[None, :]
    places, inside = tile_at(first, columns, pixels, channels, ROWS)
    return z, places, inside


@triton.jit
def _whiten(
    images_ptr, weight_ptr, bias_ptr, y_ptr, pixels, height, width, channels, by_output, by_input, by_row, by_column,
    ACT: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """act(convolution + bias)."""
    z, places, inside = _whitened(
        tl.program_id(0) * ROWS, tl.arange(0, COLUMNS), images_ptr, weight_ptr, bias_ptr, pixels, height, width,
        channels, by_output, by_input, by_row, by_column, ROWS, COLUMNS,
    )  # fmt: skip
    tl.store(y_ptr + places, activated(z, ACT).to(y_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _bias_sums(
    grad_ptr, images_ptr, weight_ptr, bias_ptr, partial_ptr, pixels, height, width, channels, share,
    by_output, by_input, by_row, by_column, ACT: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Sums of the gradient before the activation over this program's `share` of the pixels: partial (programs, C)."""
    columns = tl.arange(0, COLUMNS)
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    for start in range(0, share, ROWS):
        z, places, inside = _whitened(
            tl.program_id(0) * share + start, columns, images_ptr, weight_ptr, bias_ptr, pixels, height, width,
            channels, by_output, by_input, by_row, by_column, ROWS, COLUMNS,
        )  # fmt: skip
        total += tl.load(grad_ptr + places, mask=inside, other=0.0).to(tl.float32) * slope(z, ACT)
    place = partial_ptr + tl.program_id(0) * channels + columns
    tl.store(place, tl.sum(total, 0), mask=columns < channels)


@triton.jit
def _shrink(images_ptr, y_ptr, pixels, height, width, tall, wide, pixel_height, pixel_width, ROWS: tl.constexpr):
    """Bilinear: each pixel from the four about its place, (tall, wide) from (height, width)."""
    pixel, channel = tl.program_id(0) * ROWS + tl.arange(0, ROWS), tl.arange(0, 4)
    inside = (pixel < pixels)[:, None] & (channel < 3)[None, :]
    image = (pixel // (tall * wide)).to(tl.int64)
    y = tl.maximum((pixel // wide % tall + 0.5) * pixel_height - 0.5, 0.0)
    x = tl.maximum((pixel % wide + 0.5) * pixel_width - 0.5, 0.0)
    top, left = y.to(tl.int32), x.to(tl.int32)
    bottom, right = tl.minimum(top + 1, height - 1), tl.minimum(left + 1, width - 1)
    down, across = (y - top)[:, None], (x - left)[:, None]
    first = images_ptr + ((image * height + top) * width)[:, None] * 3 + channel[None, :]
    second = images_ptr + ((image * height + bottom) * width)[:, None] * 3 + channel[None, :]
    left, right = left[:, None] * 3, right[:, None] * 3
    above = tl.load(first + left, mask=inside, other=0.0) * (1.0 - across)
    above += tl.load(first + right, mask=inside, other=0.0) * across
    below = tl.load(second + left, mask=inside, other=0.0) * (1.0 - across)
    below += tl.load(second + right, mask=inside, other=0.0) * across
    place = pixel.to(tl.int64)[:, None] * 3 + channel[None, :]
    tl.store(y_ptr + place, above * (1.0 - down) + below * down, mask=inside)


def whiten(images: Tensor, weight: Tensor, bias: Tensor, act: str, dtype: torch.dtype) -> Tensor:
    """act(conv2d(images, weight, bias)) by weights (C, 3, 2, 2) float32: (N, C, H-1, W-1) of `dtype`."""
    count, _, height, width = images.shape
    shape = count, len(weight), height - 1, width - 1
    y = torch.empty(shape, dtype=dtype, device=images.device, memory_format=torch.channels_last)
    pixels = y.numel() // len(weight)
    _whiten[(-(-pixels // _ROWS),)](
        images,
        weight,
        bias,
        y,
        pixels,
        height - 1,
        width - 1,
        len(weight),
        *weight.stride(),
        act,
        _ROWS,
        _columns(weight),
    )
    return y


def whitening_bias_gradient(grad: Tensor, images: Tensor, weight: Tensor, bias: Tensor, act: str) -> Tensor:
    """The gradient (C,) of the bias of `whiten` from that of its output."""
    _, channels, height, width = grad.shape
    pixels = grad.numel() // channels
    share = _ROWS * -(-pixels // (_ROWS * _PROGRAMS))
    programs = -(-pixels // share)
    partial = torch.empty(programs, channels, device=grad.device)
    _bias_sums[(programs,)](
        grad, images, weight, bias, partial, pixels, height, width, channels, share, *weight.stride(),
        act, _ROWS, _columns(weight),
    )  # fmt: skip
    return partial.sum(0)


def shrink(images: Tensor, size: int) -> Tensor:
    """Images at `size` px a side, bilinear without antialiasing."""
    count, channels, height, width = images.shape
    shape = count, channels, size, size
    y = torch.empty(shape, dtype=images.dtype, device=images.device, memory_format=torch.channels_last)
    pixels = count * size * size
    _shrink[(-(-pixels // _ROWS),)](images, y, pixels, height, width, size, size, height / size, width / size, _ROWS)
    return y


def _columns(weight: Tensor) -> int:
    return triton.next_power_of_2(len(weight))
