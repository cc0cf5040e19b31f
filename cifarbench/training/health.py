"""Losses and weights that are not finite, found within the step on a CPU and within fifty on a GPU."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from cifarbench.errors import NonFiniteError
from cifarbench.training.checkpoint import first_non_finite

_CHECK_EVERY = 50  # steps between looks at the losses on a GPU, where each look waits for the device


class Health:
    """The losses that were not looked at yet, and the look at them."""

    def __init__(self, device: torch.device) -> None:
        self.patience = 1 if device.type == "cpu" else _CHECK_EVERY
        self.unchecked: list[tuple[int, float, Tensor]] = []

    def note(self, step: int, lr: float, loss: Tensor) -> None:
        """Take a step's mean loss, a scalar on the device, and look at it now or later.

        Raises:
            NonFiniteError: it, or an earlier one, is not finite.
        """
        self.unchecked.append((step, lr, loss))
        if len(self.unchecked) >= self.patience:
            self.check_losses()

    def check_losses(self) -> None:
        """Raise NonFiniteError for the first step since the last look whose loss is not finite."""
        if not self.unchecked:
            return
        finite = torch.stack([loss for _, _, loss in self.unchecked]).isfinite().tolist()
        for is_finite, (step, lr, loss) in zip(finite, self.unchecked, strict=True):
            if not is_finite:
                raise NonFiniteError(
                    f"the loss became {loss.item()} at step {step} with learning rate {lr:g}; "
                    "lower `optim.lr`, lengthen `scheduler.warmup`, or set `trainer.clip_norm=1`."
                )
        self.unchecked.clear()

    def check_weights(self, model: nn.Module, step: int) -> None:
        """Raise NonFiniteError for the first weight that is not finite after `step` steps."""
        name = first_non_finite(model.state_dict())
        if name:
            raise NonFiniteError(
                f"the weight {name} became infinite or NaN at step {step}; it was not saved. "
                "Lower `optim.lr`, or set `trainer.clip_norm=1`."
            )
