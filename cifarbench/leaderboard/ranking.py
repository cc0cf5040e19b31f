"""Groups of runs that differ only in their seed, their statistics, and whether two groups differ by more than noise."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from cifarbench.errors import ConfigError, IntegrityError
from cifarbench.leaderboard.records import Record

SIGNIFICANT = 0.05


@dataclass(frozen=True)
class Group:
    """Runs of one recipe. `mean`, `std` and `interval` are of the ranked accuracy; `std` is None for a single run.

    `doubled` are runs whose recipe and seed an earlier one has; they count for nothing.
    """

    label: str
    records: tuple[Record, ...]
    mean: float
    std: float | None
    interval: tuple[float, float]
    official: float | None
    seconds: float | None
    doubled: tuple[Record, ...] = ()

    @property
    def n(self) -> int:
        """How many runs."""
        return len(self.records)

    @property
    def opened_often(self) -> bool:
        """Whether a run's test part was opened more than once."""
        return any(record.openings > 1 for record in self.records)

    @property
    def is_mixed(self) -> bool:
        """Whether the runs are of several kinds of machine or number formats, so that more than the seed differs."""
        return len({(record.device, record.precision) for record in self.records}) > 1


@dataclass(frozen=True)
class Board:
    """The ranked groups that were scored on the same images: only these may stand in one table.

    `dataset` is its name and fingerprint, `split` the split's name and the fingerprints of it among the runs: several
    where they held out different validation images, which leaves the test part as it is.
    """

    dataset: tuple[str, str]
    split: tuple[str, tuple[str, ...]]
    groups: tuple[Group, ...]


def boards(records: Sequence[Record], by: str, sort: str = "accuracy") -> list[Board]:
    """Group and rank `records`, a board for each set of scored images.

    Args:
        records: finished runs.
        by: "test" or "val", the accuracy that is ranked; runs without it are left out.
        sort: "accuracy" (best first), or "parameters", "flops" or "seconds" (smallest first).
    """
    together: dict[tuple[str, ...], list[Record]] = {}
    for record in records:
        if _accuracy(record, by) is not None:
            together.setdefault(_scored(record, by), []).append(record)
    return [_board(together[images], by, sort) for images in sorted(together)]


def _scored(record: Record, by: str) -> tuple[str, ...]:
    """What tells which images a record's accuracy is of: those for testing follow from the split's name alone."""
    return (*record.dataset, *(record.split if by == "val" else record.split[:1]))


def _board(records: Sequence[Record], by: str, sort: str) -> Board:
    recipes: dict[tuple[str, str], list[Record]] = {}
    for record in records:
        recipes.setdefault((record.identity, record.split[1]), []).append(record)
    groups = sorted((group(runs, by) for runs in recipes.values()), key=_order(sort))
    marks = tuple(sorted({record.split[1] for record in records}))
    return Board(records[0].dataset, (records[0].split[0], marks), tuple(groups))


def _order(sort: str) -> Callable[[Group], tuple[float, str]]:
    def place(group: Group) -> tuple[float, str]:
        first = group.records[0]
        value = {
            "accuracy": -group.mean,
            "parameters": first.parameters,
            "flops": first.flops,
            "seconds": math.inf if group.seconds is None else group.seconds,
        }[sort]
        return value, group.label

    return place


def group(records: Sequence[Record], by: str) -> Group:
    """The statistics of runs of one recipe; of several runs with the same seed the first counts."""
    by_seed: dict[int, Record] = {}
    doubled = [record for record in records if by_seed.setdefault(record.seed, record) is not record]
    kept = tuple(by_seed[seed] for seed in sorted(by_seed))
    values = [value for value in (_accuracy(record, by) for record in kept) if value is not None]
    official = [record.official_accuracy for record in kept if record.official_accuracy is not None]
    seconds = [record.seconds for record in kept if record.seconds is not None]
    return Group(
        label=kept[0].label,
        records=kept,
        mean=statistics.fmean(values),
        std=statistics.stdev(values) if len(values) > 1 else None,
        interval=interval(values, kept[0].test_images if by == "test" else kept[0].val_images),
        official=statistics.fmean(official) if official else None,
        seconds=statistics.fmean(seconds) if seconds and len({record.device for record in kept}) == 1 else None,
        doubled=tuple(doubled),
    )


def _accuracy(record: Record, by: str) -> float | None:
    return record.test_accuracy if by == "test" else record.val_accuracy


def interval(values: Sequence[float], images: int) -> tuple[float, float]:
    """The 95 % interval of the mean over seeds (Student's t); of a single run, that of its share of `images`."""
    from scipy import stats

    if len(values) > 1:
        half = stats.t.ppf(0.975, len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values))
        half = round(float(half), 10)  # releases of SciPy differ in the 13th digit, and tables are compared to the last
        mean = statistics.fmean(values)
        return max(0.0, mean - half), min(1.0, mean + half)
    found = stats.binomtest(round(values[0] * images), images).proportion_ci(method="wilson")
    return float(found.low), float(found.high)


@dataclass(frozen=True)
class Verdict:
    """Whether the second group is better than the first. `p` is Welch's two-sided.

    `p` is None where a group has one run, or both are one.
    """

    first: Group
    second: Group
    difference: float
    p: float | None
    sentence: str

    @property
    def differs(self) -> bool:
        """Whether the difference between the recipes is more than noise at the 5 % level."""
        return self.p is not None and self.p < SIGNIFICANT


def compare(first: Group, second: Group, by: str) -> Verdict:
    """Welch's t-test over the seeds of two groups that were scored on the same images.

    Raises:
        IntegrityError: their images differ.
    """
    one, other = first.records[0], second.records[0]
    if _scored(one, by) != _scored(other, by):
        raise IntegrityError(
            f"{one.directory} and {other.directory} cannot be compared: {one.dataset[0]} {one.split[0]} "
            f"{one.split[1][:12]} and {other.dataset[0]} {other.split[0]} {other.split[1][:12]} are different data."
        )
    difference = second.mean - first.mean
    p = _welch(first, second, by) if first.n > 1 and second.n > 1 and first != second else None
    return Verdict(first, second, difference, p, _sentence(first, second, difference, p))


def _welch(first: Group, second: Group, by: str) -> float:
    from scipy import stats

    values = [[_accuracy(record, by) for record in group.records] for group in (first, second)]
    if len({value for group in values for value in group}) == 1:
        return 1.0
    if first.std == second.std == 0:
        return 0.0
    return float(stats.ttest_ind(*values, equal_var=False).pvalue)


def _sentence(first: Group, second: Group, difference: float, p: float | None) -> str:
    if first == second:
        return f"Both directories are runs of one recipe (n = {first.n}); name one of another to compare it with."
    points = f"{100 * abs(difference):.2f} points apart"
    if p is None:
        return (
            f"{points}; with {first.n} and {second.n} seeds nothing can be said of the recipes: "
            "give each two seeds or more (repeat=3)."
        )
    seeds = f"{first.n} and {second.n} seeds" if first.n != second.n else f"{first.n} seeds each"
    if p >= SIGNIFICANT:
        return f"{points}; with {seeds} this is within noise (Welch p = {p:.2g})."
    better = "the second" if difference > 0 else "the first"
    return f"{points}; with {seeds} {better} is better by more than noise (Welch p = {p:.2g})."


def group_of(directory: Path, records: Sequence[Record], by: str) -> Group:
    """The group of all found runs of the recipe of the run in `directory`.

    Raises:
        ConfigError: no finished run of `records` lies there.
    """
    wanted = directory.resolve()
    mine = [record for record in records if record.directory.resolve() == wanted]
    if not mine:
        raise ConfigError(f"`compare` names {str(directory)!r}, which is no finished run; give two run directories.")
    of_recipe = [
        record
        for record in records
        if (record.identity, record.dataset, record.split) == (mine[0].identity, mine[0].dataset, mine[0].split)
        and _accuracy(record, by) is not None
    ]
    if not of_recipe:
        raise ConfigError(f"`compare` names {str(directory)!r}, which has no {by} accuracy.")
    return group(of_recipe, by)
