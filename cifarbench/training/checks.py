"""What a config asks of its data, its model and its time: refused where it cannot be, noted where it goes unused."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from cifarbench.config.durations import span
from cifarbench.config.schema import TrainConfig, TrainerConfig
from cifarbench.data.batches import steps_per_epoch
from cifarbench.data.split import Parts
from cifarbench.errors import ConfigError, in_a_line, is_out_of_memory
from cifarbench.models.layers import CLASSES
from cifarbench.training.clock import Clock
from cifarbench.training.distributed import World
from cifarbench.training.loop import Training
from cifarbench.training.phases import FULL

_MOSTLY = 0.9  # of a time limit
_BY_HEART = 0.99  # of a batch's images
_OF_THE_DEVICE = ("CUDA", "CUBLAS", "CUDNN", "out of memory")  # in errors that are not the model's


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


def check_model(training: Training) -> None:
    """Raise ConfigError where the model does not take the run's images, or cannot normalise its batches."""
    for side in (FULL, *training.trainer.sizes):
        _check_forward(training, side)
    _check_norms(training)


def _check_forward(training: Training, side: int) -> None:
    """Raise ConfigError where the model fails on images of `side` px, or gives no logits (N, 10)."""
    name, sizes = training.config.model.name, list(training.trainer.sizes)
    images = torch.zeros(2, 3, side, side, device=training.setting.compute.device)
    training.model.eval()
    try:
        with torch.no_grad(), training.setting.compute.autocast():
            logits = training.model(images)
    except Exception as error:
        if is_out_of_memory(error) or any(word in str(error) for word in _OF_THE_DEVICE):
            raise
        remedy = "--debug shows where" if side == FULL else f"`trainer.sizes` is {sizes}: leave it out there"
        raise ConfigError(f"model={name} fails on images of {side} px ({in_a_line(error)}); {remedy}.") from error
    if not isinstance(logits, Tensor) or logits.shape != (2, CLASSES):
        shape = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise ConfigError(f"model={name} turns images {tuple(images.shape)} into {shape}, not into logits (2, 10).")


def _check_norms(training: Training) -> None:
    """Raise ConfigError where batch norm would see a single value of each channel, whose variance is nothing.

    That is one image of a vector, or of a map of 1 px (Ioffe and Szegedy, 2015). torch refuses it too, but in the
    middle of an epoch; here such a pass is tried, and what it changes put back.
    """
    trainer, world, model = training.trainer, training.setting.world, training.model
    batches = {trainer.batch_size, _smallest_batch(trainer, len(training.setting.train))}
    passes = [batch // world.size // world.passes(batch, trainer.micro_batch) for batch in batches]
    if min(passes) > 1 or not any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules()):
        return
    kept = copy.deepcopy(model.state_dict())
    device = training.setting.compute.device
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]), training.setting.compute.autocast():
            for side in (FULL, *trainer.sizes):
                model.train()(torch.zeros(1, 3, side, side, device=device))
    except ValueError as error:
        raise ConfigError(
            f"`trainer.batch_size` is {trainer.batch_size} and `trainer.micro_batch` {trainer.micro_batch}, which "
            f"leaves a pass of one image, and model={training.config.model.name} normalises over a pass; "
            "set `trainer.drop_last=true`, or another size."
        ) from error
    finally:
        model.load_state_dict(kept)


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
    if config.trainer.cuda_graphs and not (training.replay and training.setting.compute.device.type == "cuda"):
        note("steps are not recorded (trainer.cuda_graphs): that takes one process, an NVIDIA GPU, and bf16 or fp32")
    if config.trainer.ema and getattr(config.optim, "l1", 0.0):
        note("what is tested are averages (trainer.ema), of which hardly any is 0 where optim.l1 leaves weights at 0")
    for path, text in _spans(config):
        if span(text, training.length).end > 1:
            note(f"`{path}` is {text}, which this run of {config.trainer.epochs} epochs never reaches")


def _spans(config: TrainConfig) -> Iterator[tuple[str, str]]:
    """The keys that name a place in the run, and the span from its start to there."""
    trainer, scheduler = config.trainer, config.scheduler
    yield "scheduler.warmup", scheduler.warmup
    yield from ((f"scheduler.milestones[{i}]", span) for i, span in enumerate(getattr(scheduler, "milestones", ())))
    yield from ((f"trainer.size_until[{i}]", span) for i, span in enumerate(trainer.size_until))
    if trainer.ema:
        yield "trainer.ema_start", trainer.ema_start
    if getattr(config.model, "whitening", False):
        yield "trainer.stem_bias_until", trainer.stem_bias_until


def say_how_it_ended(training: Training, clock: Clock) -> None:
    """Note where a run ended early, or well before its time limit, and what became of a batch to learn by heart."""
    progress, trainer, limit = training.progress, training.trainer, training.trainer.max_time
    if progress.ended == "early_stopping":
        waited = f"{trainer.early_stopping} validations in a row were no better (trainer.early_stopping)"
        training.observer.note(f"ended after epoch {progress.epoch} of {trainer.epochs}: {waited}")
    if trainer.overfit_batch and progress.rows:
        row = progress.rows[-1]
        is_known = "is known by heart" if row["train_accuracy"] > _BY_HEART else "is not known by heart"
        training.observer.note(f"the batch {is_known}: loss {row['train_loss']:.4f}, {row['train_accuracy']:.1%} right")
    if limit is not None and not progress.ended and clock.share() < _MOSTLY:
        note = training.observer.note
        note(f"{progress.epoch} epochs took {clock.share():.0%} of {limit}: for all of it raise trainer.epochs")


def say_what_is_zero(training: Training, model: dict[str, int]) -> None:
    """Note how many parameters an L1 penalty left at 0; `model` is of run.json."""
    if getattr(training.config.optim, "l1", 0.0):
        zeros, total = model["zeros"], model["parameters"]
        training.observer.note(f"{zeros:,} of {total:,} parameters are 0 ({zeros / total:.1%}), by optim.l1")
