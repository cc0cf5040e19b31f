"""Records: what RESULTS.md is made from, a small JSON file for each finished run, read without trust."""

from __future__ import annotations

import dataclasses
import json
import math
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cifarbench import runs
from cifarbench.config.history import complete
from cifarbench.config.keys import rule_of
from cifarbench.config.schema import TrainerConfig
from cifarbench.errors import IntegrityError
from table.rows import PROFILES, Job

ROOT = Path(__file__).resolve().parents[2]
COMMITTED = ROOT / "scripts" / "results"
SCHEMA = 1
NOTE = "reproduce.json"  # in a run directory: what the run itself cannot know
SHARED = "not timed: the machine was shared"
SCORING = ("tta", "test")  # keys that leave the weights alone and change what the test part shows
_NEUTRAL = {field.name for field in dataclasses.fields(TrainerConfig) if rule_of(field).neutral} - {*SCORING}
_COUNTED = ("untimed_steps", "checkpoint_epochs", "checkpoint_every", "tensorboard")  # of neutral keys those in times
_NOT_RECIPE = ("seed", "data", "plugins")  # the images are named by their fingerprint, not by where they lay
_CLOCKS = ("training", "train", "train_test", "cold")
_TEST = ("accuracy", "accuracy_official", "accuracy_without_duplicates", "loss", "openings")
_CIFAR10 = "88cb2239d6faefc5313a1d8af7f0e1a122be82a5a0930f0bea3314cf9c3f44ca"  # of the published 60,000 images


def write_note(directory: Path, shared: bool, one_process: bool = False) -> None:
    """Note beside a run that begins or goes on which version of the project ran it and which of its times count."""
    before = runs.read_json(directory / NOTE)
    commits = [*before.get("commits", []), commit()]
    directory.mkdir(parents=True, exist_ok=True)
    kept = {
        "commits": list(dict.fromkeys(commits)),
        "shared": shared or bool(before.get("shared")),
        "one_process": one_process or bool(before.get("one_process")),
    }
    runs.write_json(directory / NOTE, kept)


def commit() -> str | None:
    """The project's git commit, with "-dirty" where its files differ from it; None outside a checkout."""
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return found.stdout.strip() or None


def record_of(job: Job, directory: Path) -> dict[str, Any]:
    """The record of the finished run in `directory`: a function of what lies there and of the job alone."""
    manifest, rows = runs.read_manifest(directory), runs.read_rows(directory)
    note, best, timing = runs.read_json(directory / NOTE), manifest.get("best") or {}, manifest["timing"]
    report = runs.read_json(directory / "test.json")
    shared, peek = bool(note.get("shared")), runs.read_json(directory / "peek.json")
    warm = {"cold": None} if note.get("one_process") else {}  # what an earlier run compiled was there already
    return {
        "schema": SCHEMA,
        "row": job.row.name,
        "profile": job.profile,
        "seed": job.seed,
        "command": f"{job.label} seed={job.seed}" if job.row.verb != "baseline" else job.label,
        "label": job.label,
        "config": {name: value for name, value in runs.read_config(directory).items() if name not in _NOT_RECIPE},
        "dataset": manifest["dataset"],
        "split": manifest["split"],
        "model": manifest["model"],
        "weights": manifest.get("weights"),
        "epochs": len(rows) or None,
        "best_epoch": best.get("epoch"),
        "val_accuracy": best.get("val_accuracy"),
        "test": {"n": manifest["split"]["test"], **{name: manifest["test"].get(name) for name in _TEST}},
        "tta": report.get("tta"),
        "timing": None if shared else {name: timing.get(name) for name in _CLOCKS} | warm,
        "not_timed": SHARED if shared else None,
        "sessions": len(manifest.get("sessions", [])) or 1,
        "environment": manifest["environment"],
        "earlier_environments": _earlier(manifest),
        "commits": note.get("commits", []),
        "date": _date(manifest, directory),
        **({"k": best["k"]} if "k" in best else {}),
        **({"peek": {name: peek[name] for name in ("val_accuracy", "test_accuracy")}} if peek else {}),
    }


def _earlier(manifest: dict[str, Any]) -> list[dict[str, Any]]:
    """The environments of a resumed run's earlier sessions that differ from the last one."""
    last, found = manifest["environment"], []
    for session in manifest.get("sessions", []):
        facts = {name: session.get(name) for name in last}
        if facts != last and facts not in found:
            found.append(facts)
    return found


def _date(manifest: dict[str, Any], directory: Path) -> str:
    """The day on which the run was started last."""
    sessions = manifest.get("sessions")
    if sessions:
        return str(sessions[-1]["started"])[:10]
    return time.strftime("%Y-%m-%d", time.gmtime((directory / "predictions.npz").stat().st_mtime))


def write_record(job: Job, folder: Path) -> dict[str, Any]:
    """Write the record of a job's finished run below `folder`, unless that very record is there already; returns it.

    Raises:
        IntegrityError: the run's files are damaged.
    """
    try:
        record = record_of(job, job.directory)
    except (KeyError, TypeError, OSError) as error:
        raise IntegrityError(f"{job.directory} is not a finished run ({type(error).__name__}: {error}).") from error
    target = folder / job.record
    if not target.is_file() or json.loads(target.read_text(encoding="utf-8")) != record:
        target.parent.mkdir(parents=True, exist_ok=True)
        runs.write_json(target, record)
    return record


# --- reading ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Record:
    """A checked record. `environment` is the words of its hardware and versions; accuracies in 0..1."""

    path: Path
    values: dict[str, Any]
    row: str
    profile: str
    seed: int
    accuracy: float
    official: float | None
    environment: str

    @property
    def line(self) -> tuple[Any, ...]:
        """What records must share to be averaged: recipe, split, profile, what clocks count, hardware and versions."""
        trainer = complete(self.values["config"]).get("trainer", {})
        return (*self.recipe, *(trainer.get(name) for name in _COUNTED), self.environment)

    @property
    def recipe(self) -> tuple[Any, ...]:
        """What records must share to be compared: row, profile, command, split, and keys that can change a score."""
        told = recipe_of(self.values["config"])
        return self.row, self.profile, self.values["label"], told, self.values["split"]["fingerprint"]

    def seconds(self, clock: str) -> float | None:
        """One of the clocks; None where the time was not measured."""
        return (self.values["timing"] or {}).get(clock)


def recipe_of(config: dict[str, Any]) -> str:
    """The keys of a plain config that can change a score, as one string to compare; images and plugins are not recipe.

    Completed, as a config from before a key existed is that of the value which does what was done then.
    """
    values = {name: value for name, value in complete(config).items() if name not in _NOT_RECIPE}
    trainer = {name: value for name, value in values.get("trainer", {}).items() if name not in _NEUTRAL}
    return json.dumps({**values, "trainer": trainer}, sort_keys=True)


def read_records(folder: Path, dataset: str) -> list[Record]:
    """Every record below `folder`, in the order of profile, row and seed.

    Raises:
        IntegrityError: one is damaged, is not what its name says, or is of another dataset than `dataset`.
    """
    paths = [path for profile in PROFILES for path in (folder / profile).glob("*.json")]
    records = [_read(path, dataset) for path in paths]
    for record in records:
        if record.values["dataset"] != records[0].values["dataset"]:
            raise IntegrityError(f"{record.path} and {records[0].path} are of different images; they share no table.")
    return sorted(records, key=lambda record: (record.profile, record.row, record.seed))


def _read(path: Path, dataset: str) -> Record:
    values = runs.read_json(path)
    try:
        record = _checked(path, values)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise IntegrityError(f"{path} is no record of this schema ({type(error).__name__}: {error}).") from error
    expected = f"{record.profile}/{record.row}-seed{record.seed}.json"
    if not path.as_posix().endswith(f"/{expected}"):
        raise IntegrityError(f"{path} is the record of {expected}; give it that name back.")
    name, fingerprint = (values["dataset"][key] for key in ("name", "fingerprint"))
    if name != dataset or (dataset == "cifar10" and fingerprint != _CIFAR10):
        raise IntegrityError(
            f"{path} is of the dataset {name} {str(fingerprint)[:12]}, and this table holds {dataset} alone; "
            "remove the record."
        )
    return record


def _checked(path: Path, values: dict[str, Any]) -> Record:
    if values["schema"] != SCHEMA:
        raise ValueError(f"its schema is {values['schema']!r}")
    accuracy, official = float(values["test"]["accuracy"]), values["test"]["accuracy_official"]
    scores = [accuracy, *([official] if official is not None else []), *_scores(values.get("peek"))]
    if not all(isinstance(score, float) and 0 <= score <= 1 for score in scores):
        raise ValueError(f"an accuracy is not in 0..1: {scores}")
    times = [value for value in (values["timing"] or {}).values() if value is not None]
    if not all(math.isfinite(value) and value >= 0 for value in times):
        raise ValueError(f"a time is not a number of seconds: {times}")
    dict(complete(values["config"]).get("trainer", {}))
    whole = int(values["model"]["parameters"]), int(values["model"]["flops"]), int(values["seed"])
    row, profile = (str(values[key]) for key in ("row", "profile"))
    machines = [hardware(facts) for facts in (*values["earlier_environments"], values["environment"])]
    return Record(path, values, row, profile, whole[2], accuracy, official, "; then ".join(machines))


def _scores(peek: dict[str, list[float]] | None) -> list[float]:
    if peek is None:
        return []
    if len(peek["test_accuracy"]) != len(peek["val_accuracy"]) or not peek["test_accuracy"]:
        raise ValueError("its epochs have not one validation and one test score each")
    return [*peek["val_accuracy"], *peek["test_accuracy"]]


def hardware(facts: dict[str, Any]) -> str:
    """The words for hardware and versions; what differs in them is never averaged."""
    threads = f", {facts['threads']} thread{'s' if facts['threads'] > 1 else ''}" if facts["device"] == "cpu" else ""
    processes = f", {facts['processes']} processes" if facts["processes"] > 1 else ""
    versions = f"torch {facts['torch']}, Python {facts['python']}, cifarbench {facts['cifarbench']}"
    kernels = ", own kernels" if facts.get("kernels") == "own" else ""
    return f"{facts['device_name']}{threads}{processes}, {facts['precision']}{kernels}, {versions}"
