"""Which predictions to look at: the costliest mistakes, the surest answers, the commonest confusions; calibration."""

from __future__ import annotations

from typing import Any

from cifarbench.evaluation.metrics import ECE_BINS, confidence_bins
from cifarbench.evaluation.predictions import Predictions


def top_losses(predictions: Predictions, count: int) -> list[int]:
    """Positions of the `count` images with the largest cross-entropy, the largest first."""
    true = predictions.probabilities.gather(1, predictions.targets[:, None])[:, 0]
    return true.argsort(stable=True)[:count].tolist()


def examples_of(predictions: Predictions, true: int, answered: int, count: int) -> list[int]:
    """Positions of images of class `true` taken for `answered`, the surest mistakes first."""
    here = ((predictions.targets == true) & (predictions.predicted == answered)).nonzero().flatten()
    sure = predictions.probabilities[here, answered]
    return here[sure.argsort(descending=True, stable=True)[:count]].tolist()


def confidence_extremes(predictions: Predictions, label: int, count: int) -> tuple[list[int], list[int]]:
    """Positions of the images of class `label` that were answered most and least confidently, the extreme first.

    Confidence is the probability of the answer, right or wrong.
    """
    here = (predictions.targets == label).nonzero().flatten()
    order = here[predictions.probabilities[here].amax(1).argsort(descending=True, stable=True)]
    return order[:count].tolist(), order.flip(0)[:count].tolist()


def reliability(predictions: Predictions) -> list[dict[str, Any]]:
    """The 15 equal bins of confidence behind the calibration error.

    Returns:
        For each bin its edges `low` (out) and `high` (in), `count`, and mean `confidence` and `accuracy`, both None
        where it is empty.
    """
    confidence = predictions.probabilities.amax(1)
    edges, bins = confidence_bins(confidence)
    rows = []
    for index in range(ECE_BINS):
        inside = bins == index
        count = int(inside.sum())
        rows.append(
            {
                "low": edges[index].item(),
                "high": edges[index + 1].item(),
                "count": count,
                "confidence": confidence[inside].mean().item() if count else None,
                "accuracy": predictions.right[inside].double().mean().item() if count else None,
            }
        )
    return rows
