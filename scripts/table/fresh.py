"""A fresh rerun beside the published records: other seeds, and whether each published mean lies in its interval."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text
from scipy import stats

from table.lines import Line, lines_of
from table.records import Record
from table.rows import Row

_EXACT = 1e-12


@dataclass(frozen=True)
class Comparison:
    """A published line and the rerun of the same command on the same split; accuracies of the test part, 0 to 1."""

    published: Line
    rerun: Line

    @property
    def holds(self) -> bool | None:
        """Whether the published mean lies in the rerun's 95 % interval; None where one run has no interval.

        A baseline draws nothing: its accuracy must be the same.
        """
        mean, rerun = self.published.test.mean, self.rerun.test
        if self.rerun.row.verb == "baseline":
            return abs(mean - rerun.mean) <= _EXACT
        return None if rerun.interval is None else rerun.interval[0] <= mean <= rerun.interval[1]

    @property
    def chance(self) -> float:
        """How probably it holds where both are draws of one normal distribution.

        Less than 0.95, as the published mean varies as well: with p published and n new runs, the difference of the
        means has the variance σ²(1/n + 1/p), and the interval's half width is that of σ²/n alone.
        """
        if self.rerun.row.verb == "baseline":
            return 1.0
        new, old = self.rerun.test.n, self.published.test.n
        half = stats.t.ppf(0.975, new - 1) / (1 + new / old) ** 0.5
        return float(stats.t.cdf(half, new - 1) - stats.t.cdf(-half, new - 1))


def compare(rows: Sequence[Row], published: Sequence[Record], rerun: Sequence[Record]) -> list[Comparison]:
    """Each rerun line beside every published line of the same command, recipe and split, of whichever machine."""
    lines = lines_of(rows, published)
    return [
        Comparison(line, new)
        for new in lines_of(rows, rerun)
        for line in lines
        if line.records[0].recipe == new.records[0].recipe
    ]


def show(rows: Sequence[Row], published: Sequence[Record], rerun: Sequence[Record]) -> None:
    """Print a line for each comparison, and how many means lie inside beside how many would by chance."""
    comparisons = compare(rows, published, rerun)
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 120)
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1))
    table.add_column("row", no_wrap=True)
    for heading in ("published", "n", "rerun", "n", "its 95 % interval"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("published is", no_wrap=True)
    for found in comparisons:
        old, new = found.published.test, found.rerun.test
        verdict = {True: Text("inside", "green"), False: Text("outside", "red"), None: Text("–", "dim")}[found.holds]
        table.add_row(found.rerun.row.name, old.words, str(old.n), new.words, str(new.n), new.interval_words, verdict)
    console.print(table)
    judged = [found for found in comparisons if found.holds is not None]
    if judged:
        held, expected = sum(bool(found.holds) for found in judged), sum(found.chance for found in judged)
        console.print(
            f"{held} of {len(judged)} published means lie inside; {expected:.1f} would if only the seeds differed."
        )
    alone = sorted({record.row for record in rerun} - {found.rerun.row.name for found in comparisons})
    if alone:
        console.print(f"Nothing is published for: {', '.join(alone)}.")
