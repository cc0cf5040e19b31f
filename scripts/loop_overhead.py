"""Measure the training loop against a bare loop and a tutorial-style loop, interleaved in one run.

    python scripts/loop_overhead.py [--models vgg resnet] [--rounds 5] [--steps 40] [--json FILE]

- bare: forward, backward and step on one fixed batch; same model, precision, layout, optimizer and batch size.
- cifarbench: `Training.fit` with standard augmentation, console lines and TensorBoard, from step to step.
- tutorial: DataLoader with two workers, PIL transforms (crop 4, flip, to tensor, normalise), fp32, batch 128.

Each round runs all three, one after the other; reported are the medians over the rounds and the ratios of medians.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms
from torchvision.transforms import functional

from cifarbench.commands.hydra_app import compose
from cifarbench.compute import choose_compute, describe, make_deterministic
from cifarbench.config.load import load
from cifarbench.config.schema import TrainConfig
from cifarbench.data.load import load_images
from cifarbench.data.split import Parts, Portion, channel_statistics, split
from cifarbench.optim.optimizers import build_optimizer
from cifarbench.reporting.console import PlainConsole
from cifarbench.reporting.tensorboard import TensorBoard
from cifarbench.training.clock import Clock
from cifarbench.training.distributed import World
from cifarbench.training.loop import Setting, Training
from cifarbench.training.observer import Observer, Observers, RunFacts, StepReport
from cifarbench.training.session import build_model
from cifarbench.training.signals import StopRequest

BATCH = 128


class PilImages(Dataset):
    """Training images as PIL images through torchvision's transforms, as tutorials do it."""

    def __init__(self, train: Portion) -> None:
        mean, std = channel_statistics(train.images)
        self.images = [functional.to_pil_image(image) for image in train.images]
        self.targets = train.targets.tolist()
        self.transform = transforms.Compose(
            [
                transforms.RandomCrop(32, padding=4),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
                transforms.Normalize(mean, std),
            ]
        )

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(self.images[index]), self.targets[index]


def tutorial_batches(train: Portion) -> Iterator[tuple[Tensor, Tensor]]:
    """Endless batches from a shuffling DataLoader with two workers."""
    loader = DataLoader(PilImages(train), BATCH, shuffle=True, num_workers=2, drop_last=True)
    while True:
        yield from loader


def bare_rate(config: TrainConfig, training: Training, batch: tuple[Tensor, Tensor], steps: int) -> float:
    """Images per second of forward, backward and step on one fixed batch."""
    model, optimizer = training.model, training.optimizer
    images, targets = batch
    for step in range(steps + 1):
        if step == 1:
            started = time.perf_counter()
        with training.setting.compute.autocast():
            logits = model(images).float()
        F.cross_entropy(logits, targets).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return BATCH * steps / (time.perf_counter() - started)


def tutorial_rate(model: nn.Module, batches: Iterator[tuple[Tensor, Tensor]], config: TrainConfig, steps: int) -> float:
    """Images per second of the tutorial-style loop, the loader's start left out."""
    optimizer = build_optimizer(model, config.optim, torch.device("cpu"))
    for step in range(steps + 1):
        if step == 1:
            started = time.perf_counter()
        images, targets = next(batches)
        optimizer.zero_grad()
        F.cross_entropy(model(images), targets).backward()
        optimizer.step()
    return BATCH * steps / (time.perf_counter() - started)


class Rounds(Observer):
    """Times each epoch of the loop from its first to its last step, then lets the rivals run a round."""

    def __init__(self, rivals: Any) -> None:
        self.rivals = rivals
        self.rates: list[dict[str, float]] = []

    def step(self, report: StepReport) -> None:
        """Note the first and the last step's time."""
        if report.batch == 1:
            self.first = time.perf_counter()
        self.last, self.batch = time.perf_counter(), report.batch

    def epoch(self, row: dict[str, Any], is_best: bool) -> None:
        """The loop's rate, then the rivals'."""
        rate = BATCH * (self.batch - 1) / (self.last - self.first)
        self.rates.append({"cifarbench": rate, **self.rivals()})


def measure(name: str, rounds: int, steps: int, parts: Parts, tutorial: Iterator[tuple[Tensor, Tensor]]) -> dict:
    """Rates of the three loops for one model, the first round dropped as warm-up."""
    overrides = [f"model={name}", f"trainer.epochs={rounds + 1}", f"trainer.limit_batches={steps + 1}"]
    config = load(
        TrainConfig, compose("train", [*overrides, f"trainer.batch_size={BATCH}", "trainer.validate_every=0"])
    )
    compute = choose_compute("cpu", config.trainer.precision, config.trainer.threads)
    make_deterministic(config.trainer.deterministic)
    stats = channel_statistics(parts.train.images)
    with tempfile.TemporaryDirectory() as folder:
        setting = Setting(parts.train, None, stats, compute, World(), Clock(), {}, Path(folder))
        twin = Training(config, build_model(config), setting, Observer())
        plain = build_model(config)
        images = twin.augment(parts.train.images[:BATCH], _draws(parts))
        batch = (images, parts.train.targets[:BATCH])

        def rivals() -> dict[str, float]:
            return {
                "bare": bare_rate(config, twin, batch, steps),
                "tutorial": tutorial_rate(plain, tutorial, config, steps),
            }

        watch = Rounds(rivals)
        board = TensorBoard(Path(folder) / "tensorboard", print)
        training = Training(config, build_model(config), setting, Observers(PlainConsole(), board, watch))
        training.observer.start(_facts(config, parts, describe(compute, 1), stats, steps), training.model)
        training.fit(StopRequest())
        training.observer.close()
    return summary(watch.rates[1:])


def _draws(parts: Parts) -> Any:
    from cifarbench.data.random import Draws

    return Draws(0, 0, parts.train.indices[:BATCH])


def _facts(config: TrainConfig, parts: Parts, environment: dict, stats: Any, steps: int) -> RunFacts:
    from cifarbench.config.load import to_plain

    return RunFacts(
        title=f"overhead of {config.model.name}",
        directory="(nothing is kept)",
        epochs=config.trainer.epochs,
        steps_per_epoch=steps + 1,
        first_step=0,
        counts={"train": len(parts.train), "val": 0, "test": len(parts.test)},
        parameters=0,
        flops=0,
        environment=environment,
        max_time=None,
        classes=tuple("0123456789"),
        dataset=parts.name,
        config=to_plain(config),
        statistics=stats,
        samples=parts.train.images[:64],
    )


def summary(rates: list[dict[str, float]]) -> dict[str, Any]:
    """Medians, ranges and the two ratios that matter."""
    medians = {name: statistics.median(rate[name] for rate in rates) for name in rates[0]}
    return {
        "rounds": len(rates),
        "images_per_second": {name: round(value, 1) for name, value in medians.items()},
        "range": {
            name: [round(min(r[name] for r in rates), 1), round(max(r[name] for r in rates), 1)] for name in medians
        },
        "of_bare": round(medians["cifarbench"] / medians["bare"], 4),
        "of_bare_by_round": [round(rate["cifarbench"] / rate["bare"], 3) for rate in rates],
        "of_bare_paired": round(statistics.median(rate["cifarbench"] / rate["bare"] for rate in rates), 4),
        "times_tutorial": round(medians["cifarbench"] / medians["tutorial"], 3),
    }


def main() -> None:
    """Measure, print a table, and write JSON where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["vgg", "resnet"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--data", default="synthetic", choices=["cifar10", "synthetic"])
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    config = load(TrainConfig, compose("train", [f"data={options.data}"]))
    parts = split(load_images(config.data), config.split)
    tutorial = tutorial_batches(parts.train)
    environment = describe(choose_compute("cpu", "auto", None), 1)
    results = {name: measure(name, options.rounds, options.steps, parts, tutorial) for name in options.models}
    for name, result in results.items():
        rates = ", ".join(f"{loop} {rate:,.0f}" for loop, rate in result["images_per_second"].items())
        print(
            f"{name}: images/s {rates}; {result['of_bare']:.1%} of bare ({result['of_bare_paired']:.1%} "
            f"round by round), {result['times_tutorial']:.2f}x tutorial"
        )
    if options.json:
        options.json.write_text(json.dumps({"environment": environment, "models": results}, indent=2) + "\n")


if __name__ == "__main__":
    main()
