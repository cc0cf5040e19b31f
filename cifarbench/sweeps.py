"""What a sweep's directory says of its jobs: who waits, runs, is done or has failed, and with what result."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cifarbench import runs
from cifarbench.errors import IntegrityError

FAILURE = "failure.json"  # in a job's directory: its message and exit code


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


def read_jobs(directory: Path, planned: Sequence[str]) -> list[Job]:
    """Every planned job as its directory `<number>-…` shows it; jobs without one are waiting."""
    found = {path.name.partition("-")[0]: path for path in directory.glob("[0-9]*-*") if path.is_dir()}
    return [_job(number, label, found.get(str(number))) for number, label in enumerate(planned)]


def _job(number: int, label: str, directory: Path | None) -> Job:
    if directory is None:
        return Job(number, label, "waiting")
    try:
        failure = runs.read_json(directory / FAILURE)
        manifest = runs.read_manifest(directory)
        rows = runs.read_rows(directory)
        config = runs.read_config(directory) if manifest else {}
    except IntegrityError as error:
        return Job(number, label, "failed", directory, message=str(error))
    status = "failed" if failure else _STATUS.get(str(manifest.get("status")), "waiting")
    return Job(
        number,
        label,
        status,
        directory,
        epoch=len(rows),
        epochs=_of(config, "trainer", "epochs"),
        val_accuracy=_of(manifest, "best", "val_accuracy") or (rows[-1].get("val_accuracy") if rows else None),
        test_accuracy=_of(manifest, "test", "accuracy"),
        seconds=sum(row.get("seconds", 0.0) for row in rows) or None,
        message=str(failure.get("message", "")),
    )


_STATUS = {"completed": "done", "running": "running", "interrupted": "interrupted", "failed": "failed"}


def _of(values: Any, section: str, name: str) -> Any:
    inner = values.get(section) if isinstance(values, dict) else None
    return inner.get(name) if isinstance(inner, dict) else None
