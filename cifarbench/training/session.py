"""One training run from its config to its scored test part: prepare, fit, open the seal once."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from cifarbench import runs
from cifarbench.compute import Compute, choose_compute, describe, make_deterministic, synchronise
from cifarbench.config.durations import seconds
from cifarbench.config.load import identity, to_plain
from cifarbench.config.schema import TrainConfig, TrainerConfig
from cifarbench.data.augment import normalise
from cifarbench.data.dataset import ImageSet
from cifarbench.data.duplicates import test_duplicates
from cifarbench.data.split import Parts, channel_statistics, split
from cifarbench.errors import ConfigError
from cifarbench.evaluation.metrics import score
from cifarbench.evaluation.predict import EVAL_BATCH, predict
from cifarbench.models.flops import count_flops, count_parameters, count_zeros
from cifarbench.models.registry import build
from cifarbench.models.whitening import SAMPLE, fit_stems
from cifarbench.runs import shown_path
from cifarbench.seeds import derive
from cifarbench.training import checkpoint
from cifarbench.training.checks import (
    check_model,
    check_sizes,
    say_how_it_ended,
    say_what_is_unused,
    say_what_is_zero,
)
from cifarbench.training.clock import Clock
from cifarbench.training.distributed import World
from cifarbench.training.loop import Training
from cifarbench.training.observer import Observer, RunFacts
from cifarbench.training.replay import records_steps
from cifarbench.training.resume import resume
from cifarbench.training.setting import Setting
from cifarbench.training.signals import stop_requests
from cifarbench.training.untimed import take_untimed_steps

_RESERVE_SECONDS = 6.0  # for figures and files after the test, where a time limit is set
_SAMPLES = 64
_PAGE_IMAGES = 500  # on which report.html looks inside the network, in fp32, at about thrice the cost


@dataclass(frozen=True)
class Outcome:
    """What a run ended with: `report` as in test.json (None without a test), `logits` (n, 10) of the test part."""

    report: dict[str, Any] | None
    logits: torch.Tensor | None
    parts: Parts
    tested: str
    scored: nn.Module


def build_model(config: TrainConfig) -> nn.Module:
    """The model that the config names, its weights drawn from the run's seed; ConfigError where one holds no number."""
    torch.manual_seed(derive(config.seed, "weights"))
    options = to_plain(config.model)
    tuples = {name: tuple(value) if isinstance(value, list) else value for name, value in options.items()}
    model = build(str(tuples.pop("name")), **tuples)
    for name, weights in model.named_parameters():
        if not weights.numel():
            raise ConfigError(
                f"model={config.model.name} has {name} of shape {tuple(weights.shape)}, which holds no number; "
                "let none of its widths be 0."
            )
    return model


def train(
    config: TrainConfig, data: ImageSet, run: runs.RunDirectory, observer: Observer, world: World, clock: Clock
) -> Outcome:
    """Train as `config` says on the trainable part of `data`, then score the test part once.

    Args:
        config: the checked config.
        data: all images; the test part is sealed at once and opened only after training.
        run: the locked run directory; a checkpoint in it is gone on from.
        observer: is told what happens.
        world: the processes of the run.
        clock: started when the command was.

    Raises:
        IntegrityError: the directory's checkpoint is damaged or of another config or dataset.
        NonFiniteError: training diverged.
        Interrupted: a signal came, and the state is saved.
    """
    trainer = config.trainer
    compute = compute_of(trainer, world)
    make_deterministic(trainer.deterministic, trainer.compile)
    parts = split(data, config.split)
    check_sizes(config, parts, world)
    setting = _setting(data, parts, compute, world, clock, run)
    training, prepared = _prepared(config, setting, observer)
    model = training.model
    facts = {"parameters": count_parameters(model), "flops": count_flops(model)}
    resumed = resume(training, run)
    earlier = clock.before - clock.untimed
    environment = describe(compute, world.size)
    if world.is_first:
        _begin(run, config, data, parts, facts, environment, resumed)
        run.write_rows(training.progress.rows)
    observer.start(_facts(training, data, parts, facts, environment, run), model)
    say_what_is_unused(training, parts)
    clock.limit = seconds(trainer.max_time, "trainer.max_time") if trainer.max_time else None
    clock.reserve = _reserve(training, parts) if clock.limit else 0.0
    with stop_requests() as request:
        clock.untimed += take_untimed_steps(training, trainer.untimed_steps)
        began = clock.elapsed()
        training.fit(request)
    say_how_it_ended(training, clock)
    if not training.progress.step:
        raise ConfigError(
            f"`trainer.max_time` is {trainer.max_time!r}, which ran out before the first step; allow more."
        )
    trained = earlier + prepared + max(training.epoch_end - began, 0.0)
    if not training.epoch_end:  # it had been trained, and is only tested now
        trained = run.manifest.get("timing", {}).get("train", trained)
    return _score(training, config, data, parts, run, trained)


def compute_of(trainer: TrainerConfig, world: World) -> Compute:
    """Where and how to train; our own operations need channels last, and the compiler would not see through them.

    On a GPU they come with recorded steps alone: launched one by one, they would cost Python more time than torch's do.
    """
    own_kernels = trainer.kernels == "auto" and trainer.channels_last and not trainer.compile
    compute = choose_compute(trainer.device, trainer.precision, trainer.threads, world.local_rank, own_kernels)
    launches_alone = compute.device.type == "cuda" and not records_steps(trainer, compute, world.size)
    return replace(compute, own_kernels=False) if launches_alone else compute


def _setting(
    data: ImageSet,
    parts: Parts,
    compute: Compute,
    world: World,
    clock: Clock,
    run: runs.RunDirectory,
) -> Setting:
    statistics = channel_statistics(parts.train.images)
    passport = {
        "dataset": {"name": data.name, "fingerprint": data.fingerprint},
        "split": {"name": parts.name, "fingerprint": parts.fingerprint},
        "mean": list(statistics[0]),
        "std": list(statistics[1]),
        "classes": list(data.classes),
        "environment": describe(compute, world.size),
    }
    train, val = parts.train.to(compute.device), parts.val.to(compute.device) if parts.val else None
    return Setting(train, val, statistics, compute, world, clock, passport, run.checkpoints)


def _prepared(config: TrainConfig, setting: Setting, observer: Observer) -> tuple[Training, float]:
    """The training before its first step, and the seconds that its weights took.

    Where steps are taken outside the clock, so is all this once before: a device loads its libraries when it computes.
    """
    device = setting.compute.device
    if config.trainer.untimed_steps:
        first_model(config, setting)
    synchronise(device)
    began = time.perf_counter()
    training = Training(config, first_model(config, setting), setting, observer)
    if not config.trainer.untimed_steps:
        check_model(training)
    synchronise(device)
    spent = time.perf_counter() - began
    if config.trainer.untimed_steps:
        check_model(training)
    return training, spent


def first_model(config: TrainConfig, setting: Setting) -> nn.Module:
    """The network of `config` with its first weights, on the device, its stem fitted to the training images there."""
    model = build_model(config).to(setting.compute.device)
    fit_stems(model, normalise(setting.train.images[:SAMPLE], *setting.statistics))
    return model


# --- manifest and facts ----------------------------------------------------------------------------------------------


def _begin(
    run: runs.RunDirectory,
    config: TrainConfig,
    data: ImageSet,
    parts: Parts,
    facts: dict[str, int],
    environment: dict[str, Any],
    resumed: str | None,
) -> None:
    is_trained = run.manifest.get("status") == "completed"  # and is only tested now
    sessions = [*run.manifest.get("sessions", []), {"started": _now(), "resumed_from": resumed, **environment}]
    run.begin(
        dataset={"name": data.name, "fingerprint": data.fingerprint},
        split=parts.record(),
        model={"name": config.model.name, **facts},
        seed=config.seed,
        identity=identity(config),
        environment=run.manifest["environment"] if is_trained else environment,
        sessions=sessions,
        test=run.manifest.get("test", {"accuracy": None, "accuracy_official": None, "loss": None, "openings": 0}),
    )
    run.write_config(to_plain(config))


def _facts(
    training: Training,
    data: ImageSet,
    parts: Parts,
    facts: dict[str, int],
    environment: dict[str, Any],
    run: runs.RunDirectory,
) -> RunFacts:
    config, progress = training.config, training.progress
    return RunFacts(
        directory=shown_path(run.path),
        epochs=config.trainer.epochs,
        steps_per_epoch=training.length.steps_per_epoch,
        first_step=progress.step,
        counts={"train": len(parts.train), "val": len(parts.val) if parts.val else 0, "test": len(parts.test)},
        environment=environment,
        max_time=seconds(config.trainer.max_time, "trainer.max_time") if config.trainer.max_time else None,
        classes=data.classes,
        dataset=f"{data.name}, split {parts.name}",
        config=to_plain(config),
        statistics=training.setting.statistics,
        samples=parts.train.images[:_SAMPLES],
        sample_indices=parts.train.indices[:_SAMPLES],
        **facts,
    )


def _reserve(training: Training, parts: Parts) -> float:
    """Seconds to keep for the last validation and the test, by timing a few images; the first batch warms up."""
    setting = training.setting
    images = setting.train.images[:EVAL_BATCH]
    predict(training.scored, images, setting.statistics, setting.compute)
    synchronise(setting.compute.device)
    started = time.perf_counter()
    predict(training.scored, images, setting.statistics, setting.compute, training.trainer.tta)
    synchronise(setting.compute.device)
    per_image = (time.perf_counter() - started) / len(images)
    counted = len(parts.test) + (len(parts.val) if parts.val else 0) + 3 * _PAGE_IMAGES * training.trainer.report
    return _RESERVE_SECONDS + 1.3 * per_image * counted / setting.world.size


# --- the test --------------------------------------------------------------------------------------------------------


def _score(
    training: Training, config: TrainConfig, data: ImageSet, parts: Parts, run: runs.RunDirectory, trained: float
) -> Outcome:
    """Load the best checkpoint (the last one without validation), open the seal, and score the test part."""
    progress, world = training.progress, training.setting.world
    tested = "best" if progress.best_epoch else "last"
    path = run.checkpoints / f"{tested}.pt"
    state = world.tell(checkpoint.load(path) if world.is_first else None)
    weights, target = (state["ema"], training.ema) if training.ema else (state["model"], training.model)
    checkpoint.load_weights(target, weights, path)
    if world.is_first:
        _finish(run, training, tested, trained)
        say_what_is_zero(training, run.manifest["model"])
    if not config.trainer.test:
        return Outcome(None, None, parts, tested, training.scored)
    if world.is_first:
        run.count_opening()
    portion = parts.test.open()
    tta = config.trainer.tta
    before = time.perf_counter()
    logits = training.logits(portion.images.to(training.setting.compute.device), tta).cpu()
    if world.is_first:
        _finish(run, training, tested, trained, time.perf_counter() - before)
    duplicates = test_duplicates(parts, data.fingerprint)
    report = {**score(logits, portion.targets, data.classes, parts.test.official, duplicates), "tta": tta}
    return Outcome(report, logits, parts, tested, training.scored)


def _finish(
    run: runs.RunDirectory, training: Training, tested: str, trained: float, scored: float | None = None
) -> None:
    """Record the best epoch and the clocks in seconds.

    `training` is the epochs alone, with their validation; `train` the first weights and all from the first step to
    the end of the last epoch, checkpoints between them too, and what earlier sessions took; `train_test` adds the
    test's forward passes; `cold` is from the command to the test's end. `untimed`, the steps that were undone, is in
    `cold` and in no other.
    """
    progress = training.progress
    best = {"epoch": progress.best_epoch, "val_accuracy": progress.best_accuracy} if progress.best_epoch else None
    run.update(
        model={**run.manifest["model"], "zeros": count_zeros(training.scored)},
        best=best,
        tested=tested,
        ended=progress.ended or "epochs",
        weights=checkpoint.tensor_hash(training.scored.state_dict()),
        timing={
            "training": round(sum(row["seconds"] for row in progress.rows), 3),
            "train": round(trained, 3),
            "train_test": round(trained + (scored or 0.0), 3),
            "cold": round(training.setting.clock.elapsed(), 3),
            "untimed": round(training.setting.clock.untimed, 3),
            "max_time": training.config.trainer.max_time,
        },
    )


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")
