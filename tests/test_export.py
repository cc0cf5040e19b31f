"""Exported files: they answer as the run's test did, say what they hold, and are never left behind wrong."""

from __future__ import annotations

import importlib.util
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from cifarbench import export as exporting
from cifarbench.data.synthetic import CLASSES, draw
from cifarbench.models.registry import build
from cifarbench.training.restore import find_checkpoint, restore

NEEDS = {"onnx": ("onnx", "onnxscript", "onnxruntime"), "torch_export": (), "safetensors": ("safetensors",)}


def exported(cli, run: Path, form: str, *words: str) -> Path:
    for name in NEEDS[form]:
        pytest.importorskip(name)
    suffix = {"onnx": "onnx", "torch_export": "pt2", "safetensors": "safetensors"}[form]
    result = cli("export", str(run), f"format={form}", f"out=here/model.{suffix}", *words)
    assert result.code == 0, result.err
    assert f"here/model.{suffix}" in result.out
    return Path(f"here/model.{suffix}")


def images_and_logits(run: Path, count: int = 40) -> tuple[torch.Tensor, np.ndarray]:
    """(pixels in 0..1, logits stored by the run's test)."""
    with np.load(run / "predictions.npz") as stored:
        indices, logits = stored["indices"][:count], stored["logits"][:count]
    return torch.from_numpy(draw(1200)[0][indices]).float() / 255, logits


def answer_of(path: Path, form: str, images: torch.Tensor) -> np.ndarray:
    if form == "onnx":
        import onnxruntime

        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        return session.run(None, {session.get_inputs()[0].name: images.numpy()})[0]
    return torch.export.load(path).module()(images).detach().numpy()


@pytest.mark.parametrize("form", ["onnx", "torch_export"])
def test_the_graph_answers_as_the_runs_test_did(cli, two_runs, form):
    path = exported(cli, two_runs[0], form)
    images, logits = images_and_logits(two_runs[0])
    for batch in (1, 7, 40):
        np.testing.assert_allclose(answer_of(path, form, images[:batch]), logits[:batch], rtol=1e-3, atol=1e-4)


def test_normalisation_can_be_left_out(cli, two_runs):
    path = exported(cli, two_runs[0], "torch_export", "normalise=false")
    images, logits = images_and_logits(two_runs[0])
    passport = restore(find_checkpoint(str(two_runs[0]), None)).passport
    mean, std = (torch.tensor(passport[name]).view(1, 3, 1, 1) for name in ("mean", "std"))
    np.testing.assert_allclose(answer_of(path, "torch_export", (images - mean) / std), logits, rtol=1e-3, atol=1e-4)


def test_onnx_metadata_names_the_classes(cli, two_runs):
    path = exported(cli, two_runs[0], "onnx")
    import onnx

    model = onnx.load(str(path))
    known = {entry.key: entry.value for entry in model.metadata_props}
    assert json.loads(known["classes"]) == list(CLASSES)
    assert "0..1" in known["input"]
    manifest = json.loads((two_runs[0] / "run.json").read_text())
    assert manifest["split"]["fingerprint"] in known["split"]
    assert [value.name for value in model.graph.input] == ["images"]
    assert [value.name for value in model.graph.output] == ["logits"]


def test_torch_export_carries_the_same_metadata(cli, two_runs):
    path = exported(cli, two_runs[0], "torch_export")
    extra = {"cifarbench.json": ""}
    torch.export.load(path, extra_files=extra)
    assert json.loads(json.loads(extra["cifarbench.json"])["classes"]) == list(CLASSES)


def test_safetensors_holds_the_tested_weights(cli, two_runs):
    path = exported(cli, two_runs[0], "safetensors")
    from safetensors import safe_open
    from safetensors.torch import load_file

    state = torch.load(two_runs[0] / "checkpoints" / "best.pt", weights_only=True)["model"]
    weights = load_file(path)
    assert weights.keys() == state.keys()
    assert all(torch.equal(weights[name], state[name]) for name in state)
    with safe_open(path, "pt") as file:
        assert json.loads(file.metadata()["classes"]) == list(CLASSES)
        assert len(json.loads(file.metadata()["std"])) == 3


def test_averaged_weights_are_what_is_exported(cli, tmp_path):
    from conftest import TINY

    words = [*TINY, "trainer.ema=0.5", "trainer.epochs=1", "trainer.tensorboard=false", "hydra.run.dir=run"]
    assert cli("train", *words).code == 0
    path = exported(cli, Path("run"), "safetensors")
    from safetensors.torch import load_file

    state = torch.load(tmp_path / "run" / "checkpoints" / "best.pt", weights_only=True)
    averaged = {name.removeprefix("module."): value for name, value in state["ema"].items()}
    assert all(torch.equal(value, averaged[name]) for name, value in load_file(path).items())


def test_the_file_lies_in_the_run_by_default(cli, two_runs):
    assert cli("export", str(two_runs[0]), "format=torch_export").code == 0
    assert (two_runs[0] / "export" / "model.pt2").is_file()


def test_the_file_lies_in_the_run_whose_folder_of_checkpoints_one_is_in(cli, finished, tmp_path, monkeypatch):
    pytest.importorskip("safetensors")
    monkeypatch.chdir(finished / "checkpoints")
    assert cli("export", "checkpoint=best.pt", "format=safetensors").code == 0
    assert (finished / "export" / "model.safetensors").is_file()
    (tmp_path / "alone").mkdir()
    (finished / "checkpoints" / "best.pt").rename(tmp_path / "alone" / "best.pt")
    monkeypatch.chdir(tmp_path)
    assert cli("export", "checkpoint=alone/best.pt", "format=safetensors").code == 0
    assert (tmp_path / "alone" / "export" / "model.safetensors").is_file()


def test_a_missing_package_is_named_with_its_command(cli, two_runs, monkeypatch):
    there = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if "onnx" in name else there(name, *rest))
    result = cli("export", str(two_runs[0]), "format=onnx")
    assert result.code == 5
    assert "pip install onnx onnxscript onnxruntime" in result.err


def test_a_file_that_answers_otherwise_is_not_kept(cli, two_runs, tmp_path, monkeypatch):
    write = exporting._write_torch_export

    def wrong(graph, known, path):
        answer = write(graph, known, path)
        return lambda images: answer(images) + 0.1

    monkeypatch.setattr(exporting, "_write_torch_export", wrong)
    result = cli("export", str(two_runs[0]), "format=torch_export", "out=model.pt2")
    assert result.code == 3
    assert "differs by 0.1" in result.err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "arguments",
    [[], ["nowhere"], ["a", "b"], ["{run}", "format=tflite"], ["{run}", "out=."], ["{run}", "out=pipe.onnx"]],
)
def test_what_cannot_be_exported_is_refused(cli, two_runs, tmp_path, arguments):
    os.mkfifo(tmp_path / "pipe.onnx")
    result = cli("export", *(argument.format(run=two_runs[0]) for argument in arguments))
    assert result.code == 2
    assert "Traceback" not in result.err
    assert (tmp_path / "pipe.onnx").is_fifo()


@pytest.mark.parametrize(("form", "name"), [("onnx", "model.safetensors"), ("safetensors", "model.onnx")])
def test_a_name_of_another_format_is_refused(cli, two_runs, tmp_path, form, name):
    result = cli("export", str(two_runs[0]), f"format={form}", f"out={name}")
    assert result.code == 2
    assert f"`out` is '{name}' and `format` {form}, whose files end in .{form}" in result.err
    assert not list(tmp_path.iterdir())


def test_whitened_and_residual_networks_export_too():
    options = {
        "whitening": True, "widths": (8, 8), "depth": 2, "residual": True, "pooling": "max", "head": "global_max",
        "activation": "gelu", "dirac": False, "norm_momentum": 0.4, "norm_eps": 1e-5, "norm_scale": False,
    }  # fmt: skip
    model = build("speednet", **options).eval()
    batch = torch.export.Dim("batch", min=1)
    program = torch.export.export(model, (torch.zeros(2, 3, 32, 32),), dynamic_shapes=({0: batch},))
    images = torch.randn(5, 3, 32, 32)
    torch.testing.assert_close(program.module()(images), model(images), rtol=1e-4, atol=1e-5)
