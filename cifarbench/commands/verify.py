"""`cifarbench verify DIR…`: judge runs by the rules of the competition."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from cifarbench import runs
from cifarbench.commands.plugins import load_plugins
from cifarbench.commands.words import gather
from cifarbench.config.judge import VerifyConfig
from cifarbench.config.load import load
from cifarbench.errors import IntegrityError, ResourceError


def rewrite(arguments: list[str]) -> list[str]:
    """Turn `DIR DIR` into `run=[DIR,DIR]`."""
    return gather(arguments, "run", [field.name for field in dataclasses.fields(VerifyConfig)])


def run(values: dict[str, Any], directory: Path, overrides: list[str]) -> int:
    """Print a verdict for each rule of each run and keep them in its verify.json.

    Raises:
        IntegrityError: a run breaks a rule.
        ResourceError: some runs were not judged, as this machine lacks what that needs; the others were.
    """
    load_plugins(values.get("plugins") or [])
    config = load(VerifyConfig, values)
    broken: list[str] = []
    unjudged: dict[str, ResourceError] = {}
    for home in map(Path, config.run):
        try:
            if not _judge(config, home):
                broken.append(runs.shown_path(home))
        except ResourceError as error:
            unjudged[runs.shown_path(home)] = error
    runs_break = f"run{'s' * (len(config.run) > 1)} break{'s' * (len(broken) == 1)} a rule"
    breaks = f"{len(broken)} of {len(config.run)} {runs_break}: {', '.join(broken)}." if broken else ""
    if unjudged:
        reason = next(iter(unjudged.values()))
        raise ResourceError(f"{', '.join(unjudged)}: not judged. {reason} {breaks}".rstrip()) from reason
    if broken:
        raise IntegrityError(breaks)
    return 0


def _judge(config: VerifyConfig, home: Path) -> bool:
    """Whether the run at `home` breaks no rule; the verdicts are printed and, where it is a run, kept."""
    from cifarbench.leaderboard.judge import examine, keep, passed
    from cifarbench.reporting.leaderboard import print_checks

    checks = examine(home, _evidence(config, home), config.root, config.threads)
    print_checks(home, checks)
    if (home / "run.json").is_file():
        keep(home, checks, config.protocol, config.limit_seconds)
    return passed(checks)


def _evidence(config: VerifyConfig, home: Path) -> Any:
    """What the judge needs beside the restored model."""

    def collect(trained: Any) -> Any:
        from cifarbench.data.load import load_images
        from cifarbench.data.split import split
        from cifarbench.leaderboard.judge import Evidence

        try:
            data = load_images(trained.config.data)
        except ResourceError as error:
            raise ResourceError(f"{error} Or name the folder that it lies in: root=DIR.") from error
        parts = split(data, trained.config.split)
        return Evidence(runs.read_manifest(home), trained, data, parts, config.protocol, config.limit_seconds)

    return collect
