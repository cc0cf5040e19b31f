"""Averaged weights, for which no step waits."""

from __future__ import annotations

from itertools import chain

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel


class Average(AveragedModel):
    """Exponential average of a model's weights and running statistics: decay · average + (1 - decay) · model.

    torch's own brings its count of updates to the device at every one of them, and waits for that; here it stays on
    the CPU. Until the first update, and after `restart`, the average is the model itself.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        super().__init__(model, use_buffers=True)
        self.decay = decay

    def restart(self) -> None:
        """Let the next update copy the model."""
        self.n_averaged.zero_()

    @property
    def starts(self) -> bool:
        """Whether the next update copies the model."""
        return bool(self.n_averaged == 0)

    def update_parameters(self, model: nn.Module) -> None:
        """Take the model's weights into the average; its counters, which are integers, are taken over."""
        self.take(model)
        self.n_averaged += 1

    @torch.no_grad()
    def take(self, model: nn.Module) -> None:
        """An update that is not counted."""
        pairs = list(zip(_tensors(self.module), _tensors(model), strict=True))
        averages, weights = _columns([pair for pair in pairs if pair[0].is_floating_point()])
        if self.starts:  # by a sum, of which a GPU does many tensors in one launch, and copies one by one
            torch._foreach_zero_(averages)
            torch._foreach_add_(averages, weights)
        else:
            torch._foreach_lerp_(averages, weights, 1 - self.decay)
        counters = [pair for pair in pairs if not pair[0].is_floating_point()]
        if counters:
            torch._foreach_copy_(*_columns(counters))


def _tensors(model: nn.Module) -> list[Tensor]:
    return [tensor.detach() for tensor in chain(model.parameters(), model.buffers())]


def _columns(pairs: list[tuple[Tensor, Tensor]]) -> tuple[list[Tensor], list[Tensor]]:
    return [average for average, _ in pairs], [current for _, current in pairs]
