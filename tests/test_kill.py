"""The script that kills by the hundred: a short campaign, and that it would notice what it looks for."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import kill
import pytest
from conftest import SCRIPTS
from processes import script


def test_a_few_kills_leave_no_trace(tmp_path):
    chosen = ("sgd-plain-fp32", "adamw-ema-fp32", "muon-ema-bf16")
    words = ["--kills", "3", "--seed", "1", *(f"--only={name}" for name in chosen), "--folder", "runs"]
    done = script(SCRIPTS / "kill.py", *words, cwd=tmp_path)
    assert done.code == 0, done.out + done.err
    counts = json.loads(next(line for line in done.out.splitlines() if line.startswith("{")))
    assert counts["kills"] == 3
    assert counts["faults"] == 0


def test_another_end_is_noticed(two_runs, tmp_path):
    reference = kill.ending(two_runs[0])
    copy = Path(shutil.copytree(two_runs[0], tmp_path / "copy"))
    assert kill.mismatches(copy, reference) == []
    differing = kill.mismatches(two_runs[1], reference)
    assert {"run1: the weights differ", "run1: the optimizer state differ", "run1: the rows differ"} <= set(differing)


@pytest.mark.parametrize("name", ["run.json", "config.yaml", "checkpoints/last.pt"])
def test_an_unreadable_directory_is_noticed(two_runs, tmp_path, name):
    copy = Path(shutil.copytree(two_runs[0], tmp_path / "copy"))
    assert kill.unreadable(copy) == []
    path = copy / name
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2] + b"\x00{")
    assert len(kill.unreadable(copy)) == 1
