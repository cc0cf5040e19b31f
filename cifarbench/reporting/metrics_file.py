"""metrics.jsonl: a line an epoch, the record of truth."""

from __future__ import annotations

from typing import Any

from cifarbench.runs import RunDirectory
from cifarbench.training.observer import Observer


class MetricsFile(Observer):
    """Appends each epoch's row to the run's metrics.jsonl."""

    def __init__(self, run: RunDirectory) -> None:
        self.run = run

    def epoch(self, row: dict[str, Any], is_best: bool) -> None:
        """Append the row."""
        self.run.append_row(row)
