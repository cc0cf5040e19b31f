"""The loops that are timed against each other, each as a function of a number of steps."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from cifarbench.compute import Compute, make_deterministic, synchronise, use_threads
from cifarbench.config.schema import TrainConfig
from cifarbench.data.split import Parts
from cifarbench.models.flops import count_flops
from cifarbench.training.losses import loss_sum
from cifarbench.training.observer import Observer
from cifarbench.training.phases import FULL
from cifarbench.training.probe import prepare

_LATE = 0.9  # share of the run: at full resolution, whatever it started with


class Contender:
    """One config, ready to be timed: its own steps, a bare loop, and its phases one by one.

    Args:
        label: names it in tables.
        config: of the training run.
        parts: the dataset, split; only the training part is touched.
        observer: what the run's steps report to.
    """

    def __init__(self, label: str, config: TrainConfig, parts: Parts, observer: Observer) -> None:
        self.label, self.config = label, config
        self.training = prepare(config, parts, observer)
        self.flops = count_flops(self.training.model)
        trainer, train = config.trainer, self.training.setting.train
        self.batch = torch.arange(min(trainer.batch_size, len(train)), device=self.compute.device)
        self.micro = trainer.micro_batch or len(self.batch)
        self.threads = self.settle()

    @property
    def compute(self) -> Compute:
        """Where and in which precision it runs."""
        return self.training.setting.compute

    def loop(self, steps: int) -> float:
        """Seconds per image of a run's own steps: augmentation to optimizer, with its records."""
        self.settle()
        steps_alone = self._timed(lambda: self.training.advance(self.batch, _LATE, time.perf_counter()), steps)
        return steps_alone + self._moving_ahead()

    def seconds_a_step(self) -> float:
        """Seconds of a step, after what only the first ones do; the longer of `loop` and `bare`."""
        self.phases(1)
        return max(self.bare(1), self.loop(1)) * len(self.batch)

    def phases(self, steps: int) -> dict[str, float]:
        """Seconds per image of augmentation, forward pass, backward pass and optimizer, each timed by itself."""
        self.settle()
        spent = dict.fromkeys(("augment", "forward", "backward", "optimizer"), 0.0)
        for index in range(steps + 1):
            if index == 1:
                spent = dict.fromkeys(spent, 0.0)
            self._phased_step(spent)
        phases = {name: seconds / (steps * len(self.batch)) for name, seconds in spent.items()}
        return {**phases, "augment": phases["augment"] + self._moving_ahead()}

    def bare(self, steps: int) -> float:
        """Seconds per image of forward, backward and optimizer step on one batch that stays the same."""
        self.settle()
        training = self.training
        micros = [
            (self._augmented(positions), training.setting.train.targets[positions])
            for positions in self._micro_batches()
        ]

        def step() -> None:
            for images, targets in micros:
                with self.compute.autocast():
                    logits = training.forward(images).float()
                (self._loss_sum(logits, targets) / len(self.batch)).backward()
            with training.lent_rates():
                training.optimizer.step()
            training.optimizer.zero_grad(set_to_none=True)

        return self._timed(step, steps)

    def settle(self) -> int:
        """Make what holds for the whole process this config's own, after the others' turns; returns the threads."""
        trainer = self.config.trainer
        make_deterministic(trainer.deterministic, trainer.compile)
        return use_threads(trainer.threads)

    def _phased_step(self, spent: dict[str, float]) -> None:
        training, targets = self.training, self.training.setting.train.targets
        for positions in self._micro_batches():
            with self._timer("augment", spent):
                images = self._augmented(positions)
            with self._timer("forward", spent):
                logits = self._logits(images)
            with self._timer("backward", spent):
                (self._loss_sum(logits, targets[positions]) / len(self.batch)).backward()
        with self._timer("optimizer", spent), training.lent_rates():
            training.optimizer.step()
            training.optimizer.zero_grad(set_to_none=True)

    def _loss_sum(self, logits: Tensor, targets: Tensor) -> Tensor:
        return loss_sum(logits, targets, self.config.trainer.loss, smoothing=0.0)

    def _logits(self, images: Tensor) -> Tensor:
        with self.compute.autocast():
            return self.training.forward(images).float()

    def _augmented(self, positions: Tensor) -> Tensor:
        return self.training.feed(self.training.setting.train, positions, 0, FULL)[0]

    def _moving_ahead(self) -> float:
        """Seconds per image of what the feed does once an epoch and not in every step."""
        feed, train = self.training.feed, self.training.setting.train
        if not feed.prepares:
            return 0.0
        spent = {"ahead": 0.0}
        feed.forget()
        with self._timer("ahead", spent):
            feed.all_ready(train, 0)
        return spent["ahead"] / len(train)

    def _micro_batches(self) -> tuple[Tensor, ...]:
        return self.batch.split(self.micro)

    @contextlib.contextmanager
    def _timer(self, phase: str, spent: dict[str, float]) -> Iterator[None]:
        """Add the seconds that the block takes on the device to its phase."""
        synchronise(self.compute.device)
        started = time.perf_counter()
        yield
        synchronise(self.compute.device)
        spent[phase] += time.perf_counter() - started

    def _timed(self, step: Callable[[], object], steps: int) -> float:
        step()
        synchronise(self.compute.device)
        started = time.perf_counter()
        for _ in range(steps):
            step()
        synchronise(self.compute.device)
        return (time.perf_counter() - started) / (steps * len(self.batch))
