"""A run's own training steps for a look before training: on training images alone, with nothing kept."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

from cifarbench.compute import make_deterministic
from cifarbench.config.schema import TrainConfig
from cifarbench.data.dataset import ImageSet
from cifarbench.data.split import Parts, channel_statistics
from cifarbench.training.checks import check_model, check_sizes
from cifarbench.training.clock import Clock
from cifarbench.training.distributed import World
from cifarbench.training.loop import Training
from cifarbench.training.observer import Observer, StepReport
from cifarbench.training.session import compute_of, first_model
from cifarbench.training.setting import Setting


class Losses(Observer):
    """Keeps the loss of every step."""

    def __init__(self) -> None:
        self.values: list[float] = []

    def step(self, report: StepReport) -> None:
        """Read the loss from the device."""
        self.values.append(float(report.loss))


def prepare(config: TrainConfig, parts: Parts, observer: Observer) -> Training:
    """The training of `config`, ready for its first step and unable to save: there is no place for checkpoints.

    Of `parts` only the training portion is used.

    Raises:
        ConfigError: a batch is larger than the training portion, or the model does not take its images.
        ResourceError: the device asked for is not there.
    """
    trainer = config.trainer
    check_sizes(config, parts, World())
    compute = compute_of(trainer, World())
    make_deterministic(trainer.deterministic, trainer.compile)
    statistics = channel_statistics(parts.train.images)
    train = parts.train.to(compute.device)
    setting = Setting(train, None, statistics, compute, World(), Clock(), {}, Path(os.devnull))
    training = Training(config, first_model(config, setting), setting, observer)
    check_model(training)
    training.model.train()
    return training


def facts(config: TrainConfig, data: ImageSet, parts: Parts) -> dict[str, Any]:
    """What a probe's record says first: the images, the split, the model, the optimizer and the seed."""
    return {
        "dataset": {"name": data.name, "fingerprint": data.fingerprint},
        "split": {"name": parts.name, "fingerprint": parts.fingerprint},
        "model": config.model.name,
        "optim": config.optim.name,
        "seed": config.seed,
    }


def balanced(targets: torch.Tensor, count: int) -> torch.Tensor:
    """Positions of the first `count` images taken class after class, (count,) int64; fewer where a class runs out."""
    ranks = torch.zeros_like(targets)
    for label in targets.unique().tolist():
        mask = targets == label
        ranks[mask] = torch.arange(int(mask.sum()), device=targets.device)
    return torch.argsort(ranks * 1000 + targets, stable=True)[:count]
