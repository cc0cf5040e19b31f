"""Exact and near duplicates among the images: in two passes, coarse over all pairs and fine over the candidates.

Barz and Denzler, "Do We Train on Test Data? Purging CIFAR of Near-Duplicates" (2020), found about 3 % of CIFAR-10's
test images to have near-duplicates in its training part, by a network's features and by eye. Here pixels decide: two
images are near-duplicates where the normalised correlation of their detail (what is left without the average of each
pixel's neighbourhood), over small shifts and with or without mirroring, is at least a threshold. That finds copies,
shifts, other colours, brightness and contrast, not other photographs of one scene.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from cifarbench.data.dataset import ImageSet
from cifarbench.data.split import Parts

_IMAGES = 60_000  # of CIFAR-10
_COARSE = 0.85  # correlation that the coarse pass asks for, whose pixels are averages of 4 x 4
_BLOCK = 2_000  # images whose pairs are looked at together
_SHIFT = 2  # px, to each side, in the fine pass
_SLACK = 0.2  # what a pair may fall short of the threshold at half resolution
_AROUND = 9  # px, the neighbourhood whose average is no detail


@dataclass(frozen=True)
class Pair:
    """Two images by their numbers in published order, `first` below `second`, and how alike they are (up to 1)."""

    first: int
    second: int
    correlation: float


def find_pairs(data: ImageSet, threshold: float, note: Callable[[str], None] = lambda text: None) -> list[Pair]:
    """Every pair of near-duplicates in `data`, sorted by number.

    Args:
        data: the images.
        threshold: correlation of detail from which two images count as duplicates, up to 1; at 0.8 the pairs of
            CIFAR-10 are nearly all duplicates to the eye, from 0.7 down ships on one horizon join them.
        note: is told how far the search is.
    """
    coarse = _unit(F.avg_pool2d(data.images.float(), 4))
    mirrored = _unit(F.avg_pool2d(data.images.flip(-1).float(), 4))
    pairs = []
    for start in range(0, len(coarse), _BLOCK):
        candidates = _candidates(coarse, mirrored, start)
        pairs += _confirmed(data.images, candidates, threshold)
        note(f"{min(start + _BLOCK, len(coarse)):,} of {len(coarse):,} images compared, {len(pairs)} pairs found")
    return sorted(pairs, key=lambda pair: (pair.first, pair.second))


def _candidates(coarse: Tensor, mirrored: Tensor, start: int) -> Tensor:
    """Pairs (n, 2) of a block of images with all from its start on, whose coarse correlation is high."""
    block = coarse[start : start + _BLOCK]
    alike = torch.maximum(block @ coarse[start:].T, block @ mirrored[start:].T) >= _COARSE
    found = alike.triu(1).nonzero()  # column j of row i is image start + j
    return found + start


def _confirmed(images: Tensor, candidates: Tensor, threshold: float) -> list[Pair]:
    """The candidate pairs (n, 2) whose detail is alike: those alike at half resolution are looked at in full."""
    pairs = []
    for some in candidates.split(4_096):
        first, second = _detail(images[some[:, 0]]), _detail(images[some[:, 1]])
        alike = best_correlation(F.avg_pool2d(first, 2), F.avg_pool2d(second, 2), shift=1) >= threshold - _SLACK
        best = best_correlation(first[alike], second[alike], _SHIFT)
        rows = zip(some[alike].tolist(), best.tolist(), strict=True)
        pairs += [Pair(first, second, round(value, 4)) for (first, second), value in rows if value >= threshold]
    return pairs


def best_correlation(first: Tensor, second: Tensor, shift: int) -> Tensor:
    """The highest normalised correlation (n,) of image pairs over shifts up to `shift` px and mirroring.

    Args:
        first, second: (n, 3, H, W) float. The middle of `first` is held against each place of `second`.
        shift: px, to each side.
    """
    size = first.shape[-1] - 2 * shift
    middle = _unit(first[:, :, shift : shift + size, shift : shift + size])
    best = torch.full((len(first),), -1.0)
    for other in (second, second.flip(-1)):
        for down in range(2 * shift + 1):
            for right in range(2 * shift + 1):
                window = _unit(other[:, :, down : down + size, right : right + size])
                best = torch.maximum(best, (middle * window).sum(1))
    return best


def _detail(images: Tensor) -> Tensor:
    """Float images less the average of each pixel's neighbourhood."""
    pixels = images.float()
    padded = F.pad(pixels, (_AROUND // 2,) * 4, mode="reflect")
    return pixels - F.avg_pool2d(padded, _AROUND, stride=1)


def _unit(images: Tensor) -> Tensor:
    """Each image as a vector of length 1 whose channels have mean 0, so that a common sky makes no pair."""
    return F.normalize((images - images.mean((2, 3), keepdim=True)).flatten(1), dim=1)


def groups(pairs: Sequence[Pair]) -> list[list[int]]:
    """Images that belong together, directly or through others: sorted lists of two or more numbers."""
    leader: dict[int, int] = {}

    def find(image: int) -> int:
        leader.setdefault(image, image)
        while leader[image] != image:
            leader[image] = leader[leader[image]]
            image = leader[image]
        return image

    for pair in pairs:
        first, second = find(pair.first), find(pair.second)
        leader[max(first, second)] = min(first, second)
    members: dict[int, list[int]] = {}
    for image in sorted(leader):
        members.setdefault(find(image), []).append(image)
    return list(members.values())


def leaked(test: Tensor, trainable: Tensor, found: Sequence[Sequence[int]]) -> Tensor:
    """Which of the test images have a near-duplicate among the trainable ones.

    Args:
        test, trainable: (n,) and (m,) int64, numbers in published order.
        found: groups of near-duplicates.

    Returns:
        (n,) bool.
    """
    known = set(trainable.tolist())
    tainted = {image for group in found if known & set(group) for image in group}
    return torch.tensor([image in tainted for image in test.tolist()], dtype=torch.bool)


def test_duplicates(parts: Parts, fingerprint: str) -> Tensor | None:
    """Which test images have a near-duplicate among the trainable ones, (n,) bool; None if nobody has searched."""
    stored = known_groups(fingerprint)
    return None if stored is None else test_duplicates_of(parts, stored)


def recorded_duplicates(test: Tensor, trainable: Any, fingerprint: Any) -> Tensor | None:
    """`test_duplicates` of the images `test`, (n,) int64, of a run whose record says what follows, or does not.

    Args:
        test: numbers of the images in published order.
        trainable: how many images were trainable: the first ones, in every split.
        fingerprint: of the dataset.
    """
    stored = known_groups(str(fingerprint))
    if stored is None or not isinstance(trainable, int) or not 0 <= trainable <= _IMAGES:
        return None
    return leaked(test, torch.arange(trainable), stored)


def test_duplicates_of(parts: Parts, found: Sequence[Sequence[int]]) -> Tensor:
    """Which test images share one of the groups `found` with a trainable image, (n,) bool."""
    trainable = [parts.train.indices, *([parts.val.indices] if parts.val else [])]
    return leaked(parts.test.indices, torch.cat(trainable), found)


def known_groups(fingerprint: str) -> list[list[int]] | None:
    """The stored groups of the dataset with this fingerprint; None where it was never searched."""
    path = resources.files("cifarbench.data") / "duplicates.json"
    stored = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return stored["groups"] if stored.get("fingerprint") == fingerprint else None
