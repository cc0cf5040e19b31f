"""The files that the opened test part leaves in a run directory."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

from cifarbench.data.dataset import ImageSet
from cifarbench.evaluation.predictions import Predictions
from cifarbench.reporting.figures import confusion_figure, save
from cifarbench.runs import RunDirectory, write_json, write_text
from cifarbench.training.session import Outcome


def write_results(run: RunDirectory, data: ImageSet, outcome: Outcome) -> None:
    """Write test.json, predictions.npz, confusion_matrix.csv and .png, and the headline into run.json."""
    report, parts = outcome.report, outcome.parts
    assert report is not None
    assert outcome.logits is not None
    passport = {"dataset": data.name, "split": parts.name, "fingerprint": parts.fingerprint}
    write_json(run.path / "test.json", {**report, "checkpoint": outcome.tested, **passport})
    indices = parts.test.indices
    Predictions(indices, data.targets[indices], outcome.logits).write(run.path)
    write_confusion(run.path, report, data.classes, caption(data.name, parts.name, parts.fingerprint))
    headline = ("accuracy", "accuracy_official", "accuracy_without_duplicates", "loss", "tta")
    run.update(test={**run.manifest["test"], **{name: report[name] for name in headline}})


def write_confusion(folder: Path, report: dict[str, Any], classes: tuple[str, ...], note: str, stem: str = "") -> None:
    """Write the counts as CSV (rows: true class) and the row-normalised picture as PNG."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["true \\ predicted", *classes])
    table.writerows([name, *row] for name, row in zip(classes, report["confusion_matrix"], strict=True))
    write_text(folder / f"{stem}confusion_matrix.csv", text.getvalue())
    save(confusion_figure(report, classes, note), folder / f"{stem}confusion_matrix.png")


def caption(dataset: str, split: str, fingerprint: str) -> str:
    """The passport in a line, for figures."""
    return f"{dataset} · split {split} · {fingerprint[:12]}"
