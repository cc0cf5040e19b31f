"""`cifarbench tune`: search config keys on validation images, alone or with other workers."""

from __future__ import annotations

import shlex
import signal
import sys
import time
from pathlib import Path
from typing import Any

from filelock import FileLock

from cifarbench import runs
from cifarbench.commands.hydra_app import added_places, compose
from cifarbench.commands.plugins import load_plugins
from cifarbench.config.load import load
from cifarbench.config.schema import TrainConfig
from cifarbench.config.tune import TuneVerbConfig, dimension
from cifarbench.errors import ConfigError, Interrupted, InUseError, NonFiniteError, ResourceError

_POLL_SECONDS = 0.5
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
        raise ResourceError(f"`cifarbench tune` needs Optuna ({error}): pip install -e '.[tune]'.") from error
    from cifarbench.tuning.study import storage_errors

    optuna.logging.set_verbosity(optuna.logging.ERROR)  # a failing trial ends the command with our own sentence
    directory.mkdir(parents=True, exist_ok=True)
    with storage_errors("`tune.storage`" if config.tune.storage else str(directory / "study.db")):
        _search(config, typed, directory)
    return 0


def _search(config: TuneVerbConfig, typed: list[str], directory: Path) -> None:
    """Open the study, see that it is of what is asked for, run trials, and show the result."""
    from cifarbench.data.load import load_images
    from cifarbench.reporting.tuning import show_study, write_study
    from cifarbench.tuning.study import open_study, run_trials, wanted_trials
    from cifarbench.tuning.subject import claim, claim_dataset

    shared = [*added_places(), *typed]
    url = config.tune.storage or f"sqlite:///{directory.resolve() / 'study.db'}"
    _trial_config(shared, [f"{each.name}={each.values[0]}" for each in map(dimension, config.tune.space)])
    with open_study(config.tune, url, config.seed) as study:
        claim(study, config, typed)
        data = load_images(config.data, print)
        claim_dataset(study, data)
        wanted = wanted_trials(config.tune)
        if wanted < config.tune.trials:
            end = "the study ends with as many trials, fewer than `tune.trials`"
            print(f"the grid has {wanted} points: {end}", flush=True)
        run_trials(study, wanted, _Worker(config, shared, directory, data))
        with FileLock(directory / ".lock"):  # all workers end at the same moment
            write_study(study, typed, directory)
        show_study(study, config.tune.metric, shared, directory)


_SPACES = "without `tune=` it is that of the optimizer, and tune.space=[…] is any"


def _trial_config(typed: list[str], overrides: list[str]) -> TrainConfig:
    """The config of a trial; ConfigError where the space holds what it cannot be."""
    try:
        return load(TrainConfig, compose("train", [*typed, *overrides, "trainer.test=false"]))
    except ConfigError as error:
        raise ConfigError(f"{error} The trial has {', '.join(overrides)} from `tune.space`: {_SPACES}.") from error


class _Worker:
    """Trains one trial after another in this process."""

    def __init__(self, config: TuneVerbConfig, typed: list[str], directory: Path, data: Any) -> None:
        self.config, self.typed, self.directory, self.data = config, typed, directory, data

    def __call__(self, trial: Any, number: int) -> float:
        """Train the trial in its directory, and return the best validation accuracy, or the lowest loss."""
        from cifarbench.tuning.study import suggest
        from cifarbench.tuning.watcher import Watcher

        overrides = suggest(trial, self.config.tune.space)
        config = _trial_config(self.typed, overrides)
        holder = runs.RunDirectory(self.directory / f"trial-{number}")
        self._acquire(holder)
        holder.command = ["cifarbench", "train", *self.typed, *overrides]
        watcher = Watcher(trial, self.config.tune.metric, holder.path)
        try:
            how = self._end_of(config, holder, watcher)
        finally:
            holder.release()
        self._say(trial, overrides, watcher, how)
        return self._value(watcher, how)

    def _acquire(self, holder: runs.RunDirectory) -> None:
        """Lock the trial's directory; a worker that it was taken from, which was silent and lives, soon leaves it.

        Raises:
            Surplus: it does not; the trial is left to it.
        """
        from cifarbench.tuning.study import Surplus

        deadline = time.monotonic() + self.config.tune.patience
        while True:
            try:
                return holder.acquire()
            except InUseError as error:
                if time.monotonic() > deadline:
                    raise Surplus from error
            time.sleep(_POLL_SECONDS)

    def _end_of(self, config: TrainConfig, holder: runs.RunDirectory, watcher: Any) -> str:
        """Train, note in run.json how that ended, and return it in a word: pruned, diverged, or "" for completed.

        Raises:
            Interrupted: a signal came; the trial goes on with the next call.
        """
        import optuna

        try:
            self._train(config, holder, watcher)
        except optuna.TrialPruned:
            holder.update(status="interrupted", reason=f"pruned after epoch {watcher.epochs}")
            return "pruned"
        except NonFiniteError as error:
            holder.update(status="failed", reason=str(error))
            return "diverged"
        except (Interrupted, KeyboardInterrupt) as error:
            reason = f"stopped in {runs.shown_path(holder.path)}. The same command goes on with it: {_command()}"
            if holder.manifest:
                holder.update(status="interrupted", reason=reason)
            raise Interrupted(reason, getattr(error, "exit_code", 128 + signal.SIGINT) - 128) from error
        holder.update(status="completed")
        return ""

    def _value(self, watcher: Any, how: str) -> float:
        """What the study is told of a trial that ended so; optuna.TrialPruned where that is no value.

        Raises:
            ConfigError: it ended before an epoch with a validation.
        """
        import optuna

        if how == "diverged":
            watcher.trial.set_user_attr(how, True)
        if how:
            raise optuna.TrialPruned
        if watcher.best is None:
            raise ConfigError(
                f"`trainer.validate_every` is {self.config.trainer.validate_every}, and the trial ended after epoch "
                f"{watcher.epochs}, without a validation; set it to 1, or give more `trainer.max_time`."
            )
        return float(watcher.best)

    def _train(self, config: TrainConfig, holder: runs.RunDirectory, watcher: Any) -> None:
        from cifarbench.reporting.metrics_file import MetricsFile
        from cifarbench.training.clock import Clock
        from cifarbench.training.distributed import World
        from cifarbench.training.observer import Observers
        from cifarbench.training.session import train

        clock = Clock(started=time.monotonic())
        train(config, self.data, holder, Observers(MetricsFile(holder), watcher), World(), clock)

    def _say(self, trial: Any, overrides: list[str], watcher: Any, how: str) -> None:
        from cifarbench.reporting.tuning import shown_value

        best = shown_value(watcher.best, self.config.tune.metric)
        end = f", {how} after epoch {watcher.epochs}" if how else ""
        print(f"trial {trial.number:>3}  {self.config.tune.metric} {best}  {' '.join(overrides)}{end}", flush=True)


def _command() -> str:
    """The command line of this process, as a shell reads it."""
    return shlex.join(["cifarbench", "tune", *sys.argv[1:]])
