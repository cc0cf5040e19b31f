"""`cifarbench export DIR format=onnx|torch_export|safetensors`: a trained model for use elsewhere."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from cifarbench import runs
from cifarbench.commands.plugins import load_plugins
from cifarbench.commands.words import gather_one
from cifarbench.config.after import ExportConfig
from cifarbench.config.load import load
from cifarbench.errors import ConfigError


def rewrite(arguments: list[str]) -> list[str]:
    """Turn `export DIR` into `export run=DIR`."""
    keys = [field.name for field in dataclasses.fields(ExportConfig)]
    return gather_one(arguments, "run", keys)


def run(values: dict[str, Any], directory: Path, overrides: list[str]) -> int:
    """Write the file, compare it with the model, and print what was found."""
    load_plugins(values.get("plugins") or [])
    config = load(ExportConfig, values)
    from cifarbench.compute import choose_compute
    from cifarbench.export import SUFFIXES, export
    from cifarbench.training.restore import find_checkpoint, home_of, restore

    suffix = SUFFIXES[config.format]
    if config.out and Path(config.out).suffix.lower() != suffix:
        raise ConfigError(
            f"`out` is {config.out!r} and `format` {config.format}, whose files end in {suffix}; change one of the two."
        )
    if config.out and Path(config.out).exists() and not Path(config.out).is_file():
        raise ConfigError(f"`out` is {config.out!r}, which is no file; name one, like model{suffix}.")
    choose_compute("cpu", "fp32", config.threads)
    source = find_checkpoint(config.run, config.checkpoint, config.which)
    trained = restore(source, config.root)
    default = (home_of(source) or source.parent) / "export" / f"model{suffix}"
    done = export(trained, config.format, config.normalise, Path(config.out) if config.out else default)
    size = done.path.stat().st_size
    print(f"{runs.shown_path(done.path)}   {size:,} bytes, from {source.name}")
    if done.difference is None:
        print(f"read back: all {done.images} {done.source} are the same")
    else:
        print(f"against PyTorch on {done.images} {done.source}: logits differ by at most {done.difference:.2g}")
    return 0
