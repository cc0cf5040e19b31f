"""What training minimises, of a batch: cross-entropy, or how far the softmax probabilities are from the targets.

The squared distance (mse) is Brier's score (1950), but for its mean over the classes in place of their sum. With the
absolute one (mae) an image pulls less the less its class is believed in, so that wrong labels do little harm and
learning is slow (Ghosh, Kumar & Sastry, "Robust Loss Functions under Label Noise for Deep Neural Networks", 2017).

Shapes: N images, K classes.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def loss_sum(logits: Tensor, targets: Tensor, name: str, smoothing: float) -> Tensor:
    """The sum of the images' losses, a float32 scalar.

    Args:
        logits: (N, K) float32.
        targets: the classes, (N,) int64, or their shares in an image, (N, K) float32.
        name: cross_entropy, in nats; mse or mae, each the mean over the K classes.
        smoothing: share of each image's target, 0..1, that goes to all classes evenly.
    """
    if name == "cross_entropy":
        return F.cross_entropy(logits, targets, reduction="sum", label_smoothing=smoothing)
    classes = logits.shape[1]
    shares = F.one_hot(targets, classes).to(logits.dtype) if targets.ndim == 1 else targets
    wanted = (1 - smoothing) * shares + smoothing / classes
    distance = {"mse": F.mse_loss, "mae": F.l1_loss}[name]
    return distance(logits.softmax(1), wanted, reduction="sum") / classes
