"""`cifarbench bench`: rates of configs against each other, or time to an accuracy."""

from __future__ import annotations

import shlex
import tempfile
from pathlib import Path
from typing import Any

from cifarbench.commands.hydra_app import added_places, compose
from cifarbench.commands.plugins import load_plugins
from cifarbench.config.load import load
from cifarbench.config.schema import BenchVerbConfig, TrainConfig
from cifarbench.errors import ConfigError, ResourceError
from cifarbench.runs import shown_path, write_json


def run(values: dict[str, Any], directory: Path, overrides: list[str]) -> int:
    """Measure what `values` asks for, print a table, and write bench.json into `directory`."""
    load_plugins(values.get("plugins") or [])
    config = load(BenchVerbConfig, values)
    typed = [override for override in overrides if not override.lstrip("+~").startswith(("bench.", "hydra."))]
    shared = [*added_places(), *typed]
    entries = [(_label(typed), shared)] + [(text, [*shared, *_split(text)]) for text in config.bench.against]
    configs = [_trained(entry) for _, entry in entries]
    if config.bench.measure == "accuracy":
        if not all(each.trainer.test for each in configs):
            raise ConfigError(
                "`trainer.test` is false; bench.measure=accuracy compares test accuracies, so leave it true."
            )
        return _accuracy(config, entries, directory)
    return _throughput(config, [label for label, _ in entries], configs, directory)


def _label(typed: list[str]) -> str:
    return " ".join(typed) or "the default config"


def _split(text: str) -> list[str]:
    try:
        return shlex.split(text)
    except ValueError as error:
        raise ConfigError(f"`bench.against` holds {text!r}, which cannot be split into overrides: {error}.") from error


def _trained(overrides: list[str]) -> TrainConfig:
    """The training config of an entry, checked before anything is timed."""
    return load(TrainConfig, compose("train", overrides))


def _throughput(config: BenchVerbConfig, labels: list[str], configs: list[TrainConfig], directory: Path) -> int:
    from rich.console import Console

    from cifarbench.benchmark.contenders import Contender
    from cifarbench.benchmark.throughput import measure
    from cifarbench.compute import describe
    from cifarbench.data.load import load_images
    from cifarbench.data.split import split
    from cifarbench.reporting.benchmark import recording_observer, throughput_report

    console = Console(highlight=False, markup=False, emoji=False)  # labels are printed as they are
    parts = [split(load_images(each.data, console.print), each.split) for each in configs]
    tutorial = _tutorial(configs[0], parts[0]) if config.bench.tutorial else None
    with tempfile.TemporaryDirectory() as scratch:
        observers = [recording_observer(Path(scratch) / str(index)) for index in range(len(configs))]
        contenders = [Contender(*entry) for entry in zip(labels, configs, parts, observers, strict=True)]
        rounds, steps, seconds = config.bench.rounds, config.bench.steps, config.bench.seconds
        result = measure(contenders, tutorial, rounds, steps, seconds, console.print)
        for observer in observers:
            observer.close()
    contenders[0].settle()
    result["environment"] = describe(contenders[0].compute, 1)
    console.print(throughput_report(result))
    return _write(result, directory, console)


def _tutorial(config: TrainConfig, parts: Any) -> Any:
    try:
        from cifarbench.benchmark.tutorial import TutorialLoop
    except ImportError as error:
        raise ResourceError(f"`bench.tutorial` needs torchvision ({error}): pip install torchvision.") from error
    return TutorialLoop(config, parts)


def _accuracy(config: BenchVerbConfig, entries: list[tuple[str, list[str]]], directory: Path) -> int:
    from rich.console import Console

    from cifarbench.benchmark.time_to_accuracy import race
    from cifarbench.reporting.benchmark import accuracy_report

    console = Console(highlight=False, markup=False, emoji=False)  # labels are printed as they are
    seeds = range(config.seed, config.seed + config.bench.seeds)
    rows = race(entries, seeds, config.bench.target, directory, console.print)
    console.print(accuracy_report(rows))
    return _write({"configs": rows}, directory, console)


def _write(result: dict[str, Any], directory: Path, console: Any) -> int:
    directory.mkdir(parents=True, exist_ok=True)
    write_json(directory / "bench.json", result)
    console.print(shown_path(directory / "bench.json"))
    return 0
