"""Time to an accuracy: whole training runs over several seeds, each a process of its own, and their statistics."""

from __future__ import annotations

import shlex
import statistics
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from cifarbench import runs
from cifarbench.config.quoting import quoted
from cifarbench.errors import Interrupted, SweepError
from cifarbench.training.signals import run_child, stop_requests

CLOCKS = ("cold", "train", "train_test")


def race(
    entries: Sequence[tuple[str, list[str]]],
    seeds: Sequence[int],
    target: float,
    folder: Path,
    note: Callable[[str], None] = lambda text: None,
) -> list[dict[str, Any]]:
    """Train every entry with every seed, seed by seed so that the entries alternate, and summarise each.

    Args:
        entries: (label, overrides of `cifarbench train`) of each config.
        seeds: of the runs; a run that `folder` holds finished is not trained again.
        target: test accuracy, 0 to 1, that the mean is held against.
        folder: gets a run directory for each.
        note: is told about each run.

    Raises:
        SweepError: a run failed; its message is shown.
        Interrupted: a signal stopped it, and the run has saved its step.
    """
    manifests: list[list[dict[str, Any]]] = [[] for _ in entries]
    for seed in seeds:
        for index, (label, overrides) in enumerate(entries):
            directory = folder / f"{index}-seed{seed}"
            manifest = _trained([*overrides, f"seed={seed}"], directory)
            manifests[index].append(manifest)
            clock = manifest["timing"]["train_test"]
            note(f"{label}, seed {seed}: {manifest['test']['accuracy']:.2%} in {clock:.1f} s")
    return [
        {"label": label, "runs": [_facts(manifest) for manifest in taken], **summarise(taken, target)}
        for (label, _), taken in zip(entries, manifests, strict=True)
    ]


def _trained(overrides: list[str], directory: Path) -> dict[str, Any]:
    """Train in a process of its own, or take what an earlier one left; returns the run's record."""
    command = [sys.executable, "-m", "cifarbench", "train", *overrides, f"hydra.run.dir={quoted(str(directory))}"]
    with tempfile.TemporaryFile("w+") as said, stop_requests() as request:
        code = run_child([*command, "trainer.progress=none"], said, request)
        said.seek(0)
        lines = said.read().strip().splitlines()
    if request.number:
        again = shlex.quote(f"hydra.run.dir={runs.shown_path(directory.parent)}")
        raise Interrupted(f"stopped, saved; the same command with {again} goes on with it.", request.number)
    if code:
        raise SweepError(f"{' '.join(command[3:])} ended with exit code {code}: {lines[-1] if lines else ''}")
    return runs.read_manifest(directory)


def _facts(manifest: dict[str, Any]) -> dict[str, Any]:
    accuracy = {name: manifest["test"][name] for name in ("accuracy", "accuracy_official")}
    return {"seed": manifest["seed"], **accuracy, **{clock: manifest["timing"][clock] for clock in CLOCKS}}


def summarise(manifests: Sequence[dict[str, Any]], target: float) -> dict[str, Any]:
    """Mean, standard deviation and n of the test accuracy, the means of the three clocks, and the one-sided bar.

    `bar` is the mean that is needed to say, at the 5 % level, that the true mean is above `target`: target + t·σ/√n
    with Student's t for n - 1 degrees of freedom. The speedruns' 1.645 is its limit for many runs; for five, where σ is
    known from these alone, it would be passed by chance in nearly 9 of 100.
    """
    from scipy import stats

    accuracies = [manifest["test"]["accuracy"] for manifest in manifests]
    spread = statistics.stdev(accuracies) if len(accuracies) > 1 else None
    mean = statistics.fmean(accuracies)
    count = len(accuracies)
    bar = None if spread is None else target + float(stats.t.ppf(0.95, count - 1)) * spread / count**0.5
    clocks = {clock: statistics.fmean(manifest["timing"][clock] for manifest in manifests) for clock in CLOCKS}
    return {
        "n": count,
        "mean": mean,
        "std": spread,
        "target": target,
        "bar": bar,
        "passes": bar is not None and mean >= bar,
        "environment": manifests[0]["environment"],
        **clocks,
    }
