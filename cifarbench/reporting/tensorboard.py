"""TensorBoard logs: scalars, pictures and hyperparameters of a run, in one unbroken series after a resume."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import nn
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from cifarbench.config.load import load
from cifarbench.config.schema import TrainConfig
from cifarbench.data.augment import Augment
from cifarbench.data.random import Draws
from cifarbench.reporting.figures import filter_grid
from cifarbench.training.observer import Observer, RunFacts, StepReport

_EVERY_SECONDS = 2.0  # between the points inside an epoch


class TensorBoard(Observer):
    """Writes event files to `folder`; if that fails, training goes on after one warning by `warn`."""

    def __init__(self, folder: Path, warn: Callable[[str], None]) -> None:
        self.folder, self.warn = folder, warn
        self.writer: SummaryWriter | None = None
        self.facts: RunFacts | None = None
        self.last_point = 0.0
        self.last_row: dict[str, Any] = {}

    def _write(self, action: Callable[[SummaryWriter], None]) -> None:
        """Do one piece of writing; a disk error ends the logging, not the run."""
        if self.writer is None:
            return
        try:
            action(self.writer)
        except OSError as error:
            self.writer = None
            self.warn(f"TensorBoard logging stopped: {self.folder}: {error.strerror or error}; training goes on")

    def start(self, facts: RunFacts, model: nn.Module) -> None:
        """Open the log; after a resume, points after the checkpoint are hidden. Add the augmented sample grid."""
        self.facts = facts
        self.open(facts.first_step + 1 if facts.first_step else None)
        self._write(lambda writer: writer.add_image("samples/augmented", _samples(facts), facts.first_step + 1))

    def open(self, purge_step: int | None = None) -> None:
        """Open the log; points from `purge_step` on, of a session that was killed, are hidden."""
        _quiet_writing_threads()
        try:
            self.writer = SummaryWriter(str(self.folder), purge_step=purge_step)
        except OSError as error:
            self.warn(f"TensorBoard logging is off: {self.folder}: {error.strerror or error}")

    def step(self, report: StepReport) -> None:
        """Every two seconds, a point of loss, learning rate and throughput."""
        if self.writer is None or report.elapsed - self.last_point < _EVERY_SECONDS:
            return
        self.last_point = report.elapsed

        def action(writer: SummaryWriter) -> None:
            writer.add_scalar("train/loss_step", report.loss.item(), report.step)
            writer.add_scalar("lr", report.lr, report.step)
            writer.add_scalar("throughput/images_per_second", report.images_per_second, report.step)

        self._write(action)

    def epoch(self, row: dict[str, Any], is_best: bool) -> None:
        """The epoch's losses and accuracies, by step."""
        self.last_row = row

        def action(writer: SummaryWriter) -> None:
            for name in ("train_loss", "train_accuracy", "val_loss", "val_accuracy"):
                if row[name] is not None:
                    writer.add_scalar(name.replace("_", "/", 1), row[name], row["step"])
            writer.add_scalar("lr", row["lr"], row["step"])
            writer.add_scalar("throughput/images_per_second", row["images_per_second"], row["step"])
            writer.add_scalar("epoch", row["epoch"], row["step"])
            writer.flush()

        self._write(action)

    def result(self, report: dict[str, Any], model: nn.Module) -> None:
        """Confusion matrix, first-layer filters, test scalars and the hyperparameters with what they led to."""
        facts = self.facts
        if facts is None:
            return
        step = self.last_row.get("step", facts.first_step)  # a resumed run may have had no epoch left

        def action(writer: SummaryWriter) -> None:
            with Image.open(self.folder.parent / "confusion_matrix.png") as drawn:
                picture = np.asarray(drawn.convert("RGB"))
            writer.add_image("test/confusion_matrix", picture, step, dataformats="HWC")
            kernel = next((weight for weight in model.parameters() if weight.ndim == 4), None)
            if kernel is not None and kernel.shape[1] == 3:
                sheet = filter_grid(kernel.detach().float().cpu().numpy())
                writer.add_image("filters/first_layer", sheet, step, dataformats="HWC")
            results = {"test/accuracy": report["accuracy"], "test/loss": report["loss"]}
            for name, value in results.items():
                writer.add_scalar(name, value, step)
            # add_hparams of the writer opens a second run in a subfolder; these records go into this one.
            for summary in hparams(_flat(facts.config), results):
                assert writer.file_writer is not None
                writer.file_writer.add_summary(summary)

        self._write(action)

    def close(self) -> None:
        """Flush and close the log."""
        self._write(lambda writer: writer.close())


def _samples(facts: RunFacts) -> np.ndarray:
    """The first training images as the first epoch's augmentation shows them, (3, H, W) uint8, eight in a row.

    Mixup and CutMix mix in the image before it in this picture, not in the epoch's order.
    """
    augment = Augment(load(TrainConfig, facts.config).augment, *facts.statistics)
    draws = Draws(facts.config["seed"], 0, facts.sample_indices)
    shown = augment.view(facts.samples, draws).cpu().numpy()
    rows = [np.concatenate(list(shown[start : start + 8]), axis=2) for start in range(0, len(shown) // 8 * 8, 8)]
    return np.concatenate(rows, axis=1).repeat(2, axis=1).repeat(2, axis=2)


def _flat(config: dict[str, Any]) -> dict[str, Any]:
    """The config as dotted keys with values that TensorBoard's table takes."""
    flat: dict[str, Any] = {}
    for section, values in config.items():
        inner = {f"{section}.{name}": value for name, value in values.items()} if isinstance(values, dict) else {}
        for name, value in (inner or {section: values}).items():
            flat[name] = value if isinstance(value, bool | int | float | str) else str(value)
    return {name: value for name, value in flat.items() if name not in ("data.root", "data.mirrors", "plugins")}


def _quiet_writing_threads() -> None:
    """Let no TensorBoard thread print a traceback when its disk is full: the next call raises the same error here."""
    before = threading.excepthook

    def hook(failure: threading.ExceptHookArgs) -> None:
        ours = type(failure.thread).__module__.startswith("tensorboard.")
        if not (ours and issubclass(failure.exc_type, OSError)):
            before(failure)

    if before.__module__ != __name__:
        threading.excepthook = hook
