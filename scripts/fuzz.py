"""Try thousands of spoilt command lines and files, each in a process of its own, and judge how every one ended.

    python scripts/fuzz.py --cases 10000 --seed 1 --workers 2
    python scripts/fuzz.py --replay fuzz-failures/1-00042.json

Every case has to end in time with a documented exit code and without a traceback, may write nowhere but into its own
folder or where its command says, may start no process, and may reach no network. Case n of seed s is always the same.
Cases that fail are written to files that `--replay` runs again. Exit code 1 where one failed.
"""

from __future__ import annotations

import argparse
import collections
import gc
import json
import os
import random
import shutil
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # a pool of threads would not survive the fork
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import warm
from fuzzing import cage, corpus, lines
from fuzzing.case import Case, from_json
from fuzzing.files import Spoiler

from cifarbench.cli import main as command

_LINES_SHARE = 0.6  # of the cases are command lines, the others files


def main() -> int:
    """Run what the arguments ask for and return 1 where a case failed."""
    options = _options()
    sys.dont_write_bytecode = True  # a case that writes beside its folder has failed
    home = Path(tempfile.mkdtemp(prefix="cifarbench-fuzz-"))
    try:
        records = Path(options.corpus) if options.corpus else home / "corpus"
        corpus.make(records)
        corpus.warm(records)
        gc.collect()
        gc.freeze()  # the children share this memory until they write to it
        if options.replay:
            return _replay([Path(name) for name in options.replay], records, home, options.limit)
        return _fuzz(options, records, home)
    finally:
        shutil.rmtree(home, ignore_errors=True)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=10_000, help="how many cases (default 10000)")
    parser.add_argument("--first", type=int, default=0, help="number of the first case (default 0)")
    parser.add_argument("--seed", type=int, default=1, help="what is drawn follows from it (default 1)")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="stop after this time (default: never)")
    parser.add_argument("--workers", type=int, default=1, help="cases at a time (default 1)")
    parser.add_argument(
        "--limit",
        type=float,
        default=10,
        help="seconds of computing, or thrice as many on the clock, after which a case hangs (default 10)",
    )
    parser.add_argument("--failures", default="fuzz-failures", help="folder for cases that failed")
    parser.add_argument("--corpus", help="folder that keeps the records to spoil for the next time (default: none)")
    parser.add_argument("--replay", nargs="+", metavar="FILE", help="run these cases again, and show what they print")
    return parser.parse_args()


def draw_case(seed: int, number: int, spoiler: Spoiler) -> Case:
    """Case `number` of `seed`."""
    draw = random.Random(f"{seed}/{number}")
    return lines.draw_case(draw) if draw.random() < _LINES_SHARE else spoiler.draw_case(draw)


def run_case(case: Case, records: Path, box: Path, limit: float, main: warm.Main = command) -> cage.Ended:
    """Run a case in the folder `box`, which is made and removed."""
    shutil.rmtree(box, ignore_errors=True)
    cwd = box / "work" / "cwd"
    cwd.mkdir(parents=True)
    corpus.copy(records, case.needs, cwd)
    case.plant(cwd)
    named = [cwd / path for path in lines.named_paths(case.argv) if len(path) < 200 and "\0" not in path]
    try:
        return cage.run(main, case.argv, cwd, named, limit, lines.may_fetch(case))
    finally:
        shutil.rmtree(box, ignore_errors=True)


def _fuzz(options: argparse.Namespace, records: Path, home: Path) -> int:
    started = time.monotonic()
    pids = [_start_worker(options, records, home, number) for number in range(options.workers)]
    for pid in pids:
        if os.waitpid(pid, 0)[1]:
            raise RuntimeError("a worker of the fuzzer died; its message is above.")
    rows = [json.loads(line) for path in sorted(home.glob("rows-*")) for line in path.read_text("utf-8").splitlines()]
    _summarise(rows, options, time.monotonic() - started)
    return int(any(row["broken"] for row in rows) or not rows)


def _start_worker(options: argparse.Namespace, records: Path, home: Path, worker: int) -> int:
    """Fork a process that does every `workers`-th case and writes a line for each."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        with (home / f"rows-{worker}").open("w", encoding="utf-8") as file:
            for row in _work(options, records, home / f"box-{worker}", worker):
                file.write(json.dumps(row) + "\n")
        code = 0
    except Exception:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(code)


def _work(options: argparse.Namespace, records: Path, box: Path, worker: int) -> Iterator[dict]:
    started = told = time.monotonic()
    deadline = started + 60 * options.minutes
    spoiler = Spoiler(records)
    for number in range(options.first + worker, options.first + options.cases, options.workers):
        if time.monotonic() > deadline:
            return
        if worker == 0 and time.monotonic() > told + 60:
            told = time.monotonic()
            print(f"{number - options.first} of {options.cases} cases, {(told - started) / 60:.0f} min", flush=True)
        case = draw_case(options.seed, number, spoiler)
        ended = run_case(case, records, box, options.limit)
        if ended.broken:
            _keep(case, ended, Path(options.failures) / f"{options.seed}-{number:05}.json")
        yield {
            "verb": case.verb,
            "kind": "lines" if not case.planted else case.kind,
            "code": ended.code,
            "seconds": ended.seconds,
            "broken": ended.broken,
        }


def _keep(case: Case, ended: cage.Ended, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(case.to_json(broken=ended.broken, code=ended.code, err=ended.err[-2000:]), encoding="utf-8")
    print(f"{path}: {'; '.join(ended.broken)}: {' '.join(case.argv)[:150]!r}", flush=True)


def _replay(paths: list[Path], records: Path, home: Path, limit: float) -> int:
    """Run kept cases again and show what they print."""
    failed = 0
    for path in paths:
        case = from_json(path.read_text(encoding="utf-8"))
        ended = run_case(case, records, home / "box", limit)
        failed += bool(ended.broken)
        verdict = "; ".join(ended.broken) or "kept every promise"
        print(f"{path}: exit code {ended.code}, {ended.seconds:.1f} s, {verdict}\n{ended.out}{ended.err}", end="")
    print(f"{failed} of {len(paths)} cases failed")
    return int(failed > 0)


def _summarise(rows: list[dict], options: argparse.Namespace, seconds: float) -> None:
    """Counts by verb and by kind against exit codes, and the total."""
    codes = sorted({row["code"] for row in rows})
    for column in ("verb", "kind"):
        print(f"\n{column:<22}{'cases':>7}{''.join(f'{code:>7}' for code in codes)}{'failed':>8}")
        for name in sorted({row[column] for row in rows}):
            mine = [row for row in rows if row[column] == name]
            counts = collections.Counter(row["code"] for row in mine)
            numbers = "".join(f"{counts[code] or '':>7}" for code in codes)
            print(f"{name:<22}{len(mine):>7}{numbers}{sum(bool(row['broken']) for row in mine) or '':>8}")
    broken = sum(bool(row["broken"]) for row in rows)
    longest = max((row["seconds"] for row in rows), default=0.0)
    each = sum(row["seconds"] for row in rows) / max(len(rows), 1)
    print(
        f"\n{len(rows)} cases of seed {options.seed} from {options.first} on in {seconds:.0f} s: {broken} failed; "
        f"{each:.2f} s a case, the longest {longest:.1f} s"
    )


if __name__ == "__main__":
    sys.exit(main())
