"""The judge and honest runs: resumed, from a GPU, beside damaged ones, and where the judge lacks the dataset."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from conftest import TINY, manifest_of, mark_interrupted

from cifarbench import runs
from cifarbench.leaderboard import judge
from cifarbench.training import checkpoint

PLAIN = [*TINY, "data.size=600", "trainer.epochs=1", "trainer.tensorboard=false", "trainer.precision=fp32"]
NOT_CIFAR10 = "3     trainable images only"  # which a run on drawn images can but break


@pytest.fixture
def run(two_runs, tmp_path) -> Path:
    return Path(shutil.copytree(two_runs[0], tmp_path / "run"))


def verdict_of(run: Path) -> dict:
    return json.loads((run / judge.VERDICT).read_text())


def unkept(run: Path) -> dict[str, str]:
    """The rules that were not kept, with their verdicts."""
    return {check["rule"]: check["verdict"] for check in verdict_of(run)["checks"] if check["verdict"] != "kept"}


def rewrite_best(run: Path, **passport: str) -> None:
    """Let the tested checkpoint say another environment."""
    state = checkpoint.load(run / "checkpoints" / "best.pt")
    state["passport"]["environment"] |= passport
    (run / "checkpoints" / "best.pt").write_bytes(checkpoint.sealed_bytes(state))


def test_a_run_that_was_resumed_with_other_neutral_keys_is_in_order(cli, tmp_path, monkeypatch):
    def interrupt(holder):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(runs.RunDirectory, "count_opening", interrupt)
        assert cli("train", *PLAIN, "hydra.run.dir=run").code == 130
    words = ["trainer.resume=run", "trainer.progress=none", "trainer.threads=1", "trainer.tta=flip"]
    assert cli("train", *words).code == 0
    ended = cli("verify", "run")
    assert unkept(tmp_path / "run") == {NOT_CIFAR10: "broken"}, ended.out
    path = tmp_path / "run" / "config.yaml"
    path.write_text(path.read_text().replace("lr: 0.1\n", "lr: 0.2\n"))
    ended = cli("verify", "run")
    assert unkept(tmp_path / "run") == {NOT_CIFAR10: "broken", "config": "broken"}
    assert "`optim.lr`" in ended.out


def test_a_run_that_is_not_finished_is_told_to_go_on(cli, run):
    mark_interrupted(run)
    ended = cli("verify", "run")
    assert (ended.code, unkept(run)) == (3, {"record": "broken"})
    said = " ".join(ended.out.split())
    assert "the run is interrupted, not completed; train it to its end with trainer.resume=run" in said
    assert "1 of 1 run breaks a rule: run." in ended.err


def test_the_same_accuracy_by_other_answers_is_for_a_person_to_look_at(cli, run):
    manifest = manifest_of(run)
    manifest["test"]["loss"] *= 1.1
    runs.write_json(run / "run.json", manifest)
    cli("verify", "run")
    assert unkept(run) == {NOT_CIFAR10: "broken", "accuracy": "look"}


def test_a_model_of_the_authors_own_is_for_a_person_to_read_and_its_file_is_the_one_it_was_trained_from(cli, tmp_path):
    plugin, own = tmp_path / "judged.py", "1, 4  own model, drawn weights"
    plugin.write_text(
        "from torch import nn\n"
        "from cifarbench.models.registry import register\n"
        "@register('judged')\n"
        "class Judged(nn.Sequential):\n"
        "    def __init__(self, *, width: int = 4) -> None:\n"
        "        super().__init__(nn.Flatten(), nn.Linear(3072, width), nn.ReLU(), nn.Linear(width, 10))\n"
    )
    words = [*TINY[:1], *TINY[8:], *PLAIN[len(TINY) :]]
    assert cli("train", "plugins=[judged.py]", "model=judged", *words, "hydra.run.dir=run").code == 0
    ended = cli("verify", "run", "plugins=[judged.py]")
    assert unkept(tmp_path / "run") == {own: "look", NOT_CIFAR10: "broken"}, ended.out
    assert "judged.Judged" in ended.out
    path = tmp_path / "run" / "checkpoints" / "best.pt"
    state = checkpoint.load(path)
    state["config"]["model"]["sha256"] = "0" * 16
    path.write_bytes(checkpoint.sealed_bytes(state))
    ended = cli("verify", "run", "plugins=[judged.py]")
    assert unkept(tmp_path / "run")[own] == "broken", ended.out
    assert "the file of judged was edited" in ended.err


def test_a_run_in_fp16_is_judged_on_a_cpu(cli, run):
    rewrite_best(run, device="cuda", device_name="NVIDIA H200", precision="fp16")
    ended = cli("verify", "run")
    assert unkept(run) == {NOT_CIFAR10: "broken"}, ended.out


def test_runs_without_a_checkpoint_or_a_record_are_judged_and_so_are_those_after_them(cli, run, tmp_path):
    bare, damaged = (Path(shutil.copytree(run, tmp_path / name)) for name in ("bare", "damaged"))
    shutil.rmtree(bare / "checkpoints")
    (damaged / "run.json").write_text("{")
    ended = cli("verify", "bare", "damaged", "run")
    assert ended.code == 3
    assert "3 of 3 runs break a rule: bare, damaged, run." in ended.err
    for home in (bare, damaged):
        assert (verdict_of(home)["passed"], verdict_of(home)["digest"]) == (False, None)
        assert unkept(home) == {"record": "broken"}
        assert not judge.is_verified(home, "last20", None)
    assert unkept(run) == {NOT_CIFAR10: "broken"}


def test_a_verdict_of_no_digest_is_never_that_of_a_verified_run(run):
    shutil.rmtree(run / "checkpoints")
    kept = {"passed": True, "protocol": "last20", "limit": None, "digest": None, "checks": []}
    runs.write_json(run / judge.VERDICT, kept)
    assert not judge.is_verified(run, "last20", None)


def test_a_missing_dataset_is_said_once_and_breaks_no_run(cli, run, tmp_path):
    state = checkpoint.load(run / "checkpoints" / "best.pt")
    state["config"]["data"] = {"name": "cifar10", "root": None, "download": False, "mirrors": []}
    real = [Path(shutil.copytree(run, tmp_path / name)) for name in ("first", "second")]
    for home in real:
        (home / "checkpoints" / "best.pt").write_bytes(checkpoint.sealed_bytes(state))
    (tmp_path / "empty").mkdir()
    ended = cli("verify", "first", "run", "second", "root=empty")
    assert ended.code == 5
    assert ended.err.count("lacks data_batch_1") == 1
    assert "first, second: not judged" in ended.err
    assert not any((home / judge.VERDICT).exists() for home in real)
    assert unkept(run) == {NOT_CIFAR10: "broken"}
    assert manifest_of(real[0])["test"]["openings"] == 1
