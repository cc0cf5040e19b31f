"""`cifarbench sanity`: is this worth training? Exit 0 if every check passes, 1 if one fails."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from cifarbench.commands.plugins import load_plugins
from cifarbench.config.before import SanityConfig
from cifarbench.config.load import load
from cifarbench.runs import shown_path, write_json


def run(values: dict[str, Any], directory: Path, overrides: list[str]) -> int:
    """Run the checks, print them as a table, and write JSON and pictures into `out`; nothing else is kept."""
    load_plugins(values.get("plugins") or [])
    config = load(SanityConfig, values)
    from cifarbench.data.load import load_images
    from cifarbench.data.split import split
    from cifarbench.reporting.checks import print_checks
    from cifarbench.reporting.results import caption
    from cifarbench.training.observer import Observer
    from cifarbench.training.probe import facts, prepare
    from cifarbench.training.sanity import run_checks

    data = load_images(config.data, print)
    parts = split(data, config.split)
    training = prepare(config, parts, Observer())
    checks = run_checks(training, parts, data.classes, config.images, config.steps)
    passed = all(check.passed for check in checks)
    note = caption(data.name, parts.name, parts.fingerprint)
    title = f"{config.model.name} · {config.optim.name} · {config.augment.name}"
    out = Path(config.out)
    out.mkdir(parents=True, exist_ok=True)
    paths = [out / f"{config.model.name}-{name}" for name in ("inputs.png", "gradients.png", "sanity.json")]
    _draw(training, checks, data.classes, title, note, *paths[:2])
    outcome = {"passed": passed, "checks": [dataclasses.asdict(check) for check in checks]}
    write_json(paths[2], {**facts(config, data, parts), **outcome})
    print_checks(title, note, checks, [shown_path(path) for path in paths])
    return 0 if passed else 1


def _draw(
    training: Any, checks: list[Any], classes: tuple[str, ...], title: str, note: str, inputs: Path, gradients: Path
) -> None:
    """Save what the network is given, and the gradients that its weights get."""
    from cifarbench.reporting.checks import gradient_figure, input_figure
    from cifarbench.reporting.figures import save

    save(input_figure(training.feed.augment, training.setting.train, training.config.seed, classes, note), inputs)
    values = next(check.values for check in checks if check.name == "gradients")
    save(gradient_figure((values or {})["rms"], title, note), gradients)
