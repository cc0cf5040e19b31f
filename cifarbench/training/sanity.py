"""Checks of model, data and optimizer before training, each a number held against a rule; no test image is touched.

After Karpathy, "A Recipe for Training Neural Networks" (2019): look at the data, verify the first loss, learn one
batch by heart; and Glorot and Bengio, "Understanding the difficulty of training deep feedforward neural networks"
(2010): watch gradients and activations layer by layer.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd

from cifarbench.data.augment import normalise
from cifarbench.data.split import Parts
from cifarbench.errors import ConfigError
from cifarbench.models import layers
from cifarbench.models.efficientnet_lite import StochasticDepth
from cifarbench.training.loop import Training
from cifarbench.training.losses import loss_sum
from cifarbench.training.phases import FULL
from cifarbench.training.probe import balanced

FIRST_LOSS = math.log(10)
LOSS_MARGIN = 0.25  # nats about ln 10
LEARNED = 0.1  # nats, the loss at which a batch is known by heart
FAINT, STRONG = 5e-4, 1e3  # times the last layer's gradient, which comes straight from the loss
DEAD = 0.2  # share of a layer's units that may stand still
FLAT = 1e-5  # range of a unit's output over all images, below which it stands still
RARE = 0.5  # smallest class over the largest
_LOOKED_AT = 200  # images in the checks of loss, gradients and activations
_WARM = 3  # steps before gradients are measured: residual branches may start at zero on purpose


@dataclass(frozen=True)
class Check:
    """One line of the table: what was found, the rule, whether it holds, and what to do where it does not."""

    name: str
    found: str
    rule: str
    passed: bool
    advice: str = ""
    values: dict[str, Any] | None = None


def run_checks(training: Training, parts: Parts, classes: tuple[str, ...], images: int, steps: int) -> list[Check]:
    """Every check, in order; `training` is used up.

    Args:
        training: fresh, from `probe.prepare`.
        parts: of which only the training portion is read.
        classes: the ten names.
        images: in the batch that is learned by heart.
        steps: in which it must be.

    Raises:
        ConfigError: there are fewer training images than `images`.
    """
    targets = training.setting.train.targets
    if images > len(targets):
        raise ConfigError(f"`images` is {images}; it must be at most the {len(targets)} training images of this split.")
    chosen = balanced(targets, _LOOKED_AT)
    first = [_labels(parts, classes), _inputs(training), _first_loss(training, chosen), _dead(training, chosen)]
    overfit, gradients = _by_heart(training, balanced(targets, images), steps)
    return [*first, gradients, overfit]


def _labels(parts: Parts, classes: tuple[str, ...]) -> Check:
    counts = torch.bincount(parts.train.targets, minlength=len(classes)).tolist()
    least, most = min(counts), max(counts)
    named = f"{least:,} to {most:,} images a class"
    return Check(
        "label balance",
        named,
        f"smallest class at least {RARE:.0%} of the largest",
        least >= RARE * most,
        f"{classes[counts.index(least)]} is rare: use a larger data.size, or count accuracy per class.",
        {"counts": dict(zip(classes, counts, strict=True))},
    )


def _inputs(training: Training) -> Check:
    """Mean and spread of a batch as the network gets it, augmented and normalised."""
    train = training.setting.train
    positions = balanced(train.targets, training.trainer.batch_size)
    images, _ = training.feed(train, positions, 0, FULL)
    mean, std = images.mean().item(), images.std().item()
    return Check(
        "input scale",
        f"mean {mean:+.2f}, std {std:.2f}",
        "mean within ±1, std 0.3 to 2",
        bool(images.isfinite().all()) and abs(mean) <= 1 and 0.3 <= std <= 2,
        "the augmentation changes the images' brightness or contrast too much; look at the input picture.",
        {"mean": mean, "std": std},
    )


def _batch(training: Training, positions: Tensor) -> tuple[Tensor, Tensor]:
    """Normalised images without augmentation, and their targets."""
    setting = training.setting
    images = normalise(setting.train.images[positions], *setting.statistics)
    layout = torch.channels_last if training.trainer.channels_last else torch.contiguous_format
    return images.contiguous(memory_format=layout), setting.train.targets[positions]


def _logits(training: Training, images: Tensor) -> Tensor:
    with training.setting.compute.autocast():
        return training.model(images).float()


def _first_loss(training: Training, positions: Tensor) -> Check:
    images, targets = _batch(training, positions)
    with torch.no_grad(), _still(training.model):
        loss = F.cross_entropy(_logits(training, images), targets).item()
    return Check(
        "first loss",
        f"{loss:.3f}",
        f"ln 10 = {FIRST_LOSS:.3f} ± {LOSS_MARGIN}",
        abs(loss - FIRST_LOSS) <= LOSS_MARGIN,
        "the untrained network is sure of something: make the last layer's first weights smaller.",
        {"loss": loss, "expected": FIRST_LOSS},
    )


def _dead(training: Training, positions: Tensor) -> Check:
    """The share of each activation layer's units whose output is the same everywhere in every image."""
    shares: dict[str, float] = {}
    kinds = tuple({type(make()) for make in layers.ACTIVATIONS.values()})

    def look(name: str, output: Tensor) -> None:
        units = output.detach().float().transpose(0, 1).flatten(1)
        still = (units.amax(1) - units.amin(1)) < FLAT
        shares[name] = int(still.sum()) / len(still)

    acts = [(name, module) for name, module in training.model.named_modules() if isinstance(module, kinds)]
    hooks = [m.register_forward_hook(lambda m, i, o, name=name: look(name, o)) for name, m in acts]
    with torch.no_grad(), _still(training.model):
        _logits(training, _batch(training, positions)[0])
    for hook in hooks:
        hook.remove()
    worst = max(shares, key=lambda name: shares[name]) if shares else ""
    found = f"at most {shares[worst]:.0%}, in {worst}" if worst else "no activation layers"
    found = "none" if worst and shares[worst] == 0 else found
    return Check(
        "dead activations",
        found,
        f"at most {DEAD:.0%} of a layer's units stand still",
        not worst or shares[worst] <= DEAD,
        f"units of {worst} say the same for every image: use smaller first weights, batch norm, or leaky_relu.",
        {"share": shares},
    )


def _by_heart(training: Training, positions: Tensor, steps: int) -> tuple[Check, Check]:
    """Train on one batch with the config's loss and optimizer, warmed up and then let out; gradients on the way.

    What was learned is told in nats of cross-entropy, whatever is minimised.
    """
    images, targets = _batch(training, positions)
    losses: list[float] = []
    norms: dict[str, float] = {}
    started = time.perf_counter()
    with _still(training.model):
        for step in range(steps):
            logits = _logits(training, images)
            losses.append(F.cross_entropy(logits.detach(), targets).item())
            loss = loss_sum(logits, targets, training.trainer.loss, smoothing=0.0) / len(targets)
            training.scaler.scale(loss).backward()
            training.scaler.unscale_(training.optimizer)
            if step == min(_WARM, steps - 1):
                norms = _norms(training.model)
            if not math.isfinite(losses[-1]):
                break
            _move(training, step, steps)
    norms = norms or _norms(training.model)
    return _learned(training, losses, steps, time.perf_counter() - started), _gradients(norms)


def _move(training: Training, step: int, steps: int) -> None:
    """An optimizer step: the rate rises over a tenth of the steps to the config's peak, then falls to nothing."""
    share = min((step + 1) / (steps / 10), (steps - step) / (steps * 0.9), 1.0)
    training.scale_rates(share)
    training.move()


def _learned(training: Training, losses: list[float], steps: int, seconds: float) -> Check:
    last = losses[-1]
    shown = f"{last:.3f} after {len(losses)} steps, {seconds:.0f} s"
    is_wild = not math.isfinite(last) or last > losses[0]
    remedy = "lower `optim.lr`; `cifarbench lr-find` suggests one." if is_wild else "allow more `steps`, or raise "
    remedy += "" if is_wild else "`optim.lr`; a network that never gets there is too small or has lost its gradient."
    return Check(
        "one batch by heart",
        shown,
        f"loss below {LEARNED} within {steps} steps",
        math.isfinite(last) and last < LEARNED,
        remedy,
        {"losses": [value if math.isfinite(value) else None for value in losses]},
    )


def _norms(model: nn.Module) -> dict[str, float]:
    """The root mean square of the gradient of each trained weight of two or more dimensions."""
    weights = [(name, weight) for name, weight in model.named_parameters() if weight.requires_grad and weight.ndim > 1]
    zero = torch.zeros(())
    return {
        name.removesuffix(".weight"): (
            zero if weight.grad is None else weight.grad.float().square().mean().sqrt()
        ).item()
        for name, weight in weights
    }


def _gradients(norms: dict[str, float]) -> Check:
    """Layers whose gradient is far from the last layer's: vanishing, exploding, or not a number."""
    last = list(norms.values())[-1]
    faint = [name for name, norm in norms.items() if norm < FAINT * last or norm == 0]
    strong = [name for name, norm in norms.items() if not math.isfinite(norm) or norm > STRONG * last]
    words = [f"vanishing in {_listed(faint)}"] if faint else []
    words += [f"exploding in {_listed(strong)}"] if strong else []
    ratios = [norm / last for norm in norms.values() if math.isfinite(norm) and last]
    return Check(
        "gradients",
        "; ".join(words) or f"{min(ratios):.2g} to {max(ratios):.2g} times the last layer's",
        f"{FAINT:g} to {STRONG:g} times the last layer's",
        not words,
        "take relu in place of sigmoid or tanh, batch norm, residual connections, or fewer layers.",
        {"rms": {name: norm if math.isfinite(norm) else None for name, norm in norms.items()}},
    )


def _listed(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


@contextmanager
def _still(model: nn.Module) -> Iterator[None]:
    """Training mode without dropout and skipped branches, so that a batch gives the same answer twice."""
    random = [module for module in model.modules() if isinstance(module, _DropoutNd | StochasticDepth)]
    before = [module.p for module in random]
    for module in random:
        module.p = 0.0
    yield
    for module, p in zip(random, before, strict=True):
        module.p = p
