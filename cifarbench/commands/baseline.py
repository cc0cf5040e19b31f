"""`cifarbench baseline knn`: a method that is not trained, scored as a run is, with one opening of the test part."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import Any

from cifarbench import runs
from cifarbench.commands.words import gather_first
from cifarbench.config.before import BASELINES, BaselineConfig
from cifarbench.config.load import load, to_plain
from cifarbench.errors import ConfigError


def rewrite(arguments: list[str]) -> list[str]:
    """Turn `cifarbench baseline knn …` into `name=knn …`."""
    rewritten = gather_first(arguments, "name", [field.name for field in dataclasses.fields(BaselineConfig)])
    if not any(argument.startswith(("-", "name=")) for argument in rewritten):
        raise ConfigError(f"`cifarbench baseline` needs which one: {', '.join(BASELINES)}.")
    return rewritten


def run(values: dict[str, Any], directory: Path, overrides: list[str]) -> int:
    """Choose k, score the test part, and leave a run directory without checkpoints and epochs."""
    config = load(BaselineConfig, values)
    holder = runs.RunDirectory(directory)
    holder.acquire()
    try:
        if holder.manifest:
            raise ConfigError(f"{directory} already holds a run; choose another hydra.run.dir.")
        holder.checkpoints.rmdir()
        holder.command = ["cifarbench", "baseline", *overrides]
        _score(config, holder, time.monotonic())
    except BaseException as error:
        if holder.manifest.get("status") == "running":
            holder.update(status="failed", reason=f"{type(error).__name__}: {error}")
        raise
    finally:
        holder.release()
    return 0


def _score(config: BaselineConfig, holder: runs.RunDirectory, started: float) -> None:
    from cifarbench.compute import choose_compute, describe
    from cifarbench.data.load import load_images
    from cifarbench.data.split import split
    from cifarbench.evaluation.nearest import NearestNeighbours
    from cifarbench.reporting.results import write_results

    compute = choose_compute("auto", "fp32", config.threads)
    data = load_images(config.data, print)
    parts = split(data, config.split)
    _check_size(config, len(parts.train))
    _begin(config, holder, data, parts, describe(compute, 1))
    train = parts.train.to(compute.device)
    model = NearestNeighbours(train.images, train.targets, config.k or 1, config.distance)
    validated = _validate(config, model, parts.val.to(compute.device)) if parts.val else {}
    model.k = config.k or max(validated, key=lambda k: (validated[k], -k))
    best = {"k": model.k, "val_accuracy": validated[model.k]} if validated else None
    holder.update(best=best, validation={str(k): accuracy for k, accuracy in validated.items()}, tested="none")
    outcome = _test(model, holder, data, parts, compute)
    write_results(holder, data, outcome)
    holder.update(status="completed", timing={"cold": round(time.monotonic() - started, 3)})
    _show(config, holder, outcome.report, f"{data.name}, split {parts.name}")


def _test(model: Any, holder: runs.RunDirectory, data: Any, parts: Any, compute: Any) -> Any:
    """Open the seal, counted before the images are seen, and score the test part; returns an Outcome as training's."""
    from cifarbench.data.duplicates import test_duplicates
    from cifarbench.evaluation.metrics import score
    from cifarbench.evaluation.nearest import RAW
    from cifarbench.evaluation.predict import predict
    from cifarbench.training.session import Outcome

    holder.count_opening()
    portion = parts.test.open()
    print(f"k = {model.k}: scoring {len(portion):,} test images", flush=True)
    logits = predict(model, portion.images.to(compute.device), RAW, compute).cpu()
    duplicates = test_duplicates(parts, data.fingerprint)
    report = {**score(logits, portion.targets, data.classes, parts.test.official, duplicates), "tta": "none"}
    return Outcome(report, logits, parts, "none", model)


def _check_size(config: BaselineConfig, count: int) -> None:
    name, most = ("k", config.k) if config.k else ("ks", max(config.ks))
    if most is not None and most > count:
        raise ConfigError(f"`{name}` asks for {most} neighbours; there are {count} training images.")


def _begin(
    config: BaselineConfig, holder: runs.RunDirectory, data: Any, parts: Any, environment: dict[str, Any]
) -> None:
    holder.begin(
        dataset={"name": data.name, "fingerprint": data.fingerprint},
        split=parts.record(),
        # An image costs a product with every training image.
        model={"name": config.name, "parameters": 0, "flops": 2 * len(parts.train) * parts.train.images[0].numel()},
        seed=None,
        environment=environment,
        test={"accuracy": None, "accuracy_official": None, "loss": None, "openings": 0},
    )
    holder.write_config(to_plain(config))


def _validate(config: BaselineConfig, model: Any, val: Any) -> dict[int, float]:
    """Accuracy on the validation images for each number of neighbours, from one search."""
    import torch

    from cifarbench.evaluation.nearest import accuracies
    from cifarbench.evaluation.predict import EVAL_BATCH

    ks = (config.k,) if config.k else config.ks
    print(f"{config.distance}: trying k = {', '.join(map(str, ks))} on {len(val):,} validation images", flush=True)
    batches = val.images.split(EVAL_BATCH)
    found = torch.cat([model.neighbours(batch.float().div_(255), max(ks)) for batch in batches])
    return accuracies(model.targets[found], val.targets, ks)


def _show(config: BaselineConfig, holder: runs.RunDirectory, report: dict[str, Any], dataset: str) -> None:
    from cifarbench.reporting.console import output_console, result_panel

    tried = holder.manifest["validation"]
    for k, accuracy in tried.items():
        chosen = int(k) == (holder.manifest["best"] or {}).get("k") and len(tried) > 1
        print(f"  k = {k:>3}   {accuracy:.2%} of the validation images{'   chosen' if chosen else ''}")
    paths = {"run": runs.shown_path(holder.path), "in it": "confusion_matrix.png"}
    output_console().print(result_panel(report, dataset, paths))
