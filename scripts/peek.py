"""What choosing the epoch on the test images would claim: a demonstration that breaks the seal on purpose.

    python scripts/peek.py [--dir DIR] [OVERRIDE …]

Trains as `cifarbench train` does, without looking at a test image, and keeps the weights of every epoch. Only then
are they scored on the test part, one opening an epoch, all of them counted in run.json. DIR/peek.json holds the
scores; run.json's own test result is that of the epoch which validation picked. The same command goes on where it
was stopped, and leaves a finished run as it is.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

from cifarbench import runs
from cifarbench.commands.hydra_app import compose
from cifarbench.config.load import load
from cifarbench.config.schema import TrainConfig
from cifarbench.errors import ConfigError, Interrupted, explain
from cifarbench.output import outlive_readers
from cifarbench.training import checkpoint
from cifarbench.training.observer import Observer, RunFacts

SEALED = "trainer.test=false"  # while it trains; the scoring is what this script adds


class KeepEpochs(Observer):
    """Copies last.pt to epochs/<n>.pt after each epoch, when it holds that epoch's end."""

    def __init__(self, run: runs.RunDirectory) -> None:
        self.checkpoints, self.folder = run.checkpoints, run.path / "epochs"

    def start(self, facts: RunFacts, model: Any) -> None:
        """After a resume: keep the epoch whose copy a kill prevented."""
        self.folder.mkdir(exist_ok=True)
        found = checkpoint.newest_valid(self.checkpoints)
        if found and found[1]["progress"]["batch"] == 0:
            checkpoint.copy(found[0], self.folder / f"{found[1]['progress']['epoch']}.pt")

    def epoch(self, row: dict[str, Any], is_best: bool) -> None:
        """Called after the epoch's checkpoint was written."""
        checkpoint.copy(self.checkpoints / "last.pt", self.folder / f"{row['epoch']}.pt")


def main() -> int:
    """Train and score as the command line says; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dir", type=Path, help="the run directory (a new one below outputs/peek/)")
    parser.add_argument("overrides", nargs="*", help="as after `cifarbench train`")
    given = parser.parse_args()
    started = time.monotonic()
    outlive_readers()
    try:
        runs.register_resolvers()
        config = _checked(load(TrainConfig, compose("train", [*given.overrides, SEALED])))
        directory = given.dir or Path("outputs", "peek", runs.run_name(config.model.name))
        _run(config, runs.RunDirectory(directory), ["peek", *given.overrides], started)
        return 0
    except KeyboardInterrupt:
        print("peek: interrupted", file=sys.stderr)
        return 130
    except Exception as error:
        sentence, code = explain(error)
        print(f"peek: {sentence}", file=sys.stderr)
        return code


def _checked(config: TrainConfig) -> TrainConfig:
    """The config, refused where it leaves nothing to compare."""
    if not config.split.val_fraction or config.trainer.validate_every != 1:
        raise ConfigError("peek compares validation and test after each epoch; set `split.val_fraction` above 0 "
                          "and `trainer.validate_every=1`.")  # fmt: skip
    if config.trainer.checkpoint_epochs != 1:
        raise ConfigError(f"peek scores the weights of each epoch, and `trainer.checkpoint_epochs` is "
                          f"{config.trainer.checkpoint_epochs}; leave it at 1.")  # fmt: skip
    if config.trainer.tta != "none":
        raise ConfigError(f"`trainer.tta` is {config.trainer.tta!r}; peek scores plain images: trainer.tta=none.")
    return config


def _run(config: TrainConfig, run: runs.RunDirectory, command: list[str], started: float) -> None:
    run.acquire()
    try:
        if run.manifest.get("status") == "completed":
            print(f"{runs.shown_path(run.path)} is already complete; nothing was changed.")
            return
        run.command = command
        _train_and_score(config, run, started)
        run.update(status="completed")
    except BaseException as error:
        if run.manifest.get("status") == "running":
            stopped = isinstance(error, (Interrupted, KeyboardInterrupt))
            run.update(status="interrupted" if stopped else "failed", reason=str(error))
        raise
    finally:
        run.release()


def _train_and_score(config: TrainConfig, run: runs.RunDirectory, started: float) -> None:
    """Train with the seal closed, then score each epoch's weights on the test part."""
    from cifarbench.data.load import load_images
    from cifarbench.reporting.console import make_console
    from cifarbench.reporting.metrics_file import MetricsFile
    from cifarbench.training.clock import Clock
    from cifarbench.training.distributed import World
    from cifarbench.training.observer import Observers
    from cifarbench.training.session import train

    console = make_console(config.trainer.progress)
    data = load_images(config.data, console.note)
    observers = Observers(MetricsFile(run), console, KeepEpochs(run))
    try:
        outcome = train(config, data, run, observers, World(), Clock(started=started))
    finally:
        console.close()
    _score(run, data, outcome, console)


def _score(run: runs.RunDirectory, data: Any, outcome: Any, console: Any) -> None:
    """Score every epoch's weights once, an opening each; the headline is the epoch that validation picked."""
    from cifarbench.reporting.results import write_results

    rows, scores = runs.read_rows(run.path), []
    picked = run.manifest["best"]["epoch"]
    for row in rows:
        report, logits = _epoch_scores(run, data, outcome.parts, row["epoch"])
        scores.append(report["accuracy"])
        console.note(f"epoch {row['epoch']}: validation {row['val_accuracy']:.2%}, test {report['accuracy']:.2%}")
        if row["epoch"] == picked:
            kept = type(outcome)(report, logits, outcome.parts, "best", outcome.scored)
    values = {"epochs": [row["epoch"] for row in rows], "val_accuracy": [row["val_accuracy"] for row in rows]}
    runs.write_json(run.path / "peek.json", {**values, "test_accuracy": scores})
    write_results(run, data, kept)


def _epoch_scores(run: runs.RunDirectory, data: Any, parts: Any, epoch: int) -> tuple[dict[str, Any], Any]:
    """The report and the logits of one epoch's weights on the test part."""
    from cifarbench.data.duplicates import test_duplicates
    from cifarbench.evaluation.metrics import score
    from cifarbench.evaluation.predict import predict
    from cifarbench.training.restore import restore

    trained = restore(run.path / "epochs" / f"{epoch}.pt")
    compute = trained.compute(trained.config.trainer.device, "auto", None)
    run.count_opening()
    portion = parts.test.open()
    images = portion.images.to(compute.device)
    layout = trained.config.trainer.channels_last
    logits = predict(trained.on(compute), images, trained.statistics, compute, "none", layout).cpu()
    duplicates = test_duplicates(parts, data.fingerprint)
    return {**score(logits, portion.targets, data.classes, parts.test.official, duplicates), "tta": "none"}, logits


if __name__ == "__main__":
    sys.exit(main())
