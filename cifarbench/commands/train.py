"""`cifarbench train`: from composed values to a finished run directory."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any

from cifarbench import runs
from cifarbench.commands import sweep
from cifarbench.commands.plugins import check_plugins, load_plugins, loaded_digest
from cifarbench.config.load import differences, load, to_plain
from cifarbench.config.quoting import quoted
from cifarbench.config.schema import TrainConfig
from cifarbench.errors import CifarbenchError, ConfigError, IntegrityError, Interrupted

_RESUME = "trainer.resume="


def rewrite(arguments: list[str]) -> list[str]:
    """Turn `trainer.resume=DIR` into a run in that directory, unless the command names another one, and `repeat`
    into a sweep over seeds.

    Raises:
        ConfigError: DIR is no run directory.
    """
    arguments = sweep.rewrite(arguments)
    paths = [argument.removeprefix(_RESUME) for argument in arguments if argument.startswith(_RESUME)]
    if not paths or paths[-1] in ("auto", "never"):
        return arguments
    directory = _run_of(Path(paths[-1].strip("'\"")))
    if any(argument.startswith("hydra.run.dir=") for argument in arguments):
        return arguments
    at = arguments.index(f"{_RESUME}{paths[-1]}")  # beside it, as Hydra wants its overrides in one piece
    return [*arguments[:at], f"hydra.run.dir={quoted(str(directory))}", *arguments[at:]]


def _run_of(path: Path) -> Path:
    """The run directory that a resume path means: itself, or the one whose last.pt it is."""
    if path.is_file() and path.name != "last.pt":
        raise ConfigError(
            f"`trainer.resume` is {str(path)!r}; a run goes on from its last.pt: give its directory, or "
            "trainer.fork=FILE for a new run that begins with these weights."
        )
    directory = path.resolve().parent.parent if path.is_file() else path
    if not (directory / "config.yaml").is_file():
        raise ConfigError(f"`trainer.resume` is {str(path)!r}; it must be auto, never, or a run directory.")
    return directory


def run(values: dict[str, Any], directory: Path, overrides: list[str]) -> int:
    """Train in `directory` and return the exit code; `overrides` are what the user typed."""
    started = time.monotonic()
    load_plugins(values.get("plugins") or [])
    config = load(TrainConfig, _with_stored(values, directory, overrides))
    check_plugins(config)
    holder = runs.RunDirectory(directory)
    holder.acquire()
    try:
        if _is_complete(holder, config):
            _dismiss()
            return 0
        return _lead(config, holder, started, overrides)
    finally:
        holder.release()


def _lead(config: TrainConfig, holder: runs.RunDirectory, started: float, overrides: list[str]) -> int:
    """Train as the only process, or as the first of several, which get the config and the directory from here."""
    from cifarbench.training import distributed

    with distributed.joined() as world:
        world.tell((to_plain(config), str(holder.path)))
        return _train(config, holder, world, started, overrides)


def _dismiss() -> None:
    """Let further torchrun processes end, which wait for what the first one tells them."""
    if os.environ.get("WORLD_SIZE", "1") == "1":
        return  # and torch need not be imported
    from cifarbench.training import distributed

    with distributed.joined() as world:
        world.tell(None)


def follow() -> int:
    """A further torchrun process: the config and the directory come from the first one, or that there is no work."""
    started = time.monotonic()
    from cifarbench.data.load import load_images
    from cifarbench.training import distributed
    from cifarbench.training.clock import Clock
    from cifarbench.training.observer import Observer
    from cifarbench.training.session import train

    with distributed.joined() as world:
        told = world.tell(None)
        if told is not None:
            values, directory = told
            load_plugins(values["plugins"])
            config = load(TrainConfig, values)
            check_plugins(config)
            data = load_images(config.data)
            train(config, data, runs.RunDirectory(Path(directory)), Observer(), world, Clock(started=started))
    return 0


def _with_stored(values: dict[str, Any], directory: Path, overrides: list[str]) -> dict[str, Any]:
    """With `trainer.resume=DIR`, the config that the run in DIR was started with, and the single keys typed now.

    Where a whole group was typed (`model=vgg`), the typed command counts as a whole.
    """
    asked = [override.lstrip("+~").split("=", 1)[0] for override in overrides]
    grouped = any("." not in name and name not in ("seed", "plugins") for name in asked)
    if values.get("trainer", {}).get("resume") in ("auto", "never") or grouped:
        return values
    stored = runs.read_config(directory) | {"plugins": values["plugins"]}  # code runs because it was typed alone
    model = stored.get("model")
    if isinstance(model, dict) and model.get("sha256") == "":  # of a version that did not record it
        model["sha256"] = loaded_digest(str(model.get("name")))
    for name in asked:
        section, _, inner = name.partition(".")
        if inner and isinstance(stored.get(section), dict) and inner in values[section]:
            stored[section][inner] = values[section][inner]
        elif not inner:
            stored[section] = values[section]
    return stored


def _is_complete(holder: runs.RunDirectory, config: TrainConfig) -> bool:
    """Whether the directory holds this run, finished; says so.

    Raises:
        ConfigError: it holds a run and nothing may be resumed.
        IntegrityError: it holds a finished run of another config.
    """
    if not holder.manifest:
        return False
    if config.trainer.resume == "never":
        raise ConfigError(
            f"{holder.path} already holds a run and `trainer.resume` is never; choose another hydra.run.dir."
        )
    if holder.manifest.get("status") != "completed":
        return False
    lines = differences(load(TrainConfig, runs.read_config(holder.path)), config)
    if lines:
        raise IntegrityError(
            f"{runs.shown_path(holder.path)} holds a finished run of another config: {'; '.join(lines)}."
        )
    if config.trainer.test and not _was_tested(holder):
        if not (holder.checkpoints / "last.pt").is_file():
            raise IntegrityError(
                f"{runs.shown_path(holder.path)} holds a finished run that was not tested, and its checkpoints/last.pt "
                "is gone; put it back, or train again in another folder."
            )
        return False
    print(f"{runs.shown_path(holder.path)} is already complete; nothing was changed.")
    return True


def _was_tested(holder: runs.RunDirectory) -> bool:
    """Whether the run's test part was scored: a run of `trainer.test=false` is complete without."""
    test = holder.manifest.get("test")
    return isinstance(test, dict) and test.get("accuracy") is not None


def _train(config: TrainConfig, holder: runs.RunDirectory, world: Any, started: float, overrides: list[str]) -> int:
    from cifarbench.data.load import load_images
    from cifarbench.reporting.results import write_results
    from cifarbench.training.clock import Clock
    from cifarbench.training.session import train

    observer = _observers(config, holder)
    try:
        holder.command = ["cifarbench", "train", *overrides]
        data = load_images(config.data, observer.note)
        outcome = train(config, data, holder, observer, world, Clock(started=started))
        if outcome.report is not None and outcome.logits is not None:
            write_results(holder, data, outcome)
            observer.result(outcome.report, outcome.scored)
        holder.update(status="completed")
        if config.trainer.report:
            _write_page(holder, data, observer)
        return 0
    except (Interrupted, KeyboardInterrupt) as error:
        _mark(holder, "interrupted", str(error))
        raise
    except BaseException as error:
        name = "" if isinstance(error, CifarbenchError) else f"{type(error).__name__}: "
        _mark(holder, "failed", f"{name}{error}")
        raise
    finally:
        observer.close()


def _write_page(holder: runs.RunDirectory, data: Any, observer: Any) -> None:
    """Write report.html; the run is complete without it, so a failure, or Ctrl-C, costs one line."""
    shown = runs.shown_path(holder.path)
    try:
        from cifarbench.reporting.page.build import write_run_page

        write_run_page(holder.path, data=data)
    except (Exception, KeyboardInterrupt) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        observer.note(f"report.html was not written ({reason}); the run is complete: cifarbench report {shown}")
        return
    observer.note(f"report: {shown}/report.html")


def _mark(holder: runs.RunDirectory, status: str, reason: str) -> None:
    """Note in run.json how the run ended, if it began."""
    try:
        if holder.manifest.get("status") == "running":
            holder.update(status=status, reason=reason)
    except OSError:  # a full disk is often the very reason
        print(f"{holder.path / 'run.json'} could not be updated", file=sys.stderr)


def _observers(config: TrainConfig, holder: runs.RunDirectory) -> Any:
    from cifarbench.reporting.console import make_console
    from cifarbench.reporting.metrics_file import MetricsFile
    from cifarbench.training.observer import Observers

    console = make_console(config.trainer.progress)
    members = [MetricsFile(holder), console]
    if config.trainer.tensorboard:
        from cifarbench.reporting.tensorboard import TensorBoard

        members.append(TensorBoard(holder.path / "tensorboard", console.note))
    return Observers(*members)
