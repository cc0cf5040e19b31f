"""`cifarbench eval`: score a checkpoint again, rebuilt from nothing but the checkpoint itself."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

from cifarbench import runs
from cifarbench.commands.plugins import load_plugins
from cifarbench.commands.words import gather_one
from cifarbench.config.after import EvalConfig
from cifarbench.config.load import load

_KEYS = tuple(field.name for field in dataclasses.fields(EvalConfig))


def rewrite(arguments: list[str]) -> list[str]:
    """Turn `eval DIR` into `eval run=DIR`."""
    return gather_one(arguments, "run", _KEYS)


def run(values: dict[str, Any], directory: Path, overrides: list[str]) -> int:
    """Score what `values` names, print the result, and keep it in the run's folder `eval/`."""
    load_plugins(values.get("plugins") or [])
    config = load(EvalConfig, values)
    from cifarbench.training.restore import find_checkpoint, home_of

    path = find_checkpoint(config.run, config.checkpoint, config.which)
    home = home_of(path)
    report, dataset, recorded = score_checkpoint(config, path, home)
    _show(config.portion, path, home, report, dataset, recorded)
    return 0


def score_checkpoint(
    config: EvalConfig, path: Path, home: Path | None
) -> tuple[dict[str, Any], str, dict[str, Any] | None]:
    """Rebuild the model from the checkpoint at `path` and score the portion asked for.

    Returns:
        The report (as test.json), the dataset's caption, and the run's recorded test result where it is comparable.

    Raises:
        IntegrityError: the checkpoint is damaged, hostile, or was made on other data.
    """
    from cifarbench.data.duplicates import test_duplicates
    from cifarbench.evaluation.metrics import score
    from cifarbench.evaluation.predict import predict
    from cifarbench.training.restore import images_of, restore, tested_views

    trained = restore(path, config.root)
    compute = trained.compute(config.device, config.precision, config.threads)
    data, parts = images_of(trained)
    model, trainer = trained.on(compute), trained.config.trainer
    portion, official = _portion(config.portion, parts, home)
    images = portion.images.to(compute.device)
    views = tested_views(trained)
    tta = views if config.tta == "auto" else config.tta
    logits = predict(model, images, trained.statistics, compute, tta, trainer.channels_last)
    duplicates = test_duplicates(parts, data.fingerprint) if config.portion == "test" else None
    report = {**score(logits, portion.targets, data.classes, official, duplicates), "tta": tta}
    comparable = config.portion == "test" and tta == views
    recorded = _recorded(path, home) if home and comparable else None
    return report, f"{data.name}, split {parts.name}", recorded


def _recorded(path: Path, home: Path) -> dict[str, Any] | None:
    """The test result in the run's manifest, where the checkpoint at `path` is the one that was tested."""
    manifest = runs.read_manifest(home)
    tested = "best.pt" if manifest.get("tested") == "best" else "last.pt"
    return manifest.get("test") if path.resolve() == (home / "checkpoints" / tested).resolve() else None


def _portion(name: str, parts: Any, home: Path | None) -> tuple[Any, Any]:
    """The images to score and which of them are official test images; opening the test part is counted in run.json."""
    if name == "test":
        if home is not None:
            runs.count_opening(home)
        return parts.test.open(), parts.test.official
    return parts.unsealed(name), None


def _show(
    portion: str,
    path: Path,
    home: Path | None,
    report: dict[str, Any],
    dataset: str,
    recorded: dict[str, Any] | None,
) -> None:
    from cifarbench.reporting.console import output_console, result_panel
    from cifarbench.reporting.results import write_confusion

    paths = {"checkpoint": str(path)}
    if home is not None:
        paths = {"run": str(home), "checkpoint": path.name}
        (home / "eval").mkdir(exist_ok=True)
        tta = report["tta"]
        stem = f"{path.stem}-{portion}-{tta}"
        target = home / "eval" / f"{stem}.json"
        runs.write_json(target, {**report, "portion": portion, "checkpoint": path.name})
        note = f"{dataset}, {portion} images, tta {tta}"
        write_confusion(home / "eval", report, tuple(report["per_class"]), note, f"{stem}-")
        paths["in it"] = f"eval/{target.name}"
    console = output_console()
    console.print(result_panel(report, dataset, paths, portion))
    if portion == "test" and home is not None:
        manifest = runs.read_manifest(home)
        openings, status = manifest["test"]["openings"], manifest.get("status")
        console.print(f"the test part was opened for this: openings of this run are now {openings}")
        if status != "completed":
            console.print(f"the run is {status}, not completed: what is trained from here on, is trained after a test")
    if recorded and recorded.get("accuracy") is not None:
        console.print(f"recorded test accuracy: {recorded['accuracy']:.4%}, {_compared(recorded, report)}")


def _compared(recorded: dict[str, Any], report: dict[str, Any]) -> str:
    """What is said of a score beside the recorded one; the loss tells other answers of the same accuracy apart."""
    if recorded["accuracy"] != report["accuracy"]:
        return "not the same"
    before, now = recorded.get("loss"), report["loss"]
    if isinstance(before, float) and not math.isclose(before, now, rel_tol=1e-3):
        return f"the same by other answers: their loss is {now:.4f}, recorded {before:.4f}"
    return "reproduced exactly"
