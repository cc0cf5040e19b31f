"""Which images are trainable, validation and test, the fingerprint of that choice, and the seal on the test part."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from cifarbench.config.schema import SplitConfig
from cifarbench.data.dataset import ImageSet
from cifarbench.errors import ConfigError
from cifarbench.seeds import derive

Triple = tuple[float, float, float]

# (end of trainable, start of test, end of test) in sixtieths of the images in published order:
# of 60,000, the five training batches are the first 50,000 and the official test batch the last 10,000.
_BOUNDS = {"last20": (48, 48, 60), "official": (50, 50, 60), "train_last20": (40, 40, 50)}


@dataclass(frozen=True)
class Portion:
    """Images that belong together.

    `images` (n, 3, 32, 32) uint8, `targets` (n,) int64, `indices` (n,) int64 into the published order.
    """

    name: str
    images: Tensor
    targets: Tensor
    indices: Tensor

    def __len__(self) -> int:
        return len(self.indices)

    def to(self, device: torch.device) -> Portion:
        """The same portion with all its tensors on `device`."""
        return Portion(self.name, self.images.to(device), self.targets.to(device), self.indices.to(device))


class SealedPortion:
    """The test part behind its seal: its size and indices are known, its images only to who opens it."""

    def __init__(self, portion: Portion, official: Tensor | None) -> None:
        self._portion = portion
        self.indices = portion.indices
        self.official = official
        self.openings = 0

    def __len__(self) -> int:
        return len(self.indices)

    def open(self) -> Portion:
        """Break the seal: the one way to the test images, counted in `openings`."""
        self.openings += 1
        return self._portion


@dataclass(frozen=True)
class Parts:
    """A dataset, split. `val` is None where nothing is held out; `test.official` marks the official test batch."""

    name: str
    train: Portion
    val: Portion | None
    test: SealedPortion
    fingerprint: str

    @property
    def trainable(self) -> int:
        """How many images are trainable: train and validation together."""
        return len(self.train) + (len(self.val) if self.val else 0)

    def unsealed(self, portion: str) -> Portion:
        """The part "train" or "val", which anyone may see.

        Raises:
            ConfigError: it is neither, or nothing was held out.
        """
        if portion not in ("train", "val"):
            raise ConfigError(f"`portion` is {portion!r}; it must be 'train' or 'val'.")
        if portion == "val" and self.val is None:
            raise ConfigError("`portion` is 'val', and the run kept no validation images (`split.val_fraction` was 0).")
        return self.val if portion == "val" and self.val else self.train

    def record(self) -> dict[str, str | int]:
        """What run.json says of the split: its name, the size of each part, its fingerprint."""
        return {
            "name": self.name,
            "trainable": self.trainable,
            "train": len(self.train),
            "val": len(self.val) if self.val else 0,
            "test": len(self.test),
            "fingerprint": self.fingerprint,
        }


def split(data: ImageSet, config: SplitConfig) -> Parts:
    """Split `data` as `config` says; validation is stratified and drawn by `config.seed` alone.

    Raises:
        ConfigError: the validation share leaves a part without images.
    """
    trainable, start, end = (len(data.targets) * bound // 60 for bound in _BOUNDS[config.name])
    val_indices = _stratified(data.targets[:trainable], config)
    train_indices = torch.from_numpy(np.setdiff1d(np.arange(trainable), val_indices.numpy()))
    test_indices = torch.arange(start, end)
    if not len(train_indices) or (config.val_fraction and not len(val_indices)):
        raise ConfigError(
            f"`split.val_fraction` is {config.val_fraction:g}, which leaves {len(train_indices)} training and "
            f"{len(val_indices)} validation images of {trainable}; choose another share."
        )
    return Parts(
        name=config.name,
        train=_portion("train", data, train_indices),
        val=_portion("val", data, val_indices) if len(val_indices) else None,
        test=SealedPortion(_portion("test", data, test_indices), _official(data, test_indices)),
        fingerprint=_fingerprint(data, config.name, train_indices, val_indices, test_indices),
    )


def _portion(name: str, data: ImageSet, indices: Tensor) -> Portion:
    return Portion(name, data.images[indices], data.targets[indices], indices)


def _official(data: ImageSet, test_indices: Tensor) -> Tensor | None:
    """Which test images are of CIFAR-10's official test batch, (n,) bool; None where none is."""
    mask = test_indices >= len(data.targets) * 50 // 60
    return mask if data.name == "cifar10" and bool(mask.any()) else None


def _stratified(targets: Tensor, config: SplitConfig) -> Tensor:
    """Sorted validation indices: `val_fraction` of every class, the remainder going to the largest fractions."""
    labels = targets.numpy()
    quota = np.bincount(labels, minlength=10) * config.val_fraction
    take = np.floor(quota).astype(int)
    short = round(len(labels) * config.val_fraction) - take.sum()
    take[np.argsort(take - quota, kind="stable")[: max(short, 0)]] += 1
    draw = np.random.default_rng(derive(config.seed, "validation"))
    chosen = [draw.permutation(np.flatnonzero(labels == label))[: take[label]] for label in range(len(take))]
    return torch.from_numpy(np.sort(np.concatenate(chosen)))


def _fingerprint(data: ImageSet, name: str, *parts: Tensor) -> str:
    """SHA-256 over the dataset's fingerprint (its bytes) and the indices of train, validation and test."""
    digest = hashlib.sha256(f"{name}/{data.fingerprint}".encode())
    for indices in parts:
        digest.update(len(indices).to_bytes(8, "little"))
        digest.update(indices.to(torch.int64).numpy().tobytes())
    return digest.hexdigest()


def channel_statistics(images: Tensor) -> tuple[Triple, Triple]:
    """Mean and standard deviation of each channel over all pixels of `images` (n, 3, 32, 32) uint8, in 0..1."""
    counts = torch.stack([torch.bincount(images[:, c].flatten(), minlength=256) for c in range(3)]).double()
    levels = torch.arange(256, dtype=torch.float64) / 255
    total = counts.sum(1)
    mean = (counts * levels).sum(1) / total
    variance = (counts * (levels[None] - mean[:, None]) ** 2).sum(1) / total
    red, green, blue = mean.tolist()
    spread_r, spread_g, spread_b = variance.sqrt().tolist()
    return (red, green, blue), (spread_r, spread_g, spread_b)
