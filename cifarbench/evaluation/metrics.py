"""From logits and targets to the numbers of a report."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

ECE_BINS = 15
Z95 = 1.959963984540054  # of the standard normal distribution, the quantile that 97.5 % lie below


def loss_and_accuracy(logits: Tensor, targets: Tensor) -> tuple[float, float]:
    """Mean cross-entropy in nats and the share of right answers, for logits (N, 10) and targets (N,) int64."""
    if logits.device.type == "mps":  # which has no float64
        logits, targets = logits.cpu(), targets.cpu()
    loss = F.cross_entropy(logits.double(), targets).item()
    return loss, (logits.argmax(1) == targets).double().mean().item()


def score(
    logits: Tensor,
    targets: Tensor,
    classes: tuple[str, ...],
    official: Tensor | None,
    duplicates: Tensor | None = None,
) -> dict[str, Any]:
    """Everything that test.json holds, as plain values.

    Args:
        logits: (N, 10) float32.
        targets: (N,) int64.
        classes: the ten names.
        official: (N,) bool, which images belong to the official test batch, or None.
        duplicates: (N,) bool, which images have a near-duplicate among the trainable ones, or None if unknown.

    Returns:
        n, accuracy, accuracy_official (None without `official`), accuracy_without_duplicates and n_duplicates (None
        without `duplicates`), accuracy_interval (95 % Wilson), loss and nll
        (mean cross-entropy, nats), ece (15 equal bins of confidence), brier (sum over classes, 0..2),
        per_class, confusion_matrix (rows: true class, columns: predicted) and most_confused.
    """
    logits, targets = logits.detach().cpu(), targets.cpu()
    probabilities = logits.double().softmax(1)
    predicted = logits.argmax(1)
    right = predicted == targets
    matrix = confusion_matrix(predicted, targets, len(classes))
    loss, accuracy = loss_and_accuracy(logits, targets)
    return {
        "n": len(targets),
        "accuracy": accuracy,
        "accuracy_interval": list(wilson_interval(int(right.sum()), len(targets))),
        "accuracy_official": None if official is None else right[official].double().mean().item(),
        "n_official": None if official is None else int(official.sum()),
        "accuracy_without_duplicates": None if duplicates is None else right[~duplicates].double().mean().item(),
        "n_duplicates": None if duplicates is None else int(duplicates.sum()),
        "loss": loss,
        "nll": loss,
        "ece": calibration_error(probabilities, right),
        "brier": ((probabilities - F.one_hot(targets, len(classes))) ** 2).sum(1).mean().item(),
        "per_class": per_class(matrix, classes),
        "confusion_matrix": matrix.tolist(),
        "most_confused": most_confused(matrix, classes),
    }


def confusion_matrix(predicted: Tensor, targets: Tensor, classes: int) -> Tensor:
    """Counts (classes, classes) int64: row = true class, column = predicted class."""
    return torch.bincount(targets * classes + predicted, minlength=classes * classes).view(classes, classes)


def per_class(matrix: Tensor, classes: tuple[str, ...]) -> dict[str, dict[str, float]]:
    """Precision, recall, F1 and support of each class; a ratio without cases is 0."""
    hits, support, answers = matrix.diag().double(), matrix.sum(1).double(), matrix.sum(0).double()
    rows = {}
    for index, name in enumerate(classes):
        hit, true, answered = (float(column[index]) for column in (hits, support, answers))
        precision = hit / answered if answered else 0.0
        recall = hit / true if true else 0.0
        f1 = 2 * hit / (true + answered) if true + answered else 0.0
        rows[name] = {"precision": precision, "recall": recall, "f1": f1, "support": int(true)}
    return rows


def most_confused(matrix: Tensor, classes: tuple[str, ...], count: int = 5) -> list[dict[str, Any]]:
    """The `count` most frequent mistakes: true class, predicted class, how often, and the share of the true class."""
    wrong = matrix.clone().fill_diagonal_(0)
    order = wrong.flatten().argsort(descending=True, stable=True)[:count]
    rows = []
    for cell in order.tolist():
        true, answered = divmod(cell, len(classes))
        times = int(wrong[true, answered])
        if times:
            portion = times / int(matrix[true].sum())
            rows.append({"true": classes[true], "predicted": classes[answered], "count": times, "share": portion})
    return rows


def calibration_error(probabilities: Tensor, right: Tensor) -> float:
    """Expected calibration error (Guo et al., 2017): |confidence - accuracy|, averaged over 15 equal bins."""
    confidence = probabilities.max(1).values
    gap = torch.zeros(ECE_BINS, dtype=torch.float64)
    gap.index_add_(0, confidence_bins(confidence)[1], confidence - right.double())
    return (gap.abs().sum() / len(right)).item()


def confidence_bins(confidence: Tensor) -> tuple[Tensor, Tensor]:
    """The 16 edges of the bins of the calibration error, (16,) float64, and the bin of each image, (n,) int64.

    A bin takes its upper edge and not its lower one, as in Guo et al. (2017); the first takes 0 too.
    """
    edges = torch.linspace(0, 1, ECE_BINS + 1, dtype=torch.float64)
    return edges, (torch.bucketize(confidence, edges) - 1).clamp(0, ECE_BINS - 1)


def wilson_interval(hits: int, count: int, z: float = Z95) -> tuple[float, float]:
    """The 95 % interval of a share, `hits` of `count` (Wilson, 1927)."""
    share, square = hits / count, z * z / count
    centre = (share + square / 2) / (1 + square)
    half = z / (1 + square) * math.sqrt(share * (1 - share) / count + square / (4 * count))
    # The share lies inside by theory; rounding must not put it outside.
    return max(0.0, min(share, centre - half)), min(1.0, max(share, centre + half))
