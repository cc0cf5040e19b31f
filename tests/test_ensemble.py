"""Ensembles of runs: the mean of predictions or of weights, the gain, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TINY, manifest_of
from scipy.stats import binomtest
from torch import nn

from cifarbench import runs
from cifarbench.errors import ResourceError
from cifarbench.evaluation.ensemble import mean_weights, renew_batch_norm
from cifarbench.training import checkpoint


def softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits.astype(np.float64) - logits.max(1, keepdims=True))
    return powers / powers.sum(1, keepdims=True)


def arrays_of(folder: Path) -> dict[str, np.ndarray]:
    with np.load(folder / "predictions.npz") as stored:
        return dict(stored)


def result_of(folder: Path) -> tuple[Path, dict]:
    (home,) = (folder / "outputs" / "ensemble").iterdir()
    return home, json.loads((home / "ensemble.json").read_text())


@pytest.fixture
def copies(two_runs, tmp_path) -> tuple[Path, Path]:
    return tuple(Path(shutil.copytree(run, tmp_path / run.name)) for run in two_runs)  # type: ignore[return-value]


def test_the_mean_of_predictions_and_its_gain(cli, two_runs, tmp_path):
    result = cli("ensemble", *map(str, two_runs))
    assert result.code == 0, result.err
    home, report = result_of(tmp_path)
    members = [arrays_of(run) for run in two_runs]
    mean = np.mean([softmax(member["logits"]) for member in members], axis=0)
    targets = members[0]["targets"]
    right = mean.argmax(1) == targets
    rights = [member["logits"].argmax(1) == targets for member in members]
    np.testing.assert_allclose(softmax(arrays_of(home)["logits"]), mean, atol=1e-6)
    assert report["accuracy"] == pytest.approx(right.mean())
    assert report["loss"] == pytest.approx(-np.log(mean[np.arange(len(targets)), targets]).mean(), rel=1e-5)
    gain = right.mean() - np.mean([member.mean() for member in rights])
    assert report["gain_over_mean"] == pytest.approx(gain)
    assert report["gain_over_mean_interval"][0] <= gain <= report["gain_over_mean_interval"][1]
    for row, member in zip(report["members"], rights, strict=True):
        only, other = int((right & ~member).sum()), int((member & ~right).sum())
        assert row["gain"] == pytest.approx(right.mean() - member.mean())
        assert row["p"] == pytest.approx(binomtest(only, only + other).pvalue if only + other else 1.0)
    assert f"{100 * gain:+.2f} points" in result.out
    assert all(manifest_of(run)["test"]["openings"] == 1 for run in two_runs)


def test_the_mean_of_weights_is_a_checkpoint_that_scores_the_same(cli, copies, tmp_path):
    result = cli("ensemble", *map(str, copies), "average=weights", "threads=1")
    assert result.code == 0, result.err
    home, report = result_of(tmp_path)
    states = [checkpoint.load(run / "checkpoints" / "best.pt")["model"] for run in copies]
    averaged = checkpoint.load(home / "averaged.pt")["model"]
    for name, value in averaged.items():
        if value.is_floating_point() and "running" not in name:
            torch.testing.assert_close(value, (states[0][name] + states[1][name]) / 2)
    assert all(manifest_of(run)["test"]["openings"] == 2 for run in copies)
    again = cli("eval", f"checkpoint={home / 'averaged.pt'}", "threads=1")
    assert again.code == 0, again.err
    assert f"{report['accuracy']:.2%} of 240" in again.out


def test_runs_in_fp16_are_averaged_on_a_cpu(cli, copies):
    for run in copies:
        path = run / "checkpoints" / "best.pt"
        state = checkpoint.load(path)
        state["passport"]["environment"] |= {"device": "cuda", "precision": "fp16"}
        path.write_bytes(checkpoint.sealed_bytes(state))
    result = cli("ensemble", *map(str, copies), "average=weights", "threads=1")
    assert result.code == 0, result.err
    assert all(manifest_of(run)["test"]["openings"] == 2 for run in copies)


def test_a_device_that_is_refused_opens_no_seal(cli, copies, monkeypatch):
    def refuse(trained, *asked):
        raise ResourceError("no such device")

    monkeypatch.setattr("cifarbench.training.restore.Trained.compute", refuse)
    assert cli("ensemble", *map(str, copies), "average=weights").code == 5
    assert all(manifest_of(run)["test"]["openings"] == 1 for run in copies)


def test_runs_of_other_data_or_split_are_refused(cli, copies):
    original = manifest_of(copies[1])

    def ended_with(part: str, **changes: str):
        manifest = {**original, part: {**original[part], **changes}}
        (copies[1] / "run.json").write_text(json.dumps(manifest))
        return cli("ensemble", *map(str, copies))

    for part, changes in (("dataset", {"fingerprint": "f" * 64}), ("split", {"name": "official"})):
        result = ended_with(part, **changes)
        assert result.code == 3
        assert f"their {part}s differ" in result.err
    assert ended_with("split", fingerprint="f" * 64).code == 0  # other validation images, the same test part


def test_weights_that_saw_each_others_validation_images_have_no_mean(cli, copies):
    path = copies[1] / "checkpoints" / "best.pt"
    state = checkpoint.load(path)
    state["passport"]["split"]["fingerprint"] = "f" * 64
    path.write_bytes(checkpoint.sealed_bytes(state))
    result = cli("ensemble", *map(str, copies), "average=weights")
    assert result.code == 3
    assert "different validation images" in result.err


def test_answers_for_other_images_are_refused(cli, copies):
    arrays = arrays_of(copies[1])
    np.savez(copies[1] / "predictions.npz", **{name: array[::-1] for name, array in arrays.items()})
    result = cli("ensemble", *map(str, copies))
    assert result.code == 3
    assert "different test images" in result.err


def test_weights_of_other_architectures_are_refused_and_no_seal_is_opened(cli, two_runs, tmp_path):
    words = [*TINY, "model.first_widths=[8,12]", "trainer.epochs=1", "trainer.tensorboard=false", "hydra.run.dir=other"]
    assert cli("train", *words).code == 0
    result = cli("ensemble", str(two_runs[0]), "other", "average=weights")
    assert result.code == 3
    assert "model.first_widths" in result.err
    assert manifest_of(tmp_path / "other")["test"]["openings"] == 1
    assert cli("ensemble", str(two_runs[0]), "other").code == 0


def test_weights_tested_on_other_views_are_refused_and_no_seal_is_opened(cli, copies):
    manifest = manifest_of(copies[1])
    manifest["test"]["tta"] = "flip"  # which a resume may have set, after the checkpoint was written
    runs.write_json(copies[1] / "run.json", manifest)
    result = cli("ensemble", *map(str, copies), "average=weights")
    assert result.code == 2
    assert all(word in result.err for word in ("`trainer.tta` is 'none'", "'flip'", "average=predictions"))
    assert all(manifest_of(run)["test"]["openings"] == 1 for run in copies)


def test_an_untested_run_is_refused(cli, copies):
    (copies[0] / "predictions.npz").unlink()
    result = cli("ensemble", *map(str, copies))
    assert result.code == 2
    assert "never scored" in result.err


@pytest.mark.parametrize("arguments", [[], ["run0"], ["run0", "run0"], ["run0", "nowhere"], ["run0", "average=best"]])
def test_what_is_no_ensemble_is_refused(cli, copies, arguments):
    result = cli("ensemble", *arguments)
    assert result.code == 2
    assert "Traceback" not in result.err


def test_counters_are_kept_and_numbers_averaged():
    first = {"weight": torch.tensor([1.0, 3.0]), "count": torch.tensor(7)}
    second = {"weight": torch.tensor([3.0, 4.0]), "count": torch.tensor(9)}
    mean = mean_weights([first, second])
    assert torch.equal(mean["weight"], torch.tensor([2.0, 3.5]))
    assert mean["count"] == 7


def test_batch_norm_is_measured_on_the_batches_given():
    norm = nn.BatchNorm2d(3, momentum=0.1)
    model = nn.Sequential(norm, nn.Dropout(0.9)).eval()
    images = torch.randn(40, 3, 8, 8) * 3 + 5
    renew_batch_norm(model, images.split(10))
    torch.testing.assert_close(norm.running_mean, images.mean((0, 2, 3)))
    variances = torch.stack([batch.var((0, 2, 3)) for batch in images.split(10)])
    torch.testing.assert_close(norm.running_var, variances.mean(0))
    assert norm.momentum == 0.1
    assert not model.training
