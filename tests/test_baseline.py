"""Nearest neighbours against scikit-learn and by hand, and the run directory that the command leaves."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
import yaml
from conftest import manifest_of
from sklearn.neighbors import KNeighborsClassifier, NearestNeighbors
from test_metrics import OnMps

from cifarbench.compute import Compute
from cifarbench.data.synthetic import draw
from cifarbench.evaluation.nearest import RAW, NearestNeighbours, accuracies, vote
from cifarbench.evaluation.predict import predict

QUICK = ["data=synthetic", "data.size=900", "threads=1"]


@pytest.fixture(scope="module")
def drawn():
    images, targets = draw(500)
    return torch.from_numpy(images), torch.from_numpy(targets)


@pytest.mark.parametrize(("distance", "metric"), [("l2", "euclidean"), ("l1", "manhattan")])
def test_neighbours_are_scikit_learns(drawn, distance, metric):
    images, targets = drawn
    train, queries = images[:421], images[421:]  # neither is a multiple of a tile
    model = NearestNeighbours(train, targets[:421], 7, distance)
    theirs = NearestNeighbors(n_neighbors=7, metric=metric, algorithm="brute").fit(train.flatten(1).double() / 255)
    expected = theirs.kneighbors(queries.flatten(1).double() / 255, return_distance=False)
    assert np.array_equal(model.neighbours(queries.float() / 255, 7).numpy(), expected)


def test_one_neighbour_predicts_as_scikit_learn(drawn):
    images, targets = drawn
    model = NearestNeighbours(images[:400], targets[:400], 1, "l2")
    logits = predict(model, images[400:], RAW, Compute(torch.device("cpu"), "fp32"))
    theirs = KNeighborsClassifier(1).fit(images[:400].flatten(1) / 255, targets[:400])
    assert np.array_equal(logits.argmax(1).numpy(), theirs.predict(images[400:].flatten(1) / 255))


def test_votes_by_hand():
    labels = torch.tensor([[2, 5, 5, 1], [7, 3, 3, 7], [3, 7, 7, 3]])
    logits = vote(labels, 4)
    assert logits.argmax(1).tolist() == [5, 7, 3]  # a tie goes to the class with the nearest neighbour
    shares = logits.exp()
    assert shares[0, 5].item() == pytest.approx((2 + 0.1) / 5, abs=0.003)
    assert shares[0, 9].item() == pytest.approx(0.1 / 5, abs=1e-6)
    assert shares.sum(1).tolist() == pytest.approx([1, 1, 1], abs=0.003)
    assert vote(labels, 1).argmax(1).tolist() == [2, 7, 3]


def test_votes_are_counted_alike_on_a_device_without_float64():
    labels, targets = torch.tensor([[2, 5, 5, 1], [7, 3, 3, 7]]), torch.tensor([5, 3])
    there = labels.as_subclass(OnMps)
    assert torch.equal(vote(there, 4), vote(labels, 4))
    assert accuracies(there, targets.as_subclass(OnMps), (1, 3)) == {1: 0.0, 3: 1.0}


def test_nearness_never_outvotes_a_majority():
    k = 1000
    labels = torch.tensor([[0] * 499 + [1] * 501])
    assert vote(labels, k).argmax(1).tolist() == [1]


def test_accuracy_for_every_k_from_one_search(drawn):
    images, targets = drawn
    model = NearestNeighbours(images[:400], targets[:400], 1, "l2")
    found = targets[model.neighbours(images[400:].float() / 255, 9)]
    table = accuracies(found, targets[400:], (1, 3, 9))
    for k, accuracy in table.items():
        model.k = k
        again = model(images[400:].float() / 255).argmax(1)
        assert accuracy == pytest.approx((again == targets[400:]).double().mean().item())


def test_the_command_leaves_a_run_directory_and_opens_the_seal_once(cli, tmp_path):
    result = cli("baseline", "knn", *QUICK, "ks=[1,5]", "hydra.run.dir=run")
    assert result.code == 0, result.err
    run = tmp_path / "run"
    names = {path.name for path in run.iterdir()} - {".lock"}
    files = {"config.yaml", "run.json", "test.json", "predictions.npz", "confusion_matrix.csv", "confusion_matrix.png"}
    assert names == files
    manifest, test = manifest_of(run), json.loads((run / "test.json").read_text())
    assert manifest["status"] == "completed"
    assert manifest["test"]["openings"] == 1
    assert manifest["test"]["accuracy"] == test["accuracy"]
    assert {k: manifest["split"][k] for k in ("train", "val", "test")} == {"train": 648, "val": 72, "test": 180}
    best = manifest["best"]
    assert manifest["validation"][str(best["k"])] == best["val_accuracy"] == max(manifest["validation"].values())
    assert yaml.safe_load((run / "config.yaml").read_text())["distance"] == "l2"
    stored = np.load(run / "predictions.npz")
    assert stored["logits"].shape == (180, 10)
    assert (stored["logits"].argmax(1) == stored["targets"]).mean() == pytest.approx(test["accuracy"])
    assert stored["indices"].tolist() == list(range(720, 900))
    assert math.isfinite(test["loss"])
    assert f"{test['accuracy']:.2%} of 180" in result.out


def test_k_is_chosen_without_the_test_part(cli, tmp_path, monkeypatch):
    chosen = []
    for noise in (False, True):
        if noise:
            from cifarbench.data import synthetic

            def noisy(size):
                images, targets = draw(size)
                images[size * 48 // 60 :] = 7
                return images, targets

            monkeypatch.setattr(synthetic, "draw", noisy)
        assert cli("baseline", "knn", *QUICK, f"hydra.run.dir=run{noise}").code == 0
        chosen.append(manifest_of(tmp_path / f"run{noise}")["validation"])
    assert chosen[0] == chosen[1]


def test_a_k_of_ones_own_needs_no_validation(cli, tmp_path):
    result = cli("baseline", "knn", *QUICK, "k=3", "distance=l1", "split.val_fraction=0", "hydra.run.dir=run")
    assert result.code == 0, result.err
    assert manifest_of(tmp_path / "run")["best"] is None
    again = cli("baseline", "knn", *QUICK, "k=3", "hydra.run.dir=run")
    assert again.code == 2
    assert "already holds a run" in again.err


def test_a_flags_value_is_not_taken_for_the_baseline(cli, tmp_path):
    (tmp_path / "knn").mkdir()
    for arguments in (["--config-dir", "knn", "knn", "k=3", "--cfg", "job"], ["--config-dir", "knn", "--cfg", "job"]):
        result = cli("baseline", *arguments)
        assert result.code == 0, result.err
        assert "name: knn" in result.out


def test_a_sweep_gives_each_job_a_directory(cli, tmp_path):
    result = cli("baseline", "knn", "-m", *QUICK, "k=1,4", "hydra.sweep.dir=sweep")
    assert result.code == 0, result.err
    assert len(list(tmp_path.glob("sweep/*/test.json"))) == 2


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], ["knn"]),
        (["knnn"], ["'knnn'", "knn"]),
        (["knn", "k=0"], ["`k` is 0", "at least 1"]),
        (["knn", "distance=l3"], ["`distance` is 'l3'", "l2, l1"]),
        (["knn", "split.val_fraction=0"], ["`k` is null", "split.val_fraction"]),
        (["knn", "ks=[]"], ["`ks` is []"]),
        (["knn", "data=synthetic", "data.size=600", "k=500"], ["`k`", "500", "432"]),
    ],
)
def test_bad_commands_are_refused_in_a_sentence(cli, tmp_path, arguments, words):
    result = cli("baseline", *arguments)
    assert result.code == 2
    assert all(word in result.err for word in words), result.err
    assert not list(tmp_path.glob("outputs/baseline/*"))


def test_the_leaderboard_ranks_it_beside_what_is_trained(cli, tmp_path):
    for k in (1, 5):
        assert cli("baseline", "knn", *QUICK, f"k={k}", f"hydra.run.dir=run{k}").code == 0
    ended = cli("leaderboard", ".", "out=board")
    assert ended.code == 0, ended.err
    assert "left out" not in ended.out + ended.err
    rows = json.loads((tmp_path / "board" / "leaderboard.json").read_text())["rows"]
    accuracies = [manifest_of(tmp_path / f"run{k}")["test"]["accuracy"] for k in (1, 5)]
    assert [row["test_mean"] for row in rows] == sorted(accuracies, reverse=True)
