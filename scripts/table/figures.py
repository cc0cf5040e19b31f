"""The figures of the page. Each PNG names the SHA-256 of the numbers it was drawn from, so that a stale one shows."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from table.lines import Line, PeekLine

_INK, _SOFT, _PALE = "#1f2933", "#7b8794", "#e4e7eb"
_HALO = withStroke(linewidth=3, foreground="white")
_COLOURS = ("#2563a8", "#b7791f", "#2f855a", "#9b2c5f", "#5a67d8", "#c05621")
_ACCURACIES = (10, 20, 30, 40, 50, 60, 70, 80, 85, 90, 92, 94, 95, 96, 97, 98)
# Round times in seconds, for ticks.
_TICKS = (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 60, 120, 300, 600, 1200, 3600, 7200, 18000, 36000)
_SHIFTS = (0, -12, 12, -24, 24, -36, 36, -48, 48)  # pixels that a name may lie above its point
_Box = tuple[float, float, float, float]  # left, bottom, right, top in pixels
_KEY = "Description"  # the PNG text chunk that names the numbers


@dataclass(frozen=True)
class Picture:
    """A figure to be drawn: its numbers, how they are drawn, and its caption."""

    caption: str
    numbers: Any
    draw: Callable[[Any], Figure]

    @property
    def mark(self) -> str:
        """The SHA-256 of the numbers."""
        return hashlib.sha256(json.dumps(self.numbers).encode()).hexdigest()

    def write(self, path: Path) -> None:
        """Draw and write the PNG, unless the one that is there shows these numbers."""
        if not self.is_drawn(path):
            buffer = io.BytesIO()
            FigureCanvasAgg(self.draw(self.numbers)).print_png(buffer, metadata={"Software": None, _KEY: self.mark})
            path.write_bytes(buffer.getvalue())

    def is_drawn(self, path: Path) -> bool:
        """Whether the PNG at `path` was drawn from these numbers."""
        return mark_of(path) == self.mark


def mark_of(path: Path) -> str | None:
    """The SHA-256 of the numbers that the PNG at `path` was drawn from; None where it is no figure of ours."""
    from PIL import Image

    try:
        with Image.open(path) as image:
            found = str(image.info.get(_KEY))
    except OSError:
        return None
    return found if re.fullmatch("[0-9a-f]{64}", found) else None


def all_of(lines: Sequence[Line], peeks: Sequence[PeekLine]) -> dict[str, Picture]:
    """Every figure that the records allow, by its file's stem."""
    found = {}
    timed = [_time_point(line) for line in lines if line.row.group == line.row.name and line.row.verb != "peek"]
    timed = [point for point in timed if point["minutes"]]
    if timed:
        found["accuracy_time"] = Picture("test accuracy over the time of training", timed, accuracy_time)
    for group in dict.fromkeys(line.row.group for line in lines if line.row.group != line.row.name):
        bars = [_bar(line) for line in lines if line.row.group == group]
        if len(bars) > 1:
            found[group] = Picture(f"test accuracy by {group}", bars, comparison)
    runs = [run for peek in peeks if peek.line.test.n > 1 for run in _choices(peek)]  # of one there is no mean
    if runs:
        found["peek"] = Picture("test accuracy by how the epoch is chosen", runs, choices)
    return found


def _time_point(line: Line) -> dict[str, Any]:
    seconds = line.seconds("train_test")
    minutes = seconds / 60 if seconds else None
    return {"name": line.row.name, "on": line.environment, "minutes": minutes, **_accuracy(line)}


def _bar(line: Line) -> dict[str, Any]:
    return {"name": line.row.name.removeprefix(f"{line.row.group}-"), "on": line.environment, **_accuracy(line)}


def _accuracy(line: Line) -> dict[str, Any]:
    return {"mean": line.test.mean, "interval": line.test.interval, "n": line.test.n}


def _choices(peek: PeekLine) -> list[dict[str, Any]]:
    """For each run, the test accuracy of its last epoch, of validation's pick and of the best on test."""
    found = []
    for record in peek.line.records:
        val, test = record.values["peek"]["val_accuracy"], record.values["peek"]["test_accuracy"]
        shown = [test[-1], test[val.index(max(val))], max(test)]
        found.append({"name": record.row, "seed": record.seed, "on": record.environment, "shown": shown})
    return found


def peek_csv(peeks: Sequence[PeekLine]) -> str:
    """Every epoch of every run of the demonstration."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["row", "profile", "seed", "epoch", "val_accuracy", "test_accuracy"])
    for record in (record for peek in peeks for record in peek.line.records):
        scores = record.values["peek"]
        for epoch, pair in enumerate(zip(scores["val_accuracy"], scores["test_accuracy"], strict=True), 1):
            table.writerow([record.row, record.profile, record.seed, epoch, *pair])
    return text.getvalue()


# --- drawing ---------------------------------------------------------------------------------------------------------


def accuracy_time(points: Sequence[dict[str, Any]]) -> Figure:
    """Test accuracy over minutes of training and test, both axes logarithmic (the upright one in the error)."""
    figure, axes = _axes(8.4, 5.2)
    for colour, on, mine in _by_machine(points):
        for point in mine:
            _point(axes, point["minutes"], point, colour, on)
            on = "_nolegend_"
    _error_scale(axes, [100 * point["mean"] for point in points])
    axes.set_xscale("log")
    minutes = [point["minutes"] for point in points]
    axes.set_xlim(min(minutes) / 1.6, max(minutes) * 4)  # room for the last point's name
    axes.xaxis.set_major_locator(FixedLocator([seconds / 60 for seconds in _TICKS]))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _duration(value)))
    axes.set_xlabel("training and test", color=_INK)
    _legend(axes)  # first, as it takes room from the axes
    _names(figure, axes, points)
    return figure


def _point(axes: Axes, x: float, point: dict[str, Any], colour: str, label: str) -> None:
    """A mean in the coordinates of the error, with its interval where there is one."""
    error = 100 * (1 - point["mean"])
    ends = point["interval"] and [[100 * point["interval"][1] - 100 * point["mean"]],
                                  [100 * point["mean"] - 100 * point["interval"][0]]]  # fmt: skip
    axes.errorbar([x], [error], yerr=ends, fmt="o", color=colour, markersize=5, capsize=3, label=label)


def _duration(minutes: float) -> str:
    """A round time, for a tick."""
    if minutes >= 60:
        return f"{minutes / 60:g} h"
    return f"{minutes:g} min" if minutes >= 1 else f"{60 * minutes:.3g} s"


def _error_scale(axes: Axes, accuracies: Sequence[float]) -> None:
    """An upright axis logarithmic in the error, best on top, its ticks in accuracy."""
    low, high = min(accuracies), max(accuracies)
    axes.set_yscale("log")
    axes.set_ylim(min(100.0, (100 - low) * 1.25), max(0.5, (100 - high) / 1.25))
    axes.yaxis.set_major_locator(FixedLocator([100 - tick for tick in _ACCURACIES]))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 - value:g}"))
    axes.set_ylabel("test accuracy, %", color=_INK)


def _names(figure: Figure, axes: Axes, points: Sequence[dict[str, Any]]) -> None:
    """Each point's name beside it, at the first place that covers neither a point nor another name."""
    FigureCanvasAgg(figure).draw()
    places = [axes.transData.transform((point["minutes"], 100 * (1 - point["mean"]))) for point in points]
    taken: list[_Box] = [(x - 5, y - 5, x + 5, y + 5) for x, y in places]
    for point, (x, y) in zip(points, places, strict=True):
        length = 7.2 * len(point["name"])
        tries = [_beside(x, y + up, length, side) for up in _SHIFTS for side in (1, -1)]
        free = [box for box in tries if not any(_overlap(box, other) for other in taken)]
        box = (free or tries)[0]
        taken.append(box)
        where, scale = (point["minutes"], 100 * (1 - point["mean"])), 72 / figure.dpi
        move = scale * (box[0] - x), scale * ((box[1] + box[3]) / 2 - y)
        axes.annotate(point["name"], where, move, textcoords="offset points", va="center", size=8, color=_INK)


def _beside(x: float, y: float, length: float, side: int) -> _Box:
    """The box of a name right (1) or left (-1) of a point, in pixels."""
    start = x + 10 if side > 0 else x - 10 - length
    return start, y - 7, start + length, y + 7


def _overlap(one: _Box, other: _Box) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def comparison(bars: Sequence[dict[str, Any]]) -> Figure:
    """Means side by side in the list's order, with their intervals."""
    figure, axes = _axes(7.6, 4.2)
    names = list(dict.fromkeys(bar["name"] for bar in bars))
    machines = _by_machine(bars)
    for place, (colour, on, mine) in enumerate(machines):
        shift = 0.16 * (place - (len(machines) - 1) / 2)
        for bar in mine:
            ends = bar["interval"] and [[100 * (bar["mean"] - bar["interval"][0])],
                                        [100 * (bar["interval"][1] - bar["mean"])]]  # fmt: skip
            x = names.index(bar["name"]) + shift
            axes.errorbar([x], [100 * bar["mean"]], yerr=ends, fmt="o", color=colour, capsize=4, label=on)
            axes.annotate(f"{100 * bar['mean']:.2f}", (x, 100 * bar["mean"]), xytext=(7, -3),
                          textcoords="offset points", size=8, color=_INK)  # fmt: skip
            on = "_nolegend_"
    axes.set_xticks(range(len(names)), names)
    axes.set_xlim(-0.4, len(names) - 0.4)
    axes.set_ylabel("test accuracy, %", color=_INK)
    axes.margins(y=0.15)
    _legend(axes)
    return figure


def choices(runs: Sequence[dict[str, Any]]) -> Figure:
    """A line a run through the test accuracies of its last epoch, validation's pick and the best on test."""
    figure, axes = _axes(7.0, 4.4)
    for colour, on, mine in _by_machine(runs):
        for run in mine:
            axes.plot(range(3), [100 * value for value in run["shown"]], "-o", color=colour, alpha=0.45, markersize=4)
        means = [sum(run["shown"][place] for run in mine) / len(mine) for place in range(3)]
        axes.plot(range(3), [100 * value for value in means], "D", color=colour, markersize=7, label=f"mean: {on}")
        for place, value in enumerate(means):
            axes.annotate(f"{100 * value:.2f}", (place, 100 * value), xytext=(9, -3), textcoords="offset points",
                          size=9, weight="bold", color=_INK, path_effects=[_HALO])  # fmt: skip
    axes.set_xticks(range(3), ["last epoch", "picked on validation", "picked on test\n(breaks the seal)"])
    axes.set_xlim(-0.3, 2.4)
    axes.set_ylabel("test accuracy, %", color=_INK)
    axes.margins(y=0.15)
    _legend(axes)
    return figure


def _axes(width: float, height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    axes.grid(visible=True, color=_PALE, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(colors=_INK)
    return figure, axes


def _by_machine(values: Sequence[dict[str, Any]]) -> list[tuple[str, str, list[dict[str, Any]]]]:
    """(colour, environment, its values) for each environment."""
    machines = list(dict.fromkeys(value["on"] for value in values))
    return [
        (_COLOURS[place % len(_COLOURS)], on, [value for value in values if value["on"] == on])
        for place, on in enumerate(machines)
    ]


def _legend(axes: Axes) -> None:
    """Which colour is which machine, below the picture, where it covers nothing."""
    axes.figure.legend(loc="outside lower center", fontsize=7, frameon=False, labelcolor=_SOFT)
