"""Figures, drawn with matplotlib's object API: no display and no global state."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

_INK, _SOFT = "#1f2933", "#7b8794"


def save(figure: Figure, path: Path, dpi: int = 120) -> None:
    """Write the figure as PNG."""
    path.write_bytes(png(figure, dpi))


def png(figure: Figure, dpi: int = 120) -> bytes:
    """The figure as the bytes of a PNG file."""
    buffer = io.BytesIO()
    FigureCanvasAgg(figure).print_png(buffer, metadata={"Software": None})
    return buffer.getvalue()


def confusion_figure(report: dict[str, Any], classes: tuple[str, ...], note: str) -> Figure:
    """The confusion matrix: shade = share of the true class, number = count; `note` is the small caption."""
    counts = np.asarray(report["confusion_matrix"])
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    figure = Figure(figsize=(7.6, 7.4), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    # The square root spreads the small shares, where the mistakes are, over more of the scale.
    axes.imshow(np.sqrt(shares), cmap="Blues", vmin=0, vmax=1)
    for row, column in np.ndindex(counts.shape):
        if counts[row, column]:
            colour = "white" if shares[row, column] > 0.35 else _INK
            weight = "bold" if row == column else "normal"
            # These numbers need no room of their own, and looking for it takes a sixth of the drawing's time.
            text = axes.text(column, row, f"{counts[row, column]:,}", ha="center", va="center", size=9)
            text.set(color=colour, weight=weight, in_layout=False)
    axes.set_xticks(range(len(classes)), classes, rotation=40, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(len(classes)), classes)
    axes.set_xlabel("predicted class", color=_INK)
    axes.set_ylabel("true class", color=_INK)
    axes.tick_params(length=0, colors=_INK)
    axes.spines[:].set_visible(False)
    low, high = report["accuracy_interval"]
    axes.set_title(
        f"{report['accuracy']:.2%} of {report['n']:,} right  (95 % interval {100 * low:.2f}–{100 * high:.2f})",
        color=_INK,
        pad=12,
    )
    figure.supxlabel(f"{note}   ·   number: images, shade: share of the true class", color=_SOFT, size=8)
    return figure


def image_grid(images: np.ndarray, titles: list[str], columns: int, heading: str = "", note: str = "") -> Figure:
    """Images (n, 32, 32, 3) uint8 in rows of `columns`, each under its title."""
    rows = -(-len(images) // columns)
    figure = Figure(figsize=(1.05 * columns, 1.22 * rows + 0.5), dpi=120, layout="constrained")
    for index, (image, title) in enumerate(zip(images, titles, strict=True)):
        axes = figure.add_subplot(rows, columns, index + 1)
        axes.imshow(image, interpolation="nearest")
        axes.set_title(title, size=8, color=_INK, pad=2)
        axes.axis("off")
    if heading:
        figure.suptitle(heading, color=_INK, size=11)
    if note:
        figure.supxlabel(note, color=_SOFT, size=8)
    return figure


def filter_grid(weights: np.ndarray) -> np.ndarray:
    """First-layer kernels (n, 3, h, w) as one picture (H, W, 3) uint8, each scaled to its own range, 1 px apart."""
    low = weights.min(axis=(1, 2, 3), keepdims=True)
    span = np.maximum(weights.max(axis=(1, 2, 3), keepdims=True) - low, 1e-12)
    tiles = ((weights - low) / span * 255).astype(np.uint8).transpose(0, 2, 3, 1)
    columns = int(np.ceil(np.sqrt(len(tiles))))
    height, width = tiles.shape[1] + 1, tiles.shape[2] + 1
    sheet = np.full((-(-len(tiles) // columns) * height + 1, columns * width + 1, 3), 255, np.uint8)
    for index, tile in enumerate(tiles):
        top, left = index // columns * height + 1, index % columns * width + 1
        sheet[top : top + height - 1, left : left + width - 1] = tile
    return sheet.repeat(8, axis=0).repeat(8, axis=1)
