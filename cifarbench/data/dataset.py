"""The images as every other room sees them: one uint8 tensor in published order, and its fingerprint."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import torch
from torch import Tensor

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


@dataclass(frozen=True)
class ImageSet:
    """All images of a dataset in published order.

    `images` is (N, 3, 32, 32) uint8, `targets` (N,) int64 in 0..9, `fingerprint` the SHA-256 of both.
    """

    name: str
    images: Tensor
    targets: Tensor
    classes: tuple[str, ...]
    fingerprint: str


def image_set(name: str, images: Tensor, targets: Tensor, classes: tuple[str, ...]) -> ImageSet:
    """An ImageSet with its fingerprint computed from the bytes given."""
    digest = hashlib.sha256()
    digest.update(images.contiguous().numpy().data)
    digest.update(targets.to(torch.int64).contiguous().numpy().data)
    return ImageSet(name, images, targets, classes, digest.hexdigest())
