"""A sweep's jobs for people and programs: a live table, a final one, sweep.csv and sweep.json."""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import io
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from cifarbench.reporting.console import stopwatch
from cifarbench.runs import shown_path, write_json, write_text
from cifarbench.sweeps import Job

_REFRESH_SECONDS = 1.0
_ROWS_SHOWN = 24
_STYLES = {"done": "green", "failed": "red", "running": "cyan", "interrupted": "yellow", "waiting": "dim"}
_COLUMNS = ("number", "label", "status", "epoch", "epochs", "val_accuracy", "test_accuracy", "seconds", "message")


@contextlib.contextmanager
def watch(directory: Path, jobs: Callable[[], list[Job]]) -> Iterator[None]:
    """While the block runs, show the table of jobs in a terminal, read anew from the disk every second."""
    if not sys.stdout.isatty():
        yield
        return
    console, started, over = Console(highlight=False), time.monotonic(), threading.Event()
    before = jobs()
    with Live(console=console, auto_refresh=False, transient=True) as live:

        def redraw() -> None:
            while not over.wait(_REFRESH_SECONDS):
                live.update(_live(directory, jobs(), before, time.monotonic() - started), refresh=True)

        thread = threading.Thread(target=redraw, daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()


def _live(directory: Path, jobs: Sequence[Job], before: Sequence[Job], elapsed: float) -> Group:
    """The table, and the time left at the pace of the jobs that ended in `elapsed` seconds: those not so `before`."""
    ended = [job for job in jobs if job.status in ("done", "failed")]
    fresh = len(set(ended) - set(before))
    left = f", about {stopwatch(elapsed / fresh * (len(jobs) - len(ended)))} left" if fresh else ""
    shown = jobs_table(_around(jobs), _best(jobs))
    return Group(shown, Text(f" {len(ended)} of {len(jobs)} jobs ended{left}   {shown_path(directory)}", "dim"))


def jobs_table(jobs: Sequence[Job], best: Job | None) -> Table:
    """One line a job, `best` marked."""
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1))
    table.add_column("job", justify="right")
    table.add_column("what differs", overflow="fold")
    table.add_column("status", no_wrap=True)
    for heading in ("epoch", "val acc", "test acc", "time"):
        table.add_column(heading, justify="right", no_wrap=True)
    for job in jobs:
        epochs = f"{job.epoch}/{job.epochs}" if job.epochs else "–"
        results = _percent(job.val_accuracy), _percent(job.test_accuracy)
        mark = " best" if job is best else ""
        status = Text(job.status + mark, _STYLES[job.status])
        table.add_row(
            str(job.number),
            Text(job.label),
            status,
            epochs,
            *results,
            "–" if job.seconds is None else stopwatch(job.seconds),
        )
    return table


def print_table(directory: Path, jobs: Sequence[Job]) -> None:
    """The final table, every failure with its message, and where the files are."""
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 120)
    for start in range(0, len(jobs), _ROWS_SHOWN):
        console.print(jobs_table(jobs[start : start + _ROWS_SHOWN], _best(jobs)))
    for job in jobs:
        if job.status == "failed":
            console.print(Text(f"job {job.number} ({job.label}) failed: {job.message}"), soft_wrap=True)
    console.print(Text(f"{shown_path(directory / 'sweep.csv')} and sweep.json hold the table", "dim"), soft_wrap=True)


def print_plan(directory: Path, jobs: Sequence[Job]) -> None:
    """What the sweep would run, and what of it is done already."""
    console = Console(highlight=False, soft_wrap=True)
    console.print(Text(f"{len(jobs)} jobs in {shown_path(directory)}; nothing was run:"))
    for job in jobs:
        console.print(Text(f"  {job.number:>3}  {job.status:<12} {job.label}"))


def write_tables(directory: Path, jobs: Sequence[Job]) -> None:
    """Write sweep.csv and sweep.json: every job with its state and results."""
    records = [_record(job) for job in jobs]
    text = io.StringIO()
    table = csv.DictWriter(text, _COLUMNS, lineterminator="\n")
    table.writeheader()
    table.writerows([{name: record[name] for name in _COLUMNS} for record in records])
    write_text(directory / "sweep.csv", text.getvalue())
    write_json(directory / "sweep.json", {"jobs": records})


def _record(job: Job) -> dict[str, Any]:
    return {**dataclasses.asdict(job), "directory": job.directory.name if job.directory else None}


def _around(jobs: Sequence[Job]) -> Sequence[Job]:
    """As many jobs as a screen has room for, around the running one."""
    running = next((index for index, job in enumerate(jobs) if job.status in ("running", "waiting")), len(jobs))
    start = max(0, min(running - _ROWS_SHOWN // 2, len(jobs) - _ROWS_SHOWN))
    return jobs[start : start + _ROWS_SHOWN]


def _best(jobs: Sequence[Job]) -> Job | None:
    """The finished job with the highest validation accuracy, the first of equals."""
    scored = [job for job in jobs if job.val_accuracy is not None and job.status == "done"]
    return max(scored, key=lambda job: job.val_accuracy or 0.0, default=None)


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{value:.2%}"
