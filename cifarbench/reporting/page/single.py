"""The page of one run: its record, pictures and charts brought into the form that the template draws."""

from __future__ import annotations

import math
import shlex
from typing import Any

import yaml

from cifarbench.evaluation.inspection import reliability
from cifarbench.reporting.page.charts import Series, line_chart, reliability_chart
from cifarbench.reporting.page.record import Record, look, number


def run_facts(record: Record) -> dict[str, Any]:
    """What the page of one run says in text and tables, as plain values and charts."""
    return {
        "title": record.title,
        "name": record.name,
        "dataset": record.look("dataset", "name"),
        "status": record.look("status"),
        "reason": record.look("reason"),
        "classes": record.classes,
        "score": record.score,
        "mismatch": _mismatch(record),
        "best": {"epoch": record.number("best", "epoch"), "accuracy": record.number("best", "val_accuracy")},
        "tested": record.look("tested"),
        "openings": record.number("test", "openings"),
        "protocol": protocol(record),
        "command": command(record),
        "config": yaml.safe_dump(record.config, sort_keys=False, allow_unicode=True),
        "sections": {name: values for name, values in record.config.items() if isinstance(values, dict)},
        "curves": curves(record),
        "matrix": matrix(record),
        "reliability": _reliability(record),
        "timing": timing(record),
    }


def _mismatch(record: Record) -> dict[str, float] | None:
    """The recorded and the recomputed accuracy where they are not the same."""
    recorded = record.number("test", "accuracy")
    if record.score is None or recorded is None or math.isclose(recorded, record.score["accuracy"], abs_tol=1e-9):
        return None
    return {"recorded": recorded, "found": record.score["accuracy"]}


def protocol(record: Record) -> list[tuple[str, str]]:
    """Split, counts, fingerprints and openings of the seal, as (name, value) lines."""
    counts = {part: record.number("split", part) for part in ("train", "val", "test")}
    tta = look(record.config, "trainer", "tta")
    alike = look(record.score, "n_duplicates")
    text = f"{count(alike)} of the test images resemble a trainable one; unseen are the others"
    return [
        ("dataset", f"{_text(record.look('dataset', 'name'))} · {_text(record.look('dataset', 'fingerprint'))[:16]}"),
        ("split", f"{_text(record.look('split', 'name'))} · {_text(record.look('split', 'fingerprint'))[:16]}"),
        ("images", " · ".join(f"{count(value)} {_PARTS[part]}" for part, value in counts.items())),
        *([] if alike is None else [("near-duplicates", text)]),
        ("seal opened", _times(record.number("test", "openings"))),
        ("checkpoint tested", _chosen(record)),
        ("test-time augmentation", _text(tta)),
        ("seed", _text(record.look("seed"))),
    ]


_PARTS = {"train": "training", "val": "validation", "test": "test"}


def _times(value: float | None) -> str:
    return "–" if value is None else "once" if value == 1 else "never" if value == 0 else f"{value:,.0f} times"


def _chosen(record: Record) -> str:
    epoch = record.number("best", "epoch")
    if record.look("tested") == "best" and epoch is not None:
        return f"best.pt, epoch {epoch:.0f}: the best on validation images"
    return "last.pt: nothing was validated" if record.look("tested") == "last" else "–"


def command(record: Record) -> str | None:
    """The command that repeats the run, as a shell takes it; None where none is recorded."""
    words = record.look("command")
    if not isinstance(words, list) or not words or not all(isinstance(word, str) for word in words):
        return None
    return shlex.join(words)


def curves(record: Record) -> list[dict[str, Any]]:
    """Loss, accuracy, learning rate and throughput over the epochs, each with a chart and its legend."""
    loss = record.minimised
    losses: list[tuple[str, tuple[str, ...], bool]] = [("Loss", ("train_loss", "val_loss"), False)]
    if loss != "cross_entropy":  # which validation reports whatever is minimised
        losses = [(f"Training loss, {loss}", ("train_loss",), False), ("Cross-entropy", ("val_loss",), False)]
    charts = [
        *losses,
        ("Accuracy", ("train_accuracy", "val_accuracy"), True),
        ("Learning rate", ("lr",), False),
        ("Images per second", ("images_per_second",), False),
    ]
    found = []
    for title, keys, percent in charts:
        lines = [_series(record, key, _LINES[key], int(key.startswith("val_"))) for key in keys]
        lines = [line for line in lines if any(value is not None for _, value in line.points)]
        chart = line_chart(f"{title} by epoch", lines, "epoch", percent)
        if chart is not None:
            found.append({"title": title, "svg": chart, "legend": lines if len(lines) > 1 else []})
    return found


_LINES = {
    "train_loss": "training, augmented",
    "train_accuracy": "training, augmented",
    "val_loss": "validation",
    "val_accuracy": "validation",
    "lr": "learning rate",
    "images_per_second": "images per second",
}


def _series(record: Record, key: str, name: str, colour: int) -> Series:
    return Series(name, [(row["epoch"] or 0.0, row[key]) for row in record.rows], colour)


def matrix(record: Record) -> list[list[dict[str, Any]]] | None:
    """The confusion matrix as cells: `count`, `share` of the true class, and shades in 0..1."""
    if record.score is None:
        return None
    counts = record.score["confusion_matrix"]
    wrong = max((value for i, row in enumerate(counts) for j, value in enumerate(row) if i != j), default=0) or 1
    cells = []
    for i, row in enumerate(counts):
        total = sum(row) or 1
        # The square root spreads the small shares, where the mistakes are, over more of the scale.
        cells.append(
            [
                {
                    "count": value,
                    "share": value / total,
                    "shade": value / total if i == j else math.sqrt(value / wrong),
                    "right": i == j,
                }
                for j, value in enumerate(row)
            ]
        )
    return cells


def _reliability(record: Record) -> dict[str, Any] | None:
    if record.predictions is None:
        return None
    bins = reliability(record.predictions)
    return {"bins": bins, "svg": reliability_chart(bins)}


def timing(record: Record) -> list[tuple[str, str]]:
    """How long it took and on what, as (name, value) lines."""
    look_at = record.look
    speeds = [row["images_per_second"] for row in record.rows if row["images_per_second"]]
    device = f"{_text(look_at('environment', 'device_name'))} ({_text(look_at('environment', 'device'))})"
    return [
        ("training epochs", duration(record.number("timing", "training"))),
        ("from the command to the test's end", duration(record.number("timing", "cold"))),
        ("time limit", _text(look_at("timing", "max_time"))),
        ("epochs", f"{len(record.rows):,}"),
        ("images per second", count(sorted(speeds)[len(speeds) // 2]) if speeds else "–"),
        ("parameters", _parameters(record)),
        ("FLOP per image", _mega(record.number("model", "flops"))),
        ("device", device),
        ("precision", _text(look_at("environment", "precision"))),
        ("kernels", _text(look_at("environment", "kernels"))),
        (
            "threads, processes",
            f"{_text(look_at('environment', 'threads'))}, {_text(look_at('environment', 'processes'))}",
        ),
        ("torch, Python", f"{_text(look_at('environment', 'torch'))}, {_text(look_at('environment', 'python'))}"),
        ("cifarbench", _text(look_at("environment", "cifarbench"))),
    ]


def _parameters(record: Record) -> str:
    """Their number, and how many of them an L1 penalty brought to 0."""
    total, zeros = record.number("model", "parameters"), record.number("model", "zeros")
    if not look(record.config, "optim", "l1") or not total or zeros is None:
        return count(total)
    return f"{count(total)}, of them {count(zeros)} are 0 ({zeros / total:.1%})"


def _text(value: Any) -> str:
    return "–" if value is None else str(value)


def count(value: float | None) -> str:
    """A whole number with separators, – for None."""
    return "–" if value is None else f"{value:,.0f}"


def _mega(value: float | None) -> str:
    return "–" if value is None else f"{value / 1e6:,.1f} million"


def duration(seconds: float | None) -> str:
    """Seconds in words: 48.2 s, 2 min 16 s, 1 h 05 min; – for None."""
    if number(seconds) is None or seconds is None:
        return "–"
    if seconds < 100:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02} s" if minutes < 100 else f"{minutes // 60} h {minutes % 60:02} min"
