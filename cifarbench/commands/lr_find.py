"""`cifarbench lr-find`: a learning rate for a config, from a hundred steps on training images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cifarbench.commands.plugins import load_plugins
from cifarbench.config.before import LRFindConfig
from cifarbench.config.load import load
from cifarbench.runs import shown_path, write_json

_CHOSEN = "valley"


def run(values: dict[str, Any], directory: Path, overrides: list[str]) -> int:
    """Test the range, print the suggestions, and write the curve as PNG and JSON; nothing else is kept."""
    load_plugins(values.get("plugins") or [])
    config = load(LRFindConfig, values)
    from cifarbench.data.load import load_images
    from cifarbench.data.split import split
    from cifarbench.reporting.figures import save
    from cifarbench.reporting.rates import print_suggestions, rate_figure
    from cifarbench.reporting.results import caption
    from cifarbench.training.lr_range import range_test, suggestions
    from cifarbench.training.probe import Losses, facts, prepare

    data = load_images(config.data, print)
    parts = split(data, config.split)
    losses = Losses()
    curve = range_test(prepare(config, parts, losses), losses, config.start, config.end, config.steps)
    found = {name: float(f"{rate:.2g}") for name, rate in suggestions(curve).items()}
    report = {**facts(config, data, parts), **_report(config, curve, found)}
    note = caption(data.name, parts.name, parts.fingerprint)
    title = f"{config.model.name} · {config.optim.name} · batch {config.trainer.batch_size}"
    out = Path(config.out)
    out.mkdir(parents=True, exist_ok=True)
    picture, record = (out / f"{config.model.name}-{config.optim.name}{kind}" for kind in (".png", ".json"))
    write_json(record, report)
    save(rate_figure(curve.rates, curve.losses, curve.smoothed, found, title, note), picture)
    print_suggestions(title, note, report, [shown_path(path) for path in (picture, record)])
    return 0


def _report(config: LRFindConfig, curve: Any, found: dict[str, float]) -> dict[str, Any]:
    from cifarbench.training.lr_range import fall

    commands = {name: rate_overrides(config.optim, rate) for name, rate in found.items()}
    points = zip(curve.rates, curve.losses, curve.smoothed, strict=True)
    return {
        "batch_size": config.trainer.batch_size,
        "ended": curve.ended,
        "fall": fall(curve),
        "suggestions": found,
        "overrides": commands,
        "override": commands[_CHOSEN],
        "points": [{"lr": rate, "loss": loss, "smoothed": smooth} for rate, loss, smooth in points],
    }


def rate_overrides(optim: Any, rate: float) -> str:
    """The overrides that set `optim.lr` to `rate`, and what has a rate of its own in the same proportion."""
    rates = {name: getattr(optim, name) for name in ("lr", "bias_lr", "head_lr") if hasattr(optim, name)}
    return " ".join(f"optim.{name}={value * rate / optim.lr:.2g}" for name, value in rates.items())
