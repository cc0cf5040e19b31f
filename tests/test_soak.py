"""The soak script: a few seconds of its work, and that its check would notice what it looks for."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import manifest_of

SCRIPTS = Path(__file__).parents[1] / "scripts"


@pytest.fixture
def soak(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPTS))
    import soak

    return soak


def test_a_few_seconds_of_random_work_leave_everything_in_order(tmp_path):
    done = subprocess.run(
        [sys.executable, str(SCRIPTS / "soak.py"), "--minutes", "0.08", "--seed", "5", "--folder", "work"],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=400,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    counts = json.loads(next(line for line in done.stdout.splitlines() if line.startswith("{")))
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
        (lambda run: (run / "metrics.jsonl").write_text((run / "metrics.jsonl").read_text() * 2), "the steps are"),
    ],
)
def test_what_does_not_agree_is_noticed(soak, two_runs, tmp_path, spoil, fault):
    run = Path(shutil.copytree(two_runs[0], tmp_path / "run"))
    assert soak.inconsistencies(run) == []
    spoil(run)
    assert any(fault in found for found in soak.inconsistencies(run))


def test_a_run_that_did_not_end_is_noticed(soak, two_runs, tmp_path):
    run = Path(shutil.copytree(two_runs[0], tmp_path / "run"))
    rewrite(run / "run.json", status="running")
    work = soak.Soak(tmp_path, None)
    soak.check(work)
    assert work.faults == ["run is running"]
    assert manifest_of(run)["status"] == "running"
