"""A run in a notebook: the recorded answers again, the parts that may be seen, and the seal that stays."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from conftest import TINY, manifest_of
from test_predict import stored

import cifarbench
from cifarbench.config.models import MODELS
from cifarbench.data.synthetic import draw
from cifarbench.errors import ConfigError, IntegrityError
from cifarbench.runs import read_rows

README = (Path(__file__).parents[1] / "README.md").read_text()


@pytest.mark.parametrize("which", ["the run", "its checkpoint"])
def test_it_answers_as_the_test_did(two_runs, which):
    path = two_runs[0] if which == "the run" else two_runs[0] / "checkpoints" / "best.pt"
    run = cifarbench.load(path)
    indices, probabilities = stored(two_runs[0])
    images, _ = draw(1200)
    answers = run.predict(torch.from_numpy(images)[torch.from_numpy(indices)])
    np.testing.assert_allclose(answers.numpy(), probabilities, atol=1e-5)
    assert run.predictions is not None
    np.testing.assert_allclose(run.predictions.probabilities.numpy(), probabilities, atol=1e-12)
    assert run.metrics == read_rows(two_runs[0])
    assert run.config["model"]["first_widths"] == [8, 8]
    assert run.classes[0] == "disc"


def test_validation_images_are_those_that_the_run_counted(two_runs):
    run = cifarbench.load(two_runs[0])
    images, targets = run.images("val")
    best = manifest_of(two_runs[0])["best"]["val_accuracy"]
    assert (run.predict(images).argmax(1) == targets).double().mean().item() == pytest.approx(best, abs=1e-9)
    assert len(run.images("train")[0]) + len(images) == 960


def test_the_model_takes_normalised_images_and_gives_gradients(two_runs):
    run = cifarbench.load(two_runs[0])
    images, targets = run.images("val")
    inputs = run.normalise(images[:4]).requires_grad_()
    logits = run.model(inputs)
    torch.testing.assert_close(logits.softmax(1), run.predict(images[:4]))
    for kind, close in ((torch.float32, 1e-6), (torch.float64, 1e-6), (torch.float16, 1e-2)):
        floats = (images[:4] / 255).to(kind)
        torch.testing.assert_close(run.predict(floats), run.predict(images[:4]), rtol=0, atol=close)
        assert run.normalise(floats).dtype == torch.float32
    for empty in (images[:0], images[:0].float()):
        assert run.predict(empty).shape == (0, 10)
    torch.nn.functional.cross_entropy(logits, targets[:4]).backward()
    assert inputs.grad is not None
    assert float(inputs.grad.abs().sum()) > 0


def test_the_seal_stays(two_runs):
    before = manifest_of(two_runs[0])["test"]["openings"]
    run = cifarbench.load(two_runs[0])
    with pytest.raises(ConfigError, match="sealed"):
        run.images("test")
    run.images("val")
    assert manifest_of(two_runs[0])["test"]["openings"] == before


def test_what_is_no_part_and_no_run_is_named(two_runs, tmp_path):
    with pytest.raises(ConfigError, match=r"'vall'; it must be 'train' or 'val'"):
        cifarbench.load(two_runs[0]).images("vall")
    with pytest.raises(ConfigError, match="'nowhere' is not there"):
        cifarbench.load("nowhere")
    with pytest.raises(ConfigError, match="no run directory"):
        cifarbench.load(tmp_path)


@pytest.mark.parametrize(
    "images",
    [torch.zeros(3, 32, 32), torch.zeros(2, 32, 32, 3), torch.zeros(2, 3, 32, 32, dtype=torch.int64)],
    ids=["one image", "channels last", "whole numbers"],
)
def test_what_is_no_batch_of_images_is_refused(two_runs, images):
    run = cifarbench.load(two_runs[0])
    for ask in (run.predict, run.normalise):
        with pytest.raises(ValueError, match=re.escape(str(tuple(images.shape)))):
            ask(images)


def test_an_array_is_told_how_it_becomes_a_tensor(two_runs):
    with pytest.raises(ValueError, match=r"of type ndarray; torch\.from_numpy"):
        cifarbench.load(two_runs[0]).predict(np.zeros((1, 3, 32, 32), np.uint8))


def test_images_that_were_normalised_before_are_refused(two_runs):
    run = cifarbench.load(two_runs[0])
    with pytest.raises(ValueError, match="not yet normalised"):
        run.predict(run.normalise(run.images("val")[0]))


def test_views_that_nobody_knows_are_refused(two_runs):
    with pytest.raises(ValueError, match="it must be auto, none, flip, multicrop"):
        cifarbench.load(two_runs[0]).predict(torch.zeros(1, 3, 32, 32, dtype=torch.uint8), "mirror")


def test_a_run_without_files_beside_its_checkpoint_has_neither_metrics_nor_predictions(two_runs, tmp_path):
    alone = tmp_path / "alone.pt"
    shutil.copy(two_runs[0] / "checkpoints" / "best.pt", alone)
    run = cifarbench.load(alone)
    assert (run.metrics, run.predictions) == ([], None)
    assert run.predict(torch.zeros(1, 3, 32, 32, dtype=torch.uint8)).sum().item() == pytest.approx(1)


def test_a_damaged_checkpoint_is_refused(two_runs, tmp_path):
    bad = tmp_path / "bad.pt"
    bad.write_bytes((two_runs[0] / "checkpoints" / "best.pt").read_bytes()[:-9])
    with pytest.raises(IntegrityError):
        cifarbench.load(bad)


def test_a_run_of_an_own_model_needs_its_file(cli, tmp_path):
    (tmp_path / "mynet.py").write_text(
        "from torch import nn\n"
        "from cifarbench.models.registry import register\n"
        "@register('flat')\n"
        "class Flat(nn.Sequential):\n"
        "    def __init__(self) -> None:\n"
        "        super().__init__(nn.Flatten(), nn.Linear(3072, 10))\n"
    )
    words = [*TINY[:2], *TINY[8:], "trainer.epochs=1", "trainer.tensorboard=false", "hydra.run.dir=run"]
    assert cli("train", "plugins=[mynet.py]", "model=flat", *words).code == 0
    assert cifarbench.load("run", plugins=["mynet.py"]).model[1].weight.shape == (10, 3072)
    with mock.patch.dict(MODELS):
        del MODELS["flat"]
        with pytest.raises(IntegrityError, match="plugins=\\[FILE\\]"):
            cifarbench.load("run")


def test_the_readmes_lines_run(two_runs, tmp_path, monkeypatch):
    (block,) = re.findall(r"^```python\n(import cifarbench\n.*?)^```$", README, re.DOTALL | re.MULTILINE)
    shutil.copytree(two_runs[0], tmp_path / "outputs/train/…")
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    exec(compile(block, "README.md", "exec"), names)
    shapes = {name: tuple(value.shape) for name, value in names.items() if isinstance(value, torch.Tensor)}
    assert shapes == {"images": (96, 3, 32, 32), "labels": (96,), "probabilities": (96, 10), "logits": (8, 10)}
