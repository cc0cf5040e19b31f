"""`cifarbench ensemble DIR DIR…`: several runs averaged, and what that gains over each of them."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from cifarbench import runs
from cifarbench.commands.plugins import load_plugins
from cifarbench.commands.words import gather
from cifarbench.config.after import EnsembleConfig
from cifarbench.config.load import load
from cifarbench.errors import ConfigError


def rewrite(arguments: list[str]) -> list[str]:
    """Turn `DIR DIR` into `run=[DIR,DIR]`."""
    return gather(arguments, "run", [field.name for field in dataclasses.fields(EnsembleConfig)])


def run(values: dict[str, Any], directory: Path, overrides: list[str]) -> int:
    """Average the runs, print the result, and keep it in a folder of its own."""
    load_plugins(values.get("plugins") or [])
    config = load(EnsembleConfig, values)
    homes = [Path(name) for name in config.run]
    for home in homes:
        if not (home / "run.json").is_file():
            raise ConfigError(f"`run` names {str(home)!r}, which is no run directory.")
    runs.check_distinct(homes)
    runs.check_one_test_part(homes)
    from cifarbench.compute import choose_compute
    from cifarbench.evaluation.predictions import read_predictions
    from cifarbench.reporting.ensemble import show, write
    from cifarbench.training.ensemble import average_predictions, average_weights

    choose_compute("cpu", "fp32", config.threads)
    members = [read_predictions(home) for home in homes]
    if config.average == "predictions":
        result = average_predictions(homes, members)
    else:
        result = average_weights(homes, members, config.root)
    folder = Path(config.out) / runs.run_name(f"ensemble-{config.average}")
    write(folder, result)
    show(folder, result)
    return 0
