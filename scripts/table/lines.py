"""From records to the lines of the page: runs of one recipe, split, hardware and versions, with their statistics."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from cifarbench.errors import IntegrityError
from cifarbench.leaderboard.ranking import interval
from table.records import Record
from table.rows import Row

Values = Sequence[float]


@dataclass(frozen=True)
class Spread:
    """Mean of n values; `std` (of the values) and `interval` (95 %, of the mean, Student's t) are None where n is 1."""

    n: int
    mean: float
    std: float | None
    interval: tuple[float, float] | None

    @property
    def words(self) -> str:
        """Mean ± deviation in percent."""
        return f"{self.mean:.2%}" + (f" ± {100 * self.std:.2f}" if self.std is not None else "")

    @property
    def interval_words(self) -> str:
        """The interval in percent, or a dash."""
        return "–" if self.interval is None else "{:.2f} to {:.2f}".format(*(100 * end for end in self.interval))


@dataclass(frozen=True)
class Line:
    """The runs of one row that may be averaged: they share recipe, split, hardware and versions."""

    row: Row
    records: tuple[Record, ...]
    test: Spread

    @property
    def first(self) -> dict[str, Any]:
        """The values of the first record, for what all share."""
        return self.records[0].values

    @property
    def environment(self) -> str:
        """The words for hardware and versions."""
        return self.records[0].environment

    @property
    def official(self) -> float | None:
        """Mean accuracy on the official test images among the test part."""
        return mean([record.official for record in self.records])

    @property
    def epochs(self) -> list[int]:
        """The epochs that the runs trained, each number once."""
        return sorted({record.values["epochs"] for record in self.records if record.values["epochs"] is not None})

    def seconds(self, clock: str) -> float | None:
        """Mean of a clock over the runs that were timed."""
        return mean([record.seconds(clock) for record in self.records])

    @property
    def opened_often(self) -> bool:
        """Whether some run's test part was opened more than once."""
        return any(record.values["test"]["openings"] != 1 for record in self.records)


@dataclass(frozen=True)
class PeekLine:
    """Test accuracy by how the epoch is chosen, over the runs of a line, and what choosing it on test adds."""

    line: Line
    last: Spread
    by_validation: Spread
    by_test: Spread
    optimism: Spread


def lines_of(rows: Sequence[Row], records: Sequence[Record]) -> list[Line]:
    """The lines of all records, in the order of the rows.

    Raises:
        IntegrityError: a record is of a row that is not in the list.
    """
    known = {row.name: row for row in rows}
    groups: dict[tuple[Any, ...], list[Record]] = {}
    for record in records:
        if record.row not in known:
            raise IntegrityError(
                f"{record.path} is of the row `{record.row}`, which the list does not hold; remove it, or put it back."
            )
        groups.setdefault(record.line, []).append(record)
    order = {row.name: place for place, row in enumerate(rows)}
    lines = [Line(known[mine[0].row], tuple(mine), spread([r.accuracy for r in mine])) for mine in groups.values()]
    return sorted(lines, key=lambda line: order[line.row.name])


def spread(values: Values, low: float = 0.0) -> Spread:
    """The statistics of some values in `low`..1."""
    if len(values) == 1:
        return Spread(1, values[0], None, None)
    # The interval clips to 0..1, which a difference may leave: it is taken on values moved by `low`.
    below, above = interval([(value - low) / (1 - low) for value in values], 0)
    scaled = (below * (1 - low) + low, above * (1 - low) + low)
    return Spread(len(values), statistics.fmean(values), statistics.stdev(values), scaled)


def peek_of(line: Line) -> PeekLine:
    """What three ways of choosing the epoch report on test, run by run."""
    scores = [
        (record.values["peek"]["val_accuracy"], record.values["peek"]["test_accuracy"]) for record in line.records
    ]
    picked = [test[val.index(max(val))] for val, test in scores]
    best = [max(test) for _, test in scores]
    gains = [high - fair for high, fair in zip(best, picked, strict=True)]
    last = [test[-1] for _, test in scores]
    return PeekLine(line, spread(last), spread(picked), spread(best), spread(gains, low=-1.0))


def mean(values: Sequence[float | None]) -> float | None:
    """The mean of those that are there, None of none."""
    there = [value for value in values if value is not None]
    return statistics.fmean(there) if there else None
