"""What a config asks of its data, its model and its time: refused where it cannot be, noted where it goes unused."""

from __future__ import annotations

from torch import nn

from cifarbench.config.schema import TrainConfig, TrainerConfig
from cifarbench.data.batches import steps_per_epoch
from cifarbench.data.split import Parts
from cifarbench.errors import ConfigError
from cifarbench.training.clock import Clock
from cifarbench.training.distributed import World
from cifarbench.training.loop import Training

_MOSTLY = 0.9  # of a time limit


def check_sizes(config: TrainConfig, parts: Parts, world: World) -> None:
    """Raise ConfigError where a batch is larger than the training part, or smaller than the number of processes."""
    size = config.trainer.batch_size
    if size > len(parts.train):
        raise ConfigError(
            f"`trainer.batch_size` is {size}; it must be at most the {len(parts.train)} training images of this split."
        )
    if _smallest_batch(config.trainer, len(parts.train)) < world.size:
        raise ConfigError(
            f"`trainer.batch_size` is {size}; some batch has fewer images than the {world.size} processes."
        )


def _smallest_batch(trainer: TrainerConfig, count: int) -> int:
    """Images in the smallest batch of an epoch over `count` images."""
    steps = steps_per_epoch(count, trainer.batch_size, trainer.limit_batches, trainer.drop_last)
    last = count - (steps - 1) * trainer.batch_size
    return trainer.batch_size if trainer.overfit_batch else min(trainer.batch_size, last)


def check_norms(training: Training, world: World) -> None:
    """Raise ConfigError where batch norm of vectors would see a single image, whose variance is nothing.

    Source: Ioffe and Szegedy (2015); torch refuses it too, but in the middle of an epoch.
    """
    trainer = training.trainer
    batches = {trainer.batch_size, _smallest_batch(trainer, len(training.setting.train))}
    passes = [batch // world.size // world.passes(batch, trainer.micro_batch) for batch in batches]
    norms = any(isinstance(module, nn.BatchNorm1d) for module in training.model.modules())
    if norms and min(passes) == 1:
        raise ConfigError(
            f"`trainer.batch_size` is {trainer.batch_size} and `trainer.micro_batch` {trainer.micro_batch}, which "
            f"leaves a pass of one image, and model={training.config.model.name} normalises over a pass; "
            "set `trainer.drop_last=true`, or another size."
        )


def say_what_is_unused(training: Training, parts: Parts) -> None:
    """Note what the config asks for and the run does not use."""
    note, config = training.observer.note, training.config
    if parts.val and not config.trainer.validate_every:
        note(
            f"{len(parts.val):,} images are held out and nothing is validated (trainer.validate_every=0): "
            "train on them with split.val_fraction=0"
        )
    if config.optim.name == "muon" and not any(group["orthogonal"] for group in training.optimizer.param_groups):
        note(f"model={config.model.name} has no matrix for Muon to turn, so optim.lr does nothing: try optim=adamw")


def say_what_time_is_left(training: Training, clock: Clock) -> None:
    """Note where the epochs ended well before the time limit."""
    progress, limit = training.progress, training.trainer.max_time
    if limit is not None and not progress.ended and clock.share() < _MOSTLY:
        note = training.observer.note
        note(f"{progress.epoch} epochs took {clock.share():.0%} of {limit}: for all of it raise trainer.epochs")
