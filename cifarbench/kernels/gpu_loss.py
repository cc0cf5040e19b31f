"""Cross-entropy for NVIDIA GPUs, in Triton: a batch's loss, its gradient and the right answers in one pass."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from cifarbench.kernels.gpu_tiles import sum_of

_ROWS = 64  # of a program
_PARTS = 256  # of a sum over programs that are added at once


@triton.jit
def _cross_entropy(
    logits_ptr, targets_ptr, grad_ptr, partial_ptr, rows, classes, by_row, smoothing,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """The gradient of the mean loss, and the sums of losses and right answers in these rows: partial (2, programs)."""
    row, columns = tl.program_id(0) * ROWS + tl.arange(0, ROWS), tl.arange(0, COLUMNS)
    is_row, is_class = row < rows, columns < classes
    inside = is_row[:, None] & is_class[None, :]
    x = tl.load(logits_ptr + row[:, None] * by_row + columns[None, :], mask=inside, other=-1e30).to(tl.float32)
    target = tl.load(targets_ptr + row, mask=is_row, other=0)
    x -= tl.max(x, 1)[:, None]
    exponentials = tl.where(is_class[None, :], tl.exp(x), 0.0)
    total = tl.sum(exponentials, 1)
    is_target = columns[None, :] == target[:, None]
    smoothed = tl.where(inside, smoothing / classes + tl.where(is_target, 1.0 - smoothing, 0.0), 0.0)
    grad = (exponentials / total[:, None] - smoothed) / rows
    tl.store(grad_ptr + row[:, None] * classes + columns[None, :], grad.to(grad_ptr.dtype.element_ty), mask=inside)
    loss = tl.where(is_row, tl.log(total) - tl.sum(tl.where(smoothed > 0.0, smoothed * x, 0.0), 1), 0.0)
    first = tl.min(tl.where(inside & (x == 0.0), columns[None, :], COLUMNS), 1)  # of equal ones, as argmax has it
    correct = tl.where(is_row & (first == target), 1.0, 0.0)
    tl.store(partial_ptr + tl.program_id(0), tl.sum(loss, 0))
    tl.store(partial_ptr + tl.num_programs(0) + tl.program_id(0), tl.sum(correct, 0))


@triton.jit
def _count(partial_ptr, loss_ptr, totals_ptr, programs, rows, PARTS: tl.constexpr):
    """The mean loss, and the batch added to the totals: the sums of losses and right answers, and the rows."""
    loss = sum_of(partial_ptr, programs, PARTS)
    tl.store(loss_ptr, loss / rows)
    tl.store(totals_ptr, tl.load(totals_ptr) + loss)
    tl.store(totals_ptr + 1, tl.load(totals_ptr + 1) + sum_of(partial_ptr + programs, programs, PARTS))
    tl.store(totals_ptr + 2, tl.load(totals_ptr + 2) + rows)


def cross_entropy(logits: Tensor, targets: Tensor, smoothing: float, totals: Tensor) -> tuple[Tensor, Tensor]:
    """The mean loss, a float32 scalar, and its gradient in the logits' dtype; the batch is added to `totals`.

    Args:
        logits: (B, K) float32 or bfloat16.
        targets: (B,) int64.
        smoothing: the share of each target that is spread over all classes.
        totals: (3,) float64: the sum of losses, the right answers, the images.
    """
    rows, classes = logits.shape
    logits = logits if logits.stride(1) == 1 else logits.contiguous()
    loss, grad = torch.empty((), device=logits.device), torch.empty_like(logits, memory_format=torch.contiguous_format)
    programs = -(-rows // _ROWS)
    partial = torch.empty(2, programs, device=logits.device)
    _cross_entropy[(programs,)](
        logits, targets.contiguous(), grad, partial, rows, classes, logits.stride(0), smoothing,
        _ROWS, triton.next_power_of_2(classes),
    )  # fmt: skip
    _count[(1,)](partial, loss, totals, programs, rows, _PARTS)
    return loss, grad
