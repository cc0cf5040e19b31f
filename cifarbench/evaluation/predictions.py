"""predictions.npz: what a run's model said about each test image, written, and read without trusting the file."""

from __future__ import annotations

import io
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from cifarbench.errors import ConfigError, IntegrityError, damaged

_LIMIT_BYTES = 64 << 20
_OFFICIAL_START = 50_000  # the official test batch begins here in the published order
_FILE = "predictions.npz"
_NAMES = ("indices", "targets", "logits")


@dataclass(frozen=True)
class Predictions:
    """`indices` (n,) int64 into the published order, `targets` (n,) int64 in 0..9, `logits` (n, 10) float32."""

    indices: Tensor
    targets: Tensor
    logits: Tensor

    @property
    def probabilities(self) -> Tensor:
        """Softmax of the logits, (n, 10) float64."""
        return self.logits.double().softmax(1)

    @property
    def predicted(self) -> Tensor:
        """The likeliest class of each image, (n,) int64."""
        return self.logits.argmax(1)

    def official(self, dataset: str | None) -> Tensor | None:
        """Which images are of CIFAR-10's official test batch, (n,) bool; None where none is."""
        mask = self.indices >= _OFFICIAL_START
        return mask if dataset == "cifar10" and bool(mask.any()) else None

    @property
    def right(self) -> Tensor:
        """Which answers are right, (n,) bool."""
        return self.predicted == self.targets

    def write(self, folder: Path) -> None:
        """Write them to predictions.npz in `folder`."""
        buffer = io.BytesIO()
        np.savez_compressed(buffer, **{name: getattr(self, name).numpy() for name in _NAMES})
        (folder / _FILE).write_bytes(buffer.getvalue())


def read_predictions(run: Path) -> Predictions:
    """The predictions that a run directory holds; nothing in the file is unpickled.

    Raises:
        ConfigError: there are none.
        IntegrityError: the file is damaged, or its arrays are not what a run writes.
    """
    path = run / _FILE
    if not path.is_file():
        raise ConfigError(f"{run} has no predictions.npz; its test part was never scored (`trainer.test=false`?).")
    arrays = _arrays(path)
    indices, targets, logits = (arrays[name] for name in _NAMES)
    count = len(logits) if logits.ndim == 2 else 0
    whole = indices.dtype.kind == targets.dtype.kind == "i" and logits.dtype.kind == "f"
    if not whole or logits.shape != (count, 10) or not indices.shape == targets.shape == (count,) or not count:
        found = f"{indices.shape}, {targets.shape} and {logits.shape}"
        raise damaged(path, f"it must hold n indices, n targets and (n, 10) logits, but has {found}")
    with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite, and is refused as such
        logits = logits.astype(np.float32)
    if not np.isfinite(logits).all() or targets.min() < 0 or targets.max() > 9 or indices.min() < 0:
        raise damaged(path, "a logit is not finite, a target not in 0..9, or an index below 0")
    if len(np.unique(indices)) < count:
        raise damaged(path, "an image stands in it twice")
    numbers, labels = (torch.from_numpy(array.astype(np.int64)) for array in (indices, targets))
    return Predictions(numbers, labels, torch.from_numpy(logits))


def _arrays(path: Path) -> dict[str, np.ndarray]:
    found = {}
    if path.stat().st_size > _LIMIT_BYTES:
        raise IntegrityError(f"{path} is larger than {_LIMIT_BYTES:,} bytes; refused.")
    packed = path.read_bytes()
    try:
        # From memory, where a place that the file cannot have is a ValueError and no failure of the disk.
        with zipfile.ZipFile(io.BytesIO(packed)) as archive:
            if sum(entry.file_size for entry in archive.infolist()) > _LIMIT_BYTES:
                raise IntegrityError(f"{path} would unpack to more than {_LIMIT_BYTES:,} bytes; refused.")
            for name in _NAMES:
                content = io.BytesIO(archive.read(f"{name}.npy"))
                found[name] = np.lib.format.read_array(content, allow_pickle=False)
    except (zipfile.BadZipFile, KeyError, ValueError, EOFError, RuntimeError, MemoryError, OverflowError) as error:
        raise damaged(path, str(error) or type(error).__name__) from error
    except Exception as error:
        if type(error).__module__ not in ("zlib", "lzma"):
            raise
        raise damaged(path, error) from error
    return found
