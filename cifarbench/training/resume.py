"""Going on from a checkpoint: exactly, in the run's own directory; or, as a fork, a new run from its weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cifarbench import runs
from cifarbench.config.load import differences, load
from cifarbench.config.schema import TrainConfig
from cifarbench.errors import ConfigError, IntegrityError
from cifarbench.training import checkpoint
from cifarbench.training.distributed import World
from cifarbench.training.loop import Training
from cifarbench.training.setting import Progress
from cifarbench.training.state import restore


def resume(training: Training, run: runs.RunDirectory) -> str | None:
    """Restore the newest readable checkpoint of the run's directory, or take the weights that it is forked from.

    Returns the checkpoint's file name, the path of the fork's origin, or None for a start from drawn weights.

    Raises:
        IntegrityError: the checkpoint is damaged, of another config or dataset, or the best one is missing.
    """
    trainer, first = training.config.trainer, training.setting.world.is_first
    if first:
        checkpoint.clear_parts(run.checkpoints)
    found = checkpoint.newest_valid(run.checkpoints) if trainer.resume != "never" else None
    _check_same_checkpoint(found[1] if found else None, training.setting.world, run.checkpoints)
    if found is None:
        return _fork(training, Path(trainer.fork)) if trainer.fork else None
    path, state, warnings = found
    for warning in warnings:
        training.observer.note(warning)
    check_same_run(state, training.config, training.setting.passport, path)
    _check_same_world(state, training.setting.world, path)
    restore(training, state, path)
    if training.progress.best_epoch and first:
        _settle(run.checkpoints, path, training.progress)
    for name, value in training.setting.passport["environment"].items():
        before = state["passport"].get("environment", {}).get(name)
        if before != value:
            training.observer.note(
                f"{name} was {before} before and is {value} now: results may differ in the last bits"
            )
    training.observer.note(f"resumed from {path.name} after step {training.progress.step}")
    return path.name


def check_same_run(state: dict[str, Any], config: TrainConfig, passport: dict[str, Any], path: Path) -> None:
    """Raise IntegrityError, listing the differences, where a checkpoint belongs to another config or dataset."""
    lines = differences(stored_config(state, path), config) + _other_images(state, passport, path)
    if lines:
        raise IntegrityError(
            f"{path} belongs to another run: {'; '.join(lines)}. Start a new run directory, ask for the same, or set "
            "trainer.fork to start one from its weights with another config."
        )


def stored_config(state: dict[str, Any], path: Path) -> TrainConfig:
    """The config in a loaded state; IntegrityError where it is none of ours."""
    try:
        return load(TrainConfig, state["config"])
    except ConfigError as error:
        raise IntegrityError(f"{path} holds a config that is not ours: {error}") from error


def _other_images(state: dict[str, Any], passport: dict[str, Any], path: Path) -> list[str]:
    """A line for the dataset and one for the split, where the checkpoint's is another."""
    lines, stored = [], checkpoint.passport_of(path, state)
    for part in ("dataset", "split"):
        before, now = stored[part], passport[part]
        if before != now:
            lines.append(
                f"{part}: {before['name']} {before['fingerprint'][:12]} in the run, "
                f"{now['name']} {now['fingerprint'][:12]} asked for"
            )
    return lines


def _settle(folder: Path, path: Path, progress: Progress) -> None:
    """See to it that last.pt holds what is gone on from and best.pt the epoch that `path` calls the best, and refuse to
    go on without the latter: better now than after hours of training. A kill may have come after last.pt was written
    and before its copy, best.pt; and where no step is left to train, nothing else would mend a damaged last.pt.
    """
    best = folder / "best.pt"
    if path == best:
        checkpoint.copy(best, folder / "last.pt")
        return
    if progress.batch == 0 and progress.best_epoch == progress.epoch:
        checkpoint.copy(path, best)
        return
    try:
        checkpoint.load(best)
    except FileNotFoundError:
        raise IntegrityError(
            f"{best} is missing, which held epoch {progress.best_epoch}, the best so far; put it back, or start a new "
            "run directory."
        ) from None


def _check_same_world(state: dict[str, Any], world: World, path: Path) -> None:
    """Refuse another number of processes: dropout and batch norm depend on who sees which image."""
    before = state["passport"].get("environment", {}).get("processes", 1)
    if before != world.size:
        raise IntegrityError(
            f"{path} was trained by {before} processes and there are {world.size} now, which would not go on exactly; "
            f"start it with {before} again."
        )


def _check_same_checkpoint(state: dict[str, Any] | None, world: World, folder: Path) -> None:
    """Refuse a process that finds another checkpoint than the first one does: they would train different weights."""
    if world.size == 1:
        return
    mine = "no checkpoint" if state is None else f"one of step {state['progress'].get('step')}"
    firsts = world.tell(mine)
    if mine != firsts:
        raise IntegrityError(
            f"{folder} holds {mine} for process {world.rank} and {firsts} for the first; machines that share a run "
            "need a folder that all of them see: set hydra.run.dir to one."
        )


def _fork(training: Training, source: Path) -> str:
    """Take the weights of a checkpoint, of a run the last ones, averaged where it averages; the rest starts anew.

    Raises:
        ConfigError: there is no checkpoint.
        IntegrityError: it is damaged, of another model, or was trained on other images, perhaps on these test images.
    """
    path, state, warnings = _origin(source)
    for warning in warnings:
        training.observer.note(warning)
    lines = differences(stored_config(state, path).model, training.config.model, "model")
    lines += _other_images(state, training.setting.passport, path)
    if lines:
        raise IntegrityError(f"{path} cannot be forked: {'; '.join(lines)}. A fork keeps the model and the split.")
    checkpoint.load_weights(training.model, checkpoint.tested_weights(state), path)
    training.observer.note(f"forked from {path} after step {state['progress']['step']}")
    return str(path)


def _origin(source: Path) -> tuple[Path, dict[str, Any], list[str]]:
    """The checkpoint that `source` is or holds, its state, and warnings about those that could not be read."""
    if source.is_file():
        return source, checkpoint.load(source), []
    found = checkpoint.newest_valid(source / "checkpoints")
    if found is None:
        raise ConfigError(f"`trainer.fork` is {str(source)!r}; it must be a checkpoint, or a run directory with one.")
    return found
