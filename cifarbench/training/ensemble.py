"""Ensembles of finished runs: what they answer, from stored predictions or from the mean of their weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from cifarbench import runs
from cifarbench.config.load import to_plain
from cifarbench.data.augment import normalise
from cifarbench.data.duplicates import recorded_duplicates
from cifarbench.errors import ConfigError, IntegrityError
from cifarbench.evaluation.ensemble import gains, mean_predictions, mean_weights, renew_batch_norm
from cifarbench.evaluation.metrics import score
from cifarbench.evaluation.predict import predict
from cifarbench.evaluation.predictions import Predictions
from cifarbench.training.restore import Trained, classes_of, find_checkpoint, images_of, restore, tested_views

_BATCH, _BATCHES = 500, 20  # training images on which batch norm is measured anew


@dataclass(frozen=True)
class Ensemble:
    """`report` as test.json with the members and the gains; `state`, a checkpoint, where weights were averaged."""

    report: dict[str, Any]
    predictions: Predictions
    state: dict[str, Any] | None


def average_predictions(homes: Sequence[Path], members: Sequence[Predictions]) -> Ensemble:
    """The ensemble whose probabilities are the mean of those that the runs stored; no test image is opened.

    Raises:
        IntegrityError: the runs answered for different images.
    """
    mean = mean_predictions(members)
    return Ensemble(_report(homes, members, mean, "predictions"), mean, None)


def average_weights(homes: Sequence[Path], members: Sequence[Predictions], root: str | None) -> Ensemble:
    """The one model of the runs' mean weights, batch norm measured anew on training images, scored on the test part.

    The test part is opened for it, which each run's manifest counts.

    Raises:
        ConfigError: the runs were tested on different views.
        IntegrityError: the runs are of different architectures, or the dataset here is not theirs.
    """
    restored = [restore(find_checkpoint(str(home), None), root) for home in homes]
    _check_one_model(homes, restored)
    _check_one_view(homes, restored)
    first = restored[0]
    for home, trained in zip(homes, restored, strict=True):
        if trained.passport["split"] != first.passport["split"]:
            raise IntegrityError(
                f"{homes[0]} and {home} held out different validation images, so that their mean has seen all of them. "
                "Take average=predictions."
            )
    _, parts = images_of(first)
    first.model.load_state_dict(mean_weights([trained.model.state_dict() for trained in restored]))
    images = parts.train.images[: _BATCH * _BATCHES]
    renew_batch_norm(first.model, [normalise(batch, *first.statistics) for batch in images.split(_BATCH)])
    compute, trainer = first.compute("cpu", "auto", torch.get_num_threads()), first.config.trainer
    views = tested_views(first)
    for home in homes:
        runs.count_opening(home)
    portion = parts.test.open()
    model = first.on(compute)
    logits = predict(model, portion.images, first.statistics, compute, views, trainer.channels_last)
    answers = Predictions(portion.indices, portion.targets, logits)
    state = {**first.state, "model": dict(model.state_dict()), "ema": {}}
    return Ensemble(_report(homes, members, answers, "weights"), answers, state)


def _check_one_model(homes: Sequence[Path], restored: Sequence[Trained]) -> None:
    models = [to_plain(trained.config.model) for trained in restored]
    for home, model in zip(homes, models, strict=True):
        different = [name for name in {**models[0], **model} if models[0].get(name) != model.get(name)]
        if different:
            raise IntegrityError(
                f"{homes[0]} and {home} are of different architectures (`model.{different[0]}`: "
                f"{models[0].get(different[0])!r} and {model.get(different[0])!r}); their weights have no mean. "
                "Take average=predictions."
            )


def _check_one_view(homes: Sequence[Path], restored: Sequence[Trained]) -> None:
    views = [tested_views(trained) for trained in restored]
    for home, view in zip(homes, views, strict=True):
        if view != views[0]:
            raise ConfigError(
                f"`trainer.tta` is {views[0]!r} in {homes[0]} and {view!r} in {home}; a gain is measured on the same "
                "views of each image. Give runs of one `trainer.tta`, or take average=predictions."
            )


def _report(
    homes: Sequence[Path], members: Sequence[Predictions], answers: Predictions, average: str
) -> dict[str, Any]:
    found = gains(answers, members)  # raises where the members answer for other images
    manifest = runs.read_manifest(homes[0])
    official = answers.official(manifest["dataset"]["name"])
    rows = [{"run": str(home), **row} for home, row in zip(homes, found.pop("members"), strict=True)]
    marks = sorted({str(runs.read_manifest(home)["split"].get("fingerprint")) for home in homes})
    duplicates = recorded_duplicates(
        answers.indices, manifest["split"].get("trainable"), manifest["dataset"].get("fingerprint")
    )
    return {
        **score(answers.logits, answers.targets, classes_of(homes[0]), official, duplicates),
        "average": average,
        "dataset": manifest["dataset"],
        "split": {"name": manifest["split"].get("name"), "fingerprint": ", ".join(marks)},
        **found,
        "members": rows,
    }
