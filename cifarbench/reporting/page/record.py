"""A run directory as the page sees it: plain checked values, whoever wrote the files."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cifarbench import runs
from cifarbench.data.duplicates import recorded_duplicates
from cifarbench.errors import ConfigError
from cifarbench.evaluation.metrics import score
from cifarbench.evaluation.predictions import Predictions, read_predictions
from cifarbench.reporting.heading import heading, minimised
from cifarbench.training.restore import classes_of

_ROW_KEYS = ("epoch", "step", "lr", "train_loss", "train_accuracy", "val_loss", "val_accuracy",
             "images_per_second", "seconds")  # fmt: skip


@dataclass(frozen=True)
class Record:
    """What a run's files say.

    `score` is as test.json, but counted again from the `predictions`; both are None where nothing was tested.
    """

    path: Path
    manifest: dict[str, Any]
    config: dict[str, Any]
    rows: list[dict[str, float | None]]
    classes: tuple[str, ...]
    predictions: Predictions | None
    score: dict[str, Any] | None

    def look(self, *keys: str) -> Any:
        """The value at a path of keys in run.json, None where there is none."""
        return look(self.manifest, *keys)

    def number(self, *keys: str) -> float | None:
        """The finite number at a path of keys in run.json, None where there is none."""
        return number(self.look(*keys))

    @property
    def name(self) -> str:
        """The directory's name."""
        return self.path.resolve().name

    @property
    def minimised(self) -> str:
        """The name of the loss that training minimised."""
        return minimised(self.config)

    @property
    def title(self) -> str:
        """As the console heads the run; its directory's name where the config says too little."""
        return heading(self.config) or self.name


def read_record(path: Path) -> Record:
    """Read a run directory.

    Raises:
        ConfigError: it is none.
        IntegrityError: one of its files is damaged.
    """
    if not path.is_dir():
        raise ConfigError(f"`run` names {str(path)!r}, which is no directory.")
    config, manifest = runs.read_config(path), runs.read_manifest(path)
    if not manifest:
        raise ConfigError(f"{path} is no run directory: it has no run.json.")
    rows = [{key: number(row.get(key)) for key in _ROW_KEYS} for row in runs.read_rows(path)]
    rows = [row for row in rows if row["epoch"] is not None]
    classes = classes_of(path)
    if not (path / "predictions.npz").is_file():
        return Record(path, manifest, config, rows, classes, None, None)
    predictions = read_predictions(path)
    official = predictions.official(look(manifest, "dataset", "name"))
    marks = look(manifest, "split", "trainable"), look(manifest, "dataset", "fingerprint")
    duplicates = recorded_duplicates(predictions.indices, *marks)
    report = score(predictions.logits, predictions.targets, classes, official, duplicates)
    return Record(path, manifest, config, rows, classes, predictions, report)


def look(values: Any, *keys: str) -> Any:
    """The value at a path of keys in nested dicts, None where there is none."""
    for key in keys:
        values = values.get(key) if isinstance(values, dict) else None
    return values


def number(value: Any) -> float | None:
    """`value` where it is a finite number, else None."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return value if abs(value) < 1e300 and math.isfinite(value) else None
