"""What a sweep's directory says of its jobs: who waits, runs, is done or has failed, and with what result."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar

from cifarbench import runs
from cifarbench.errors import IntegrityError

FAILURE = "failure.json"  # in a job's directory: its message and exit code
_CONFIG = "config.yaml"
_FILES = ("run.json", "metrics.jsonl", FAILURE, _CONFIG)
_MOST_SECONDS = 1e12

Content = TypeVar("Content")


@dataclasses.dataclass(frozen=True)
class Job:
    """One job of a sweep.

    `status` is waiting, running, interrupted, done or failed; accuracies are in 0..1, None until they are known.
    """

    number: int
    label: str
    status: str
    directory: Path | None = None
    epoch: int = 0
    epochs: int | None = None
    val_accuracy: float | None = None
    test_accuracy: float | None = None
    seconds: float | None = None
    message: str = ""


class Jobs:
    """The jobs of the sweep in `directory`; `planned` holds the label and directory name of each, by its number."""

    def __init__(self, directory: Path, planned: Sequence[tuple[str, str]]) -> None:
        self._planned = [(number, label, directory / name) for number, (label, name) in enumerate(planned)]
        self._jobs: _Known[Job] = _Known()
        self._epochs: _Known[int | None] = _Known()

    def read(self) -> list[Job]:
        """Every planned job as its directory shows it; jobs without one are waiting. Unchanged files are not read."""
        return [self._job(*planned) for planned in self._planned]

    def _job(self, number: int, label: str, directory: Path) -> Job:
        if not directory.is_dir():
            return Job(number, label, "waiting")
        files = [directory / name for name in _FILES]
        return self._jobs.get(files, lambda: self._read(number, label, directory))

    def _read(self, number: int, label: str, directory: Path) -> Job:
        try:
            failure = runs.read_json(directory / FAILURE)
            manifest = runs.read_manifest(directory)
            rows = runs.read_rows(directory)
            epochs = self._epochs.get([directory / _CONFIG], lambda: _epochs(directory)) if manifest else None
        except IntegrityError as error:
            return Job(number, label, "failed", directory, message=str(error))
        best = _of(manifest, "best", "val_accuracy") or (rows[-1].get("val_accuracy") if rows else None)
        return Job(
            number,
            label,
            "failed" if failure else _STATUS.get(str(manifest.get("status")), "waiting"),
            directory,
            epoch=len(rows),
            epochs=epochs,
            val_accuracy=_number(best, 1.0),
            test_accuracy=_number(_of(manifest, "test", "accuracy"), 1.0),
            seconds=sum(_number(row.get("seconds"), _MOST_SECONDS) or 0.0 for row in rows) or None,
            message=str(failure.get("message", "")),
        )


class _Known(Generic[Content]):
    """What was read from files, for as long as they stay as they are."""

    def __init__(self) -> None:
        self._contents: dict[tuple[Path, ...], tuple[list[Any], Content]] = {}

    def get(self, files: Sequence[Path], read: Callable[[], Content]) -> Content:
        """What `read` returns; it is called where one of the files was written since the last time."""
        marks = [_mark(path) for path in files]  # taken first: what is written meanwhile is read the next time
        known = self._contents.get(tuple(files))
        if known is None or known[0] != marks:
            known = self._contents[tuple(files)] = marks, read()
        return known[1]


def _mark(path: Path) -> tuple[int, int, int] | None:
    """What changes when a file is written; None where there is none."""
    try:
        state = path.stat()
    except OSError:
        return None
    return state.st_ino, state.st_mtime_ns, state.st_size


def _epochs(directory: Path) -> int | None:
    """The run's `trainer.epochs`; None while config.yaml is not written yet, or where it holds no whole number."""
    if not (directory / _CONFIG).is_file():
        return None
    epochs = _of(runs.read_config(directory), "trainer", "epochs")
    return epochs if isinstance(epochs, int) and not isinstance(epochs, bool) else None


_STATUS = {"completed": "done", "running": "running", "interrupted": "interrupted", "failed": "failed"}


def _of(values: Any, section: str, name: str) -> Any:
    inner = values.get(section) if isinstance(values, dict) else None
    return inner.get(name) if isinstance(inner, dict) else None


def _number(value: Any, limit: float) -> float | None:
    """A number of 0..limit; None for whatever else a spoilt file holds."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return value if is_number and 0 <= value <= limit else None
