"""What a checkpoint holds of a run, and a run put back to where its checkpoint stands."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from cifarbench.config.load import to_plain
from cifarbench.errors import IntegrityError
from cifarbench.training import checkpoint, optimizer_state
from cifarbench.training.setting import Progress

if TYPE_CHECKING:
    from cifarbench.training.loop import Training


def state_of(training: Training) -> dict[str, Any]:
    """Everything to go on bit for bit, as tensors and plain values."""
    config, progress = training.config, training.progress
    clock = training.setting.clock
    progress.seconds, progress.untimed = clock.elapsed(), clock.untimed
    return {
        "model": training.model.state_dict(),
        "optimizer": optimizer_state.saved(training.optimizer),
        "scheduler": {"name": config.scheduler.name, **training.plateau.state()},
        "ema": training.ema.state_dict() if training.ema else {},
        "scaler": training.scaler.state_dict(),
        "rng": {"seed": config.seed, "step": progress.step, "torch": torch.get_rng_state()},
        "progress": dataclasses.asdict(progress),
        "config": to_plain(config),
        "passport": training.setting.passport,
    }


def restore(training: Training, state: dict[str, Any], path: Path) -> None:
    """Go on from the state that was loaded from `path`; IntegrityError where it does not fit."""
    checkpoint.load_weights(training.model, state["model"], path)
    optimizer_state.load(training.optimizer, state["optimizer"], path)
    if training.ema:
        checkpoint.load_weights(training.ema, state["ema"], path)
    try:
        training.plateau.restore(state["scheduler"])
        if state["scaler"]:  # empty in a run that had another precision before
            training.scaler.load_state_dict(state["scaler"])
        training.progress = Progress.of(state["progress"])
    except (KeyError, TypeError, ValueError, RuntimeError, AttributeError) as error:
        raise IntegrityError(f"{path} holds no state of a run where it should be ({error!r}).") from error
    # The first process's sums stand for all: the others start this epoch's at zero.
    mine = training.progress.totals if training.setting.world.is_first else [0.0, 0.0, 0.0]
    training.totals.copy_(torch.tensor(mine, dtype=training.totals.dtype))
    clock = training.setting.clock
    clock.before, clock.untimed = training.progress.seconds, training.progress.untimed
