"""The soak script: a few seconds of its work, and that its check would notice what it looks for."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import soak
from conftest import SCRIPTS, manifest_of
from processes import script


def test_a_few_seconds_of_random_work_leave_everything_in_order(tmp_path):
    words = ["--minutes", "0.08", "--seed", "5", "--folder", "work"]
    done = script(SCRIPTS / "soak.py", *words, cwd=tmp_path)
    assert done.code == 0, done.out + done.err
    counts = json.loads(next(line for line in done.out.splitlines() if line.startswith("{")))
    assert counts["work"] > 0
    assert counts["faults"] == 0


def rewrite(path: Path, **changes: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize(
    ("spoil", "fault"),
    [
        (lambda run: (run / "confusion_matrix.csv").unlink(), "confusion_matrix.csv is missing"),
        (lambda run: rewrite(run / "test.json", accuracy=0.5), "differ in the test"),
        (lambda run: rewrite(run / "test.json", confusion_matrix=[[1] * 10] * 10), "predictions, confusion matrix"),
        (lambda run: rewrite(run / "run.json", weights="0" * 64), "not those of the checkpoint"),
        (lambda run: (run / "metrics.jsonl").write_text((run / "metrics.jsonl").read_text() * 2), "the steps are"),
    ],
)
def test_what_does_not_agree_is_noticed(two_runs, tmp_path, spoil, fault):
    run = Path(shutil.copytree(two_runs[0], tmp_path / "run"))
    assert soak.inconsistencies(run) == []
    spoil(run)
    assert any(fault in found for found in soak.inconsistencies(run))


def test_a_run_that_did_not_end_is_noticed(two_runs, tmp_path):
    run = Path(shutil.copytree(two_runs[0], tmp_path / "run"))
    rewrite(run / "run.json", status="running")
    work = soak.Soak(tmp_path, None)
    soak.check(work)
    assert work.faults == ["run is running"]
    assert manifest_of(run)["status"] == "running"
