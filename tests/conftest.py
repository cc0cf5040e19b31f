"""Fixtures: the command line in this process or another, tiny runs, and the real images where they are."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

import pytest
import torch
from processes import Result

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # which Triton looks at when it is imported: kernels for GPUs run on the CPU

from cifarbench.cli import main
from cifarbench.commands.hydra_app import compose
from cifarbench.config.augment import AUGMENTS
from cifarbench.config.load import load
from cifarbench.config.models import MODELS
from cifarbench.config.optim import OPTIMIZERS
from cifarbench.config.schema import TrainConfig

SCRIPTS = Path(__file__).resolve().parents[1] / "scripts"
TINY = [
    "data=synthetic",
    "data.size=1200",
    "model=simple_cnn",
    "model.first_widths=[8,8]",
    "model.second_widths=[8,8]",
    "model.spatial_dropout=[0.0,0.0]",
    "optim=sgd",
    "optim.lr=0.1",
    "trainer.batch_size=128",
    "trainer.label_smoothing=0.0",
    "trainer.epochs=2",
    "trainer.progress=plain",
    "trainer.report=false",
]


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Of the tests that are timed, alone on the machine, only the files: the others take seconds to import."""
    is_file = collection_path.suffix == ".py" and config.option.markexpr == "timed"
    return True if is_file and "mark.timed" not in collection_path.read_text(encoding="utf-8") else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files of few tests first, which hold the long ones: then no process is left with a long file at the end."""
    counts = Counter(item.path for item in items)
    items.sort(key=lambda item: counts[item.path])


@pytest.fixture
def cli(capsys, tmp_path, monkeypatch) -> Iterator[Callable[..., Result]]:
    """Run a command line in this process, in a folder of its own; what plugins add leaves with the test."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> Result:
        capsys.readouterr()
        try:
            code = in_this_process(*arguments)
        except SystemExit as leaving:
            code = int(leaving.code or 0)
        return Result(code, *capsys.readouterr())

    with mock.patch.dict(MODELS), mock.patch.dict(OPTIMIZERS), mock.patch.dict(AUGMENTS):
        yield run


def in_this_process(*arguments: str) -> int:
    """The exit code of a command line; the number of threads, which it may set, is put back."""
    threads = torch.get_num_threads()
    try:
        return main(list(arguments))
    finally:
        torch.set_num_threads(threads)


def tiny_config(*overrides: str) -> TrainConfig:
    """The checked config of a tiny run."""
    return load(TrainConfig, compose("train", [*TINY, *overrides]))


def rows_of(run: Path) -> list[dict]:
    """The rows of metrics.jsonl without what the clock wrote."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if k not in ("seconds", "images_per_second")} for row in rows]


def wait_until(check: Callable[[], bool], seconds: float = 90) -> None:
    """Wait until `check` holds, and fail where it does not in time."""
    deadline = time.monotonic() + seconds
    while not check() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert check()


def manifest_of(run: Path) -> dict:
    """The content of run.json."""
    return json.loads((run / "run.json").read_text())


def mark_interrupted(run: Path) -> None:
    """Let run.json say that the run was interrupted, so that it is gone on with."""
    (run / "run.json").write_text(json.dumps({**manifest_of(run), "status": "interrupted"}))


@pytest.fixture(scope="session")
def _tiny_run(tmp_path_factory) -> Path:
    run = tmp_path_factory.mktemp("tiny") / "run"
    assert in_this_process("train", *TINY, f"hydra.run.dir={run}") == 0
    return run


@pytest.fixture
def finished(_tiny_run, tmp_path) -> Path:
    """A finished run of TINY in the test's own folder, `run`."""
    return Path(shutil.copytree(_tiny_run, tmp_path / "run"))


@pytest.fixture(scope="session")
def two_runs(tmp_path_factory) -> tuple[Path, Path]:
    """Two finished tiny runs in fp32 that differ by their seed; a test that changes one takes a copy."""
    home = tmp_path_factory.mktemp("two_runs")
    for seed in (0, 1):
        words = [*TINY, "trainer.precision=fp32", "trainer.threads=1", "trainer.tensorboard=false", f"seed={seed}"]
        assert in_this_process("train", *words, f"hydra.run.dir={home / f'run{seed}'}") == 0
    return home / "run0", home / "run1"


@pytest.fixture(scope="session")
def cifar10_root() -> str:
    """The folder of the real images; the test is skipped where it is not."""
    root = os.environ.get("CIFARBENCH_DATA", "")
    if not (Path(root) / "cifar-10-batches-py" / "test_batch").is_file() or not root:
        pytest.skip("needs the real CIFAR-10: set CIFARBENCH_DATA to its folder")
    return root
