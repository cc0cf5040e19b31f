"""Batch norm with its activation for NVIDIA GPUs: kernels in Triton, the language of torch's compiler.

These operations move bytes and compute little, so each map is read and written as seldom as can be: a batch norm, the
shortcut and the activation after it are one operation. Only the derivatives of GELU and SiLU, dear to work out, are
kept for the backward pass, in float16 beside maps in bfloat16.

A map (N, C, H, W) in channels_last memory is a matrix of N·H·W rows, its pixels, and C columns; it is bfloat16 or
float32, and all sums are float32. Statistics and parameters are (C,) float32.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from cifarbench.kernels.functions import STORED
from cifarbench.kernels.gpu_tiles import activated, processors, shared, slope, tile_at, tiling

# For each processor, which share the rows of a sum. On an H200 two of eight warps took 0.6 to 0.9 of the time of eight
# of four (maps of 2 to 11 px, 2,000 images, one measurement each).
_PROGRAMS = 2
_OF_SLOPES = {torch.bfloat16: torch.float16, torch.float32: torch.float32}  # they lie in -0.13 .. 1.13


@triton.jit
def _moments(x_ptr, partial_ptr, rows, channels, share, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Sums and squared sums of this program's `share` of the rows, less the first row: partial (2, programs, C)."""
    first = tl.program_id(0) * share
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    named = columns < channels
    pivot = tl.load(x_ptr + columns, mask=named, other=0.0).to(tl.float32)
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    squares = tl.zeros((ROWS, COLUMNS), tl.float32)
    for start in range(0, share, ROWS):
        places, inside = tile_at(first + start, columns, rows, channels, ROWS)
        x = tl.load(x_ptr + places, mask=inside, other=0.0).to(tl.float32)
        moved = tl.where(inside, x - pivot[None, :], 0.0)
        total += moved
        squares += moved * moved
    place = partial_ptr + tl.program_id(0) * channels + columns
    tl.store(place, tl.sum(total, 0), mask=named)
    tl.store(place + tl.num_programs(0) * channels, tl.sum(squares, 0), mask=named)


@triton.jit
def _total(partial_ptr, programs, channels, columns, named, PARTS: tl.constexpr, COLUMNS: tl.constexpr):
    """Column sums of a matrix (programs, C)."""
    total = tl.zeros((PARTS, COLUMNS), tl.float32)
    for start in range(0, programs, PARTS):
        part = start + tl.arange(0, PARTS)
        inside = (part < programs)[:, None] & named[None, :]
        total += tl.load(partial_ptr + part[:, None] * channels + columns[None, :], mask=inside, other=0.0)
    return tl.sum(total, 0)


@triton.jit
def _statistics(
    x_ptr, partial_ptr, weight_ptr, bias_ptr, out_ptr, running_mean_ptr, running_var_ptr, counter_ptr,
    programs, rows, channels, eps, momentum, PARTS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Mean, 1/σ, scale and shift of each channel: out (4, C); and a step of the running statistics."""
    columns = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    named = columns < channels
    moved = _total(partial_ptr, programs, channels, columns, named, PARTS, COLUMNS) / rows
    squares = _total(partial_ptr + programs * channels, programs, channels, columns, named, PARTS, COLUMNS) / rows
    mean = tl.load(x_ptr + columns, mask=named, other=0.0).to(tl.float32) + moved
    variance = squares - moved * moved
    variance = tl.where(variance < 0.0, 0.0, variance)  # and NaN stays
    rstd = 1.0 / tl.sqrt(variance + eps)
    scale = rstd * tl.load(weight_ptr + columns, mask=named, other=0.0)
    shift = tl.load(bias_ptr + columns, mask=named, other=0.0) - mean * scale
    tl.store(out_ptr + columns, mean, mask=named)
    tl.store(out_ptr + channels + columns, rstd, mask=named)
    tl.store(out_ptr + 2 * channels + columns, scale, mask=named)
    tl.store(out_ptr + 3 * channels + columns, shift, mask=named)
    old_mean = tl.load(running_mean_ptr + columns, mask=named, other=0.0)
    old_variance = tl.load(running_var_ptr + columns, mask=named, other=0.0)
    unbiased = variance * (rows / tl.maximum(rows - 1, 1))
    tl.store(running_mean_ptr + columns, old_mean + momentum * (mean - old_mean), mask=named)
    tl.store(running_var_ptr + columns, old_variance + momentum * (unbiased - old_variance), mask=named)
    if tl.program_id(0) == 0:
        tl.store(counter_ptr, tl.load(counter_ptr) + 1)


@triton.jit
def _z(x, added_ptr, scale_ptr, shift_ptr, columns, named, places, inside, ADDS: tl.constexpr):
    """x * scale + shift + added."""
    scale = tl.load(scale_ptr + columns, mask=named, other=0.0)
    z = x * scale[None, :] + tl.load(shift_ptr + columns, mask=named, other=0.0)[None, :]
    if ADDS:
        z += tl.load(added_ptr + places, mask=inside, other=0.0).to(tl.float32)
    return z


@triton.jit
def _affine(
    x_ptr, added_ptr, y_ptr, slope_ptr, scale_ptr, shift_ptr, rows, channels,
    ACT: tl.constexpr, ADDS: tl.constexpr, KEEPS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """y = act(x * scale + shift + added) and, where it KEEPS it, the activation's derivative there."""
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    named = columns < channels
    places, inside = tile_at(tl.program_id(0) * ROWS, columns, rows, channels, ROWS)
    x = tl.load(x_ptr + places, mask=inside, other=0.0).to(tl.float32)
    z = _z(x, added_ptr, scale_ptr, shift_ptr, columns, named, places, inside, ADDS)
    tl.store(y_ptr + places, activated(z, ACT).to(y_ptr.dtype.element_ty), mask=inside)
    if KEEPS:
        tl.store(slope_ptr + places, slope(z, ACT).to(slope_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _dz(
    x, grad_ptr, added_ptr, slope_ptr, stats_ptr, channels, columns, named, places, inside,
    ACT: tl.constexpr, ADDS: tl.constexpr, KEEPS: tl.constexpr,
):  # fmt: skip
    """The gradient before the activation, by its derivative, kept or worked out again."""
    if KEEPS:
        rise = tl.load(slope_ptr + places, mask=inside, other=0.0).to(tl.float32)
    else:
        scale_ptr, shift_ptr = stats_ptr + 2 * channels, stats_ptr + 3 * channels
        rise = slope(_z(x, added_ptr, scale_ptr, shift_ptr, columns, named, places, inside, ADDS), ACT)
    return tl.load(grad_ptr + places, mask=inside, other=0.0).to(tl.float32) * rise


@triton.jit
def _gradient_sums(
    grad_ptr, x_ptr, added_ptr, slope_ptr, stats_ptr, partial_ptr, rows, channels, share,
    ACT: tl.constexpr, ADDS: tl.constexpr, KEEPS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Sums of dz and dz·x̂ over this program's `share` of the rows: partial (2, programs, C)."""
    first = tl.program_id(0) * share
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    named = columns < channels
    mean = tl.load(stats_ptr + columns, mask=named, other=0.0)
    rstd = tl.load(stats_ptr + channels + columns, mask=named, other=0.0)
    plain = tl.zeros((ROWS, COLUMNS), tl.float32)
    turned = tl.zeros((ROWS, COLUMNS), tl.float32)
    for start in range(0, share, ROWS):
        places, inside = tile_at(first + start, columns, rows, channels, ROWS)
        x = tl.load(x_ptr + places, mask=inside, other=0.0).to(tl.float32)
        dz = _dz(
            x, grad_ptr, added_ptr, slope_ptr, stats_ptr, channels, columns, named, places, inside, ACT, ADDS, KEEPS
        )
        plain += dz
        turned += dz * (x - mean[None, :]) * rstd[None, :]
    place = partial_ptr + tl.program_id(0) * channels + columns
    tl.store(place, tl.sum(plain, 0), mask=named)
    tl.store(place + tl.num_programs(0) * channels, tl.sum(turned, 0), mask=named)


@triton.jit
def _two_totals(partial_ptr, out_ptr, programs, channels, PARTS: tl.constexpr, COLUMNS: tl.constexpr):
    """Sums over the programs: partial (2, programs, C) to out (2, C)."""
    columns = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    named = columns < channels
    which = tl.program_id(1)
    total = _total(partial_ptr + which * programs * channels, programs, channels, columns, named, PARTS, COLUMNS)
    tl.store(out_ptr + which * channels + columns, total, mask=named)


@triton.jit
def _gradient(
    grad_ptr, x_ptr, added_ptr, slope_ptr, stats_ptr, sums_ptr, dx_ptr, dadded_ptr, rows, channels,
    ACT: tl.constexpr, ADDS: tl.constexpr, KEEPS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """dx = scale · (dz - mean(dz) - x̂ · mean(dz·x̂)), and dz as the gradient of what was added."""
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    named = columns < channels
    places, inside = tile_at(tl.program_id(0) * ROWS, columns, rows, channels, ROWS)
    mean = tl.load(stats_ptr + columns, mask=named, other=0.0)
    rstd = tl.load(stats_ptr + channels + columns, mask=named, other=0.0)
    plain = tl.load(sums_ptr + columns, mask=named, other=0.0) / rows
    turned = tl.load(sums_ptr + channels + columns, mask=named, other=0.0) / rows
    x = tl.load(x_ptr + places, mask=inside, other=0.0).to(tl.float32)
    dz = _dz(x, grad_ptr, added_ptr, slope_ptr, stats_ptr, channels, columns, named, places, inside, ACT, ADDS, KEEPS)
    normal = (x - mean[None, :]) * rstd[None, :]
    scale = tl.load(stats_ptr + 2 * channels + columns, mask=named, other=0.0)
    dx = scale[None, :] * (dz - plain[None, :] - normal * turned[None, :])
    tl.store(dx_ptr + places, dx.to(dx_ptr.dtype.element_ty), mask=inside)
    if ADDS:
        tl.store(dadded_ptr + places, dz.to(dadded_ptr.dtype.element_ty), mask=inside)


# --- calls -----------------------------------------------------------------------------------------------------------


def norm_forward(
    x: Tensor, weight: Tensor, bias: Tensor, running: tuple[Tensor, Tensor, Tensor], eps: float, momentum: float,
    act: str, added: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor | None]:  # fmt: skip
    """act(batch norm(x) + added), and for `norm_backward` the statistics and the derivatives of an act in STORED.

    Moves the `running` statistics a step.

    Args:
        x: map (N, C, H, W).
        weight, bias: (C,).
        running: mean (C,), variance (C,) and the int64 number of steps, changed in place.
        eps, momentum: of the norm.
        act: identity, relu, gelu or silu.
        added: a map like `x`, or None.
    """
    rows, channels = _matrix(x)
    stats = torch.empty(4, channels, device=x.device)
    partial, grid, share, tile = _shared(x)
    _moments[grid](x, partial, rows, channels, share, **tile)
    _statistics[_few(channels)](
        x, partial, weight, bias, stats, *running, grid[0], rows, channels, eps, momentum, **_FEW
    )
    slopes = torch.empty_like(x, dtype=_OF_SLOPES[x.dtype]) if act in STORED else None
    return affine_activation(x, stats[2], stats[3], act, added, slopes), stats, slopes


def norm_backward(
    grad: Tensor, x: Tensor, added: Tensor | None, stats: Tensor, slopes: Tensor | None, act: str, adds: bool
) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
    """The gradients of x, of what was added, of weight and bias, from that of the output and `norm_forward`'s.

    `added` itself is needed only where there are no `slopes`.
    """
    rows, channels = _matrix(x)
    sums, dx = torch.empty(2, channels, device=x.device), torch.empty_like(x)
    dadded = torch.empty_like(x) if adds else None
    partial, grid, share, tile = _shared(x)
    kind = {"ACT": act, "ADDS": adds, "KEEPS": slopes is not None}
    kept = _or(added, x), _or(slopes, x), stats
    _gradient_sums[grid](grad, x, *kept, partial, rows, channels, share, **kind, **tile)
    _two_totals[(*_few(channels), 2)](partial, sums, grid[0], channels, **_FEW)
    tile = tiling(x)
    whole = (-(-rows // tile["ROWS"]), grid[1])
    _gradient[whole](grad, x, *kept, sums, dx, _or(dadded, dx), rows, channels, **kind, **tile)
    return dx, dadded, sums[1], sums[0]


def affine_activation(
    x: Tensor, scale: Tensor, shift: Tensor, act: str, added: Tensor | None, slopes: Tensor | None = None
) -> Tensor:
    """act(x * scale + shift + added) of maps (N, C, H, W), by (C,) float32; its derivatives go to `slopes`."""
    (rows, channels), tile, y = _matrix(x), tiling(x), torch.empty_like(x)
    grid = -(-rows // tile["ROWS"]), -(-channels // tile["COLUMNS"])
    kind = {"ACT": act, "ADDS": added is not None, "KEEPS": slopes is not None}
    _affine[grid](x, _or(added, x), y, _or(slopes, x), scale, shift, rows, channels, **kind, **tile)
    return y


def _or(tensor: Tensor | None, other: Tensor) -> Tensor:
    """An address is needed also of what a kernel does not look at."""
    return other if tensor is None else tensor


# Of the short sums over programs: few columns a program, so that there are some programs.
_FEW = {"PARTS": 64, "COLUMNS": 16}


def _few(channels: int) -> tuple[int]:
    return (-(-channels // _FEW["COLUMNS"]),)


def _matrix(x: Tensor) -> tuple[int, int]:
    return x.numel() // x.shape[1], x.shape[1]


def _shared(x: Tensor) -> tuple[Tensor, tuple[int, int], int, dict[str, int]]:
    """For sums over rows: where the parts go, (2, programs, C), the grid, the rows of a program, and the tile."""
    (rows, channels), tile = _matrix(x), tiling(x)
    blocks = -(-channels // tile["COLUMNS"])
    programs, share = shared(rows, _PROGRAMS * processors(x.device) // blocks, tile["ROWS"])
    partial = torch.empty(2, programs, channels, device=x.device)
    return partial, (programs, blocks), share, {**tile, "num_warps": 8}
