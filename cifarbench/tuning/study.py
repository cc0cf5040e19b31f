"""One study shared by any number of workers: exactly as many trials as asked for, whoever is killed on the way.

A trial's worker sends a heartbeat; where it falls silent, another worker takes the trial over, in the same run
directory, from its last checkpoint; where it is interrupted, the next one does so at once. Surplus trials, which
workers that start together can create, give way to those with lower numbers.
"""

from __future__ import annotations

import contextlib
import math
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import optuna
import sqlalchemy.exc
from optuna.storages import RDBStorage, RetryHeartbeatStaleTrialCallback
from optuna.trial import FrozenTrial, Trial, TrialState

from cifarbench.config.tune import Dimension, TuneSection, dimension
from cifarbench.errors import ConfigError, IntegrityError, Interrupted, ResourceError

ENDED = (TrialState.COMPLETE, TrialState.PRUNED)
_POLL_SECONDS = 1.0


class Surplus(Exception):  # noqa: N818 - no error, but a trial that is not needed
    """The study has as many trials as asked for without this one."""


class _NoDriver(Exception):  # noqa: N818
    """The package for this kind of database is not installed."""


@contextlib.contextmanager
def storage_errors(where: str) -> Iterator[None]:
    """Say in our words what is wrong with the storage of the study; `where` names it.

    Raises:
        ConfigError: `tune.storage` is no address, or of a kind that is not installed.
        ResourceError: the database does not answer or cannot be opened.
        IntegrityError: it is no study, or a damaged one.
    """
    try:
        yield
    except (sqlalchemy.exc.ArgumentError, _NoDriver) as error:
        raise ConfigError(f"`tune.storage` cannot be used ({error}); give one like sqlite:///study.db.") from error
    except sqlalchemy.exc.OperationalError as error:
        raise ResourceError(f"{where} cannot be opened ({error.orig}); is it there, free and writable?") from error
    except (sqlalchemy.exc.SQLAlchemyError, optuna.exceptions.StorageInternalError) as error:
        reason = str(getattr(error, "orig", error)).splitlines()[0]
        raise IntegrityError(f"{where} is damaged ({reason}); put a copy in its place, or take another.") from error


@contextlib.contextmanager
def open_study(config: TuneSection, url: str, seed: int) -> Iterator[optuna.Study]:
    """Create the study, or join the one of this name in the storage at `url`; for errors see `storage_errors`.

    Its connections are closed at the block's end.
    """
    # Heartbeats have been "experimental" in Optuna since 2021; the tests here hold them to what is needed.
    warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
    try:
        storage = RDBStorage(
            url,
            heartbeat_interval=max(1, config.patience // 3),
            grace_period=config.patience,
            heartbeat_stale_trial_callback=RetryHeartbeatStaleTrialCallback(),
        )
    except ImportError as error:
        raise _NoDriver(str(error)) from error
    try:
        yield optuna.create_study(
            storage=storage,
            study_name=config.study,
            load_if_exists=True,
            direction="maximize" if config.metric == "accuracy" else "minimize",
            sampler=_sampler(config, seed),
            pruner=_pruner(config),
        )
    finally:
        storage.remove_session()
        storage.engine.dispose()


def _sampler(config: TuneSection, seed: int) -> optuna.samplers.BaseSampler:
    if config.sampler == "grid":
        return _Grid({each.name: _grid(each) for each in map(dimension, config.space)}, seed=seed)
    if config.sampler == "random":
        return optuna.samplers.RandomSampler()
    return optuna.samplers.TPESampler(multivariate=True, constant_liar=True)


class _Grid(optuna.samplers.GridSampler):
    """Walks the grid: a point whose trial failed, or was not needed, is still to be walked."""

    def _get_unvisited_grid_ids(self, study: optuna.Study) -> list[int]:
        trials = study._storage.get_all_trials(study._study_id, deepcopy=False)  # a pruner may hide some in `study`
        taken = {trial.system_attrs.get("grid_id") for trial in trials if trial.state != TrialState.FAIL}
        return [number for number in range(self._n_min_trials) if number not in taken]


def _pruner(config: TuneSection) -> optuna.pruners.BasePruner:
    if config.pruner == "median":
        return optuna.pruners.MedianPruner(n_startup_trials=4)
    return optuna.pruners.HyperbandPruner() if config.pruner == "hyperband" else optuna.pruners.NopPruner()


def _grid(each: Dimension) -> list[Any]:
    if each.kind == "int":
        return list(range(int(each.values[0]), int(each.values[1]) + 1))
    return list(each.values)


def wanted_trials(config: TuneSection) -> int:
    """How many trials the study is to have: `tune.trials`, but no more than a grid has points."""
    if config.sampler != "grid":
        return config.trials
    return min(config.trials, math.prod(len(_grid(each)) for each in map(dimension, config.space)))


def suggest(trial: Trial, space: tuple[str, ...]) -> list[str]:
    """The trial's overrides, `key=value` for each dimension of the space."""
    return [f"{each.name}={_suggested(trial, each)}" for each in map(dimension, space)]


def _suggested(trial: Trial, each: Dimension) -> Any:
    if each.kind == "choice":
        return trial.suggest_categorical(each.name, each.values)
    if each.kind == "int":
        return trial.suggest_int(each.name, int(each.values[0]), int(each.values[1]))
    low, high = map(float, each.values)
    return float(f"{trial.suggest_float(each.name, low, high, log=each.kind == 'log'):.6g}")


def run_trials(study: optuna.Study, wanted: int, run: Callable[[Trial, int], float]) -> None:
    """Run trials until the study has `wanted` that ended, by this worker and others.

    Args:
        study: shared by the workers.
        wanted: complete or pruned trials.
        run: trains one trial and returns its value; its second argument is the number of the trial that it takes
            over, or its own. It raises `optuna.TrialPruned` to end it early.

    Raises:
        Interrupted: `run` did; its trial waits for the next worker.
    """

    def objective(trial: Trial) -> float:
        if _place(study, trial.number) >= wanted:
            raise Surplus
        origin = RetryHeartbeatStaleTrialCallback.retried_trial_number(study.trials[trial.number])
        return run(trial, trial.number if origin is None else origin)

    while _count(study, ENDED) < wanted:
        optuna.storages.fail_stale_trials(study)
        if _count(study, (*ENDED, TrialState.RUNNING)) >= wanted:
            time.sleep(_POLL_SECONDS)  # others are at the last ones, and may still die
            continue
        _run_one(study, objective)


def _run_one(study: optuna.Study, objective: Callable[[Trial], float]) -> None:
    """Run one trial; where it is interrupted, the next worker is to take it over, as it does with a killed one.

    So it is where this worker was silent for so long that another one took it for dead: what it trained is not lost.
    """
    numbers: list[int] = []
    stops: list[BaseException] = []
    taken = False

    def noted(trial: Trial) -> float:
        nonlocal taken
        numbers.append(trial.number)
        try:
            return objective(trial)
        except (Interrupted, KeyboardInterrupt) as stop:
            stops.append(stop)
            raise
        finally:
            taken = study.trials[trial.number].state == TrialState.FAIL  # by another worker: this one has told nothing

    try:
        study.optimize(noted, n_trials=1, catch=(Surplus,))
    except (Exception, KeyboardInterrupt):
        if taken or stops:
            _hand_on(study, numbers)
        if stops:
            raise stops[0] from None
        if not taken:
            raise
        print(f"trial {numbers[0]:>3}  was silent for long and taken for dead; it is gone on with", flush=True)


def _hand_on(study: optuna.Study, numbers: list[int]) -> None:
    """Let the next worker take over the trials that failed, unless one has."""
    again = RetryHeartbeatStaleTrialCallback.retried_trial_number
    others = [trial for trial in study.trials if trial.state != TrialState.FAIL]
    alive = {again(trial) for trial in others}
    points = {trial.system_attrs.get("grid_id") for trial in others} - {None}  # of a grid, which is walked once
    for number in numbers:
        trial = study.trials[number]
        origin, point = again(trial), trial.system_attrs.get("grid_id")
        is_taken = (number if origin is None else origin) in alive or point in points
        if trial.state == TrialState.FAIL and not is_taken:
            RetryHeartbeatStaleTrialCallback()(study, trial)


def _count(study: optuna.Study, states: tuple[TrialState, ...]) -> int:
    return len(study.get_trials(deepcopy=False, states=states))


def _place(study: optuna.Study, number: int) -> int:
    """How many trials before this one have ended or run."""
    kept = study.get_trials(deepcopy=False, states=(*ENDED, TrialState.RUNNING))
    return sum(trial.number < number for trial in kept)


def importance(study: optuna.Study) -> dict[str, float]:
    """How much each key matters for the result, in shares of 1; {} while there are too few trials to say."""
    with warnings.catch_warnings():
        warnings.filterwarnings("error", ".*importances will be equal", UserWarning)  # it cannot tell them apart yet
        try:
            return optuna.importance.get_param_importances(study)
        except (RuntimeError, ValueError, UserWarning):
            return {}


def ended(study: optuna.Study) -> list[FrozenTrial]:
    """The trials that completed or were pruned, in order."""
    return study.get_trials(deepcopy=False, states=ENDED)
