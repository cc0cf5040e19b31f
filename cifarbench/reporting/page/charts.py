"""Charts as inline SVG: colours come from the page's style sheet, so that they follow light and dark."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

_WIDTH, _HEIGHT = 460, 270
_LEFT, _RIGHT, _TOP, _BOTTOM = 62, 24, 14, 42
COLOURS = 10  # series classes c0 … c9 of the style sheet


@dataclass(frozen=True)
class Series:
    """A line of a chart: its points, its colour (0..9), dashed or not; a value of None leaves a gap."""

    name: str
    points: Sequence[tuple[float, float | None]]
    colour: int = 0
    dashed: bool = False


@dataclass(frozen=True)
class Axis:
    """A range of values with round ticks."""

    label: str
    low: float
    high: float
    ticks: tuple[float, ...]
    percent: bool = False

    def text(self, value: float) -> str:
        """A tick's label, in as many digits as tell it from its neighbours, four or more."""
        if self.percent:
            return f"{100 * value:.{self._digits}g} %"
        return f"{value:.{self._digits}g}" if abs(value) < 10_000 else f"{value:,.0f}"

    @property
    def _digits(self) -> int:
        """From the first one of the largest tick to the last one of the step between two."""
        if len(self.ticks) < 2:
            return 4
        step, largest = self.ticks[1] - self.ticks[0], max(abs(tick) for tick in self.ticks)
        scale = 10.0 ** math.floor(math.log10(step) + 1e-9)
        unit = scale if round(step / scale, 6).is_integer() else scale / 10
        return max(4, math.floor(math.log10(largest / unit) + 1e-9) + 1)


def axis(label: str, values: Sequence[float], percent: bool = False, whole: bool = False) -> Axis:
    """An axis over `values` whose ticks are round numbers, whole ones where asked."""
    low, high = (min(values), max(values)) if values else (0.0, 1.0)
    if high - low < 1e-12 * max(1.0, abs(low), abs(high)):
        pad = abs(high) * 0.1 or 1.0
        low, high = (low - 0.5, high + 0.5) if whole else (low - pad, high + pad)
    step = _round_step((high - low) / 4)
    step = max(1.0, step) if whole else step
    if not whole:
        low, high = math.floor(low / step + 1e-9) * step, math.ceil(high / step - 1e-9) * step
    first = math.ceil(low / step - 1e-9)
    ticks = tuple(index * step for index in range(first, math.floor(high / step + 1e-9) + 1))
    return Axis(label, low, high, ticks, percent)


def _round_step(rough: float) -> float:
    scale = 10.0 ** math.floor(math.log10(rough))
    return next(factor * scale for factor in (1, 2, 2.5, 5, 10) if factor * scale >= rough * 0.999)


class _Frame:
    """The plotting area: maps values to pixels and draws axes."""

    def __init__(self, x: Axis, y: Axis) -> None:
        self.x, self.y = x, y

    def across(self, value: float) -> float:
        return _LEFT + (value - self.x.low) / (self.x.high - self.x.low) * (_WIDTH - _LEFT - _RIGHT)

    def up(self, value: float) -> float:
        return _HEIGHT - _BOTTOM - (value - self.y.low) / (self.y.high - self.y.low) * (_HEIGHT - _TOP - _BOTTOM)

    def grid(self) -> Markup:
        """Grid lines with their labels, and the names of the axes."""
        parts = []
        for tick in self.y.ticks:
            y = self.up(tick)
            parts.append(_format('<line class="grid" x1="{}" x2="{}" y1="{}" y2="{}"/>', _LEFT, _WIDTH - _RIGHT, y, y))
            parts.append(_format('<text class="tick end" x="{}" y="{}">{}</text>', _LEFT - 7, y + 4, self.y.text(tick)))
        for tick in self.x.ticks:
            x, text = self.across(tick), self.x.text(tick)
            parts.append(_format('<text class="tick mid" x="{}" y="{}">{}</text>', x, _HEIGHT - _BOTTOM + 18, text))
        middle = (_LEFT + _WIDTH - _RIGHT) / 2
        parts.append(_format('<text class="axis mid" x="{}" y="{}">{}</text>', middle, _HEIGHT - 6, self.x.label))
        return Markup("").join(parts)


def line_chart(title: str, series: Sequence[Series], x: str, percent: bool = False) -> Markup | None:
    """Lines over whole numbers (epochs), with points where there are few; None where there is nothing to draw."""
    values = [value for line in series for _, value in line.points if value is not None]
    if not values:
        return None
    steps = [at for line in series for at, _ in line.points]
    frame = _Frame(axis(x, steps, whole=True), axis("", values, percent))
    parts = [frame.grid()]
    for line in series:
        parts.extend(_line(frame, line))
    return _svg(title, parts, _HEIGHT)


def _line(frame: _Frame, line: Series) -> list[Markup]:
    known = [(at, value) for at, value in line.points if value is not None]
    path = " ".join(f"{frame.across(at):.1f},{frame.up(value):.1f}" for at, value in known)
    dash = " dash" if line.dashed else ""
    parts = [_format('<polyline class="line c{}{}" points="{}"/>', line.colour % COLOURS, dash, path)]
    for at, value in known if len(known) <= 40 else known[-1:]:
        label = f"{line.name}, {frame.x.label} {frame.x.text(at)}: {frame.y.text(value)}"
        parts.append(
            _format(
                '<circle class="dot c{}" cx="{}" cy="{}" r="3"><title>{}</title></circle>',
                line.colour % COLOURS,
                frame.across(at),
                frame.up(value),
                label,
            )
        )
    return parts


def reliability_chart(bins: Sequence[dict[str, Any]]) -> Markup:
    """Accuracy in each bin of confidence against the diagonal, and below it how many images fall into each bin."""
    unit = Axis("confidence", 0, 1, (0, 0.2, 0.4, 0.6, 0.8, 1.0), percent=True)
    frame = _Frame(unit, Axis("accuracy", 0, 1, (0, 0.25, 0.5, 0.75, 1.0), percent=True))
    parts = [frame.grid()]
    most = max((row["count"] for row in bins), default=0) or 1
    for row in bins:
        if not row["count"]:
            continue
        left, right = frame.across(row["low"]) + 1, frame.across(row["high"]) - 1
        label = f"{row['count']:,} images, mean confidence {row['confidence']:.1%}, accuracy {row['accuracy']:.1%}"
        top = frame.up(row["accuracy"])
        parts.append(_bar("bar", left, right, top, frame.up(0), label))
        upper, lower = sorted((top, frame.up(row["confidence"])))
        parts.append(_bar("gap", left, right, upper, lower, label))
        share = 0.22 * row["count"] / most
        parts.append(_bar("count", left, right, frame.up(share), frame.up(0), label))
    ends = (frame.across(0), frame.up(0), frame.across(1), frame.up(1))
    parts.append(_format('<line class="ideal" x1="{}" y1="{}" x2="{}" y2="{}"/>', *ends))
    return _svg("Accuracy against confidence", parts, _HEIGHT)


def _bar(kind: str, left: float, right: float, top: float, bottom: float, label: str) -> Markup:
    form = '<rect class="{}" x="{}" y="{}" width="{}" height="{}"><title>{}</title></rect>'
    return _format(form, kind, left, top, right - left, max(bottom - top, 0.0), label)


def interval_chart(title: str, rows: Sequence[tuple[str, float, tuple[float, float], int]]) -> Markup:
    """One line a run: a point with its interval; rows are (label, value, (low, high), colour)."""
    height = 30 * len(rows) + 44
    scale = axis("", [edge for _, _, interval, _ in rows for edge in interval], percent=True)
    span = _WIDTH - 70 - 24

    def across(value: float) -> float:
        return 70 + (value - scale.low) / (scale.high - scale.low) * span

    parts = []
    for tick in scale.ticks:
        x = across(tick)
        parts.append(_format('<line class="grid" x1="{}" x2="{}" y1="8" y2="{}"/>', x, x, height - 26))
        parts.append(_format('<text class="tick mid" x="{}" y="{}">{}</text>', x, height - 8, scale.text(tick)))
    for index, (label, value, (low, high), colour) in enumerate(rows):
        y = 26 + 30 * index
        told = f"{label}: {value:.2%}, 95 % interval {low:.2%} to {high:.2%}"
        parts.append(_format('<text class="tick end" x="58" y="{}">{}</text>', y + 4, label))
        ends = (colour % COLOURS, across(low), across(high), y, y)
        parts.append(_format('<line class="line c{}" x1="{}" x2="{}" y1="{}" y2="{}"/>', *ends))
        form = '<circle class="dot c{}" cx="{}" cy="{}" r="5"><title>{}</title></circle>'
        parts.append(_format(form, colour % COLOURS, across(value), y, told))
    return _svg(title, parts, height)


def _svg(title: str, parts: Sequence[Markup], height: int) -> Markup:
    form = '<svg class="chart" viewBox="0 0 {} {}" role="img" aria-label="{}">{}</svg>'
    return _format(form, _WIDTH, height, title, Markup("").join(parts))


def _format(form: str, *values: Any) -> Markup:
    """The SVG text with its values put in, escaped, numbers with one decimal."""
    shown = [f"{value:.1f}".removesuffix(".0") if isinstance(value, float) else value for value in values]
    return Markup(form).format(*shown)
