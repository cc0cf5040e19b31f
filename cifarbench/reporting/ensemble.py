"""What an ensemble leaves, and what the console says of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from cifarbench import runs
from cifarbench.reporting.console import output_console
from cifarbench.training import checkpoint
from cifarbench.training.ensemble import Ensemble


def write(folder: Path, ensemble: Ensemble) -> None:
    """Write ensemble.json, predictions.npz and, where weights were averaged, the checkpoint averaged.pt."""
    folder.mkdir(parents=True)
    ensemble.predictions.write(folder)
    if ensemble.state is not None:
        checkpoint.save(ensemble.state, folder / "averaged.pt")
    runs.write_json(folder / "ensemble.json", ensemble.report)


def show(folder: Path, ensemble: Ensemble) -> None:
    """Print the members, the ensemble, and what it gains with its interval."""
    report = ensemble.report
    console = output_console()
    console.print(_table(report))
    by_weights = report["average"] == "weights"
    low, high = report["gain_over_mean_interval"]
    lines = [
        f"gain over the members' mean: {100 * report['gain_over_mean']:+.2f} points, "
        f"95 % interval {100 * low:+.2f} to {100 * high:+.2f}, n = {report['n']:,} test images"
    ]
    if by_weights and high < 0:
        lines.append("Mean weights need runs that began alike: the same start or a shared checkpoint.")
    if report["accuracy_official"] is not None:
        lines.append(f"official {report['n_official']:,}: {report['accuracy_official']:.2%}")
    opened = "the test part was opened for it, which each run's run.json counts"
    opened = opened if by_weights else "from stored predictions; the seal was not opened"
    for line in lines:
        console.print(Text(line))
    for line in (
        f"{report['dataset']['name']}, split {report['split']['name']}; {opened}",
        runs.shown_path(folder / "ensemble.json"),
    ):
        console.print(Text(line, "dim"), soft_wrap=True)


def _table(report: dict[str, Any]) -> Table:
    """A row for each member, and one for the ensemble."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("", overflow="fold")
    for name in ("accuracy", "95 % interval", "gain of the ensemble", "p"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in report["members"]:
        low, high = row["gain_interval"]
        gain = f"{100 * row['gain']:+.2f} ({100 * low:+.2f} to {100 * high:+.2f})"
        chance = "<0.0001" if row["p"] < 1e-4 else f"{row['p']:.4f}"
        table.add_row(Text(row["run"]), f"{row['accuracy']:.2%}", _interval(row), gain, chance)
    name = "ensemble" if report["average"] == "predictions" else "mean weights"
    accuracy = Text(f"{report['accuracy']:.2%}", "bold green")
    table.add_row(Text(name, "bold"), accuracy, _interval(report), "", "")
    return table


def _interval(row: dict[str, Any]) -> str:
    low, high = row["accuracy_interval"]
    return f"{100 * low:.2f}–{100 * high:.2f}"
