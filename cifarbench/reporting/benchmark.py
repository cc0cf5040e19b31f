"""Tables of what `cifarbench bench` measured, and the records that a timed loop writes."""

from __future__ import annotations

import string
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from cifarbench.reporting.console import counted
from cifarbench.reporting.tensorboard import TensorBoard
from cifarbench.training.observer import Observer


def recording_observer(folder: Path) -> Observer:
    """What a run's steps are written to: TensorBoard logs in `folder`."""
    board = TensorBoard(folder / "tensorboard", print)
    board.open()
    return board


def throughput_report(result: dict[str, Any]) -> RenderableType:
    """Images per second of each config, its share of the machine's matrix-product rate, and its phases."""
    contenders = result["contenders"]
    names = _letters(len(contenders))
    rates = _table("", "images/s", "range", "of bare", f"× {names[0]}", "GFLOP/s", "of peak")
    phases = _table("µs an image", *contenders[0]["microseconds"], "batch", "precision")
    for name, row in zip(names, contenders, strict=True):
        rates.add_row(name, *_rate(row), *_shares(row))
        phases.add_row(name, *_spent(row))
    if "tutorial" in result:
        rates.add_row(
            "tutorial", *_rate(result["tutorial"]), "", f"{1 / result['tutorial']['first_times_tutorial']:.2f}"
        )
    counts = [row["steps"] for row in (*contenders, *([result["tutorial"]] if "tutorial" in result else []))]
    steps = f"{min(counts)}–{max(counts)}" if len({*counts}) > 1 else f"{counts[0]}"
    heading = f"{result['rounds']} rounds of {steps} steps, medians; {_environment(result['environment'])}"
    exceeds = any(row["of_matmul"] > 1 for row in contenders)
    notes = [
        f"peak: a large matrix product, {result['matmul'] / 1e9:,.0f} GFLOP/s",
        *(["above it: products are counted by definition, and our convolutions take fewer"] if exceeds else []),
        "of bare: against forward, backward and step on one fixed batch, round by round",
        *([f"tutorial: {names[0]}'s model with DataLoader, PIL transforms, fp32"] if "tutorial" in result else []),
    ]
    labels = [row["label"] for row in contenders]
    return Group(_dim(heading), _legend(names, labels), rates, phases, *(_dim(note) for note in notes))


def accuracy_report(rows: Sequence[dict[str, Any]]) -> RenderableType:
    """Test accuracy and the three clocks of each config, over its seeds."""
    names = _letters(len(rows))
    table = _table("", "n", "mean", "σ", "bar", "above it", "train", "train + test", "cold")
    for name, row in zip(names, rows, strict=True):
        spread = "–" if row["std"] is None else f"{100 * row['std']:.2f}"
        bar = "–" if row["bar"] is None else f"{row['bar']:.2%}"
        verdict = "n < 2" if row["bar"] is None else "yes" if row["passes"] else "no"
        clocks = (f"{row[clock]:,.1f} s" for clock in ("train", "train_test", "cold"))
        table.add_row(name, str(row["n"]), f"{row['mean']:.2%}", spread, bar, verdict, *clocks)
    heading = f"test accuracy against {rows[0]['target']:.2%}; {_environment(rows[0]['environment'])}"
    note = "bar: the mean needed to be above the target at the 5 % level, target + t·σ/√n; times are means"
    return Group(_dim(heading), _legend(names, [row["label"] for row in rows]), table, _dim(note))


def _letters(count: int) -> list[str]:
    """A, B, C …, and numbers beyond the alphabet."""
    letters = string.ascii_uppercase
    return list(letters[:count]) if count <= len(letters) else [str(index + 1) for index in range(count)]


def _legend(names: Sequence[str], labels: Sequence[str]) -> Table:
    legend = Table.grid(padding=(0, 2))
    for name, label in zip(names, labels, strict=True):
        legend.add_row(Text(name, style="bold"), Text(label))
    return legend


def _table(*headings: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1), show_edge=False)
    table.add_column(headings[0], style="bold", no_wrap=True)
    for heading in headings[1:]:
        table.add_column(heading, justify="right", no_wrap=True)
    return table


def _rate(row: dict[str, Any]) -> tuple[str, str]:
    low, high = row["range"]
    return f"{row['images_per_second']:,.0f}", f"{low:,.0f}–{high:,.0f}"


def _shares(row: dict[str, Any]) -> tuple[str, ...]:
    """A config's rate as parts of the bare loop's, of the first config's, and of the machine's."""
    flops = f"{row['flops_per_second'] / 1e9:,.0f}"
    return f"{row['of_bare']:.1%}", f"{row['times_first']:.2f}", flops, f"{row['of_matmul']:.0%}"


def _spent(row: dict[str, Any]) -> tuple[str, ...]:
    """Microseconds an image of each phase, the batch and its pieces, the precision."""
    micro = f" in {row['micro_batch']}" if row["micro_batch"] < row["batch_size"] else ""
    phases = (f"{value:,.0f}" for value in row["microseconds"].values())
    return *phases, f"{row['batch_size']}{micro}", row["precision"]


def _dim(text: str) -> Text:
    return Text(text, style="dim")


def _environment(facts: dict[str, Any]) -> str:
    threads = counted(facts["threads"], "thread")
    return f"{facts['device_name']}, {facts['precision']}, {threads}, torch {facts['torch']}"
