"""Whether two models differ by more than chance, from their right and wrong answers to the same images.

All of it is about these trained models on such images; what another seed would give is a question for more runs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from cifarbench.evaluation.metrics import Z95


@dataclass(frozen=True)
class Comparison:
    """`second` against `first` on the same images.

    `only_first` and `only_second`: images that only one of them has right; `difference`: accuracy of the second less
    that of the first, in -1..1, with its 95 % interval; `p`: of McNemar's exact test.
    """

    n: int
    only_first: int
    only_second: int
    difference: float
    interval: tuple[float, float]
    p: float


def compare(first: Tensor, second: Tensor) -> Comparison:
    """Compare two models by which images each has right.

    Args:
        first, second: (n,) bool, of the same images in the same order.
    """
    only_first, only_second = int((first & ~second).sum()), int((second & ~first).sum())
    return Comparison(
        n=len(first),
        only_first=only_first,
        only_second=only_second,
        difference=(only_second - only_first) / len(first),
        interval=difference_interval(only_first, only_second, len(first)),
        p=mcnemar(only_first, only_second),
    )


def mcnemar(only_first: int, only_second: int) -> float:
    """Two-sided p value of McNemar's exact test (1947): are the images that only one has right shared out evenly?"""
    total, fewer = only_first + only_second, min(only_first, only_second)
    if only_first == only_second:
        return 1.0
    log_half = total * math.log(0.5)
    logs = [_log_choose(total, hits) + log_half for hits in range(fewer + 1)]
    return min(1.0, 2 * math.fsum(map(math.exp, logs)))


def _log_choose(total: int, chosen: int) -> float:
    return math.lgamma(total + 1) - math.lgamma(chosen + 1) - math.lgamma(total - chosen + 1)


def difference_interval(only_first: int, only_second: int, n: int) -> tuple[float, float]:
    """95 % interval of the difference of two paired shares (Agresti and Min, 2005).

    Half an image is added to each of the four cells, which keeps the interval honest where few answers differ.
    """
    first, second, count = only_first + 0.5, only_second + 0.5, n + 2
    centre = (second - first) / count
    half = Z95 * math.sqrt(first + second - (second - first) ** 2 / count) / count
    return max(-1.0, centre - half), min(1.0, centre + half)


def holm(p_values: Sequence[float]) -> list[float]:
    """P values adjusted for their number (Holm, 1979), in the order given: compare each with 0.05."""
    adjusted, so_far = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=lambda index: p_values[index])):
        so_far = max(so_far, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = so_far
    return adjusted


def mean_gain(ensemble: Tensor, members: Tensor) -> tuple[float, tuple[float, float]]:
    """What an ensemble gains over the mean accuracy of its members, with the 95 % interval over images.

    Args:
        ensemble: (n,) bool, which images the ensemble has right.
        members: (m, n) bool, which each member has right.

    Returns:
        The gain in -1..1 and its interval, by the normal distribution of the mean of n per-image differences.
    """
    gains = ensemble.double() - members.double().mean(0)
    mean = gains.mean().item()
    half = Z95 * gains.std().item() / math.sqrt(len(gains)) if len(gains) > 1 else 1.0
    return mean, (max(-1.0, mean - half), min(1.0, mean + half))
