"""Training images as a step takes them: augmented on their device, mixed, at the step's size."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor

from cifarbench.config.augment import AugmentConfig
from cifarbench.data import image_ops
from cifarbench.data.augment import Augment
from cifarbench.data.batches import epoch_order
from cifarbench.data.random import Draws
from cifarbench.data.split import Portion

# Images that are moved at once ahead of an epoch's steps; resampling works in floats, and takes many times the memory.
_PIECE, _WARPED_PIECE = 60_000, 5_000


class Feed:
    """Batches of one run, each image augmented by the run's seed, the epoch and its own number alone.

    Args:
        augment: the augmentation.
        seed: the run's.
        ahead: move all images of an epoch (augmentation on bytes) before its first step. On a GPU that costs little
            more than to move one batch, whose dozens of short operations each cost a launch; it takes as much memory
            as the images themselves. The images are those that a step would have moved itself.
        shrink: brings images to a smaller size.
    """

    def __init__(
        self, augment: Augment, seed: int, ahead: bool, shrink: Callable[[Tensor, int], Tensor] = image_ops.shrink
    ) -> None:
        self.augment, self.seed, self.ahead, self.shrink = augment, seed, ahead, shrink
        self._moved: tuple[int, Tensor, Tensor] | None = None  # the epoch, its portion's images, and those moved

    def __call__(self, train: Portion, positions: Tensor, epoch: int, size: int) -> tuple[Tensor, Tensor]:
        """Images and targets of the step on `positions`, (B,) int64, of the portion.

        Returns:
            (B, 3, size, size) float32, normalised, and (B,) int64 or, mixed, (B, 10) float32.
        """
        draws = Draws(self.seed, epoch, train.indices[positions])
        if self.ahead:
            moved = self.all_moved(train, epoch)[positions]
        else:
            moved = self.augment.move(train.images[positions], draws)
        images, targets = self.augment.mix(self.augment.finish(moved, draws), train.targets[positions], draws)
        return self.shrink(images, size), targets

    def order(self, train: Portion, epoch: int) -> Tensor:
        """Positions (N,) int64 in the order in which the epoch visits them, on the device."""
        return _order(train.images.device, len(train), self.seed, epoch)

    def prepare(self, train: Portion, epoch: int) -> None:
        """Have ready what the epoch's first step needs: asked for while a device works, it costs no time."""
        self.order(train, epoch)
        if self.ahead:
            self.all_moved(train, epoch)

    def forget(self) -> None:
        """Move the epoch's images anew at the next step."""
        self._moved = None

    def all_moved(self, train: Portion, epoch: int) -> Tensor:
        """All images of the portion after the augmentation on bytes in `epoch`, (N, 3, 32, 32) uint8; kept."""
        if self._moved is None or self._moved[0] != epoch or self._moved[1] is not train.images:
            self._moved = None  # its memory is free for the next
            size = _piece(self.augment.config)
            pieces = zip(train.images.split(size), train.indices.split(size), strict=True)
            moved = [self.augment.move(images, Draws(self.seed, epoch, indices)) for images, indices in pieces]
            self._moved = epoch, train.images, torch.cat(moved) if len(moved) > 1 else moved[0]
        return self._moved[2]


def _piece(config: AugmentConfig) -> int:
    return _WARPED_PIECE if config.warps or config.policy != "none" else _PIECE


@functools.lru_cache(maxsize=2)
def _order(device: torch.device, count: int, seed: int, epoch: int) -> Tensor:
    return epoch_order(count, seed, epoch).to(device)
