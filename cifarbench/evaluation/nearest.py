"""Nearest neighbours on raw pixels: an image gets the class that most of the nearest training images have.

Cover and Hart, "Nearest neighbor pattern classification" (1967). Euclidean distances come from matrix products,
|x - t|² = |x|² - 2 x·t + |t|², for a whole batch of images at once.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from cifarbench.evaluation.predict import Statistics

RAW: Statistics = ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))  # pixels stay as they are, on 0..1
_QUERIES, _POINTS = 8, 64  # images compared at once for l1: their differences, 6 MB, stay in the cache
_TIE = 1e-2  # all that nearness can add to a class's votes, below one vote


class NearestNeighbours(nn.Module):
    """Images `(N, 3, 32, 32)` in 0..1 to logits `(N, 10)`, the logarithms of the classes' shares of the votes.

    A tenth of a vote is added to every class, so that no share is zero. A tie goes to the class with the nearest
    neighbour.

    Args:
        images: (T, 3, 32, 32) uint8, the training images.
        targets: (T,) int64.
        k: neighbours that vote, at most T.
        distance: "l2" or "l1".
    """

    def __init__(self, images: Tensor, targets: Tensor, k: int, distance: str) -> None:
        super().__init__()
        # About zero, float32 keeps more of the sums' digits.
        self.points = images.flatten(1).float().div_(255).sub_(0.5)
        self.targets = targets
        self.k, self.distance = k, distance
        self.squares = self.points.square().sum(1)

    def forward(self, images: Tensor) -> Tensor:
        """Logits `(N, 10)` of images `(N, 3, 32, 32)` in 0..1."""
        return vote(self.targets[self.neighbours(images, self.k)], self.k).to(images.device)

    def neighbours(self, images: Tensor, count: int) -> Tensor:
        """Positions of the `count` nearest training images, nearest first: (N, count) int64."""
        queries = images.flatten(1) - 0.5
        distances = self._squared(queries) if self.distance == "l2" else self._absolute(queries)
        return distances.topk(count, dim=1, largest=False, sorted=True).indices

    def _squared(self, queries: Tensor) -> Tensor:
        """Squared Euclidean distances (N, T), short of |x|², which orders nothing."""
        return torch.addmm(self.squares, queries, self.points.T, alpha=-2)

    def _absolute(self, queries: Tensor) -> Tensor:
        """Sums of absolute differences (N, T), tile by tile: torch.cdist takes three times as long on a CPU."""
        distances = queries.new_empty(len(queries), len(self.points))
        room = queries.new_empty(_QUERIES * _POINTS * queries.shape[1])
        for top in range(0, len(queries), _QUERIES):
            some = queries[top : top + _QUERIES, None]
            for left in range(0, len(self.points), _POINTS):
                others = self.points[None, left : left + _POINTS]
                shape = (len(some), others.shape[1], queries.shape[1])
                tile = torch.sub(some, others, out=room[: shape[0] * shape[1] * shape[2]].view(shape)).abs_()
                distances[top : top + _QUERIES, left : left + _POINTS] = tile.sum(2)
        return distances


def vote(labels: Tensor, k: int, classes: int = 10) -> Tensor:
    """Logits (N, classes) of the first `k` of the neighbours' `labels` (N, K) int64, nearest first; on the CPU."""
    labels = labels.cpu()  # not every device has float64
    # Each neighbour's extra is more than that of all farther ones together.
    nearness = 0.5 ** torch.arange(1, k + 1, dtype=torch.float64)
    ballots = (1 + _TIE * nearness).expand(len(labels), -1)
    votes = ballots.new_zeros(len(labels), classes).scatter_add_(1, labels[:, :k], ballots)
    return ((votes + 1 / classes) / (k + 1)).log().float()


def accuracies(labels: Tensor, targets: Tensor, ks: Sequence[int]) -> dict[int, float]:
    """The share of right answers for each number of neighbours, from one search: `labels` (N, max(ks)) int64."""
    targets = targets.cpu()
    return {k: (vote(labels, k).argmax(1) == targets).double().mean().item() for k in ks}
