"""What the kernels for NVIDIA GPUs share, in Triton: places of tiles and windows, sums of parts, and activations."""

from __future__ import annotations

import functools

import torch
import triton
import triton.language as tl
from torch import Tensor

_TILE = 4096  # numbers that a program holds at once
_COLUMNS = 128  # of a tile at most


def tiling(x: Tensor, held: int = 1) -> dict[str, int]:
    """Rows and columns of a tile of which a program holds so many."""
    columns = min(triton.next_power_of_2(x.shape[1]), _COLUMNS)
    return {"ROWS": max(_TILE // held // columns, 1), "COLUMNS": columns}


def shared(count: int, programs: int, each: int) -> tuple[int, int]:
    """How many programs, so many at most, share the rows of a matrix, and the rows of one, a multiple of `each`."""
    share = each * -(-count // (each * max(programs, 1)))
    return -(-count // share), share


@functools.cache
def processors(device: torch.device) -> int:
    """The streaming multiprocessors of a GPU; some number on a CPU, for Triton's interpreter."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 2


@functools.cache
def shared_memory(device: torch.device) -> int:
    """The shared memory in bytes that a program on a GPU may have; 0 where torch does not know."""
    return getattr(torch.cuda.get_device_properties(device), "shared_memory_per_block_optin", 0)


@triton.jit
def tile_at(first, columns, rows, channels, ROWS: tl.constexpr):
    """Places (ROWS, COLUMNS) of these columns in the rows from `first` on, and which of them are in the matrix."""
    row = first + tl.arange(0, ROWS)
    inside = (row < rows)[:, None] & (columns < channels)[None, :]
    return row.to(tl.int64)[:, None] * channels + columns[None, :], inside


@triton.jit
def window_at(first, tall, wide, WINDOWS: tl.constexpr):
    """The numbers of WINDOWS windows from `first` on, `tall` · `wide` of an image, and the image, row and column."""
    window = first + tl.arange(0, WINDOWS)
    return window, (window // (tall * wide)).to(tl.int64), window // wide % tall, window % wide


@triton.jit
def better(value, best):
    """Whether to take `value` for the largest so far: the first of equal ones, and NaN rather than any other."""
    return (value > best) | (value != value)


@triton.jit
def sum_of(partial_ptr, programs, PARTS: tl.constexpr):
    """What the programs have left, one number each, in all; PARTS of them are added at once."""
    total = tl.zeros((PARTS,), tl.float32)
    for start in range(0, programs, PARTS):
        part = start + tl.arange(0, PARTS)
        total += tl.load(partial_ptr + part, mask=part < programs, other=0.0)
    return tl.sum(total, 0)


@triton.jit
def _bell_and_share(z):
    """The normal density of `z`, and its distribution function by Abramowitz and Stegun (1964), 7.1.26, to 1e-7."""
    bell = 0.3989422804014327 * tl.exp(-0.5 * z * z)
    t = 1.0 / (1.0 + 0.2316418882663604 * tl.abs(z))  # 0.3275911 / √2
    series = t * (0.254829592 + t * (-0.284496736 + t * (1.421413741 + t * (-1.453152027 + t * 1.061405429))))
    tail = 1.2533141373155001 * bell * series  # half of erfc(|z| / √2)
    return bell, tl.where(z < 0, tail, 1.0 - tail)


@triton.jit
def activated(z, ACT: tl.constexpr):
    """The activation of `z`."""
    if ACT == "relu":
        z = tl.where(z < 0.0, 0.0, z)  # unlike tl.maximum, it keeps NaN, by which a run notices that it has failed
    elif ACT == "gelu":
        _, share = _bell_and_share(z)
        z = z * share
    elif ACT == "silu":
        z = z * tl.sigmoid(z)
    return z


@triton.jit
def slope(z, ACT: tl.constexpr):
    """The derivative of the activation at `z`."""
    rise = tl.full(z.shape, 1.0, tl.float32)
    if ACT == "relu":
        rise = tl.where(z > 0, 1.0, 0.0)
    elif ACT == "gelu":
        bell, share = _bell_and_share(z)
        rise = share + z * bell
    elif ACT == "silu":
        share = tl.sigmoid(z)
        rise = share * (1.0 + z * (1.0 - share))
    return rise
