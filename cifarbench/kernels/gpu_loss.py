"""Cross-entropy for NVIDIA GPUs, in Triton: the loss, its gradient and the right answers of a batch in one kernel."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

_TILE = 16384  # numbers that the one program holds at once
_WARPS = 16


@triton.jit
def _cross_entropy(
    logits_ptr, targets_ptr, grad_ptr, loss_ptr, totals_ptr, rows, classes, by_row, smoothing,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """The mean loss, its gradient, and the batch added to the totals: the sums of losses and right answers, rows."""
    columns = tl.arange(0, COLUMNS)
    losses, rights = tl.zeros((ROWS,), tl.float32), tl.zeros((ROWS,), tl.float32)
    for start in range(0, rows, ROWS):
        row = start + tl.arange(0, ROWS)
        inside = (row < rows)[:, None] & (columns < classes)[None, :]
        places = row[:, None] * by_row + columns[None, :]
        x = tl.load(logits_ptr + places, mask=inside, other=-1e30).to(tl.float32)
        target = tl.load(targets_ptr + row, mask=row < rows, other=0)
        is_target = columns[None, :] == target[:, None]
        x -= tl.max(x, 1)[:, None]
        powers = tl.where(columns[None, :] < classes, tl.exp(x), 0.0)
        total = tl.sum(powers, 1)
        wanted = tl.where(inside, smoothing / classes + tl.where(is_target, 1.0 - smoothing, 0.0), 0.0)
        loss = tl.log(total) - tl.sum(tl.where(inside, wanted * x, 0.0), 1)
        grad = (powers / total[:, None] - wanted) / rows
        grad_places = row[:, None] * classes + columns[None, :]
        tl.store(grad_ptr + grad_places, grad.to(grad_ptr.dtype.element_ty), mask=inside)
        first = tl.min(tl.where(inside & (x == 0.0), columns[None, :], COLUMNS), 1)  # of equal ones, as argmax has it
        losses += tl.where(row < rows, loss, 0.0)
        rights += tl.where((row < rows) & (first == target), 1.0, 0.0)
    loss_sum = tl.sum(losses, 0)
    tl.store(loss_ptr, loss_sum / rows)
    tl.store(totals_ptr, tl.load(totals_ptr) + loss_sum)
    tl.store(totals_ptr + 1, tl.load(totals_ptr + 1) + tl.sum(rights, 0))
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
    columns = triton.next_power_of_2(classes)
    tile = {"ROWS": max(_TILE // columns, 1), "COLUMNS": columns}
    _cross_entropy[(1,)](
        logits, targets, grad, loss, totals, rows, classes, logits.stride(0), smoothing, **tile, num_warps=_WARPS
    )
    return loss, grad
