"""Real records to spoil: tiny runs, a sweep, a study, images and batch files, made by the commands themselves."""

from __future__ import annotations

import contextlib
import importlib
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

TINY = (
    "data=synthetic",
    "data.size=600",
    "model=simple_cnn",
    "model.first_widths=[4,4]",
    "model.second_widths=[4,4]",
    "model.spatial_dropout=[0.0,0.0]",
    "trainer.epochs=1",
    "trainer.batch_size=64",
    "trainer.limit_batches=2",
    "trainer.precision=fp32",
    "trainer.threads=1",
    "trainer.progress=plain",
    "trainer.tensorboard=false",
    "trainer.report=false",
)
OPTIMIZERS = {
    "sgd": ("optim=sgd", "optim.lr=0.1"),
    "adamw": ("optim=adamw",),
    "muon": ("optim=muon", "trainer.ema=0.9"),
}
RUNS = {"run_a": (*OPTIMIZERS["muon"], "seed=1"), "run_b": (*OPTIMIZERS["muon"], "seed=2")}
BATCHES = ("data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5", "test_batch", "batches.meta")
_COMMANDS = {
    **{name: ("train", *TINY, *words, f"hydra.run.dir={name}") for name, words in RUNS.items()},
    "sweep": ("train", "-m", *TINY, "optim=sgd", "seed=1,2", "hydra.sweep.dir=sweep"),
    "study": ("tune", *TINY, "optim=sgd", "tune=sgd", "tune.trials=1", "hydra.run.dir=study"),
    "page": ("report", "run_a", "out=page/page.html"),
    "nearest": ("baseline", "knn", "data=synthetic", "data.size=600", "k=1", "threads=1", "hydra.run.dir=nearest"),
}


def command_of(name: str) -> tuple[str, ...]:
    """The command that made a record of the corpus."""
    return _COMMANDS[name]


def make(folder: Path, names: Sequence[str] = tuple(_COMMANDS)) -> None:
    """Fill `folder` with the records `names`, photos and batch files; what is there already stays."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        if not (folder / name).is_dir():
            in_fork(folder, _COMMANDS[name])
    for picture in folder.rglob("*.png"):
        picture.unlink()  # no verb reads the figures of a run
    _make_photos(folder / "photos")
    _make_batches(folder / "batches" / "cifar-10-batches-py")


def in_fork(folder: Path, argv: Sequence[str]) -> None:
    """Run a command in `folder` in a forked process, so that this one stays warm and clean.

    Raises:
        RuntimeError: it did not end with 0.
    """
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            from cifarbench.cli import main

            os.chdir(folder)
            os.dup2(os.open("log.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND), 1)
            code = main(argv)
            with Path("modules.txt").open("a", encoding="utf-8") as file:
                file.writelines(f"{name}\n" for name in list(sys.modules))
        finally:
            os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if code:
        raise RuntimeError(f"`cifarbench {' '.join(argv)}` ended with {code}.")


def warm(folder: Path) -> None:
    """Import what the commands of the corpus imported, compose and compile once, so that a fork finds it all done."""
    from cifarbench.commands.hydra_app import compose
    from cifarbench.kernels.library import load

    for name in dict.fromkeys((folder / "modules.txt").read_text(encoding="utf-8").split()):
        if name not in sys.modules and not name.startswith("__"):
            with contextlib.suppress(ImportError):  # a name that a package made up at run time
                importlib.import_module(name)
    compose("train", list(TINY))
    for bf16 in (False, True):
        load(bf16)


def copy(folder: Path, names: Sequence[str], target: Path) -> None:
    """Copy records of the corpus in `folder` into `target`."""
    for name in names:
        shutil.copytree(folder / name, target / name)


def _make_photos(folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    pixels = np.random.default_rng(5).integers(0, 256, (40, 48, 3), dtype=np.uint8)
    for suffix in ("png", "jpg", "webp", "bmp"):
        Image.fromarray(pixels).save(folder / f"photo.{suffix}")
    Image.fromarray(pixels[..., 0]).convert("P").save(folder / "palette.png", transparency=3)


def _make_batches(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in BATCHES:
        (folder / name).write_bytes(b"\x80\x02}q\x00(U\x0bbatch_labelq\x01." + name.encode())
