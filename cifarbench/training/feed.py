"""Training images as a step takes them: augmented on their device, mixed, at the step's size."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from cifarbench.config.augment import AugmentConfig
from cifarbench.config.own import is_own
from cifarbench.data import image_ops
from cifarbench.data.augment import Augment
from cifarbench.data.batches import epoch_order
from cifarbench.data.random import Draws
from cifarbench.data.split import Portion
from cifarbench.kernels import gpu

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
        kernels: take our own for a GPU: one for smaller images, or, where images are only mirrored, cropped and
            holed, one from the stored bytes to what a step takes.
    """

    def __init__(self, augment: Augment, seed: int, ahead: bool, kernels: bool = False) -> None:
        self.augment, self.seed, self.ahead = augment, seed, ahead
        self.shrink = gpu.shrink if kernels else image_ops.shrink
        self.takes = kernels and augment.channels_last and augment.config.only_moves
        self.prepares = ahead or self.takes  # something once an epoch
        self._ready: tuple[int, Tensor, Tensor] | None = None  # the epoch, its portion's images, and what is kept

    def __call__(self, train: Portion, positions: Tensor, epoch: int, size: int) -> tuple[Tensor, Tensor]:
        """Images and targets of the step on `positions`, (B,) int64, of the portion.

        Returns:
            (B, 3, size, size) float32, normalised, and (B,) int64 or, mixed, (B, 10) float32.
        """
        if self.takes:
            return self._taken(train, positions, epoch, size), train.targets[positions]
        draws = Draws(self.seed, epoch, train.indices[positions])
        if self.ahead:
            moved = self.all_ready(train, epoch)[positions]
        else:
            moved = self.augment.move(train.images[positions], draws)
        images, targets = self.augment.mix(self.augment.finish(moved, draws), train.targets[positions], draws)
        return self.shrink(images, size), targets

    def _taken(self, train: Portion, positions: Tensor, epoch: int, size: int) -> Tensor:
        """The images, straight from the stored ones."""
        moves, config = self.all_ready(train, epoch), self.augment.config
        scale, shift = self.augment.scale_and_shift(train.images.device)
        reflects = config.crop_fill == "reflect"
        return gpu.take(train.images, positions, moves, size, scale, shift, config.cutout, reflects)

    def order(self, train: Portion, epoch: int) -> Tensor:
        """Positions (N,) int64 in the order in which the epoch visits them, on the device."""
        return _order(train.images.device, len(train), self.seed, epoch)

    def prepare(self, train: Portion, epoch: int) -> None:
        """Have ready what the epoch's first step needs: asked for while a device works, it costs no time."""
        self.order(train, epoch)
        if self.prepares:
            self.all_ready(train, epoch)

    def forget(self) -> None:
        """Work out anew at the next step what is kept of an epoch."""
        self._ready = None

    def all_ready(self, train: Portion, epoch: int) -> Tensor:
        """Of all images of the portion what is worked out once an epoch, and kept until the next.

        Where the feed `takes`, how each is moved, (N, 6) int32; else the images after the augmentation on bytes,
        (N, 3, 32, 32) uint8.
        """
        if self._ready is None or self._ready[0] != epoch or self._ready[1] is not train.images:
            self._ready = None  # its memory is free for the next
            made = self._moves(train, epoch) if self.takes else self._moved(train, epoch)
            self._ready = epoch, train.images, made
        return self._ready[2]

    def _moves(self, train: Portion, epoch: int) -> Tensor:
        return self.augment.moves(Draws(self.seed, epoch, train.indices), train.images.shape[-1])

    def _moved(self, train: Portion, epoch: int) -> Tensor:
        size = _piece(self.augment.config)
        pieces = zip(train.images.split(size), train.indices.split(size), strict=True)
        moved = [self.augment.move(images, Draws(self.seed, epoch, indices)) for images, indices in pieces]
        return torch.cat(moved) if len(moved) > 1 else moved[0]


def _piece(config: AugmentConfig) -> int:
    return _WARPED_PIECE if config.warps or config.policy != "none" or is_own(config) else _PIECE


@functools.lru_cache(maxsize=2)
def _order(device: torch.device, count: int, seed: int, epoch: int) -> Tensor:
    order = epoch_order(count, seed, epoch)
    if device.type == "cuda":  # from pinned memory, as from other memory the copy waits for all that the device has
        return order.pin_memory().to(device, non_blocking=True)
    return order.to(device)
