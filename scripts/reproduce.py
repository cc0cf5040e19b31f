"""Run the rows of the published table that a profile holds, and write RESULTS.md from their records.

    python scripts/reproduce.py --profile quick|cpu|gpu [--only ROW …] [--minutes M] [--fresh] [--one-process] [--list]

Every run is the command that a user would type, in outputs/reproduce/<profile>/<row>/seed<k>. The same command again
goes on: finished runs are kept where their config and data are those of now, an interrupted one is resumed, a failed
one tried again. Each finished run leaves a record, scripts/results/<profile>/<row>-seed<k>.json; those of the quick
profile, on drawn images, stay below outputs/reproduce/.

`--fresh` doubts the page instead of writing it: as many runs with other seeds, below outputs/fresh/, and for each row
whether the published mean lies within the 95 % interval of the new one.
"""

from __future__ import annotations

import argparse
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from table.progress import Entry
from table.records import COMMITTED, read_records
from table.rows import LIST, PROFILES, Job, Section, choose, jobs_of, read_rows, rows_of
from table.standing import Asked
from table.work import conclude, entries_of, reuse, run

from cifarbench.errors import CifarbenchError, ConfigError, explain
from cifarbench.output import outlive_readers
from cifarbench.training.signals import StopRequest, stop_requests

if TYPE_CHECKING:
    from table.overview import Overview

_QUICK = Path("outputs", "reproduce", "results")
_FRESH = Path("outputs", "fresh", "results")


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--profile", choices=PROFILES, default="quick", help="which rows, on which data (quick)")
    parser.add_argument("--only", nargs="+", default=[], metavar="ROW", help="these rows alone")
    parser.add_argument("--minutes", type=float, metavar="M", help="start no further run after M minutes")
    parser.add_argument("--missing", action="store_true", help="leave out runs that have a record, of any machine")
    parser.add_argument("--fresh", action="store_true", help="other seeds, compared with the published records")
    parser.add_argument("--no-times", action="store_true", help="the machine is shared: record no times")
    parser.add_argument(
        "--one-process", action="store_true", help="train all runs in one process, which compiles once; no cold times"
    )
    parser.add_argument("--list", action="store_true", help="show the runs and their commands, and run nothing")
    parser.add_argument("--rows", type=Path, default=LIST, metavar="FILE", help="another list of rows")
    return parser.parse_args()


def main() -> int:
    """Run what the command line asks for and return the exit code."""
    given = arguments()
    outlive_readers()
    try:
        return _reproduce(given)
    except KeyboardInterrupt:
        print(f"reproduce: interrupted; go on with: {_again()}", file=sys.stderr)
        return 130
    except (CifarbenchError, OSError) as error:
        sentence, code = explain(error)
        print(f"reproduce: {sentence}", file=sys.stderr)
        return code


def _reproduce(given: argparse.Namespace) -> int:
    if given.minutes is not None and not given.minutes > 0:
        raise ConfigError(f"--minutes is {given.minutes:g}; it must be a number above 0.")
    published = _QUICK if given.profile == "quick" else COMMITTED
    records = _FRESH if given.fresh else published
    sections, asked = read_rows(given.rows), Asked()
    chosen = jobs_of(choose(rows_of(sections), given.profile, given.only), given.profile, given.fresh)
    jobs = [job for job in chosen if not (given.missing and (records / job.record).is_file())]
    entries = entries_of(jobs, asked)
    if given.list:
        return _list(jobs, records)
    from table.overview import Overview  # takes torch along, which a list needs not wait for

    overview = Overview(f"reproduce, profile {given.profile} on {PROFILES[given.profile]}", entries)
    with stop_requests() as request, overview:
        reuse(entries, asked, records, overview.said)
        _work(entries, given, request, overview, records)
    overview.final()
    if given.fresh:
        _compare(sections, given.profile, published, chosen)
    else:
        _publish(sections, given.profile, records)
    return _verdict(entries, request.number)


def _list(jobs: Sequence[Job], records: Path) -> int:
    """Show each run, its estimate and whether it has a record."""
    for job in jobs:
        state = "recorded" if (records / job.record).is_file() else f"~{job.plan.minutes:g} min"
        print(f"{job.row.name:<24} seed {job.seed:<3} {state:<10} {job.label}")
    print(f"{len(jobs)} runs, about {sum(job.plan.minutes for job in jobs) / 60:.1f} hours by the list's estimates")
    return 0


def _work(
    entries: Sequence[Entry], given: argparse.Namespace, request: StopRequest, overview: Overview, records: Path
) -> None:
    """Run every entry that waits, until a signal or the end of the minutes."""
    started = time.monotonic()
    for number, entry in enumerate(entries, 1):
        if entry.status == "done":
            continue
        late = given.minutes is not None and time.monotonic() - started >= 60 * given.minutes
        if request.number or late:
            entry.status = "left" if late else entry.status
            continue
        overview.began(entry, number)
        code = run(entry, given.no_times, request, overview, given.one_process)
        said = conclude(entry, code, bool(request.number), records)
        overview.said(said, "" if entry.status == "done" else "yellow")
        overview.refresh()


def _publish(sections: list[Section], profile: str, records: Path) -> None:
    """Write the page that the records make now."""
    from table import page

    where = page.Places(records, records.parent / "RESULTS.md") if profile == "quick" else page.Places()
    print(page.write(sections, where, PROFILES[profile]))


def _compare(sections: list[Section], profile: str, published: Path, jobs: Sequence[Job]) -> None:
    """Print the new runs of these jobs beside the published ones."""
    from table import fresh

    rows, dataset = rows_of(sections), PROFILES[profile]
    asked = {(job.row.name, profile, job.seed) for job in jobs}
    new = [run for run in read_records(_FRESH, dataset) if (run.row, run.profile, run.seed) in asked]
    fresh.show(rows, read_records(published, dataset), new)


def _verdict(entries: Sequence[Entry], number: int) -> int:
    """Say what failed and what is left, and return the exit code."""
    failed = [entry for entry in entries if entry.status == "failed"]
    left = [entry for entry in entries if entry.status in ("left", "waiting", "stopped")]
    for entry in failed:
        print(f"failed: {entry.message}", file=sys.stderr)
    if left:
        done = sum(entry.status == "done" for entry in entries)
        print(f"{done} of {len(entries)} runs are done; go on with: {_again()}", file=sys.stderr)
    return 128 + number if number else int(bool(failed))


def _again() -> str:
    return " ".join(["python", *map(shlex.quote, sys.argv)])


if __name__ == "__main__":
    sys.exit(main())
