"""CIFAR-10 (Krizhevsky, 2009) from disk: found, MD5-checked, and only then unpickled."""

from __future__ import annotations

import hashlib
import io
import os
import pickle
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cifarbench.data.dataset import CLASSES, ImageSet, image_set
from cifarbench.data.fetch import fetch_archive, unpack
from cifarbench.errors import IntegrityError, ResourceError

FOLDER = "cifar-10-batches-py"
BATCHES = {  # in published order
    "data_batch_1": "c99cafc152244af753f735de768cd75f",
    "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
    "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
    "data_batch_4": "634d18415352ddfa80567beed471001a",
    "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
    "test_batch": "40351d587109b95175f43aff81a1287e",
}
META = {"batches.meta": "5ff9c542aee3614f3951f8cda6e48888"}
ARCHIVE_MD5 = "c58f30108f718f92721af3b95e74349a"
ARCHIVE_BYTES = 170_498_071


def root_folder(root: str | None) -> Path:
    """Where the dataset lies: `root`, else `$CIFARBENCH_DATA`, else `cifarbench` in the user's cache."""
    if root or os.environ.get("CIFARBENCH_DATA"):
        return Path(root or os.environ["CIFARBENCH_DATA"]).expanduser()
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "cifarbench"


def load(
    root: str | None,
    download: bool,
    mirrors: Sequence[str] = (),
    say: Callable[[str], None] = lambda line: None,
) -> ImageSet:
    """The 60,000 images in published order, fetched first where they are missing and `download` is set.

    Raises:
        ResourceError: nothing is there and nothing may be, or could be, fetched.
        IntegrityError: a file is not MD5-identical to the published one.
    """
    folder = root_folder(root)
    ensure(folder, download, mirrors, say)
    parts = [_read_batch(folder / FOLDER / name, md5) for name, md5 in BATCHES.items()]
    images = torch.from_numpy(np.concatenate([images for images, _ in parts]))
    targets = torch.from_numpy(np.concatenate([targets for _, targets in parts]))
    return image_set("cifar10", images, targets, CLASSES)


def ensure(folder: Path, download: bool, mirrors: Sequence[str], say: Callable[[str], None]) -> None:
    """Fetch and unpack the archive into `folder` unless every batch file is there already."""
    if not missing(folder):
        return
    if not download:
        raise ResourceError(
            f"{folder / FOLDER} lacks {missing(folder)[0]}, and data.download is false. {by_hand(folder)}"
        )
    fetch_archive(
        folder, mirrors, ARCHIVE_MD5, ARCHIVE_BYTES, say, lambda: not missing(folder), by_hand(folder), _unpack
    )


def missing(folder: Path) -> list[str]:
    """The batch files that are not in `folder`, by name."""
    return [name for name in (*BATCHES, *META) if not (folder / FOLDER / name).is_file()]


def written(root: str | None) -> tuple[tuple[str, int, int], ...] | None:
    """(path, bytes, time of the last change in ns) of every file; None where one is missing."""
    paths = [root_folder(root).absolute() / FOLDER / name for name in (*BATCHES, *META)]
    try:
        states = [path.stat() for path in paths]
    except OSError:
        return None
    return tuple((str(path), state.st_size, state.st_mtime_ns) for path, state in zip(paths, states, strict=True))


def check(folder: Path) -> list[tuple[str, str]]:
    """(file, "ok" | "missing" | "altered") for every published file."""
    rows = []
    for name, md5 in (BATCHES | META).items():
        path = folder / FOLDER / name
        if not path.is_file():
            rows.append((name, "missing"))
        else:
            rows.append((name, "ok" if hashlib.md5(path.read_bytes()).hexdigest() == md5 else "altered"))
    return rows


def by_hand(folder: Path) -> str:
    """What to do where nothing can be downloaded."""
    return (
        f"By hand: get cifar-10-python.tar.gz (170 MB, MD5 {ARCHIVE_MD5}) on another machine and unpack it, "
        f"so that {folder / FOLDER / 'data_batch_1'} exists; or use data=synthetic."
    )


def _unpack(archive: Path, folder: Path) -> None:
    unpack(archive, folder, FOLDER, {*BATCHES, *META, "readme.html"})


def _read_batch(path: Path, md5: str) -> tuple[np.ndarray, np.ndarray]:
    """Images (10000, 3, 32, 32) uint8 and targets (10000,) int64 of one batch file."""
    raw = path.read_bytes()
    found = hashlib.md5(raw).hexdigest()
    if found != md5:
        raise IntegrityError(
            f"{path} has MD5 {found}, not {md5}: it is truncated or altered; delete it and run `cifarbench data fetch`."
        )
    batch = _Unpickler(io.BytesIO(raw), encoding="bytes").load()
    return batch[b"data"].reshape(-1, 3, 32, 32), np.asarray(batch[b"labels"], dtype=np.int64)


class _Unpickler(pickle.Unpickler):
    """Unpickles NumPy arrays and nothing else, though the MD5 already vouches for the bytes."""

    _renamed = {"numpy.core.multiarray": "numpy._core.multiarray"}

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in {("numpy.core.multiarray", "_reconstruct"), ("numpy", "ndarray"), ("numpy", "dtype")}:
            return super().find_class(self._renamed.get(module, module) if hasattr(np, "_core") else module, name)
        raise IntegrityError(f"a batch file names {module}.{name}; it holds something else than images.")
