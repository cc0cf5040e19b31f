"""The leaderboard and the verdicts on runs, for people and for programs."""

from __future__ import annotations

import csv
import io
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from cifarbench.config.judge import LeaderboardConfig
from cifarbench.evaluation.comparison import Comparison
from cifarbench.leaderboard.judge import Check
from cifarbench.leaderboard.ranking import Board, Group, Verdict
from cifarbench.reporting.console import stopwatch
from cifarbench.runs import shown_path, write_json, write_text

_HEADINGS = {"test": "test accuracy", "val": "validation accuracy"}
_STYLES = {"kept": "green", "broken": "bold red", "look": "yellow"}
_OFTEN, _MIXED = "*", "†"
_SIZES, _WIDE = ("parameters", "MFLOP"), 100  # characters from which on a line holds them
_INTERVALS = "95 % interval: of the mean over seeds (Student's t) where n > 1, else over images alone (Wilson)."
_CHOICE = "To choose a recipe, rank by validation (by=val): the best of several test accuracies is too high."


def _console(**settings: Any) -> Console:
    """A console that prints labels and paths as they are: `[…]` is no markup in them, and `:x:` no picture."""
    return Console(highlight=False, markup=False, emoji=False, **settings)


def _say(console: Console, text: Text) -> None:
    """Print a text that breaks between words in a terminal, and stays one line elsewhere."""
    console.print(text, soft_wrap=not console.is_terminal)


def print_boards(ranked: Sequence[Board], config: LeaderboardConfig, notes: Sequence[str]) -> None:
    """A table for each set of scored images, what its numbers mean, and a line for each run that it leaves out."""
    console = _console(width=None if sys.stdout.isatty() else 120)
    if not ranked and not notes:
        console.print("no finished runs were found")
    for index, board in enumerate(ranked):
        if index:
            console.print()
        _print_board(console, board, config)
    if ranked:
        _say(console, Text(_INTERVALS, "dim"))
    if config.by == "test" and any(len(board.groups) > 1 for board in ranked):
        _say(console, Text(_CHOICE, "dim"))
    for note in notes:
        _say(console, Text(note, "yellow"))


def _print_board(console: Console, board: Board, config: LeaderboardConfig) -> None:
    shared, labels = _labels(board.groups)
    groups = board.groups[: config.top] if config.top else board.groups
    _say(console, _title(board))
    if shared:
        _say(console, Text(f"all with {shared}", "dim"))
    console.print(_table(groups, labels, config.by, console.width))
    if config.verified:  # a tutor wants to know whose they are
        for place, group in enumerate(groups, 1):
            names = ", ".join(shown_path(record.directory) for record in group.records)
            console.print(Text(f" {place}  {names}", "dim"), soft_wrap=True)
    if len(groups) < len(board.groups):
        console.print(Text(f" and {len(board.groups) - len(groups)} more", "dim"))
    if any(group.opened_often for group in groups):
        console.print(Text(f" {_OFTEN} the test part of a run was opened more than once", "yellow"))
    if any(group.is_mixed for group in groups):
        console.print(Text(f" {_MIXED} the runs are of different machines or number formats", "yellow"))
    doubled = [shown_path(record.directory) for group in board.groups for record in group.doubled]
    if doubled:
        text = f" not counted, as another run has the same recipe and seed: {', '.join(doubled)}"
        _say(console, Text(text, "yellow"))


def _title(board: Board) -> Text:
    name = board.dataset[0]
    stand_in = " (drawn images, not CIFAR-10)" if name == "synthetic" else ""
    return Text.assemble(
        (f"{name}{stand_in}, split {board.split[0]}", "bold"),
        (f"   passport {board.dataset[1][:12]} / {', '.join(mark[:12] for mark in board.split[1])}", "dim"),
    )


def _labels(groups: Sequence[Group]) -> tuple[str, list[str]]:
    """What all recipes were typed with, and what each was typed with beside it."""
    typed = [group.label.split() for group in groups]
    shared = [word for word in typed[0] if all(word in words for words in typed)] if len(groups) > 1 else []
    rest = [" ".join(word for word in words if word not in shared) for words in typed]
    return " ".join(shared), [
        text or f"model={group.records[0].model}" for text, group in zip(rest, groups, strict=True)
    ]


def _table(groups: Sequence[Group], labels: Sequence[str], by: str, width: int) -> Table:
    """The ranked recipes; a console of few columns has no room for the network's size beside them."""
    headings = ("recipe", "n", _HEADINGS[by], "95 % interval", "official", *_SIZES, "time")
    shown = [index for index, heading in enumerate(headings) if width >= _WIDE or heading not in _SIZES]
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1))
    table.add_column("", justify="right")
    table.add_column("recipe", overflow="fold", ratio=1)
    for index in shown[1:]:
        table.add_column(headings[index], justify="right", no_wrap=True)
    for place, (group, label) in enumerate(zip(groups, labels, strict=False), 1):
        cells = _cells(group, label)
        table.add_row(str(place), *(cells[index] for index in shown))
    return table


def _cells(group: Group, label: str) -> list[str]:
    first = group.records[0]
    low, high = group.interval
    return [
        label + (f" {_OFTEN}" if group.opened_often else "") + (f" {_MIXED}" if group.is_mixed else ""),
        str(group.n),
        f"{group.mean:.2%}" + ("" if group.std is None else f" ± {100 * group.std:.2f}"),
        f"{100 * low:.2f}–{100 * high:.2f}",
        "–" if group.official is None else f"{group.official:.2%}",
        f"{first.parameters:,}",
        f"{first.flops / 1e6:,.0f}",
        "–" if group.seconds is None else stopwatch(group.seconds),
    ]


def write_boards(ranked: Sequence[Board], by: str, folder: Path) -> None:
    """Write leaderboard.csv, leaderboard.json and leaderboard.md into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = [row for board in ranked for row in _rows(board, by)]
    write_json(folder / "leaderboard.json", {"by": by, "rows": rows})
    text = io.StringIO()
    flat = [{**row, **{name: " ".join(row[name]) for name in ("runs", "doubled")}} for row in rows]
    table = csv.DictWriter(text, list(flat[0]) if flat else ["dataset"], lineterminator="\n")
    table.writeheader()
    table.writerows(flat)
    write_text(folder / "leaderboard.csv", text.getvalue())
    write_text(folder / "leaderboard.md", _markdown(ranked, by))


def _rows(board: Board, by: str) -> list[dict[str, Any]]:
    return [
        {
            "dataset": board.dataset[0],
            "split": board.split[0],
            "passport": group.records[0].split[1],
            "place": place,
            "recipe": group.label,
            "n": group.n,
            f"{by}_mean": group.mean,
            f"{by}_std": group.std,
            "interval_low": group.interval[0],
            "interval_high": group.interval[1],
            "interval_over": "seeds" if group.n > 1 else "images",
            "official_mean": group.official,
            "model": group.records[0].model,
            "parameters": group.records[0].parameters,
            "flops": group.records[0].flops,
            "seconds": group.seconds,
            "device": group.records[0].device,
            "precision": group.records[0].precision,
            "mixed": group.is_mixed,
            "opened_often": group.opened_often,
            "runs": [str(record.directory) for record in group.records],
            "doubled": [str(record.directory) for record in group.doubled],
        }
        for place, group in enumerate(board.groups, 1)
    ]


def _markdown(ranked: Sequence[Board], by: str) -> str:
    lines = []
    for board in ranked:
        lines += [f"## {_title(board).plain}", ""]
        headings = ["", "recipe", "n", _HEADINGS[by], "95 % interval", "official", "parameters", "MFLOP", "time"]
        lines += ["| " + " | ".join(headings) + " |", "|---" * len(headings) + "|"]
        for place, group in enumerate(board.groups, 1):
            cells = [str(place), *(cell.replace("|", "\\|") for cell in _cells(group, group.label))]
            lines.append("| " + " | ".join(cells) + " |")
        lines += ["", _INTERVALS, ""]
    return "\n".join(lines)


def print_verdict(verdict: Verdict, paired: Comparison | None) -> None:
    """Whether two recipes differ, in words, and what their stored predictions say of these two models."""
    console = _console(soft_wrap=not sys.stdout.isatty())
    groups = (verdict.first, verdict.second)
    _, labels = _labels(groups)
    for name, group, label in zip(("first", "second"), groups, labels, strict=True):
        _, n, accuracy, *_ = _cells(group, label)
        console.print(Text(f"{name:<8}{accuracy:<16} n = {n}   {label}"))
    console.print(Text(verdict.sentence, "bold"))
    if paired is not None:
        low, high = paired.interval
        console.print(
            Text(
                f"These two models, on the same {paired.n:,} images: {paired.only_first} only the first has right, "
                f"{paired.only_second} only the second; difference {100 * paired.difference:+.2f} points, "
                f"95 % interval {100 * low:+.2f} to {100 * high:+.2f}, McNemar p = {paired.p:.2g}."
            )
        )


def print_checks(home: Path, checks: Sequence[Check]) -> None:
    """A verdict for each rule."""
    console = _console(width=None if sys.stdout.isatty() else 120)
    table = Table.grid(padding=(0, 2))
    for check in checks:
        table.add_row(Text(check.verdict, _STYLES[check.verdict]), check.rule, Text(check.reason, overflow="fold"))
    console.print(Text(shown_path(home), "bold"), soft_wrap=True)
    console.print(table)
