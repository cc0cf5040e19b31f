"""The images and the model behind a run, as far as they are here; what is missing is said, not guessed."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch

from cifarbench.config.keys import build
from cifarbench.config.load import choose, load
from cifarbench.config.schema import SplitConfig, TrainConfig
from cifarbench.data.dataset import ImageSet
from cifarbench.data.load import load_images
from cifarbench.data.split import Parts, split
from cifarbench.errors import ConfigError, IntegrityError, ResourceError
from cifarbench.reporting.page.record import Record
from cifarbench.training.restore import Trained, find_checkpoint, restore, without_addresses


@dataclass
class Sources:
    """`data` with its `parts`, and the `trained` model; each None where it is not here, with a note that says why."""

    data: ImageSet | None = None
    parts: Parts | None = None
    trained: Trained | None = None
    notes: list[str] = field(default_factory=list)


def open_sources(record: Record, data: ImageSet | None, root: str | None) -> Sources:
    """Find the images (or take `data`) and rebuild the model of a run.

    Raises:
        IntegrityError: the images are others than the run's, or its checkpoint is damaged.
    """
    sources = Sources(data=data)
    _find_images(sources, record, root)
    try:
        load(TrainConfig, record.config)
    except ConfigError as error:
        sources.notes.append(f"The model is not rebuilt: {error} If it is your own, add plugins=[FILE].")
        return sources
    try:
        path = find_checkpoint(str(record.path), None)
    except ConfigError:
        sources.notes.append("The model is not looked into: the directory holds no checkpoint.")
        return sources
    sources.trained = restore(path, root)
    return sources


def _find_images(sources: Sources, record: Record, root: str | None) -> None:
    try:
        if sources.data is None:
            section = record.config.get("data")
            config: Any = build(choose("data", section), section, "data")
            sources.data = load_images(without_addresses(config, root))
        choice = build(SplitConfig, record.config.get("split"), "split")
        parts = split(sources.data, choice)
    except (ConfigError, ResourceError) as error:
        sources.data = None
        sources.notes.append(f"No images are shown, because the dataset is not here: {error}")
        return
    stored = record.look("split", "fingerprint")
    if parts.fingerprint != stored:
        raise IntegrityError(
            f"{record.path} was trained on other data or another split ({str(stored)[:12]}) than what lies here "
            f"({parts.fingerprint[:12]}); its page would show the wrong images."
        )
    sources.parts = parts
    _check_targets(sources.data, record)


def _check_targets(data: ImageSet, record: Record) -> None:
    answers = record.predictions
    if answers is None:
        return
    inside = int(answers.indices.max()) < len(data.targets)
    if not inside or not torch.equal(data.targets[answers.indices], answers.targets):
        raise IntegrityError(f"{record.path / 'predictions.npz'} names other targets than the dataset; it was changed.")
