"""`cifarbench verify DIR…`: judge runs by the rules of the competition."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cifarbench import runs
from cifarbench.commands.plugins import load_plugins
from cifarbench.commands.words import gather
from cifarbench.config.durations import seconds
from cifarbench.config.judge import VerifyConfig
from cifarbench.config.load import load
from cifarbench.errors import IntegrityError


def rewrite(arguments: list[str]) -> list[str]:
    """Turn `DIR DIR` into `run=[DIR,DIR]`."""
    return gather(arguments, "run", ("run", "protocol", "limit", "root", "threads", "plugins"))


def run(values: dict[str, Any], directory: Path, overrides: list[str]) -> int:
    """Print a verdict for each rule of each run and keep them in its verify.json.

    Raises:
        IntegrityError: a run breaks a rule.
    """
    load_plugins(values.get("plugins") or [])
    config = load(VerifyConfig, values)
    from cifarbench.leaderboard.judge import examine, keep, passed
    from cifarbench.reporting.leaderboard import print_checks

    broken = []
    for name in config.run:
        home = Path(name)
        checks = examine(home, _evidence(config, home), config.root, config.threads)
        print_checks(home, checks)
        if home.is_dir() and (home / "run.json").is_file():
            keep(home, checks)
        if not passed(checks):
            broken.append(runs.shown_path(home))
    if broken:
        raise IntegrityError(f"{len(broken)} of {len(config.run)} runs break a rule: {', '.join(broken)}.")
    return 0


def _evidence(config: VerifyConfig, home: Path) -> Any:
    """What the judge needs beside the restored model."""

    def collect(trained: Any) -> Any:
        from cifarbench.data.load import load_images
        from cifarbench.data.split import split
        from cifarbench.leaderboard.judge import Evidence

        data = load_images(trained.config.data)
        parts = split(data, trained.config.split)
        limit = seconds(config.limit, "limit") if config.limit else None
        return Evidence(runs.read_manifest(home), trained, data, parts, config.protocol, limit)

    return collect
