"""Kill training at random moments, resume it, and compare the end with that of a run that nothing disturbed.

    python scripts/kill.py [--kills 300] [--seed 0] [--only muon-ema-bf16] [--folder DIR]

Every combination of optimizer, EMA and precision is trained once undisturbed and many times disturbed. A kill comes
at a random moment, right before or after a random `fsync` or rename, or from the kernel in the middle of a write.
After each the directory must be readable; at the end weights, averaged weights, optimizer state, rows and test
accuracy must be identical. Exit code 1 where anything was not.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import warm

COMBINATIONS = [
    f"{optim}-{average}-{precision}"
    for optim, average, precision in itertools.product(("sgd", "adamw", "muon"), ("ema", "plain"), ("fp32", "bf16"))
]
WAYS = ("moment", "call", "write")
_BASE = [
    "data=synthetic",
    "data.size=1200",
    *warm.SMALL_CNN,
    "model.dropout=0.2",
    "augment=mixup",
    "scheduler=onecycle",
    "trainer.batch_size=96",
    "trainer.epochs=4",
    "trainer.checkpoint_every=2",
    "trainer.threads=1",
    "trainer.progress=none",
    "trainer.report=false",
]
_MOST_ATTEMPTS = 60  # kills of one run, after which it is left to end
_ENOUGH_FAULTS = 10


@dataclass
class Tally:
    """What one combination went through."""

    runs: int = 0
    kills: Counter[str] = field(default_factory=Counter)
    torn: int = 0
    faults: list[str] = field(default_factory=list)


def arguments(combination: str) -> list[str]:
    """The command line of a combination such as "muon-ema-bf16"."""
    optim, average, precision = combination.split("-")
    extra = ["trainer.ema=0.9"] if average == "ema" else ["trainer.tensorboard=false"]
    if optim == "muon":
        extra += ["model.whitening=true", "trainer.sizes=[24]", "trainer.size_until=[50%]"]
    return ["train", *_BASE, f"optim={optim}", f"trainer.precision={precision}", *extra]


# --- kills -----------------------------------------------------------------------------------------------------------


def disturbed(combination: str, home: Path, seconds: float, draw: random.Random, tally: Tally, most: int) -> Path:
    """Train in a new directory below `home`, killed up to `most` times, then to the end; returns the directory."""
    name = f"{combination}-{tally.runs}"
    run, log = home / name, home / f"{name}.log"
    argv = [*arguments(combination), f"hydra.run.dir={name}"]
    for _ in range(most):
        way = draw.choice(WAYS)
        prepare, patience = _prepared(way, draw, run), seconds * draw.random() if way == "moment" else 60.0
        code = warm.wait(warm.start(argv, home, log, prepare), patience)
        if code == 0:
            break
        if code is not None and code not in (-signal.SIGKILL, -signal.SIGXFSZ):
            tally.faults.append(f"{name}: exit code {code} where a kill was due; see {log}")
            break
        tally.kills[way] += 1
        tally.torn += any((run / "checkpoints").glob(".*.part"))
        tally.faults += [f"{name}, killed by {way}: {fault}" for fault in unreadable(run)]
    code = warm.run(argv, home, log)
    if code:
        tally.faults.append(f"{name}: exit code {code} at the end; see {log}")
    tally.runs += 1
    return run


def _prepared(way: str, draw: random.Random, run: Path) -> Callable[[], None]:
    """What a process is given to die of; a kill at a moment needs nothing."""
    if way == "call":
        return partial(_die_at_call, draw.randint(1, 25), draw.random() < 0.5)
    if way == "write":
        checkpoint = run / "checkpoints" / "last.pt"
        size = checkpoint.stat().st_size if checkpoint.exists() else 20_000
        return partial(_die_in_write, draw.randint(1, size - 1))
    return lambda: None


def _die_at_call(count: int, before: bool) -> None:
    """Kill this process right before, or after, its `count`-th fsync or rename."""
    left = itertools.count(1)

    def deadly(call: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*values: Any, **named: Any) -> Any:
            due = next(left) == count
            if due and before:
                os.kill(os.getpid(), signal.SIGKILL)
            result = call(*values, **named)
            if due:
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        return counted

    for name in ("fsync", "replace", "rename"):
        setattr(os, name, deadly(getattr(os, name)))


def _die_in_write(size: int) -> None:
    """Let the kernel end this process when it writes past the `size`-th byte of any file."""
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


def unreadable(run: Path) -> list[str]:
    """What a killed run's directory holds that cannot be read: manifest, config and checkpoints."""
    from cifarbench import runs
    from cifarbench.errors import CifarbenchError
    from cifarbench.training.checkpoint import load

    faults = []
    readers: list[tuple[Callable[[Path], Any], Path]] = [(runs.read_manifest, run)]
    if (run / "config.yaml").exists():
        readers.append((runs.read_config, run))
    readers += [(load, path) for path in (run / "checkpoints").glob("*.pt")]
    for read, path in readers:
        try:
            read(path)
        except CifarbenchError as error:
            faults.append(str(error))
    return faults


# --- comparison ------------------------------------------------------------------------------------------------------


def ending(run: Path) -> dict[str, Any]:
    """What must not depend on kills: hashes of weights, averaged weights and optimizer state, rows, test accuracy."""
    from cifarbench import runs
    from cifarbench.training.checkpoint import load, tensor_hash

    state = load(run / "checkpoints" / "last.pt")
    best = load(run / "checkpoints" / "best.pt")
    slots = {f"{i}/{name}": value for i, slot in state["optimizer"]["state"].items() for name, value in slot.items()}
    manifest = runs.read_manifest(run)
    clocks = ("seconds", "images_per_second")
    return {
        "weights": tensor_hash(state["model"]),
        "averaged weights": tensor_hash(state["ema"]),
        "best weights": tensor_hash(best["ema"] or best["model"]),
        "optimizer state": tensor_hash(slots),
        "optimizer groups": state["optimizer"]["param_groups"],
        "rows": [{k: v for k, v in row.items() if k not in clocks} for row in runs.read_rows(run)],
        "status": manifest.get("status"),
        "test": {name: manifest.get("test", {}).get(name) for name in ("accuracy", "loss")},
        "left-overs": sorted(path.name for path in run.rglob(".*.part")),
    }


def mismatches(run: Path, reference: dict[str, Any]) -> list[str]:
    """The parts of a run's ending that differ from those of the undisturbed one."""
    from cifarbench.errors import CifarbenchError

    try:
        found = ending(run)
    except (CifarbenchError, OSError) as error:
        return [f"{run.name}: {error}"]
    return [f"{run.name}: the {part} differ" for part in reference if found[part] != reference[part]]


# --- the whole -------------------------------------------------------------------------------------------------------


def campaign(combinations: list[str], kills: int, seed: int, home: Path) -> Iterator[tuple[str, Tally]]:
    """For each combination, runs until its share of the kills is done; yields the tally after every run."""
    draw = random.Random(seed)
    share = -(-kills // len(combinations))
    for combination in combinations:
        name = f"{combination}-undisturbed"
        argv = [*arguments(combination), f"hydra.run.dir={name}"]
        started = time.monotonic()
        if code := warm.run(argv, home, home / f"{name}.log"):
            raise SystemExit(f"{name}: exit code {code}; see {home / f'{name}.log'}")
        seconds, reference, tally = time.monotonic() - started, ending(home / name), Tally()
        while (left := share - tally.kills.total()) > 0:
            run = disturbed(combination, home, seconds, draw, tally, min(left, _MOST_ATTEMPTS))
            tally.faults += mismatches(run, reference)
            yield combination, tally
            if len(tally.faults) >= _ENOUGH_FAULTS:
                break
            if not tally.faults:
                shutil.rmtree(run)


def main() -> int:
    """Kill, resume, compare, and print what happened."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=300, help="how many, over all combinations")
    parser.add_argument("--seed", type=int, default=None, help="of the moments; drawn and printed where not given")
    parser.add_argument("--only", choices=COMBINATIONS, action="append", help="a combination, instead of all twelve")
    parser.add_argument("--folder", type=Path, help="where the runs go and stay, instead of a temporary folder")
    options = parser.parse_args()
    seed = options.seed if options.seed is not None else random.SystemRandom().randrange(1 << 32)
    print(f"seed {seed}")
    warm.import_everything()
    home = (options.folder or Path(tempfile.mkdtemp(prefix="cifarbench-kill-"))).resolve()
    home.mkdir(parents=True, exist_ok=True)
    tallies: dict[str, Tally] = {}
    for combination, tally in campaign(options.only or COMBINATIONS, options.kills, seed, home):
        tallies[combination] = tally
        print(f"{combination:<18} {tally.runs} runs, {tally.kills.total()} kills", file=sys.stderr)
    return _report(tallies, home)


def _report(tallies: dict[str, Tally], home: Path) -> int:
    faults = [fault for tally in tallies.values() for fault in tally.faults]
    print(f"{'combination':<18} {'runs':>4} " + " ".join(f"{way:>7}" for way in WAYS) + "   kills    torn  faults")
    for name, tally in tallies.items():
        ways = " ".join(f"{tally.kills[way]:>7}" for way in WAYS)
        print(f"{name:<18} {tally.runs:>4} {ways} {tally.kills.total():>7} {tally.torn:>7} {len(tally.faults):>7}")
    kills = sum(tally.kills.total() for tally in tallies.values())
    print(json.dumps({"kills": kills, "runs": sum(t.runs for t in tallies.values()), "faults": len(faults)}))
    print("\n".join(faults) or "every run ended as if nothing had happened to it")
    if faults:
        print(f"the directories are in {home}")
        return 1
    shutil.rmtree(home)
    return 0


if __name__ == "__main__":
    sys.exit(main())
