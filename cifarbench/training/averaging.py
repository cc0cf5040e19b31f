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

    @torch.no_grad()
    def update_parameters(self, model: nn.Module) -> None:
        """Take the model's weights into the average; its counters, which are integers, are taken over."""
        pairs = list(zip(_tensors(self.module), _tensors(model), strict=True))
        if self.n_averaged == 0:
            for average, current in pairs:
                average.copy_(current)
        else:
            averages, currents = zip(*(pair for pair in pairs if pair[0].is_floating_point()), strict=True)
            torch._foreach_lerp_(averages, currents, 1 - self.decay)
            for average, current in pairs:
                if not average.is_floating_point():
                    average.copy_(current)
        self.n_averaged += 1


def _tensors(model: nn.Module) -> list[Tensor]:
    return [tensor.detach() for tensor in chain(model.parameters(), model.buffers())]
