"""The page of several runs: a table with intervals, paired tests, and their curves over one another."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import Any

import torch

from cifarbench.errors import ConfigError, IntegrityError
from cifarbench.evaluation.comparison import compare, holm
from cifarbench.reporting.page.charts import Series, interval_chart, line_chart
from cifarbench.reporting.page.record import Record, look
from cifarbench.reporting.page.single import command, duration

_ALIKE = ("trainer.progress", "trainer.threads", "trainer.tensorboard", "trainer.report", "trainer.resume", "plugins")


def comparison(records: Sequence[Record]) -> dict[str, Any]:
    """Rows, paired tests and charts of runs that were tested on the same images, the best first.

    Raises:
        ConfigError: a run was never tested.
        IntegrityError: two runs answer for different images.
    """
    for record in records:
        if record.score is None:
            raise ConfigError(f"{record.path} was never tested; a comparison needs each run's predictions.npz.")
    ordered = sorted(records, key=lambda record: -_accuracy(record))
    rows = [_row(record, index) for index, record in enumerate(ordered)]
    best = ordered[0]
    return {
        "title": f"{len(ordered)} runs compared",
        "dataset": best.look("dataset", "name"),
        "passport": [(part, f"{best.look(part, 'name')} · {_marks(ordered, part)}") for part in ("dataset", "split")],
        "n": best.score["n"] if best.score else 0,
        "rows": rows,
        "pairs": _pairs(ordered, rows),
        "differing": _differing(ordered),
        "classes": best.classes,
        "recall": _recalls(ordered),
        "forest": interval_chart(
            "Test accuracy with its 95 % interval",
            [(row["mark"], row["accuracy"], tuple(row["interval"]), row["colour"]) for row in rows],
        ),
        "curves": _curves(ordered),
    }


def _marks(records: Sequence[Record], part: str) -> str:
    """The beginnings of the runs' fingerprints: of splits several, where they held out different validation images."""
    return ", ".join(sorted({str(record.look(part, "fingerprint"))[:16] for record in records}))


def _accuracy(record: Record) -> float:
    return record.score["accuracy"] if record.score else 0.0


def mark_of(index: int) -> str:
    """A short name of a run on the page: A to Z, then A1 and so on."""
    return chr(65 + index % 26) + (str(index // 26) if index >= 26 else "")


def _row(record: Record, index: int) -> dict[str, Any]:
    score = record.score or {}
    return {
        "mark": mark_of(index),
        "colour": index,
        "name": record.name,
        "title": record.title,
        "seed": record.look("seed"),
        "accuracy": score["accuracy"],
        "interval": score["accuracy_interval"],
        "official": score["accuracy_official"],
        "loss": score["loss"],
        "ece": score["ece"],
        "val_accuracy": record.number("best", "val_accuracy"),
        "epochs": len(record.rows),
        "parameters": record.number("model", "parameters"),
        "seconds": record.number("timing", "training"),
        "time": duration(record.number("timing", "training")),
        "command": command(record),
        "openings": record.number("test", "openings"),
    }


def _pairs(records: Sequence[Record], rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Each two runs on the same images: difference, interval, McNemar's p, and p adjusted for the number of pairs."""
    found = []
    for i, j in combinations(range(len(records)), 2):
        first, second = records[i].predictions, records[j].predictions
        assert first is not None
        assert second is not None
        if not torch.equal(first.indices, second.indices):
            raise IntegrityError(
                f"{records[i].path} and {records[j].path} answer for different test images; they cannot be paired."
            )
        result = compare(second.right, first.right)
        found.append(
            {
                "first": rows[i]["mark"],
                "second": rows[j]["mark"],
                "only_first": result.only_second,
                "only_second": result.only_first,
                "difference": result.difference,
                "interval": list(result.interval),
                "p": result.p,
            }
        )
    for row, adjusted in zip(found, holm([row["p"] for row in found]), strict=True):
        row["p_adjusted"] = adjusted
    return found


def _flat(values: Any, path: str = "") -> dict[str, Any]:
    if not isinstance(values, dict):
        return {path: values}
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat.update(_flat(value, f"{path}.{name}" if path else str(name)))
    return flat


def _differing(records: Sequence[Record]) -> list[dict[str, Any]]:
    """The keys in which the runs' configs differ, with each run's value."""
    configs = [_flat(record.config) for record in records]
    names = list(dict.fromkeys(name for config in configs for name in config))
    rows = []
    for name in names:
        values = [config.get(name) for config in configs]
        if name not in _ALIKE and any(value != values[0] for value in values[1:]):
            rows.append({"key": name, "values": ["–" if value is None else str(value) for value in values]})
    return rows


def _recalls(records: Sequence[Record]) -> list[dict[str, Any]]:
    """Each class's recall in every run, `best` marking the largest."""
    rows = []
    for name in records[0].classes:
        values = [look(record.score, "per_class", name, "recall") for record in records]
        known = [value for value in values if value is not None]
        rows.append({"name": name, "values": values, "best": max(known, default=None)})
    return rows


def _curves(records: Sequence[Record]) -> list[dict[str, Any]]:
    charts = [
        ("Validation accuracy", "val_accuracy", True),
        ("Validation loss", "val_loss", False),
        *([("Training loss", "train_loss", False)] if len({record.minimised for record in records}) == 1 else []),
        ("Learning rate", "lr", False),
    ]
    found = []
    for title, key, percent in charts:
        lines = [
            Series(f"{mark_of(index)} · {record.name}", [(row["epoch"] or 0.0, row[key]) for row in record.rows], index)
            for index, record in enumerate(records)
        ]
        chart = line_chart(f"{title} by epoch", lines, "epoch", percent)
        if chart is not None:
            found.append({"title": title, "svg": chart, "legend": lines})
    return found
