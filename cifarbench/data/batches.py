"""Batches without a loader: the images lie in memory as uint8, and a batch is an index into them."""

from __future__ import annotations

import torch
from torch import Tensor

from cifarbench.seeds import derive


def epoch_order(count: int, seed: int, epoch: int) -> Tensor:
    """The order in which an epoch visits `count` images, (count,) int64: a function of seed and epoch alone."""
    generator = torch.Generator().manual_seed(derive(seed, "order", epoch))
    return torch.randperm(count, generator=generator)


def steps_per_epoch(count: int, batch_size: int, limit: int = 0, drop_last: bool = False) -> int:
    """Optimizer steps in an epoch; a smaller last batch counts unless dropped; `limit` above 0 cuts the epoch short."""
    steps = count // batch_size if drop_last else -(-count // batch_size)
    return min(steps, limit) if limit else steps
