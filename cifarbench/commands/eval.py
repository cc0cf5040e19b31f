"""`cifarbench eval`: score a checkpoint again, rebuilt from nothing but the checkpoint itself."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

from cifarbench import runs
from cifarbench.commands.plugins import load_plugins
from cifarbench.config.load import load
from cifarbench.config.schema import EvalConfig, TrainConfig
from cifarbench.errors import ConfigError, IntegrityError


def rewrite(arguments: list[str]) -> list[str]:
    """The arguments as they are: nothing of them needs Hydra's help."""
    return arguments


def run(values: dict[str, Any], directory: Path, overrides: list[str]) -> int:
    """Score what `values` names, print the result, and keep it in the run's folder `eval/`."""
    load_plugins(values.get("plugins") or [])
    config = load(EvalConfig, values)
    path = find_checkpoint(config)
    home = path.parent.parent if (path.parent.parent / "run.json").is_file() else None
    report, dataset, recorded = score_checkpoint(config, path, home)
    _show(config.portion, path, home, report, dataset, recorded)
    return 0


def find_checkpoint(config: EvalConfig) -> Path:
    """The checkpoint file that the config names; ConfigError where it is not there."""
    if config.checkpoint is not None:
        path = Path(config.checkpoint)
        if not path.is_file():
            raise ConfigError(f"`checkpoint` is {config.checkpoint!r}, which is no file.")
        return path
    home = Path(config.run or "")
    if not home.is_dir():
        raise ConfigError(f"`run` is {config.run!r}, which is no directory.")
    which = config.which if config.which != "tested" else runs.read_manifest(home).get("tested", "last")
    path = home / "checkpoints" / f"{which if which in ('best', 'last') else 'last'}.pt"
    if not path.is_file():
        raise ConfigError(f"{home} has no {path.name} in checkpoints/; it is no run directory, or kept none yet.")
    return path


def score_checkpoint(
    config: EvalConfig, path: Path, home: Path | None
) -> tuple[dict[str, Any], str, dict[str, Any] | None]:
    """Rebuild the model from the checkpoint at `path` and score the portion asked for.

    Returns:
        The report (as test.json), the dataset's caption, and the run's recorded test result where it is comparable.

    Raises:
        IntegrityError: the checkpoint is damaged, hostile, or was made on other data.
    """
    from cifarbench.data.load import load_images
    from cifarbench.data.split import split
    from cifarbench.evaluation.metrics import score
    from cifarbench.evaluation.predict import predict
    from cifarbench.training import checkpoint
    from cifarbench.training.session import build_model

    state = checkpoint.load(path)
    trained = _trained_config(state, path, config.root)
    passport = checkpoint.passport_of(path, state)
    compute = _compute(config, passport)
    data = load_images(trained.data)
    parts = split(data, trained.split)
    if parts.fingerprint != passport["split"]["fingerprint"]:
        raise IntegrityError(
            f"{path} was trained on other data or another split ({state['passport']['split']['fingerprint'][:12]}) "
            f"than what lies here ({parts.fingerprint[:12]}); its numbers would not be comparable."
        )
    model = build_model(trained)
    weights = state["ema"] or state["model"]
    if state["ema"]:
        weights = {name.removeprefix("module."): value for name, value in weights.items() if name != "n_averaged"}
    checkpoint.load_weights(model, weights, path)
    layout = trained.trainer.channels_last
    model = model.to(compute.device)
    if layout:
        import torch

        model = model.to(memory_format=torch.channels_last)
    portion, official = _portion(config.portion, parts, home)
    statistics = (tuple(passport["mean"]), tuple(passport["std"]))
    images = portion.images.to(compute.device)
    tta = trained.trainer.tta if config.tta == "auto" else config.tta
    logits = predict(model, images, statistics, compute, tta, layout)
    report = {**score(logits, portion.targets, data.classes, official), "tta": tta}
    comparable = home is not None and config.portion == "test" and tta == trained.trainer.tta
    recorded = runs.read_manifest(home).get("test") if home and comparable else None
    return report, f"{data.name}, split {parts.name}", recorded


def _trained_config(state: dict[str, Any], path: Path, root: str | None) -> TrainConfig:
    try:
        trained = load(TrainConfig, state["config"])
    except ConfigError as error:
        raise IntegrityError(
            f"{path} holds a config that is not ours: {error} If the model is your own, add plugins=[FILE]."
        ) from error
    if trained.data.name != "cifar10":
        return trained
    # A stranger's checkpoint may name a folder to read, whose files are MD5-checked, but no address to fetch from.
    folder = trained.data.root if trained.data.root and Path(trained.data.root).is_dir() else None
    data = dataclasses.replace(trained.data, root=root or folder, download=False, mirrors=())
    return dataclasses.replace(trained, data=data)


def _compute(config: EvalConfig, passport: dict[str, Any]) -> Any:
    """Device, precision and threads: as the run was scored, unless the config says otherwise."""
    from cifarbench.compute import choose_compute, make_deterministic

    make_deterministic(True)
    before = passport["environment"]
    precision = before["precision"] if config.precision == "auto" else config.precision
    device = config.device
    if config.device == "auto" and precision == "fp16" and choose_compute("auto", "fp32", None).device.type == "cpu":
        precision = "fp32"
    threads = config.threads or (min(before["threads"], os.cpu_count() or 1) if before["device"] == "cpu" else None)
    return choose_compute(device, precision, threads)


def _portion(name: str, parts: Any, home: Path | None) -> tuple[Any, Any]:
    """The images to score and which of them are official test images; opening the test part is counted in run.json."""
    if name == "test":
        if home is not None:
            _count_opening(home)
        return parts.test.open(), parts.test.official
    if name == "val" and parts.val is None:
        raise ConfigError("`portion` is 'val', and the run kept no validation images (`split.val_fraction` was 0).")
    return (parts.val if name == "val" else parts.train), None


def _count_opening(home: Path) -> None:
    holder = runs.RunDirectory(home)
    holder.acquire()
    try:
        test = holder.manifest.get("test", {})
        holder.update(test={**test, "openings": test.get("openings", 0) + 1})
    finally:
        holder.release()


def _show(
    portion: str,
    path: Path,
    home: Path | None,
    report: dict[str, Any],
    dataset: str,
    recorded: dict[str, Any] | None,
) -> None:
    from rich.console import Console

    from cifarbench.reporting.console import result_panel
    from cifarbench.reporting.results import write_confusion

    paths = {"checkpoint": str(path)}
    if home is not None:
        (home / "eval").mkdir(exist_ok=True)
        tta = report["tta"]
        stem = f"{path.stem}-{portion}-{tta}"
        target = home / "eval" / f"{stem}.json"
        runs.write_json(target, {**report, "portion": portion, "checkpoint": path.name})
        note = f"{dataset}, {portion} images, tta {tta}"
        write_confusion(home / "eval", report, tuple(report["per_class"]), note, f"{stem}-")
        paths["result"] = str(target)
    console = Console(highlight=False)
    console.print(result_panel(report, dataset, paths, portion))
    if recorded and recorded.get("accuracy") is not None:
        same = recorded["accuracy"] == report["accuracy"]
        console.print(
            f"recorded test accuracy: {recorded['accuracy']:.4%}, {'reproduced exactly' if same else 'not the same'}"
        )
