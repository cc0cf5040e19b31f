"""A trained model rebuilt from its checkpoint alone, for scoring, predicting, exporting and looking inside."""

from __future__ import annotations

import dataclasses
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from cifarbench import runs
from cifarbench.compute import Compute, choose_compute, make_deterministic
from cifarbench.config.own import is_as_loaded, own_sections
from cifarbench.config.schema import TTAS, TrainConfig
from cifarbench.data.dataset import CLASSES, ImageSet
from cifarbench.data.load import load_images
from cifarbench.data.split import Parts, split
from cifarbench.data.synthetic import CLASSES as DRAWN_CLASSES
from cifarbench.errors import ConfigError, IntegrityError
from cifarbench.evaluation.predict import Statistics
from cifarbench.kernels.modules import use_kernels
from cifarbench.training import checkpoint
from cifarbench.training.resume import stored_config
from cifarbench.training.session import build_model


@dataclass(frozen=True)
class Trained:
    """A model with what its checkpoint says of it; `config.data` names no address and no folder that is not there."""

    path: Path
    config: TrainConfig
    passport: dict[str, Any]
    model: nn.Module
    state: dict[str, Any]

    @property
    def statistics(self) -> Statistics:
        """Mean and standard deviation of the training images' channels, in 0..1."""
        return tuple(self.passport["mean"]), tuple(self.passport["std"])

    @property
    def classes(self) -> tuple[str, ...]:
        """The ten class names.

        Raises:
            IntegrityError: the passport lists none.
        """
        names = self.passport.get("classes")
        if not isinstance(names, list) or len(names) != 10 or not all(isinstance(name, str) for name in names):
            raise IntegrityError(f"{self.path} is no checkpoint of cifarbench: its passport names no ten classes.")
        return tuple(names)

    def compute(self, device: str, precision: str, threads: int | None) -> Compute:
        """Device, precision and threads: as the run was scored, unless said otherwise; a CPU takes fp32 for fp16."""
        make_deterministic(True)
        before = self.passport["environment"]
        cores = os.cpu_count() or 1
        threads = threads or (min(before["threads"], cores) if before["device"] == "cpu" else None)
        chosen = before["precision"] if precision == "auto" else precision
        free = "auto" in (device, precision)  # where both are typed, they are taken or refused as they are
        if chosen == "fp16" and free and choose_compute(device, "fp32", threads).device.type == "cpu":
            chosen = "fp32"
        return choose_compute(device, chosen, threads, own_kernels=before.get("kernels") == "own")

    def on(self, compute: Compute) -> nn.Module:
        """The model on the device of `compute`, in the memory layout and with the operations that it was trained in."""
        layout = torch.channels_last if self.config.trainer.channels_last else torch.contiguous_format
        model = self.model.to(compute.device).to(memory_format=layout)
        if compute.own_kernels:
            use_kernels(model, compute.device, compute.precision)
        return model


def find_checkpoint(run: str | None, path: str | None, which: str = "tested") -> Path:
    """The checkpoint file `path`, or the one of a run directory: "best", "last", or the one that its test scored.

    Raises:
        ConfigError: it is not there.
    """
    if path is not None:
        if not Path(path).is_file():
            raise ConfigError(f"`checkpoint` is {path!r}, which is no file.")
        return Path(path)
    home = Path(run or "")
    if not home.is_dir():
        raise ConfigError(f"`run` is {run!r}, which is no directory.")
    which = which if which != "tested" else runs.read_manifest(home).get("tested", "last")
    found = home / "checkpoints" / f"{which if which in ('best', 'last') else 'last'}.pt"
    if not found.is_file():
        raise ConfigError(f"{home} has no {found.name} in checkpoints/; it is no run directory, or kept none yet.")
    return found


def home_of(path: Path) -> Path | None:
    """The run directory that a checkpoint file lies in, if it lies in one."""
    for file in (path.parent.resolve() / path.name, path.resolve()):  # a link lies in one run and may mean another
        home = file.parent.parent
        if (home / "run.json").is_file():
            return Path(runs.shown_path(home))
    return None


def classes_of(home: Path) -> tuple[str, ...]:
    """The class names that a run's test.json lists, else those of its dataset."""
    per_class = runs.read_json(home / "test.json").get("per_class")
    if isinstance(per_class, dict) and len(per_class) == len(CLASSES):
        return tuple(per_class)
    dataset = runs.read_manifest(home).get("dataset")
    drawn = isinstance(dataset, dict) and dataset.get("name") == "synthetic"
    return DRAWN_CLASSES if drawn else CLASSES


def restore(path: Path, root: str | None = None) -> Trained:
    """Rebuild the model whose state lies at `path`, with the averaged weights where the run averaged.

    Args:
        path: a checkpoint.
        root: folder of the dataset, instead of the one that the run used.

    Raises:
        IntegrityError: the file is damaged, hostile, or does not fit the model that it names.
    """
    state = checkpoint.load(path)
    config = stored_config(state, path)
    for section in own_sections(config).values():
        if is_as_loaded(section) is False:
            print(f"cifarbench: the file of {section.name} was edited since {path} was trained", file=sys.stderr)
    config = dataclasses.replace(config, data=without_addresses(config.data, root))
    passport = checkpoint.passport_of(path, state)
    model = build_model(config)
    checkpoint.load_weights(model, checkpoint.tested_weights(state), path)
    return Trained(path, config, passport, model.eval(), state)


def tested_views(trained: Trained) -> str:
    """The views that its run was tested by, which a resume may have changed; its own where no test is recorded."""
    home = home_of(trained.path)
    test = runs.read_manifest(home).get("test") if home else None
    views = test.get("tta") if isinstance(test, dict) else None
    return str(views) if views in TTAS else trained.config.trainer.tta


def images_of(trained: Trained) -> tuple[ImageSet, Parts]:
    """The images that a model was trained on, and their parts.

    Raises:
        ConfigError: they are not here.
        IntegrityError: what lies here is other data, or was split otherwise.
    """
    data = load_images(trained.config.data)
    parts = split(data, trained.config.split)
    stored = trained.passport["split"]["fingerprint"]
    if parts.fingerprint != stored:
        raise IntegrityError(
            f"{trained.path} was trained on other data or another split ({stored[:12]}) than what lies here "
            f"({parts.fingerprint[:12]}); its numbers would not be comparable."
        )
    return data, parts


def without_addresses(data: Any, root: str | None) -> Any:
    """A stranger's data section without addresses to fetch from; of folders, only one that is there, or `root`.

    The files in it are MD5-checked before they are read.
    """
    if data.name != "cifar10":
        return data
    folder = data.root if data.root and Path(data.root).is_dir() else None
    return dataclasses.replace(data, root=root or folder, download=False, mirrors=())
