"""The overview of a reproduction: a live table in a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from rich import box
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from cifarbench.reporting.console import stopwatch
from table.progress import ENDED, Entry, RowState, row_states, seconds_left

_STYLES = {"done": "green", "failed": "red", "running": "cyan", "stopped": "yellow", "left": "yellow"}
_AROUND = 9  # lines of the display that are not rows


class Overview:
    """Shows the entries; `refresh` redraws in a terminal, `said` prints a line that stays."""

    def __init__(self, title: str, entries: Sequence[Entry]) -> None:
        self.title, self.entries = title, entries
        self.is_live = sys.stdout.isatty()
        self.console = Console(highlight=False, soft_wrap=not self.is_live, width=None if self.is_live else 120)
        self.live = Live(console=self.console, auto_refresh=False, transient=True) if self.is_live else None

    def __enter__(self) -> Overview:
        if self.live:
            self.live.start()
            self.refresh()
        return self

    def __exit__(self, *problem: object) -> None:
        if self.live:
            self.live.stop()

    def refresh(self) -> None:
        """Redraw the table, where there is a terminal."""
        if self.live:
            self.live.update(display(self.title, self.entries, self.console.width, self.console.height), refresh=True)

    def began(self, entry: Entry, number: int) -> None:
        """Say that a run begins, where no table shows it."""
        if not self.is_live:
            left = stopwatch(seconds_left(self.entries))
            self.said(
                f"[{number}/{len(self.entries)}] {entry.job.label} seed {entry.job.seed}, about {left} left in all"
            )

    def said(self, text: str, style: str = "") -> None:
        """Print a line that stays."""
        self.console.print(Text(text, style), soft_wrap=True)

    def final(self) -> None:
        """Print the table as it ended, whole."""
        self.console.print(rows_table(row_states(self.entries), self.console.width))


def display(title: str, entries: Sequence[Entry], width: int, height: int) -> Group:
    """The title, the rows around the running one as far as the height allows, the running job, and what is left."""
    states = row_states(entries)
    room = max(3, height - _AROUND)
    shown = _around(states, room)
    hidden = len(states) - len(shown)
    more = [Text(f" … and {hidden} more rows", "dim")] if hidden else []
    return Group(Text(title, "bold"), rows_table(shown, width), *more, *_status(entries))


def rows_table(states: Sequence[RowState], width: int) -> Table:
    """A line a row; narrow terminals lose the mean time."""
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1))
    table.add_column("row", no_wrap=True)
    table.add_column("state", no_wrap=True)
    for heading in ("runs", "test accuracy", *(["time a run"] if width >= 70 else [])):
        table.add_column(heading, justify="right", no_wrap=True)
    for state in states:
        time = [stopwatch(state.seconds) if state.seconds is not None else "–"] if width >= 70 else []
        style = _STYLES.get(state.status, "dim")
        table.add_row(state.name, Text(state.status, style), f"{state.done}/{state.planned}", _accuracy(state), *time)
    return table


def _accuracy(state: RowState) -> str:
    if state.mean is None:
        return "–"
    return f"{state.mean:.2%}" + (f" ± {100 * state.std:.2f}" if state.std is not None else "       ")


def _around(states: Sequence[RowState], room: int) -> Sequence[RowState]:
    running = next((i for i, state in enumerate(states) if state.status == "running"), 0)
    start = max(0, min(running - room // 2, len(states) - room))
    return states[start : start + room]


def _status(entries: Sequence[Entry]) -> list[Text]:
    """The running job and its epoch; how many runs ended, how many failed, and the time that is left."""
    lines = []
    for entry in entries:
        if entry.status == "running":
            epoch = f"epoch {min(entry.epoch + 1, entry.epochs)}/{entry.epochs}, " if entry.epochs else ""
            text = f" {entry.job.row.name} seed {entry.job.seed}: {epoch}{stopwatch(entry.elapsed)}"
            lines.append(Text(text, "cyan"))
    ended = sum(entry.status in ENDED for entry in entries)
    failed = sum(entry.status == "failed" for entry in entries)
    text = f" {ended} of {len(entries)} runs ended{f', {failed} failed' if failed else ''}"
    lines.append(Text(f"{text}, about {stopwatch(seconds_left(entries))} left; Ctrl-C stops"))
    return lines
