"""The checks before training on the console, and their pictures."""

from __future__ import annotations

import sys

import torch
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table
from rich.text import Text

from cifarbench.data.augment import Augment
from cifarbench.data.random import Draws
from cifarbench.data.split import Portion
from cifarbench.reporting.figures import image_grid
from cifarbench.training.probe import balanced
from cifarbench.training.sanity import FAINT, STRONG, Check

_INK, _SOFT, _BAR, _BAD = "#1f2933", "#7b8794", "#2563a8", "#c53030"


def input_figure(augment: Augment, train: Portion, seed: int, classes: tuple[str, ...], note: str) -> Figure:
    """One training image of each class as it lies on disk, and under it three times as the network is shown it.

    Mixup and CutMix mix in the image to its left.
    """
    chosen = balanced(train.targets, len(classes))
    images, indices = train.images[chosen], train.indices[chosen]
    shown = [images, *(augment.view(images, Draws(seed, epoch, indices)) for epoch in range(3))]
    titles = [classes[label] for label in train.targets[chosen].tolist()] + [""] * len(chosen) * 3
    pixels = torch.cat(shown).permute(0, 2, 3, 1).cpu().numpy()
    heading = "Training images, and below each three views of it after augmentation"
    return image_grid(pixels, titles, len(chosen), heading, note)


def gradient_figure(norms: dict[str, float | None], title: str, note: str) -> Figure:
    """Each layer's gradient as a bar on a logarithmic scale, first layer on top; out of bounds is red."""
    names = [name for name, norm in norms.items() if norm]
    values = [norm for norm in norms.values() if norm]
    last = values[-1] if values else 1.0
    height = min(1.6 + 0.2 * len(names), 24)
    figure = Figure(figsize=(7.6, height), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    colours = [_BAR if FAINT * last <= value <= STRONG * last else _BAD for value in values]
    floor = min([*values, FAINT * last]) / 3
    axes.barh(range(len(names)), [value - floor for value in values], left=floor, color=colours, height=0.7)
    for bound in (FAINT * last, STRONG * last):
        if floor < bound < 3 * max([*values, floor]):
            axes.axvline(bound, color=_BAD, linewidth=1, linestyle=":")
    axes.set_xscale("log")
    axes.set_xlim(floor, 2 * max([*values, floor]))
    axes.set_yticks(range(len(names)), names, fontsize=7)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.set_xlabel("root mean square of the weights' gradient", color=_INK)
    axes.set_title(f"Gradients layer by layer: {title}", color=_INK, pad=10, parse_math=False)
    axes.tick_params(colors=_INK)
    axes.spines[["top", "right"]].set_visible(False)
    figure.supxlabel(f"{note}   ·   dotted: where vanishing begins, {FAINT:g} of the last layer's", color=_SOFT, size=8)
    return figure


def print_checks(title: str, note: str, checks: list[Check], paths: list[str]) -> None:
    """Print the table, advice for what failed, and where the files lie."""
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 110)
    console.print(Text(title, "bold"))
    console.print(Text(f"{note}; training images alone\n", "dim"))
    table = Table(box=None, padding=(0, 1), header_style="dim")
    for name in ("", "check", "found", "rule"):
        table.add_column(name, no_wrap=name in ("", "check"))
    for check in checks:
        verdict = Text("pass", "green") if check.passed else Text("FAIL", "bold red")
        table.add_row(verdict, check.name, Text(check.found, "" if check.passed else "bold"), Text(check.rule, "dim"))
    console.print(table)
    failed = [check for check in checks if not check.passed]
    for check in failed:
        console.print(Text(f"\n{check.name}: {check.advice}", "yellow"))
    outcome = f"[bold red]{len(failed)} of {len(checks)} checks failed[/]" if failed else "[bold green]all passed[/]"
    console.print(f"\n{outcome}")
    for path in paths:
        console.print(Text(path), soft_wrap=True)
