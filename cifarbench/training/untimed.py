"""Steps before the clock starts, undone afterwards: what a device does once (choose kernels, compile, allocate)."""

from __future__ import annotations

import copy
import dataclasses
import time
from typing import Any

import torch
from torch import Tensor

from cifarbench.compute import synchronise
from cifarbench.data.split import Portion
from cifarbench.evaluation.predict import batch_on
from cifarbench.training.health import Health
from cifarbench.training.loop import Training
from cifarbench.training.optimizer_state import is_shipped, take_over


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
    parts = [part for part in (training.model, training.ema, training.scaler) if part is not None]
    kept = copy.deepcopy([part.state_dict() for part in parts])
    kept_optimizer = copy.deepcopy(training.optimizer.state_dict())
    try:
        training.setting = dataclasses.replace(setting, train=_with_drawn_labels(training))
        _rehearse(training, count)
    finally:
        training.setting = setting
        training.health = Health(setting.compute.device)
        training.feed.forget()  # to augment is work of the clock
        training.totals.copy_(totals)
        for part, state in zip(parts, kept, strict=True):
            part.load_state_dict(state)
        _put_back(training.optimizer, kept_optimizer)
    synchronise(setting.compute.device)
    return time.perf_counter() - began


def _put_back(optimizer: torch.optim.Optimizer, kept: dict[str, Any]) -> None:
    """Bring the optimizer's state back in the tensors that it lies in, which recorded steps go on with.

    A state that a parameter did not have becomes zeros, with which every optimizer here begins. A plugin's begins as it
    likes, and its steps are not recorded: it is given back what it had, and nothing else.
    """
    if not is_shipped(optimizer):
        optimizer.state.clear()
        for group, values in zip(optimizer.param_groups, kept["param_groups"], strict=True):
            for name in set(group) - set(values):
                del group[name]
        take_over(optimizer, kept)
        return
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for index, parameter in enumerate(parameters):
        saved = kept["state"].get(index, {})
        for name, value in optimizer.state.get(parameter, {}).items():
            if not isinstance(value, Tensor):
                optimizer.state[parameter][name] = saved.get(name)
            elif saved.get(name) is None:
                value.zero_()
            else:
                value.copy_(saved[name])
    for group, values in zip(optimizer.param_groups, kept["param_groups"], strict=True):
        group.update({name: value for name, value in values.items() if name != "params"})


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
    training.scale_rates(0.0)
    for share in training.phases.starts:
        for batch in batches:
            for _ in range(count):
                training.step(batch, 0.0, share)
    training.health.check_losses()
    training.logits(images[: batch_on(images.device)], training.trainer.tta)
