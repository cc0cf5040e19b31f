"""What the training of a trial tells its study."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import optuna
from torch import nn

from cifarbench import runs
from cifarbench.training.observer import Observer, RunFacts


class Watcher(Observer):
    """Tells the study each epoch's value, and ends the trial where the study says so.

    `best` is the best value over all epochs of the run, None before the first; `epochs` how many there are.
    """

    def __init__(self, trial: optuna.Trial, metric: str, directory: Path) -> None:
        self.trial, self.metric, self.directory = trial, metric, directory
        self.best: float | None = None
        self.epochs = 0

    def start(self, facts: RunFacts, model: nn.Module) -> None:
        """Take in the epochs that were trained before the run was stopped, also where another trial reported them."""
        for row in runs.read_rows(self.directory):
            self._take_in(row)

    def epoch(self, row: dict[str, Any], is_best: bool) -> None:
        """Take in the epoch; optuna.TrialPruned where the trial is too poor to go on."""
        if self._take_in(row) and self.trial.should_prune():
            raise optuna.TrialPruned

    def _take_in(self, row: dict[str, Any]) -> bool:
        """Report the row's value, where it has one."""
        value = row[f"val_{self.metric}"]
        self.epochs = row["epoch"]
        if value is None:
            return False
        better = max if self.metric == "accuracy" else min
        self.best = value if self.best is None else better(self.best, value)
        self.trial.report(value, row["epoch"])
        return True
