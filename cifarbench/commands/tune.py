"""`cifarbench tune`: search config keys on validation images, alone or with other workers."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from cifarbench import runs
from cifarbench.commands.hydra_app import compose
from cifarbench.commands.plugins import load_plugins
from cifarbench.config.load import load
from cifarbench.config.schema import TrainConfig
from cifarbench.config.tune import TuneVerbConfig
from cifarbench.errors import ConfigError, NonFiniteError, ResourceError

_METRIC = "tune.metric="


def rewrite(arguments: list[str]) -> list[str]:
    """The arguments as they are.

    Raises:
        ConfigError: they ask for a test metric.
    """
    for argument in arguments:
        if argument.startswith(_METRIC) and "test" in argument:
            raise ConfigError(
                f"`tune.metric` is {argument.removeprefix(_METRIC)!r}; nothing is ever selected on test images. "
                "It must be accuracy or loss, both on validation images."
            )
    return arguments


def run(values: dict[str, Any], directory: Path, overrides: list[str]) -> int:
    """Run this worker's trials, then show the study's result."""
    load_plugins(values.get("plugins") or [])
    config = load(TuneVerbConfig, values)
    typed = [text for text in overrides if not text.lstrip("+~").startswith(("tune.", "tune=", "hydra."))]
    try:
        import optuna
    except ImportError as error:
        raise ResourceError(f"`cifarbench tune` needs Optuna ({error}): pip install 'cifarbench[tune]'.") from error
    from cifarbench.data.load import load_images
    from cifarbench.reporting.tuning import show_study, write_study
    from cifarbench.tuning.study import open_study, run_trials, storage_errors

    optuna.logging.set_verbosity(optuna.logging.ERROR)  # a failing trial ends the command with our own sentence
    directory.mkdir(parents=True, exist_ok=True)
    url = config.tune.storage or f"sqlite:///{directory.resolve() / 'study.db'}"
    with storage_errors("`tune.storage`" if config.tune.storage else str(directory / "study.db")):
        study = open_study(config.tune, url, config.seed)
        data = load_images(config.data, print)
        worker = _Worker(config, typed, directory, data)
        run_trials(study, config.tune.trials, worker)
        write_study(study, typed, directory)
        show_study(study, config.tune.metric, typed, directory)
    return 0


class _Worker:
    """Trains one trial after another in this process."""

    def __init__(self, config: TuneVerbConfig, typed: list[str], directory: Path, data: Any) -> None:
        self.config, self.typed, self.directory, self.data = config, typed, directory, data

    def __call__(self, trial: Any, number: int) -> float:
        """Train the trial in its directory, and return the best validation accuracy, or the lowest loss."""
        import optuna

        from cifarbench.tuning.study import suggest

        overrides = suggest(trial, self.config.tune.space)
        config = load(TrainConfig, compose("train", [*self.typed, *overrides, "trainer.test=false"]))
        holder = runs.RunDirectory(self.directory / f"trial-{number}")
        holder.acquire()
        holder.command = ["cifarbench", "train", *self.typed, *overrides]
        watcher = _watcher(trial, self.config.tune.metric)
        try:
            self._train(config, holder, watcher)
            holder.update(status="completed")
        except optuna.TrialPruned:
            holder.update(status="interrupted", reason=f"pruned after epoch {watcher.epochs}")
            self._say(trial, overrides, watcher, "pruned")
            raise
        except NonFiniteError as error:
            holder.update(status="failed", reason=str(error))
            self._say(trial, overrides, watcher, "diverged")
            raise optuna.TrialPruned from error
        finally:
            holder.release()
        self._say(trial, overrides, watcher, "")
        return watcher.best

    def _train(self, config: TrainConfig, holder: runs.RunDirectory, watcher: Any) -> None:
        from cifarbench.reporting.metrics_file import MetricsFile
        from cifarbench.training.clock import Clock
        from cifarbench.training.distributed import World
        from cifarbench.training.observer import Observers
        from cifarbench.training.session import train

        clock = Clock(started=time.monotonic())
        train(config, self.data, holder, Observers(MetricsFile(holder), watcher), World(), clock)

    def _say(self, trial: Any, overrides: list[str], watcher: Any, how: str) -> None:
        best = "–" if watcher.best is None else f"{watcher.best:.4f}"
        end = f", {how} after epoch {watcher.epochs}" if how else ""
        print(f"trial {trial.number:>3}  {self.config.tune.metric} {best}  {' '.join(overrides)}{end}", flush=True)


def _watcher(trial: Any, metric: str) -> Any:
    """An observer that tells the study each epoch's value, and ends the trial where the study says so."""
    import optuna

    from cifarbench.training.observer import Observer

    class Watcher(Observer):
        best: float | None = None
        epochs = 0

        def epoch(self, row: dict[str, Any], is_best: bool) -> None:
            value = row[f"val_{metric}"]
            self.epochs = row["epoch"]
            if value is None:
                return
            better = max if metric == "accuracy" else min
            self.best = value if self.best is None else better(self.best, value)
            trial.report(value, row["epoch"])
            if trial.should_prune():
                raise optuna.TrialPruned

    return Watcher()
