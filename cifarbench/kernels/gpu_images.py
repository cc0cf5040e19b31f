"""Images for NVIDIA GPUs, in Triton: augmented, made smaller, whitened; layouts as in `gpu_norm.py`.

Images are (N, 3, H, W) float32 in channels_last memory, stored ones uint8 and contiguous.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from cifarbench.kernels.gpu_tiles import activated, shared, slope, tile_at

_ROWS = 128  # pixels of a tile
_SUMS = 2048  # programs that share the pixels of a sum


@triton.jit
def _whitened(
    first, columns, images_ptr, weight_ptr, bias_ptr, pixels, height, width, by_output, by_input, by_row, by_column,
    CHANNELS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """The 2x2 convolution with its bias, before the activation, at ROWS pixels from `first` on; places and mask.

    One product of the pixels' patches (ROWS, 12) with the weights (12, COLUMNS), in float32 but for its last bits.
    """
    pixel, tap = first + tl.arange(0, ROWS), tl.arange(0, 16)
    image, y, x = (pixel // (height * width)).to(tl.int64), pixel // width % height, pixel % width
    channel, right, down = tap % 3, tap // 3 % 2, tap // 6
    corner = ((image * (height + 1) + y) * (width + 1) + x) * 3
    patch = images_ptr + corner[:, None] + ((down * (width + 1) + right) * 3 + channel)[None, :]
    patches = tl.load(patch, mask=(pixel < pixels)[:, None] & (tap < 12)[None, :], other=0.0)
    named = columns < CHANNELS
    place = (channel * by_input + down * by_row + right * by_column)[:, None] + (columns * by_output)[None, :]
    weights = tl.load(weight_ptr + place, mask=(tap < 12)[:, None] & named[None, :], other=0.0)
    bias = tl.load(bias_ptr + columns, mask=named, other=0.0)
    z = tl.dot(patches, weights, input_precision="tf32x3") + bias[None, :]
    places, inside = tile_at(first, columns, pixels, CHANNELS, ROWS)
    return z, places, inside


@triton.jit
def _whiten(
    images_ptr, weight_ptr, bias_ptr, y_ptr, pixels, height, width, by_output, by_input, by_row, by_column,
    CHANNELS: tl.constexpr, ACT: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """act(convolution + bias)."""
    z, places, inside = _whitened(
        tl.program_id(0) * ROWS, tl.arange(0, COLUMNS), images_ptr, weight_ptr, bias_ptr, pixels, height, width,
        by_output, by_input, by_row, by_column, CHANNELS, ROWS, COLUMNS,
    )  # fmt: skip
    tl.store(y_ptr + places, activated(z, ACT).to(y_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _bias_sums(
    grad_ptr, images_ptr, weight_ptr, bias_ptr, partial_ptr, pixels, height, width, share, by_output, by_input, by_row,
    by_column, CHANNELS: tl.constexpr, ACT: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Sums of the gradient before the activation over this program's `share` of the pixels: partial (programs, C)."""
    columns = tl.arange(0, COLUMNS)
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    for start in range(0, share, ROWS):
        z, places, inside = _whitened(
            tl.program_id(0) * share + start, columns, images_ptr, weight_ptr, bias_ptr, pixels, height, width,
            by_output, by_input, by_row, by_column, CHANNELS, ROWS, COLUMNS,
        )  # fmt: skip
        total += tl.load(grad_ptr + places, mask=inside, other=0.0).to(tl.float32) * slope(z, ACT)
    place = partial_ptr + tl.program_id(0) * CHANNELS + columns
    tl.store(place, tl.sum(total, 0), mask=columns < CHANNELS)


@triton.jit
def _corners(pixel, tall, wide, height, width, pixel_height, pixel_width):
    """Rows and columns about the place in (height, width) of each pixel of (tall, wide), and how far it is beyond."""
    y = tl.maximum((pixel // wide % tall + 0.5) * pixel_height - 0.5, 0.0)
    x = tl.maximum((pixel % wide + 0.5) * pixel_width - 0.5, 0.0)
    top, left = y.to(tl.int32), x.to(tl.int32)
    return top, tl.minimum(top + 1, height - 1), left, tl.minimum(left + 1, width - 1), y - top, x - left


@triton.jit
def _shrink(images_ptr, y_ptr, pixels, height, width, tall, wide, pixel_height, pixel_width, ROWS: tl.constexpr):
    """Bilinear: each pixel from the four about its place, (tall, wide) from (height, width)."""
    pixel, channel = tl.program_id(0) * ROWS + tl.arange(0, ROWS), tl.arange(0, 4)
    inside = (pixel < pixels)[:, None] & (channel < 3)[None, :]
    image = (pixel // (tall * wide)).to(tl.int64)
    top, bottom, left, right, down, across = _corners(pixel, tall, wide, height, width, pixel_height, pixel_width)
    first = images_ptr + ((image * height + top) * width)[:, None] * 3 + channel[None, :]
    second = images_ptr + ((image * height + bottom) * width)[:, None] * 3 + channel[None, :]
    left, right, down, across = left[:, None] * 3, right[:, None] * 3, down[:, None], across[:, None]
    above = tl.load(first + left, mask=inside, other=0.0) * (1.0 - across)
    above += tl.load(first + right, mask=inside, other=0.0) * across
    below = tl.load(second + left, mask=inside, other=0.0) * (1.0 - across)
    below += tl.load(second + right, mask=inside, other=0.0) * across
    place = pixel.to(tl.int64)[:, None] * 3 + channel[None, :]
    tl.store(y_ptr + place, above * (1.0 - down) + below * down, mask=inside)


@triton.jit
def _source(place, shift, is_turned, SIDE: tl.constexpr, REFLECTS: tl.constexpr):
    """Where on a side of the stored image each `place` of the moved one comes from, and whether that is inside."""
    place = place + shift
    if REFLECTS:
        place = tl.where(place < 0, -place, place)
        place = tl.where(place < SIDE, place, 2 * SIDE - 2 - place)
    inside = (place >= 0) & (place < SIDE)
    return tl.where(is_turned != 0, SIDE - 1 - place, place), inside


@triton.jit
def _moved(y, x, move, stored, scale, shift, inside, SIDE: tl.constexpr, HOLE: tl.constexpr, REFLECTS: tl.constexpr):
    """Normalised numbers (ROWS, 4) at rows `y` and columns `x` of images that `move` tells of, stored from `stored`."""
    row, is_row = _source(y, tl.load(move + 2), tl.load(move + 1), SIDE, REFLECTS)
    column, is_column = _source(x, tl.load(move + 3), tl.load(move), SIDE, REFLECTS)
    value = tl.load(stored + (row * SIDE + column)[:, None], mask=inside & (is_row & is_column)[:, None], other=0)
    value = value.to(tl.float32) * scale - shift
    if HOLE > 0:
        below, beyond = y - tl.load(move + 4), x - tl.load(move + 5)
        is_hole = (below >= 0) & (below < HOLE) & (beyond >= 0) & (beyond < HOLE)
        value = tl.where(is_hole[:, None], 0.0, value)
    return value


@triton.jit
def _take(
    bytes_ptr, positions_ptr, moves_ptr, scale_ptr, shift_ptr, y_ptr, pixels, size, pixel_side,
    SIDE: tl.constexpr, HOLE: tl.constexpr, REFLECTS: tl.constexpr, CORNERS: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """Images at `positions` moved, normalised and brought from (SIDE, SIDE) to (size, size), bilinear of 4 CORNERS."""
    pixel, channel = tl.program_id(0) * ROWS + tl.arange(0, ROWS), tl.arange(0, 4)
    inside = (pixel < pixels)[:, None] & (channel < 3)[None, :]
    image = tl.load(positions_ptr + pixel // (size * size), mask=pixel < pixels, other=0)
    scale = tl.load(scale_ptr + channel, mask=channel < 3, other=0.0)[None, :]
    shift = tl.load(shift_ptr + channel, mask=channel < 3, other=0.0)[None, :]
    stored = bytes_ptr + (image * (3 * SIDE * SIDE))[:, None] + channel[None, :] * (SIDE * SIDE)
    top, bottom, left, right, down, across = _corners(pixel, size, size, SIDE, SIDE, pixel_side, pixel_side)
    total = tl.zeros((ROWS, 4), tl.float32)
    for corner in tl.static_range(CORNERS):
        if corner < 2:
            y, weight = top, 1.0 - down
        else:
            y, weight = bottom, down
        if corner % 2 == 0:
            x, weight = left, weight * (1.0 - across)
        else:
            x, weight = right, weight * across
        value = _moved(y, x, moves_ptr + image * 6, stored, scale, shift, inside, SIDE, HOLE, REFLECTS)
        total += value * weight[:, None]
    tl.store(y_ptr + pixel.to(tl.int64)[:, None] * 3 + channel[None, :], total, mask=inside)


def whiten(images: Tensor, weight: Tensor, bias: Tensor, act: str, dtype: torch.dtype) -> Tensor:
    """act(conv2d(images, weight, bias)) by weights (C, 3, 2, 2) float32: (N, C, H-1, W-1) of `dtype`."""
    count, _, height, width = images.shape
    shape = count, len(weight), height - 1, width - 1
    y = torch.empty(shape, dtype=dtype, device=images.device, memory_format=torch.channels_last)
    pixels = y.numel() // len(weight)
    _whiten[(-(-pixels // _ROWS),)](
        images, weight, bias, y, pixels, height - 1, width - 1, *weight.stride(),
        len(weight), act, _ROWS, _columns(weight),
    )  # fmt: skip
    return y


def whitening_bias_gradient(grad: Tensor, images: Tensor, weight: Tensor, bias: Tensor, act: str) -> Tensor:
    """The gradient (C,) of the bias of `whiten` from that of its output."""
    _, channels, height, width = grad.shape
    pixels = grad.numel() // channels
    programs, share = shared(pixels, _SUMS, _ROWS)
    partial = torch.empty(programs, channels, device=grad.device)
    _bias_sums[(programs,)](
        grad, images, weight, bias, partial, pixels, height, width, share, *weight.stride(),
        channels, act, _ROWS, _columns(weight),
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


def take(
    images: Tensor, positions: Tensor, moves: Tensor, size: int, scale: Tensor, shift: Tensor, hole: int, reflects: bool
) -> Tensor:
    """Stored images as floats (B, 3, size, size), each moved, then scaled and shifted by channel.

    Args:
        images: (N, 3, S, S) uint8.
        positions: (B,) int64, which of them.
        moves: (N, 6) int32, as `Augment.moves` gives them.
        size: px a side, bilinear without antialiasing.
        scale, shift: three float32 each, a number becoming itself · scale - shift.
        hole: px a side of the square that is set to zero after that; 0 for none.
        reflects: whether beyond the image's border there is its reflection; else black.
    """
    side, shape = images.shape[-1], (len(positions), 3, size, size)
    y = torch.empty(shape, device=images.device, memory_format=torch.channels_last)
    pixels, corners = len(positions) * size * size, 1 if size == side else 4
    grid = (-(-pixels // _ROWS),)
    _take[grid](
        images, positions, moves, scale, shift, y, pixels, size, side / size, side, hole, reflects, corners, _ROWS
    )
    return y


def _columns(weight: Tensor) -> int:
    return max(triton.next_power_of_2(len(weight)), 16)  # the least that a product takes
