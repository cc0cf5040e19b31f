"""`cifarbench summary`: what a model is made of, layer by layer, before anything is trained."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from cifarbench.commands.plugins import load_plugins
from cifarbench.config.before import SummaryConfig
from cifarbench.config.load import load
from cifarbench.runs import shown_path


def run(values: dict[str, Any], directory: Path, overrides: list[str]) -> int:
    """Print the layer table, and write it as JSON and CSV where `out` names a folder."""
    load_plugins(values.get("plugins") or [])
    config = load(SummaryConfig, values)
    from cifarbench.models.registry import build
    from cifarbench.models.summary import summarise
    from cifarbench.reporting.layers import print_summary, write_summary

    options = dataclasses.asdict(config.model)
    summary = summarise(options["name"], build(**options))
    print_summary(summary)
    for path in write_summary(summary, Path(config.out)) if config.out is not None else ():
        print(shown_path(path))
    return 0
