"""The keys of what judges runs: `leaderboard` and `verify`."""

from __future__ import annotations

from dataclasses import dataclass

from cifarbench.config.durations import seconds
from cifarbench.config.keys import key
from cifarbench.config.schema import ROOT, SPLITS
from cifarbench.errors import ConfigError


class _Limited:
    """What has a time `limit`."""

    limit: str | None

    @property
    def limit_seconds(self) -> float | None:
        """The limit in seconds."""
        return None if self.limit is None else seconds(self.limit, "limit")


@dataclass(frozen=True, kw_only=True)
class LeaderboardConfig(_Limited):
    """Everything that `cifarbench leaderboard` needs."""

    folder: tuple[str, ...] = key("Folders that are searched for run directories.")
    by: str = key("The accuracy that is ranked.", choices=["test", "val"])
    sort: str = key("Order of the rows: best accuracy first, or the smallest of something else.", choices=[
        "accuracy", "parameters", "flops", "seconds"])  # fmt: skip
    only: str | None = key("Only runs of this model; null: of every model.")
    where: str = key("Only runs whose typed overrides contain this text, such as optim=adamw; empty: all.")
    verified: bool = key("Only runs that `cifarbench verify` found in order, unchanged since, with their directories.")
    protocol: str = key("With `verified`: the split that the verdict demanded.", choices=SPLITS)
    limit: str | None = key(
        "With `verified`: the longest limit that the verdict may have demanded: 35m; null: any.", unit="time"
    )
    top: int = key("Rows shown of each table; 0: all.", unit="rows", ge=0)
    compare: tuple[str, ...] = key("Two run directories whose recipes are compared over all their seeds; [] for none.")
    out: str | None = key("Folder for leaderboard.csv, .json and .md; null: none is written.")

    def __post_init__(self) -> None:
        _ = self.limit_seconds  # which refuses what is no time
        if len(self.compare) not in (0, 2):
            raise ConfigError(f"`compare` names {len(self.compare)} runs; give two: --compare DIR DIR.")
        if not self.folder:
            raise ConfigError("`folder` is empty; name a folder to search, e.g. cifarbench leaderboard outputs.")


@dataclass(frozen=True, kw_only=True)
class VerifyConfig(_Limited):
    """Everything that `cifarbench verify` needs."""

    run: tuple[str, ...] = key("Run directories to judge.")
    protocol: str = key("The split that the rules demand.", choices=SPLITS)
    limit: str | None = key("Wall-clock limit of a run, test included: 35m; null: none.", unit="time")
    root: str | None = key(ROOT)
    threads: int | None = key("CPU threads; null: as the run used.", ge=1, le=1024)
    plugins: tuple[str, ...] = key("Python files with the models of the runs, which you have read.")

    def __post_init__(self) -> None:
        _ = self.limit_seconds  # which refuses what is no time
        if not self.run:
            raise ConfigError("`run` names no run directory; type `cifarbench verify DIR` or several.")
