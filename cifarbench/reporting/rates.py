"""The learning-rate range test as a picture and on the console."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter
from rich.console import Console
from rich.table import Table
from rich.text import Text

_INK, _SOFT, _LINE = "#1f2933", "#7b8794", "#2563a8"
_FLAT = 0.03  # share of the loss; less of a fall is hardly more than noise
_COLOURS = {"valley": "#2f855a", "steepest": "#b7791f", "minimum_tenth": "#9b2c5f"}
_WORDS = {
    "valley": "where half of the deepest fall is done",
    "steepest": "where the loss falls fastest",
    "minimum_tenth": "a tenth of the rate with the lowest loss",
}


def rate_figure(
    rates: list[float], losses: list[float], smoothed: list[float], found: dict[str, float], title: str, note: str
) -> Figure:
    """Loss over rate: each step as a pale dot, the smoothed loss as a line, the suggestions as marks on it."""
    figure = Figure(figsize=(7.6, 4.6), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    axes.scatter(rates, losses, s=9, color=_SOFT, alpha=0.45, linewidths=0, label="loss of one batch")
    axes.plot(rates, smoothed, color=_LINE, linewidth=2, label="smoothed")
    for name, rate in found.items():
        height = float(np.interp(np.log(rate), np.log(rates), smoothed))
        label = f"{name.replace('_', ' / ').replace('tenth', '10')}: {rate:g}"
        axes.plot([rate], [height], "o", color=_COLOURS[name], markersize=8, label=label, zorder=3)
        axes.axvline(rate, color=_COLOURS[name], linewidth=0.8, linestyle=":", zorder=1)
    low, high = min(smoothed), max(smoothed[0], min(smoothed))
    axes.set_ylim(max(0.0, low - 0.15 * (high - low) - 0.05), high + 0.5 * (high - low) + 0.1)
    axes.set_xscale("log")
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("learning rate (optim.lr)", color=_INK)
    axes.set_ylabel("training loss", color=_INK)
    axes.set_title(f"Learning-rate range test: {title}", color=_INK, pad=10)
    axes.tick_params(colors=_INK)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(visible=True, axis="y", color="#e4e7eb", linewidth=0.6)
    axes.legend(frameon=False, fontsize=8, labelcolor=_INK, loc="lower left")
    figure.supxlabel(note, color=_SOFT, size=8)
    return figure


def print_suggestions(title: str, note: str, report: dict[str, Any], paths: list[str]) -> None:
    """Print each suggestion with its overrides, the one to use in bold, and where the files lie."""
    console = Console(highlight=False, soft_wrap=not sys.stdout.isatty())
    last = report["points"][-1]["lr"]
    ended = f"{report['ended']} at" if report["ended"] != "end" else "reached"
    console.print(Text.assemble((title, "bold"), f"   {len(report['points'])} steps, {ended} a rate of {last:.2g}"))
    console.print(Text(f"{note}; training images alone\n", "dim"))
    table = Table(box=None, padding=(0, 1), header_style="dim")
    table.add_column("suggestion")
    table.add_column("optim.lr", justify="right", no_wrap=True)
    table.add_column("what it is")
    for name, rate in sorted(report["suggestions"].items(), key=lambda item: item[1]):
        is_chosen = report["overrides"][name] == report["override"]
        table.add_row(name.replace("_tenth", "/10"), f"{rate:g}", _WORDS[name], style="bold" if is_chosen else "")
    console.print(table)
    console.print(Text.assemble("\nuse: ", (report["override"], "bold green")))
    if report["fall"] < _FLAT:
        share = f"{report['fall']:.1%}"
        console.print(f"[yellow]! the loss fell by {share} only, so these rates mean little; take more `steps`.[/]")
    for path in paths:
        console.print(Text(path), soft_wrap=True)
