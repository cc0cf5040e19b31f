"""How far the runs are: the state of each job, what a row has so far, and how long the rest will take."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cifarbench import runs
from cifarbench.errors import IntegrityError
from table.rows import Job

_TELLING = 0.1  # of a run; less of it says little of its pace
ENDED = ("done", "failed", "left")


@dataclass
class Entry:
    """One job and where it stands.

    `status` is waiting, running, done, failed, stopped or left (not started, for want of time); `seconds` what it
    took in all; `limit` its time limit in seconds. Of the running one, `elapsed` is the seconds since it was started,
    `share` how much of it was done, 0 to 1, at `seen` seconds, and `base` how much was at this start.
    """

    job: Job
    status: str = "waiting"
    accuracy: float | None = None
    seconds: float | None = None
    limit: float | None = None
    epochs: int = 0
    epoch: int = 0
    elapsed: float = 0.0
    share: float = 0.0
    base: float = 0.0
    seen: float = 0.0
    message: str = ""

    @property
    def estimate(self) -> float:
        """The list's estimate in seconds."""
        return 60 * self.job.plan.minutes


@dataclass(frozen=True)
class RowState:
    """What a row has so far; `mean` and `std` are of its finished runs' test accuracy, None where there are too few."""

    name: str
    status: str
    done: int
    planned: int
    mean: float | None
    std: float | None
    seconds: float | None


def row_states(entries: Sequence[Entry]) -> list[RowState]:
    """The state of each row, in the order in which the rows first come."""
    rows: dict[str, list[Entry]] = {}
    for entry in entries:
        rows.setdefault(entry.job.row.name, []).append(entry)
    return [_row_state(name, mine) for name, mine in rows.items()]


def _row_state(name: str, mine: Sequence[Entry]) -> RowState:
    statuses = [entry.status for entry in mine]
    first = next((status for status in ("running", "failed", "stopped", "waiting") if status in statuses), "")
    if first == "waiting" and "done" in statuses:
        first = "begun"
    status = first or ("done" if set(statuses) == {"done"} else "left")
    scores = [entry.accuracy for entry in mine if entry.accuracy is not None]
    times = [entry.seconds for entry in mine if entry.status == "done" and entry.seconds is not None]
    return RowState(
        name,
        status,
        statuses.count("done"),
        len(mine),
        statistics.fmean(scores) if scores else None,
        statistics.stdev(scores) if len(scores) > 1 else None,
        statistics.fmean(times) if times else None,
    )


def seconds_left(entries: Sequence[Entry]) -> float:
    """How long all that is not ended will take, from the list's estimates and from what was measured.

    A row with finished runs takes their mean; another its estimate, times the factor by which the measured ones
    were off, unless a time limit fixes it. The running job goes by its own pace once a tenth of it is done.
    """
    taken: dict[str, list[float]] = {}
    for entry in entries:
        if entry.status == "done" and entry.seconds is not None:
            taken.setdefault(entry.job.row.name, []).append(entry.seconds)
    factor = _factor([entry for entry in entries if entry.seconds is not None and entry.status == "done"])
    left = 0.0
    for entry in entries:
        if entry.status in (*ENDED, "stopped"):
            continue
        measured = taken.get(entry.job.row.name)
        whole = statistics.fmean(measured) if measured else entry.limit or factor * entry.estimate
        fresh = entry.share - entry.base
        if fresh >= _TELLING:
            whole = entry.seen + entry.seen * (1 - entry.share) / fresh
        left += max(0.0, whole - entry.elapsed)
    return left


def _factor(done: Sequence[Entry]) -> float:
    """What the finished runs without a time limit took, over what the list expected of them."""
    free = [entry for entry in done if not entry.limit]
    expected = sum(entry.estimate for entry in free)
    return sum(entry.seconds or 0.0 for entry in free) / expected if expected else 1.0


def look(entry: Entry, directory: Path) -> None:
    """Bring a running entry's epoch and share up to date from its metrics.jsonl."""
    try:
        entry.epoch = len(runs.read_rows(directory))
    except (IntegrityError, OSError):  # a line that is being written
        return
    by_epoch = entry.epoch / entry.epochs if entry.epochs else 0.0
    by_time = entry.elapsed / entry.limit if entry.limit else 0.0
    share = min(1.0, max(by_epoch, by_time))
    if share > entry.share:
        entry.share, entry.seen = share, entry.elapsed
