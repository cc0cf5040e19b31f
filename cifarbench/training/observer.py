"""What the loop tells to whoever watches: they are told, and have no way to answer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from cifarbench.evaluation.predict import Statistics


@dataclass(frozen=True)
class RunFacts:
    """What is known before the first step.

    `samples` are the first training images, (n, 3, 32, 32) uint8, and `sample_indices` their numbers in published
    order, (n,) int64.
    """

    directory: str
    epochs: int
    steps_per_epoch: int
    first_step: int
    counts: dict[str, int]
    parameters: int
    flops: int
    environment: dict[str, Any]
    max_time: float | None
    classes: tuple[str, ...]
    dataset: str
    config: dict[str, Any]
    statistics: Statistics
    samples: Tensor
    sample_indices: Tensor


@dataclass(frozen=True)
class StepReport:
    """One optimizer step: `epoch` from 1, `batch` from 1, `loss` a scalar tensor still on the device."""

    epoch: int
    batch: int
    step: int
    lr: float
    loss: Tensor
    images_per_second: float
    share: float
    elapsed: float


class Observer:
    """Does nothing; console, TensorBoard and the metrics file say what they do at which moment."""

    def start(self, facts: RunFacts, model: nn.Module) -> None:
        """Called before the first step, also after a resume."""

    def step(self, report: StepReport) -> None:
        """Called after each optimizer step."""

    def epoch(self, row: dict[str, Any], is_best: bool) -> None:
        """Called after each epoch with its row of metrics.jsonl."""

    def note(self, text: str) -> None:
        """A line that the user should see."""

    def result(self, report: dict[str, Any], model: nn.Module) -> None:
        """Called with the test report, once the seal was opened."""

    def close(self) -> None:
        """Called at the end, also after a failure."""


class Observers(Observer):
    """Several observers as one."""

    def __init__(self, *members: Observer) -> None:
        self.members = members

    def start(self, facts: RunFacts, model: nn.Module) -> None:
        """Tell every member."""
        for member in self.members:
            member.start(facts, model)

    def step(self, report: StepReport) -> None:
        """Tell every member."""
        for member in self.members:
            member.step(report)

    def epoch(self, row: dict[str, Any], is_best: bool) -> None:
        """Tell every member."""
        for member in self.members:
            member.epoch(row, is_best)

    def note(self, text: str) -> None:
        """Tell every member."""
        for member in self.members:
            member.note(text)

    def result(self, report: dict[str, Any], model: nn.Module) -> None:
        """Tell every member."""
        for member in self.members:
            member.result(report, model)

    def close(self) -> None:
        """Tell every member."""
        for member in self.members:
            member.close()
