"""What run directories say of themselves, read from run.json alone; nothing is unpickled."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cifarbench import runs
from cifarbench.config.before import BASELINES, BaselineConfig
from cifarbench.config.load import identity, load
from cifarbench.config.schema import TrainConfig
from cifarbench.errors import CifarbenchError, IntegrityError

_LEFT_OUT = ("seed=", "hydra.", "trainer.progress=", "trainer.resume=", "data.root=", "trainer.threads=")
_IMAGES = 60_000
_INSIDE = {"checkpoints", "tensorboard", "eval"}


@dataclass(frozen=True)
class Record:
    """One finished run. `dataset` and `split` are (name, fingerprint); accuracies in 0..1, None where unknown."""

    directory: Path
    label: str
    identity: str
    seed: int
    dataset: tuple[str, str]
    split: tuple[str, str]
    model: str
    parameters: int
    flops: int
    test_images: int
    val_images: int
    test_accuracy: float | None
    official_accuracy: float | None
    val_accuracy: float | None
    openings: int
    seconds: float | None
    device: str
    precision: str


def find(folders: Sequence[Path], note: Callable[[str], None] = lambda text: None) -> list[Record]:
    """The finished runs in and below `folders`, in the order of their paths; one that cannot be read is noted."""
    found: list[Record] = []
    seen: set[Path] = set()
    for directory in _directories(folders):
        if directory.resolve() in seen:
            continue
        seen.add(directory.resolve())
        try:
            record = read(directory)
        except (CifarbenchError, OSError) as error:
            note(f"{runs.shown_path(directory)} is left out: {error}")
            continue
        if record is not None:
            found.append(record)
    return found


def _directories(folders: Sequence[Path]) -> Iterator[Path]:
    for folder in folders:
        for path, inner, files in os.walk(folder):
            if "run.json" in files:
                yield Path(path)
            inner[:] = sorted(name for name in inner if name not in _INSIDE and not name.startswith("."))


def read(directory: Path) -> Record | None:
    """The record of one run directory; None while the run is not finished.

    Raises:
        IntegrityError: run.json is damaged or misses what a finished run has.
    """
    manifest = runs.read_manifest(directory)
    if manifest.get("status") != "completed":
        return None
    try:
        test, best, model = manifest["test"], manifest.get("best") or {}, manifest["model"]
        return Record(
            directory=directory,
            label=_label(manifest),
            identity=_identity(manifest, directory),
            seed=int(manifest["seed"] or 0),  # a baseline draws nothing
            dataset=(str(manifest["dataset"]["name"]), str(manifest["dataset"]["fingerprint"])),
            split=(str(manifest["split"]["name"]), str(manifest["split"]["fingerprint"])),
            model=str(model["name"]),
            parameters=int(model["parameters"]),
            flops=int(model["flops"]),
            test_images=_images(manifest, "test", test.get("accuracy")),
            val_images=_images(manifest, "val", best.get("val_accuracy")),
            test_accuracy=_share(test.get("accuracy")),
            official_accuracy=_share(test.get("accuracy_official")),
            val_accuracy=_share(best.get("val_accuracy")),
            openings=int(test.get("openings", 0)),
            seconds=_number(manifest.get("timing", {}).get("train_test")),
            device=str(manifest["environment"]["device_name"]),
            precision=str(manifest["environment"].get("precision")),
        )
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise IntegrityError(f"run.json is not that of a finished run ({type(error).__name__}: {error})") from error


def _label(manifest: dict[str, Any]) -> str:
    """What was typed, less what says nothing of the recipe; of a key that was typed twice the last, as Hydra has it."""
    words = [str(word) for word in manifest.get("command", [])[1:]]
    words = words[1:] if words[:1] == ["train"] else words
    last = {word.partition("=")[0]: place for place, word in enumerate(words)}
    words = [word for place, word in enumerate(words) if last[word.partition("=")[0]] == place]
    kept = [word for word in words if not word.startswith(_LEFT_OUT)]
    return " ".join(kept) or f"model={manifest['model']['name']}"


def _identity(manifest: dict[str, Any], directory: Path) -> str:
    """The hash of the weights' recipe, and the views that the test averaged; an older run's are in its config."""
    stored, views = manifest.get("identity"), manifest["test"].get("tta")
    if not stored or (views is None and manifest["test"].get("accuracy") is not None):
        kind: type = BaselineConfig if manifest["model"]["name"] in BASELINES else TrainConfig
        config: Any = load(kind, runs.read_config(directory))
        stored = stored or identity(config)
        views = config.trainer.tta if isinstance(config, TrainConfig) else None
    return f"{stored} {views}" if views not in (None, "none") else str(stored)


def _images(manifest: dict[str, Any], part: str, accuracy: Any) -> int:
    """How many images a part has: some, where an accuracy was counted on them, and no more than CIFAR-10 has."""
    count, least = int(manifest["split"][part]), 0 if accuracy is None else 1
    if not least <= count <= _IMAGES:
        raise ValueError(f"`split.{part}` is {count} images; with that accuracy it must be {least} to {_IMAGES:,}")
    return count


def _share(value: Any) -> float | None:
    number = _number(value)
    if number is not None and not 0 <= number <= 1:
        raise ValueError(f"an accuracy is {number}")
    return number


def _number(value: Any) -> float | None:
    return None if value is None else float(value)
