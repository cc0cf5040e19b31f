"""Random work for a while, then a check of everything that it left on the disk.

    python scripts/soak.py [--minutes 60] [--seed S] [--folder DIR]

Trains, kills, stops, resumes, sweeps, scores again, reports and ranks small runs on drawn images, in one folder and in
random order. At the end each run that was begun is resumed to its end, and then every directory must hold what a
finished run holds, say the same in each of its files, and score again as it was scored. Exit code 1 where it does not.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import warm

_BASE = ["data=synthetic", "data.size=1200", "trainer.threads=1", "trainer.progress=none", "trainer.checkpoint_every=3"]
_MODELS = [
    warm.SMALL_CNN,
    ["model=resnet", "model.blocks=[1,1]", "model.widths=[8,16]"],
    ["model=vgg", "model.depth=11", "model.width=0.0625"],
    ["model=efficientnet_lite", "model.width=0.2", "model.depth=0.2"],
    ["model=linear"],
]
_CHOICES = {
    "optim": ["sgd", "adamw", "muon", "adam", "rmsprop"],
    "augment": ["none", "standard", "cutout", "mixup", "strong"],
    "scheduler": ["onecycle", "cosine", "constant", "plateau"],
    "trainer.ema": ["0.0", "0.9"],
    "trainer.epochs": ["1", "2", "3"],
    "trainer.batch_size": ["64", "128"],
    "trainer.tensorboard": ["true", "false"],
    "trainer.report": ["true", "false"],
}
_FINE = {0, 4, 130, 138, 143}  # 4: what was drawn may diverge
_LONGEST = 180.0  # seconds for one command
_FILES = ("config.yaml", "run.json", "metrics.jsonl", "test.json", "predictions.npz", "confusion_matrix.csv",
          "confusion_matrix.png", "checkpoints/last.pt")  # fmt: skip


@dataclass
class Soak:
    """The folder that the work is done in, what was done, and what went wrong."""

    home: Path
    draw: random.Random
    done: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)
    numbers: itertools.count = field(default_factory=itertools.count)

    @property
    def log(self) -> Path:
        """Where all commands write."""
        return self.home / "log"

    def runs(self) -> list[Path]:
        """Every run directory, those of sweeps too."""
        return sorted(path.parent for path in self.home.glob("**/run.json"))

    def finished(self) -> list[str]:
        """The names of the finished runs, below the folder."""
        from cifarbench import runs

        found = [run for run in self.runs() if runs.read_manifest(run).get("status") == "completed"]
        return [str(run.relative_to(self.home)) for run in found]

    def command(self, *argv: str, fine: frozenset[int] = frozenset({0})) -> None:
        """Run a command to its end; another exit code than the `fine` ones is a fault."""
        code = warm.run(argv, self.home, self.log, _LONGEST)
        if code not in fine:
            self.faults.append(f"exit code {code}: cifarbench {' '.join(argv)}")


# --- what is done ----------------------------------------------------------------------------------------------------


def recipe(draw: random.Random) -> list[str]:
    """The overrides of a random small run."""
    chosen = [f"{key}={draw.choice(options)}" for key, options in _CHOICES.items()]
    return [*_BASE, *draw.choice(_MODELS), *chosen, f"seed={draw.randrange(5)}"]


def train(soak: Soak) -> None:
    """A run, left to end."""
    soak.command("train", *recipe(soak.draw), f"hydra.run.dir=run{next(soak.numbers)}", fine=frozenset({0, 4}))


def disturb(soak: Soak) -> None:
    """A run that is killed or stopped at a random moment."""
    _disturbed(soak, ["train", *recipe(soak.draw), f"hydra.run.dir=run{next(soak.numbers)}"])


def sweep(soak: Soak) -> None:
    """A sweep over two seeds, left to end or disturbed; sometimes one that is there already."""
    words = [word for word in recipe(soak.draw) if not word.startswith("seed=")]
    argv = ["train", "-m", *words, "seed=1,2", f"hydra.sweep.dir=sweep{next(soak.numbers)}"]
    if soak.draw.random() < 0.5:
        _disturbed(soak, argv)
    soak.command(*argv, fine=frozenset({0, 1}))


def resume(soak: Soak) -> None:
    """Go on with any run that was begun, disturbed again or not."""
    run = _any(soak, soak.runs())
    if run is None:
        return
    argv = ["train", f"trainer.resume={run.relative_to(soak.home)}"]
    if soak.draw.random() < 0.3:
        _disturbed(soak, argv)
    else:
        soak.command(*argv, fine=frozenset({0, 3, 4}))


def score(soak: Soak) -> None:
    """Score a finished run again on validation, which opens no seal."""
    if name := _any(soak, soak.finished()):
        soak.command("eval", f"run={name}", "portion=val")


def fork(soak: Soak) -> None:
    """A new run from a finished one's weights."""
    name = _any(soak, [name for name in soak.finished() if (soak.home / name / "checkpoints" / "last.pt").exists()])
    if name:
        stored = json.loads((soak.home / name / "run.json").read_text())["command"][2:]
        words = [str(word) for word in stored if not word.startswith(("hydra.", "trainer.resume", "trainer.fork"))]
        if any(word.startswith("model=") for word in words):
            soak.command("train", *words, f"trainer.fork={name}", f"hydra.run.dir=run{next(soak.numbers)}",
                         fine=frozenset({0, 4}))  # fmt: skip


def report(soak: Soak) -> None:
    """The page of one finished run."""
    if name := _any(soak, soak.finished()):
        soak.command("report", f"run={name}")


def rank(soak: Soak) -> None:
    """The leaderboard of everything."""
    if soak.finished():
        soak.command("leaderboard", ".")


def _disturbed(soak: Soak, argv: list[str]) -> None:
    number = soak.draw.choice((signal.SIGKILL, signal.SIGTERM, signal.SIGINT))
    code = warm.wait(warm.start(argv, soak.home, soak.log), 4 * soak.draw.random(), number)
    if code is not None and code not in _FINE | {-signal.SIGTERM, -signal.SIGINT, 1, 3}:
        soak.faults.append(f"exit code {code} after {signal.Signals(number).name}: cifarbench {' '.join(argv)}")


def _any(soak: Soak, found: list[Any]) -> Any:
    return soak.draw.choice(found) if found else None


_WORK: dict[str, tuple[int, Callable[[Soak], None]]] = {
    "train": (3, train),
    "disturb": (6, disturb),
    "resume": (5, resume),
    "sweep": (1, sweep),
    "fork": (1, fork),
    "score": (2, score),
    "report": (1, report),
    "rank": (1, rank),
}


# --- what is checked -------------------------------------------------------------------------------------------------


def settle(soak: Soak) -> None:
    """Let every run that was begun come to its end."""
    from cifarbench import runs

    for run in soak.runs():
        if runs.read_manifest(run).get("status") not in ("completed", "failed"):
            soak.command("train", f"trainer.resume={run.relative_to(soak.home)}", fine=frozenset({0, 4}))


def check(soak: Soak) -> None:
    """Look at every directory; what is not as it should be is a fault."""
    from cifarbench import runs
    from cifarbench.errors import CifarbenchError

    for run in soak.runs():
        try:
            status = runs.read_manifest(run).get("status")
            found = inconsistencies(run) if status == "completed" else []
        except (CifarbenchError, OSError, KeyError) as error:
            status, found = "unreadable", [f"{type(error).__name__}: {error}"]
        soak.faults += [f"{run.relative_to(soak.home)}: {fault}" for fault in found]
        if status not in ("completed", "failed"):
            soak.faults.append(f"{run.relative_to(soak.home)} is {status}")
    soak.faults += [f"left over: {path}" for path in soak.home.glob("**/.*.part")]


def inconsistencies(run: Path) -> list[str]:
    """What the files of a finished run say against each other, or lack."""
    import numpy as np

    from cifarbench import runs
    from cifarbench.evaluation.predictions import read_predictions
    from cifarbench.training.checkpoint import load, tensor_hash, tested_weights

    found = [f"{name} is missing" for name in _FILES if not (run / name).is_file()]
    manifest, rows, test = runs.read_manifest(run), runs.read_rows(run), runs.read_json(run / "test.json")
    steps = [row["step"] for row in rows]
    if steps != sorted(set(steps)) or [row["epoch"] for row in rows] != list(range(1, len(rows) + 1)):
        found.append(f"metrics.jsonl: the steps are {steps}")
    if manifest["test"]["openings"] < 1 or manifest["test"]["accuracy"] != test["accuracy"]:
        found.append("run.json and test.json differ in the test")
    right = read_predictions(run).right.double().mean().item()
    matrix = np.array(test["confusion_matrix"])
    if abs(right - test["accuracy"]) > 1e-9 or abs(np.trace(matrix) / matrix.sum() - test["accuracy"]) > 1e-9:
        found.append("predictions, confusion matrix and accuracy differ")
    state = load(run / "checkpoints" / f"{manifest['tested']}.pt")
    if tensor_hash(tested_weights(state)) != manifest["weights"]:
        found.append("the tested weights are not those of the checkpoint")
    return [*found, *_doubled_events(run)]


def _doubled_events(run: Path) -> list[str]:
    """The tags of a TensorBoard log in which a step stands twice."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    if not (run / "tensorboard").is_dir():
        return []
    events = EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    if "train/loss" not in events.Tags()["scalars"]:
        return []
    steps = [point.step for point in events.Scalars("train/loss")]
    return [] if steps == sorted(set(steps)) else [f"TensorBoard: the steps of train/loss are {steps}"]


def rescore(soak: Soak, count: int = 20) -> None:
    """Score some finished runs on the test part again: eval itself says whether the number is the recorded one."""
    names = soak.finished()
    for name in soak.draw.sample(names, min(count, len(names))):
        before = json.loads((soak.home / name / "test.json").read_text())["accuracy"]
        soak.command("eval", f"run={name}")
        written = sorted((soak.home / name / "eval").glob("*-test-*.json"))
        if not written or json.loads(written[-1].read_text())["accuracy"] != before:
            soak.faults.append(f"{name} does not score again as it was scored")


def main() -> int:
    """Work, settle, check, and print what happened."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60, help="of random work; settling and checking come on top")
    parser.add_argument("--seed", type=int, default=None, help="of the work; drawn and printed where not given")
    parser.add_argument("--folder", type=Path, help="where to work, instead of a temporary folder")
    options = parser.parse_args()
    seed = options.seed if options.seed is not None else random.SystemRandom().randrange(1 << 32)
    print(f"seed {seed}", flush=True)
    warm.import_everything()
    home = options.folder or Path(tempfile.mkdtemp(prefix="cifarbench-soak-"))
    home.mkdir(parents=True, exist_ok=True)
    soak = Soak(home.resolve(), random.Random(seed))
    deadline = time.monotonic() + 60 * options.minutes
    names, weights = list(_WORK), [weight for weight, _ in _WORK.values()]
    while time.monotonic() < deadline and len(soak.faults) < 10:
        (name,) = soak.draw.choices(names, weights)
        _WORK[name][1](soak)
        soak.done[name] += 1
    settle(soak)
    check(soak)
    rescore(soak)
    return _report(soak)


def _report(soak: Soak) -> int:
    print(", ".join(f"{name} {count}" for name, count in soak.done.items()))
    print(json.dumps({"work": soak.done.total(), "runs": len(soak.runs()), "finished": len(soak.finished()),
                      "faults": len(soak.faults)}))  # fmt: skip
    print("\n".join(soak.faults) or "everything on the disk is as it should be")
    if soak.faults:
        print(f"the runs and their log are in {soak.home}")
        return 1
    shutil.rmtree(soak.home)
    return 0


if __name__ == "__main__":
    sys.exit(main())
