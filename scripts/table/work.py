"""Run the jobs, one after the other, each as the command that a user types, in a process of its own or all in one."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING

from cifarbench import runs
from cifarbench.cli import main
from cifarbench.config.durations import seconds
from cifarbench.errors import IntegrityError
from cifarbench.training.signals import StopRequest, run_child
from table.progress import Entry, look
from table.records import ROOT, write_note, write_record
from table.rows import Job
from table.standing import Asked, is_finished, set_aside, standing

if TYPE_CHECKING:
    from table.overview import Overview

_LOOK_SECONDS = 1.0


def entries_of(jobs: Sequence[Job], asked: Asked) -> list[Entry]:
    """An entry for each job, with what its config says of its length."""
    found = []
    for job in jobs:
        trainer = getattr(asked.config(job), "trainer", None)
        limit = seconds(trainer.max_time, "trainer.max_time") if trainer and trainer.max_time else None
        found.append(Entry(job, limit=limit, epochs=trainer.epochs if trainer else 0))
    return found


def reuse(entries: Sequence[Entry], asked: Asked, records: Path, say: Callable[[str], None]) -> None:
    """Mark the jobs whose runs are finished as done, and set aside directories that hold something else."""
    for entry in entries:
        found = standing(entry.job, asked)
        if found.status == "other":
            target = set_aside(entry.job.directory)
            say(f"{entry.job.directory} holds another run ({found.reason}); it is now {target.name}")
        if found.status == "done":
            finish(entry, records)


def finish(entry: Entry, records: Path) -> None:
    """Take a finished run's result into its entry and its record."""
    entry.accuracy = write_record(entry.job, records)["test"]["accuracy"]
    entry.status = "done"
    entry.seconds = runs.read_manifest(entry.job.directory)["timing"]["cold"]
    entry.share = 1.0


def run(entry: Entry, shared: bool, request: StopRequest, overview: Overview, one_process: bool = False) -> int:
    """Run a job to its end, hand a signal on to it, and return its exit code; all in `one_process` or not."""
    job, started = entry.job, time.monotonic()
    write_note(job.directory, shared, one_process)
    look(entry, job.directory)
    entry.base = entry.share
    log = job.directory.with_suffix(".log")
    entry.status = "running"
    with log.open("a", encoding="utf-8") as file:
        if one_process and job.row.verb == "train":
            code = _run_here(job, file, request)
        else:
            code = run_child(_command(job), file, request, _watching(entry, overview, started))
    entry.elapsed = 0.0
    return code


def _run_here(job: Job, file: IO[str], request: StopRequest) -> int:
    """Run a job in this process; a signal stops it as it would a process of its own, and is noted in `request`."""
    words = [job.row.verb, *job.words, f"hydra.run.dir={job.directory}"]
    with contextlib.redirect_stdout(file), contextlib.redirect_stderr(file):
        code = main(words)
    request.number = request.number or max(code - 128, 0)
    return code


def _watching(entry: Entry, overview: Overview, started: float) -> Callable[[], None]:
    """What is done while a job runs: its time and, once a second, its progress are shown."""
    looked = 0.0

    def watch() -> None:
        nonlocal looked
        entry.elapsed = time.monotonic() - started
        if entry.elapsed - looked >= _LOOK_SECONDS:
            looked = entry.elapsed
            look(entry, entry.job.directory)
            overview.refresh()

    return watch


def _command(job: Job) -> list[str]:
    if job.row.verb == "peek":
        return [sys.executable, str(ROOT / "scripts" / "peek.py"), "--dir", str(job.directory), *job.words]
    return [sys.executable, "-m", "cifarbench", job.row.verb, *job.words, f"hydra.run.dir={job.directory}"]


def conclude(entry: Entry, code: int, stopped: bool, records: Path) -> str:
    """Set the entry's status from how its process ended; returns the sentence that says so."""
    job = entry.job
    try:
        if code == 0 and is_finished(job.directory, runs.read_manifest(job.directory)):
            finish(entry, records)
            return f"{job.row.name} seed {job.seed}: {entry.accuracy:.2%} in {entry.seconds:,.0f} s"
        reason = _last_line(job.directory.with_suffix(".log"))
    except IntegrityError as error:
        reason = str(error)
    entry.status = "stopped" if stopped else "failed"
    entry.message = f"{job.row.name} seed {job.seed} {entry.status} with exit code {code}: {reason}"
    return entry.message


def _last_line(log: Path) -> str:
    """The last line of a log, where a command's own sentence stands."""
    lines = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    return lines[-1] if lines else "it said nothing"
