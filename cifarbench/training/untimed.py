"""Steps before the clock starts, undone afterwards: what a device does once (choose kernels, compile, allocate)."""

from __future__ import annotations

import copy
import dataclasses
import time

import torch

from cifarbench.compute import synchronise
from cifarbench.data.split import Portion
from cifarbench.evaluation.predict import EVAL_BATCH
from cifarbench.training.health import Health
from cifarbench.training.loop import Training


def take_untimed_steps(training: Training, count: int) -> float:
    """Take `count` steps in each phase of the run, score a batch, and put everything back bit for bit.

    The steps see training images with labels drawn at random, at a learning rate of 0, and weights, batch statistics
    and the optimizer's state are as before when they are over: nothing is learned before the clock runs, as in time
    records (Jordan's airbench, 2024).

    Returns:
        Seconds that it took; 0.0 where `count` is 0.
    """
    if not count:
        return 0.0
    began = time.perf_counter()
    setting, totals = training.setting, training.totals.clone()
    parts = [part for part in (training.model, training.ema, training.optimizer, training.scaler) if part is not None]
    kept = copy.deepcopy([part.state_dict() for part in parts])
    try:
        training.setting = dataclasses.replace(setting, train=_with_drawn_labels(training))
        _rehearse(training, count)
    finally:
        training.setting = setting
        training.health = Health(setting.compute.device)
        training.totals.copy_(totals)
        for part, state in zip(parts, kept, strict=True):
            part.load_state_dict(state)
    synchronise(setting.compute.device)
    return time.perf_counter() - began


def _with_drawn_labels(training: Training) -> Portion:
    generator = torch.Generator().manual_seed(training.config.seed)
    targets = training.setting.train.targets
    drawn = torch.randint(0, 10, targets.shape, dtype=targets.dtype, generator=generator)
    return dataclasses.replace(training.setting.train, targets=drawn.to(targets.device))


def _rehearse(training: Training, count: int) -> None:
    """The steps: an epoch's first batch and, where it is smaller, its last one, in every phase."""
    images, size = training.setting.train.images, training.trainer.batch_size
    positions = torch.arange(len(images), device=images.device)
    first, last = positions[:size], positions[(training.length.steps_per_epoch - 1) * size :][:size]
    batches = [first] if training.trainer.overfit_batch or len(last) == len(first) else [first, last]
    training.model.train()
    for group in training.optimizer.param_groups:
        group["lr"] = 0.0
    for share in training.phases.starts:
        for batch in batches:
            for _ in range(count):
                training.step(batch, 0.0, share)
    training.health.check_losses()
    training.logits(images[:EVAL_BATCH], training.trainer.tta)
