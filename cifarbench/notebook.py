"""A trained run in a notebook or a script: what `cifarbench.load` gives."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cifarbench import runs
from cifarbench.commands.plugins import load_plugins
from cifarbench.compute import Compute
from cifarbench.config.load import to_plain
from cifarbench.config.schema import TTAS
from cifarbench.data import augment
from cifarbench.errors import ConfigError
from cifarbench.evaluation.predict import predict
from cifarbench.evaluation.predictions import Predictions, read_predictions
from cifarbench.training.restore import Trained, find_checkpoint, home_of, images_of, restore, tested_views


@dataclass(frozen=True)
class Run:
    """A run, read from its directory or from a checkpoint alone.

    Attributes:
        model: from normalised images (B, 3, 32, 32) float32 to logits (B, 10), in evaluation mode, with the weights
            that were tested; on the CPU until it is moved. Its operations are torch's own, so hooks and gradients work
            as on any module.
        classes: the ten names.
        config: what the run was trained with, as nested dicts.
        metrics: a dict an epoch, as in metrics.jsonl; empty where the directory is not there.
        predictions: what the run answered to the test images, as recorded; None where nothing was tested.
    """

    model: nn.Module
    classes: tuple[str, ...]
    config: dict[str, Any]
    metrics: list[dict[str, Any]]
    predictions: Predictions | None
    trained: Trained

    def images(self, portion: str) -> tuple[Tensor, Tensor]:
        """The images of a part, (n, 3, 32, 32) uint8, and their labels, (n,) int64: "train" or "val".

        Raises:
            ConfigError: the dataset is not here, the run kept no such part, or `portion` is the sealed one.
            IntegrityError: what lies here is other data than the run's.
        """
        if portion == "test":
            raise ConfigError(
                "`portion` is 'test', whose images stay sealed in a notebook; `predictions` holds what the run "
                "answered to each of them, and `cifarbench eval run=DIR` opens them once more and counts it."
            )
        _, parts = images_of(self.trained)
        found = parts.unsealed(portion)
        return found.images, found.targets

    def normalise(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W), uint8 or float in [0, 1], as the model takes them: float32, minus mean, over std.

        Raises:
            ValueError: `images` are none, or have been normalised before.
        """
        return augment.normalise(_checked(images), *self.trained.statistics)

    def predict(self, images: Tensor, tta: str = "none") -> Tensor:
        """Class probabilities (B, 10) float32, on the CPU, computed in fp32 on the device that the model is on.

        Args:
            images: (B, 3, 32, 32), uint8 or float in [0, 1], on any device.
            tta: the views to average: "none", "flip" or "multicrop"; "auto": those of the run's own test.

        Raises:
            ValueError: `images` are none, or have been normalised before.
        """
        images = _checked(images)
        tta = tested_views(self.trained) if tta == "auto" else tta
        if tta not in TTAS:
            raise ValueError(f"`tta` is {tta!r}; it must be auto, {', '.join(TTAS)}.")
        device = next(self.model.parameters()).device
        statistics, compute = self.trained.statistics, Compute(device, "fp32")
        return predict(self.model, images.to(device), statistics, compute, tta, channels_last=False).softmax(1).cpu()


def _checked(images: Tensor) -> Tensor:
    """The images, floats as float32; ValueError where they are none."""
    if not isinstance(images, Tensor):
        raise ValueError(
            f"`images` is of type {type(images).__name__}; torch.from_numpy(…) makes a tensor of an array."
        )
    if images.ndim != 4 or images.shape[1] != 3 or not (images.dtype == torch.uint8 or images.is_floating_point()):
        raise ValueError(
            f"`images` is {tuple(images.shape)} of {images.dtype}; it must be (B, 3, H, W), torch.uint8 or float."
        )
    if images.is_floating_point() and images.numel() and not (images.amin() >= 0 and images.amax() <= 1):
        raise ValueError("`images` holds floats outside [0, 1]; give bytes as they are stored, not yet normalised.")
    return images.float() if images.is_floating_point() else images


def load(path: str | Path, plugins: Sequence[str] = ()) -> Run:
    """Read a trained run; see `cifarbench.load`."""
    load_plugins([str(file) for file in plugins])
    if not Path(path).exists():
        raise ConfigError(f"{str(path)!r} is not there; give a run directory or a checkpoint.")
    is_run = Path(path).is_dir()
    found = find_checkpoint(str(path) if is_run else None, None if is_run else str(path))
    home = Path(path) if is_run else home_of(found)
    trained = restore(found)
    tested = home is not None and (home / "predictions.npz").is_file()
    return Run(
        model=trained.model,
        classes=trained.classes,
        config=to_plain(trained.config),
        metrics=runs.read_rows(home) if home else [],
        predictions=read_predictions(home) if home and tested else None,
        trained=trained,
    )
