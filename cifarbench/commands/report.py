"""`cifarbench report DIR [DIR…]`: the page of one run, or the page that compares several."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from cifarbench import runs
from cifarbench.commands.plugins import load_plugins
from cifarbench.commands.words import gather
from cifarbench.config.after import ReportConfig
from cifarbench.config.load import load


def rewrite(arguments: list[str]) -> list[str]:
    """Turn `DIR DIR` into `run=[DIR,DIR]`."""
    return gather(arguments, "run", [field.name for field in dataclasses.fields(ReportConfig)])


def run(values: dict[str, Any], directory: Path, overrides: list[str]) -> int:
    """Write the page and print its path."""
    load_plugins(values.get("plugins") or [])
    config = load(ReportConfig, values)
    from cifarbench.compute import choose_compute
    from cifarbench.reporting.page.build import write_comparison_page, write_run_page

    choose_compute("cpu", "fp32", config.threads)
    homes = [Path(name) for name in config.run]
    out = Path(config.out) if config.out is not None else None
    if len(homes) == 1:
        page = write_run_page(homes[0], out, None, config.root, config.images)
    else:
        page = write_comparison_page(homes, out or Path("outputs/report") / f"{runs.run_name('comparison')}.html")
    print(runs.shown_path(page))
    return 0
