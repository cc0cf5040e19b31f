"""Maxima of 2x2 windows and of whole maps and their gradients for NVIDIA GPUs, in Triton; maps as in `gpu_norm.py`."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from cifarbench.kernels.gpu_tiles import better, tiling, window_at


@triton.jit
def _window(windows, tall, wide, channels, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Image, row and column of this program's windows (ROWS,), its columns (COLUMNS,), and the mask of both."""
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    window, image, row, column = window_at(tl.program_id(0) * ROWS, tall, wide, ROWS)
    return image, row, column, columns, (window < windows)[:, None] & (columns < channels)[None, :]


@triton.jit
def _pool(
    x_ptr, y_ptr, which_ptr, windows, height, width, tall, wide, channels,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """The largest of each window, the first of equal ones or NaN, and which it is, 0 to 3."""
    image, row, column, columns, inside = _window(windows, tall, wide, channels, ROWS, COLUMNS)
    best = tl.full((ROWS, COLUMNS), float("-inf"), tl.float32)
    which = tl.zeros((ROWS, COLUMNS), tl.int32)
    for corner in tl.static_range(4):
        y, x = 2 * row + corner // 2, 2 * column + corner % 2
        there = inside & ((y < height) & (x < width))[:, None]
        place = ((image * height + y) * width + x)[:, None] * channels + columns[None, :]
        value = tl.load(x_ptr + place, mask=there, other=float("-inf")).to(tl.float32)
        is_better = better(value, best)
        best = tl.where(is_better, value, best)
        which = tl.where(is_better, corner, which)
    place = ((image * tall + row) * wide + column)[:, None] * channels + columns[None, :]
    tl.store(y_ptr + place, best.to(y_ptr.dtype.element_ty), mask=inside)
    tl.store(which_ptr + place, which.to(tl.uint8), mask=inside)


@triton.jit
def _pool_gradient(
    grad_ptr, which_ptr, dx_ptr, windows, height, width, tall, wide, kept_tall, kept_wide, channels,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """The gradient at each window's largest number, zeros elsewhere, also where a last row or column had no window."""
    image, row, column, columns, inside = _window(windows, tall, wide, channels, ROWS, COLUMNS)
    pooled = inside & ((row < kept_tall) & (column < kept_wide))[:, None]
    place = ((image * kept_tall + row) * kept_wide + column)[:, None] * channels + columns[None, :]
    grad = tl.load(grad_ptr + place, mask=pooled, other=0.0)
    which = tl.load(which_ptr + place, mask=pooled, other=4)
    for corner in tl.static_range(4):
        y, x = 2 * row + corner // 2, 2 * column + corner % 2
        there = inside & ((y < height) & (x < width))[:, None]
        place = ((image * height + y) * width + x)[:, None] * channels + columns[None, :]
        tl.store(dx_ptr + place, tl.where(which == corner, grad, 0.0).to(dx_ptr.dtype.element_ty), mask=there)


@triton.jit
def _cells(images, channels, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """This program's images (ROWS,), their columns (COLUMNS,), and the mask of both."""
    image = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    return image.to(tl.int64), columns, (image < images)[:, None] & (columns < channels)[None, :]


@triton.jit
def _largest(x_ptr, y_ptr, images, pixels, channels, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """The largest number of each map, or NaN."""
    image, columns, inside = _cells(images, channels, ROWS, COLUMNS)
    best = tl.full((ROWS, COLUMNS), float("-inf"), tl.float32)
    for pixel in range(pixels):
        place = (image * pixels + pixel)[:, None] * channels + columns[None, :]
        value = tl.load(x_ptr + place, mask=inside, other=float("-inf")).to(tl.float32)
        best = tl.where(better(value, best), value, best)
    tl.store(y_ptr + image[:, None] * channels + columns[None, :], best.to(y_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _largest_gradient(
    grad_ptr, x_ptr, y_ptr, dx_ptr, images, pixels, channels, ROWS: tl.constexpr, COLUMNS: tl.constexpr
):
    """The gradient in equal parts at each map's largest numbers, zeros elsewhere."""
    image, columns, inside = _cells(images, channels, ROWS, COLUMNS)
    there = image[:, None] * channels + columns[None, :]
    best = tl.load(y_ptr + there, mask=inside, other=0.0).to(tl.float32)
    count = tl.zeros((ROWS, COLUMNS), tl.float32)
    for pixel in range(pixels):
        place = (image * pixels + pixel)[:, None] * channels + columns[None, :]
        value = tl.load(x_ptr + place, mask=inside, other=0.0).to(tl.float32)
        count += tl.where(value == best, 1.0, 0.0)
    part = tl.load(grad_ptr + there, mask=inside, other=0.0).to(tl.float32) / count
    for pixel in range(pixels):
        place = (image * pixels + pixel)[:, None] * channels + columns[None, :]
        value = tl.load(x_ptr + place, mask=inside, other=0.0).to(tl.float32)
        tl.store(dx_ptr + place, tl.where(value == best, part, 0.0).to(dx_ptr.dtype.element_ty), mask=inside)


def pool_forward(x: Tensor, keep_edge: bool) -> tuple[Tensor, Tensor]:
    """The 2x2 maxima of a map (N, C, H, W), and where in its window each one was, uint8."""
    images, channels, height, width = x.shape
    tall, wide = (height + keep_edge) // 2, (width + keep_edge) // 2
    y = torch.empty((images, channels, tall, wide), dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
    which = torch.empty_like(y, dtype=torch.uint8)
    windows, tile = images * tall * wide, tiling(x, 4)
    grid = -(-windows // tile["ROWS"]), -(-channels // tile["COLUMNS"])
    _pool[grid](x, y, which, windows, height, width, tall, wide, channels, **tile)
    return y, which


def pool_backward(grad: Tensor, which: Tensor, height: int, width: int) -> Tensor:
    """The gradient (N, C, height, width) from those of the maxima and where they were."""
    images, channels, kept_tall, kept_wide = grad.shape
    dx = torch.empty(
        (images, channels, height, width), dtype=grad.dtype, device=grad.device, memory_format=torch.channels_last
    )
    tall, wide = (height + 1) // 2, (width + 1) // 2
    windows, tile = images * tall * wide, tiling(grad, 4)
    grid = -(-windows // tile["ROWS"]), -(-channels // tile["COLUMNS"])
    _pool_gradient[grid](grad, which, dx, windows, height, width, tall, wide, kept_tall, kept_wide, channels, **tile)
    return dx


def largest(x: Tensor) -> Tensor:
    """The maximum over height and width of a map (N, C, H, W): (N, C)."""
    images, channels = x.shape[:2]
    y = torch.empty(images, channels, dtype=x.dtype, device=x.device)
    _largest[_grid_of(x)](x, y, images, x.shape[2] * x.shape[3], channels, **_tile_of(x))
    return y


def largest_backward(grad: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """The gradient of the map, from that (N, C) of the maxima `y`; equal ones share it, as torch's do."""
    images, channels = x.shape[:2]
    dx = torch.empty_like(x)
    _largest_gradient[_grid_of(x)](grad, x, y, dx, images, x.shape[2] * x.shape[3], channels, **_tile_of(x))
    return dx


def _tile_of(x: Tensor) -> dict[str, int]:
    return tiling(x, 4)


def _grid_of(x: Tensor) -> tuple[int, int]:
    tile = _tile_of(x)
    return -(-len(x) // tile["ROWS"]), -(-x.shape[1] // tile["COLUMNS"])
