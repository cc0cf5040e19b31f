"""`cifarbench leaderboard [DIR…]`: finished runs, grouped over seeds, ranked and compared."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from cifarbench.commands.words import gather
from cifarbench.config.judge import LeaderboardConfig
from cifarbench.config.keys import nearest
from cifarbench.config.load import load
from cifarbench.config.quoting import quoted
from cifarbench.errors import ConfigError

_KEYS = tuple(field.name for field in dataclasses.fields(LeaderboardConfig))


def rewrite(arguments: list[str]) -> list[str]:
    """Turn `DIR… --compare A B --verified` into `folder=[DIR,…] compare=[A,B] verified=true`.

    The text of `where=TEXT`, which may hold another `=`, is quoted.

    Raises:
        ConfigError: two paths do not follow `--compare`.
    """
    arguments = ["verified=true" if argument == "--verified" else _as_text(argument) for argument in arguments]
    compared = []
    if "--compare" in arguments:
        at = arguments.index("--compare")
        pair = arguments[at + 1 : at + 3]
        if len(pair) < 2 or any(word.startswith("-") for word in pair):
            raise ConfigError("`--compare` needs two run directories after it.")
        arguments = [*arguments[:at], *arguments[at + 3 :]]
        compared = [f"compare=[{','.join(map(quoted, pair))}]"]
    return [*gather(arguments, "folder", _KEYS), *compared]


def _as_text(argument: str) -> str:
    name, _, text = argument.partition("=")
    return f"where={quoted(text)}" if name == "where" and text and not text.startswith(("'", '"')) else argument


def run(values: dict[str, Any], directory: Path, overrides: list[str]) -> int:
    """Print a table for each dataset and split, write the files asked for, and compare where asked."""
    config = load(LeaderboardConfig, values)
    from cifarbench.leaderboard.ranking import boards
    from cifarbench.leaderboard.records import find
    from cifarbench.reporting.leaderboard import print_boards, write_boards

    folders = [Path(name) for name in config.folder]
    missing = [name for name, folder in zip(config.folder, folders, strict=True) if not folder.is_dir()]
    if missing:
        raise ConfigError(f"`folder` names {missing[0]!r}, which is no folder.")
    notes: list[str] = []
    everything = find([*folders, *map(Path, config.compare)], notes.append)
    records = [record for record in everything if _is_wanted(record, config)]
    trials = [] if config.where else [record for record in records if _only_tries(record)]
    if trials:
        records = [record for record in records if record not in trials]
        notes.append(f"{len(trials)} of {len(everything)} runs are left out, of debug=…; where=debug= shows them.")
    if config.verified:
        records = _verified(records, config, notes)
    ranked = boards(records, config.by, config.sort)
    if everything and not ranked:
        hint = nearest(config.only, {record.model for record in everything}) if config.only else ""
        none = f"of {len(everything)} finished runs none is left by the filters, or has a {config.by} accuracy."
        notes.append(f"{none}{hint}")
    verdict = _compared(config, everything) if config.compare else None  # before all else: it may be refused
    print_boards(ranked, config, notes)
    if config.out is not None:
        write_boards(ranked, config.by, Path(config.out))
    if verdict:
        from cifarbench.reporting.leaderboard import print_verdict

        print_verdict(*verdict)
    return 0


def _only_tries(record: Any) -> bool:
    """Whether a run was of the group debug, which is for trying things."""
    return any(word.lstrip("+").startswith("debug=") for word in record.label.split())


def _is_wanted(record: Any, config: LeaderboardConfig) -> bool:
    return (not config.only or record.model == config.only) and config.where in record.label


def _verified(records: list[Any], config: LeaderboardConfig, notes: list[str]) -> list[Any]:
    """The records of runs that the judge found in order; a note says how many are left out."""
    from cifarbench.leaderboard.judge import is_verified

    kept = [record for record in records if is_verified(record.directory, config.protocol, config.limit_seconds)]
    if len(kept) < len(records):
        within = f" limit={config.limit}" if config.limit else ""
        notes.append(
            f"{len(records) - len(kept)} of {len(records)} runs are left out: not found in order by `cifarbench verify "
            f"protocol={config.protocol}{within}`, or changed since; an `eval` opens the test part once more."
        )
    return kept


def _compared(config: LeaderboardConfig, records: list[Any]) -> tuple[Any, Any]:
    """The verdict on the two groups, and McNemar's test on two runs of theirs."""
    from cifarbench.leaderboard.ranking import compare, group_of

    first, second = (group_of(Path(name), records, config.by) for name in config.compare)
    paired = _paired(config.compare) if config.by == "test" else None
    return compare(first, second, config.by), paired


def _paired(homes: tuple[str, ...]) -> Any:
    """McNemar's test on the two runs' stored predictions; None where one has none."""
    from cifarbench.evaluation.comparison import compare
    from cifarbench.evaluation.predictions import read_predictions

    try:
        first, second = (read_predictions(Path(home)) for home in homes)
    except ConfigError:
        return None
    return compare(first.right, second.right) if first.indices.equal(second.indices) else None
