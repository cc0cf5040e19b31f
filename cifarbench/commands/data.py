"""`cifarbench data fetch|check|show|duplicates`: the dataset on disk, and what training sees of it."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from cifarbench.commands.plugins import load_plugins
from cifarbench.commands.words import gather_first
from cifarbench.config.load import load
from cifarbench.config.schema import DataVerbConfig
from cifarbench.errors import ConfigError, IntegrityError

_PAIRS = 60


def rewrite(arguments: list[str]) -> list[str]:
    """Turn `cifarbench data show …` into `action=show …`."""
    rewritten = gather_first(arguments, "action", [field.name for field in dataclasses.fields(DataVerbConfig)])
    if not any(argument.startswith(("-", "action=")) for argument in rewritten):
        raise ConfigError("`cifarbench data` needs what to do: fetch, check, show or duplicates.")
    return rewritten


def run(values: dict[str, Any], directory: Path, overrides: list[str]) -> int:
    """Do the action and return the exit code."""
    load_plugins(values.get("plugins") or [])
    config = load(DataVerbConfig, values)
    if config.action == "show":
        return _show(config)
    if config.action == "duplicates":
        return _duplicates(config)
    if config.data.name != "cifar10":
        print("The synthetic images are drawn when they are needed; there is nothing to fetch or check.")
        return 0
    return _fetch(config) if config.action == "fetch" else _check(config)


def _fetch(config: DataVerbConfig) -> int:
    from cifarbench.data import cifar10

    folder = cifar10.root_folder(config.data.root)
    cifar10.ensure(folder, True, config.data.mirrors, print)
    return _check(config)


def _check(config: DataVerbConfig) -> int:
    from cifarbench.data import cifar10

    folder = cifar10.root_folder(config.data.root)
    rows = cifar10.check(folder)
    for name, state in rows:
        print(f"  {state:<8}{folder / cifar10.FOLDER / name}")
    wrong = [name for name, state in rows if state != "ok"]
    if wrong:
        raise IntegrityError(
            f"{len(wrong)} of {len(rows)} files are not as published; delete them, then `cifarbench data fetch`."
        )
    print(f"All {len(rows)} files are as published.")
    return 0


def _show(config: DataVerbConfig) -> int:
    """Draw labelled training images, ten classes in columns, before and after the augmentation.

    Mixup and CutMix mix in the image before it; the label stays that of the image itself.

    Raises:
        ConfigError: a class has fewer than `rows` training images.
    """
    import torch

    from cifarbench.data.augment import Augment
    from cifarbench.data.load import load_images
    from cifarbench.data.random import Draws
    from cifarbench.data.split import channel_statistics, split
    from cifarbench.reporting.figures import image_grid, save
    from cifarbench.reporting.results import caption
    from cifarbench.runs import safe_name

    data = load_images(config.data, print)
    parts = split(data, config.split)
    fewest = int(torch.bincount(parts.train.targets, minlength=10).min())
    if config.rows > fewest:
        raise ConfigError(f"`rows` is {config.rows}; it must be at most {fewest}, the rarest class's training images.")
    of_class = [(parts.train.targets == label).nonzero().flatten()[: config.rows] for label in range(10)]
    chosen = torch.stack(of_class, dim=1).flatten()
    images, titles = parts.train.images[chosen], [data.classes[label] for label in parts.train.targets[chosen].tolist()]
    augment = Augment(config.augment, *channel_statistics(parts.train.images))
    augmented = augment.view(images, Draws(config.seed, 0, parts.train.indices[chosen]))
    out = Path(config.out)
    out.mkdir(parents=True, exist_ok=True)
    note = caption(data.name, parts.name, parts.fingerprint)
    for name, shown in (("samples", images), (f"samples-{safe_name(config.augment.name)}", augmented)):
        figure = image_grid(shown.permute(0, 2, 3, 1).numpy(), titles, 10, f"{data.name}: {name}", note)
        save(figure, out / f"{name}.png")
        print(out / f"{name}.png")
    return 0


def _duplicates(config: DataVerbConfig) -> int:
    """Search all pairs of images, write duplicates.json, and draw the pairs that are least alike."""
    from cifarbench.data.duplicates import find_pairs, groups, test_duplicates_of
    from cifarbench.data.load import load_images
    from cifarbench.data.split import split
    from cifarbench.reporting.duplicates import pairs_figure
    from cifarbench.reporting.figures import save
    from cifarbench.reporting.results import caption
    from cifarbench.runs import write_json

    data = load_images(config.data, print)
    parts = split(data, config.split)
    pairs = find_pairs(data, config.threshold, print)
    found = groups(pairs)
    across = test_duplicates_of(parts, found)
    out = Path(config.out)
    out.mkdir(parents=True, exist_ok=True)
    kept = {"fingerprint": data.fingerprint, "threshold": config.threshold, "groups": found}
    write_json(out / "duplicates.json", {**kept, "pairs": [[p.first, p.second, p.correlation] for p in pairs]})
    print(f"{len(found):,} groups of {sum(map(len, found)):,} images; {out / 'duplicates.json'}")
    print(f"{int(across.sum()):,} of {len(across):,} test images of {parts.name} have one in the trainable part")
    if pairs:
        note = caption(data.name, parts.name, parts.fingerprint)
        least_alike = sorted(pairs, key=lambda pair: pair.correlation)[:_PAIRS]
        save(pairs_figure(data, least_alike, note), out / "duplicates.png")
        print(f"{out / 'duplicates.png'} shows the {min(len(pairs), _PAIRS)} pairs that are least alike")
    return 0
