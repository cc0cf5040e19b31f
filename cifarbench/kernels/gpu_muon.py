"""What Muon does about its matrix products for NVIDIA GPUs, in Triton: three passes over each matrix.

A matrix (R, C) and its gradient and momentum are float32 and contiguous. In a stack (N, r, c) of the products' dtype
each has a place of its own, as it is or transposed, with zeros about it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from cifarbench.kernels.gpu_tiles import sum_of

_TILE = 2048  # numbers of a program
_PARTS = 256  # of a sum over programs that are added at once


@triton.jit
def _inside(count, TILE: tl.constexpr):
    """The places of this program's numbers, and which of them there are."""
    place = tl.program_id(0) * TILE + tl.arange(0, TILE)
    return place, place < count


@triton.jit
def _advance(grad_ptr, buffer_ptr, weight_ptr, partial_ptr, count, momentum, TILE: tl.constexpr):
    """Moves the buffer, and sums the squares of Nesterov's gradient and of the weights: partial (2, programs)."""
    place, inside = _inside(count, TILE)
    grad = tl.load(grad_ptr + place, mask=inside, other=0.0)
    buffer = momentum * tl.load(buffer_ptr + place, mask=inside, other=0.0) + grad
    tl.store(buffer_ptr + place, buffer, mask=inside)
    update = grad + momentum * buffer
    weight = tl.load(weight_ptr + place, mask=inside, other=0.0)
    tl.store(partial_ptr + tl.program_id(0), tl.sum(update * update, 0))
    tl.store(partial_ptr + tl.num_programs(0) + tl.program_id(0), tl.sum(weight * weight, 0))


@triton.jit
def _stack(
    grad_ptr, buffer_ptr, partial_ptr, out_ptr, count, columns, by_row, by_column, momentum,
    PARTS: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """Nesterov's gradient over its norm, to its place in the stack."""
    place, inside = _inside(count, TILE)
    grad = tl.load(grad_ptr + place, mask=inside, other=0.0)
    update = grad + momentum * tl.load(buffer_ptr + place, mask=inside, other=0.0)
    update /= tl.sqrt(sum_of(partial_ptr, tl.num_programs(0), PARTS)) + 1e-7
    there = place // columns * by_row + place % columns * by_column
    tl.store(out_ptr + there, update.to(out_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _subtract(
    weight_ptr, update_ptr, partial_ptr, rate_ptr, count, columns, by_row, by_column, factor, length,
    RESCALES: tl.constexpr, PARTS: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """Brings the weights to Frobenius norm `length`, where it RESCALES, and takes the rate times the update off."""
    place, inside = _inside(count, TILE)
    weight = tl.load(weight_ptr + place, mask=inside, other=0.0)
    if RESCALES:
        weight *= length / (tl.sqrt(sum_of(partial_ptr + tl.num_programs(0), tl.num_programs(0), PARTS)) + 1e-12)
    there = place // columns * by_row + place % columns * by_column
    update = tl.load(update_ptr + there, mask=inside, other=0.0).to(tl.float32)
    tl.store(weight_ptr + place, weight - tl.load(rate_ptr) * factor * update, mask=inside)


# --- calls -----------------------------------------------------------------------------------------------------------


def advance(grad: Tensor, buffer: Tensor, weight: Tensor, momentum: float) -> Tensor:
    """Move the momentum `buffer` a step; returns the squares that the other two functions go on with."""
    programs = _programs(weight)
    partial = torch.empty(2, *programs, device=weight.device)
    _advance[programs](grad, buffer, weight, partial, weight.numel(), momentum, _TILE)
    return partial


def stack(matrices: Sequence[tuple[Tensor, Tensor, Tensor]], momentum: float, dtype: torch.dtype) -> Tensor:
    """Nesterov's gradients, each over its Frobenius norm, as one stack (N, r, c) of wide matrices with zeros about.

    Args:
        matrices: for each its gradient, its buffer and the squares, both after `advance`.
        momentum: as there.
        dtype: of the stack.
    """
    shapes = [grad.shape for grad, _, _ in matrices]
    rows, columns = (max(side(shape) for shape in shapes) for side in (min, max))
    make = torch.empty if all(shape.numel() == rows * columns for shape in shapes) else torch.zeros
    stacked = make(len(matrices), rows, columns, dtype=dtype, device=matrices[0][0].device)
    for place, (grad, buffer, partial) in zip(stacked, matrices, strict=True):
        _stack[_programs(grad)](
            grad, buffer, partial, place, grad.numel(), grad.shape[1], *_strides(grad, place), momentum, _PARTS, _TILE
        )
    return stacked


def subtract(weight: Tensor, update: Tensor, partial: Tensor, rate: Tensor, factor: float, rescale: bool) -> None:
    """Take rate · factor times the update, at its place `update` (r, c) of a stack, off the weights.

    Args:
        weight: changed in place.
        update: where `stack` had the matrix's gradient.
        partial: the squares.
        rate: a float32 scalar on the device.
        factor: of the rate.
        rescale: set the weights to Frobenius norm √R before.
    """
    _subtract[_programs(weight)](
        weight, update, partial, rate, weight.numel(), weight.shape[1], *_strides(weight, update), factor,
        math.sqrt(len(weight)), rescale, _PARTS, _TILE,
    )  # fmt: skip


def _programs(matrix: Tensor) -> tuple[int]:
    return (-(-matrix.numel() // _TILE),)


def _strides(matrix: Tensor, place: Tensor) -> tuple[int, int]:
    """Steps in `place` from row to row and from column to column of the matrix, which is transposed where tall."""
    by_row, by_column = place.stride()
    return (by_row, by_column) if len(matrix) <= matrix.shape[1] else (by_column, by_row)
