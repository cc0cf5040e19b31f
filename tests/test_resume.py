"""Kill, stop and resume: the end is bit for bit that of an undisturbed run."""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import pty
import random
import signal
import time
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
import torch
from conftest import TINY, manifest_of, mark_interrupted, rows_of, tiny_config
from processes import forked

from cifarbench.training.checkpoint import load, save, tensor_hash
from cifarbench.training.setting import Progress

RICH = [
    *TINY,
    "augment=mixup",
    "scheduler=onecycle",
    "trainer.ema=0.95",
    "trainer.epochs=4",
    "trainer.checkpoint_every=2",
    "model.dropout=0.2",
    "trainer.tensorboard=false",
]


def wait_for_step(process: BaseProcess, run: Path, step: int) -> None:
    """Wait until the run's checkpoint is at `step` or later, or the process has ended."""
    deadline = time.monotonic() + 60
    while process.is_alive() and time.monotonic() < deadline:
        path = run / "checkpoints" / "last.pt"
        if path.exists() and load(path)["progress"]["step"] >= step:
            return
        time.sleep(0.02)


def state(run: Path) -> dict:
    return load(run / "checkpoints" / "last.pt")


def assert_same_end(run: Path, reference: Path) -> None:
    ours, theirs = state(run), state(reference)
    for part in ("model", "ema"):
        assert tensor_hash(ours[part]) == tensor_hash(theirs[part]), part
    for index, slots in theirs["optimizer"]["state"].items():
        for name, value in slots.items():
            assert torch.equal(torch.as_tensor(ours["optimizer"]["state"][index][name]), torch.as_tensor(value)), name
    assert rows_of(run) == rows_of(reference)
    assert manifest_of(run)["test"]["accuracy"] == manifest_of(reference)["test"]["accuracy"]


FAST = [
    "optim=muon",
    "model.whitening=true",
    "model.dirac=true",
    "augment.flip_alternates=true",
    "trainer.sizes=[24]",
    "trainer.size_until=[50%]",
    "trainer.stem_bias_until=25%",
    "trainer.ema_start=50%",
    "trainer.tta=flip",
    "trainer.untimed_steps=1",
]


def test_a_run_killed_at_random_steps_ends_as_if_it_had_not_been(cli, tmp_path):
    arguments = [*RICH, *FAST]
    assert cli("train", *arguments, "hydra.run.dir=whole").code == 0
    draw = random.Random(os.urandom(8))
    steps = sorted(draw.sample(range(2, 28), 2))
    for step in steps:
        process = forked("train", *arguments, "hydra.run.dir=killed", cwd=tmp_path, log=tmp_path / "log")
        wait_for_step(process, tmp_path / "killed", step)
        time.sleep(draw.random() * 0.1)
        process.kill()
        process.join()
    resumed = cli("train", *arguments, "hydra.run.dir=killed")
    assert resumed.code == 0, (steps, resumed.err)
    assert "resumed from" in resumed.out
    assert_same_end(tmp_path / "killed", tmp_path / "whole")


def test_a_signal_saves_the_step_and_the_run_goes_on_from_its_directory_alone(cli, tmp_path):
    arguments = [*RICH, "trainer.checkpoint_every=0", "trainer.epochs=8"]
    stopped_at, command = 0, [*arguments, "hydra.run.dir=run"]
    for number, code in ((signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGUSR1, 138)):
        process = forked("train", *command, cwd=tmp_path, log=tmp_path / "log")
        wait_for_step(process, tmp_path / "run", stopped_at + 1)
        os.kill(process.pid, number)
        process.join(30)
        assert process.exitcode == code
        assert manifest_of(tmp_path / "run")["status"] == "interrupted"
        assert f"after step {stopped_at}" in (tmp_path / "log").read_text() or not stopped_at
        stopped_at, command = state(tmp_path / "run")["progress"]["step"], ["trainer.resume=run"]
        assert f"stopped after step {stopped_at}" in (tmp_path / "log").read_text()
        assert "trainer.resume=run" in (tmp_path / "log").read_text()
    resumed = cli("train", *command)
    assert resumed.code == 0, resumed.err
    assert f"after step {stopped_at}" in resumed.out
    assert cli("train", *arguments, "hydra.run.dir=whole").code == 0
    assert_same_end(tmp_path / "run", tmp_path / "whole")


def on_terminal(name: str) -> None:
    """Make the terminal `name` this process's own, and its output; its hangup counts, though the suite run by nohup."""
    os.setsid()
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    handle = os.open(name, os.O_RDWR)
    for standard in range(3):
        os.dup2(handle, standard)


def test_a_closed_terminal_saves_the_step(cli, tmp_path):
    ours, theirs = pty.openpty()
    prepare = functools.partial(on_terminal, os.ttyname(theirs))
    words = [*RICH, "trainer.epochs=20", "hydra.run.dir=run"]
    process = forked("train", *words, cwd=tmp_path, log=tmp_path / "log", prepare=prepare)
    wait_for_step(process, tmp_path / "run", 1)
    os.close(theirs)
    os.close(ours)
    process.join(30)
    assert process.exitcode == 128 + signal.SIGHUP
    assert manifest_of(tmp_path / "run")["status"] == "interrupted"
    assert cli("train", "trainer.resume=run").code == 0


def without_reader() -> None:
    """Send the output into a pipe that nobody reads."""
    reader, writer = os.pipe()
    os.dup2(writer, 1)
    os.close(reader)


@pytest.mark.parametrize("command", [["train", *TINY, "hydra.run.dir=run"], ["bench", "--help"], ["--version"]])
def test_a_reader_that_leaves_ends_nothing(tmp_path, command):
    process = forked(*command, cwd=tmp_path, log=tmp_path / "log", prepare=without_reader)
    process.join(60)
    assert process.exitcode == 0
    assert (tmp_path / "log").read_text() == ""
    assert command[0] != "train" or manifest_of(tmp_path / "run")["status"] == "completed"


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_resuming_a_finished_run_changes_nothing(cli, finished):
    before = snapshot(finished)
    for arguments in ([*TINY, "hydra.run.dir=run"], ["trainer.resume=run"], ["trainer.resume=run/checkpoints/last.pt"]):
        result = cli("train", *arguments)
        assert result.code == 0
        assert "already complete" in result.out
    assert snapshot(finished) == before


@pytest.mark.parametrize("other", ["optim.lr=0.2", "model=vgg", "split=official", "seed=5"])
def test_resuming_with_another_config_is_refused_and_the_difference_named(cli, finished, other):
    manifest = json.loads((finished / "run.json").read_text())
    for status in ("completed", "interrupted"):
        (finished / "run.json").write_text(json.dumps({**manifest, "status": status}))
        arguments = [argument for argument in TINY if not (other == "model=vgg" and argument.startswith("model"))]
        result = cli("train", *arguments, other, "hydra.run.dir=run")
        assert result.code == 3, result
        assert {"model=vgg": "vgg", "split=official": "official"}.get(other, other.split("=")[0]) in result.err


def test_resuming_by_directory_with_one_other_key_is_refused(cli, finished):
    result = cli("train", "trainer.resume=run", "optim.lr=0.3")
    assert result.code == 3
    assert "`optim.lr`: 0.1 in the run, 0.3 asked for" in result.err


def test_a_run_is_resumed_by_a_directory_of_any_name(cli, finished, tmp_path):
    name = r"a\b (1) it's"
    finished.rename(tmp_path / name)
    again = cli("train", f"trainer.resume={name}")
    assert (again.code, "already complete" in again.out) == (0, True), again.err
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_run_is_resumed_beside_a_folder_of_options(cli, finished, tmp_path):
    (tmp_path / "mine").mkdir()
    again = cli("train", "trainer.resume=run", "--config-dir", "mine")
    assert (again.code, "already complete" in again.out) == (0, True), again.err


def test_resume_never_refuses_a_directory_with_a_run(cli, finished):
    result = cli("train", *TINY, "hydra.run.dir=run", "trainer.resume=never")
    assert result.code == 2
    assert "already holds a run" in result.err


def test_a_resume_from_another_checkpoint_than_the_last_is_refused(cli, finished):
    before = snapshot(finished)
    ended = cli("train", "trainer.resume=run/checkpoints/best.pt")
    assert (ended.code, "trainer.fork=FILE" in ended.err) == (2, True), ended.err
    assert snapshot(finished) == before


def test_a_damaged_last_checkpoint_is_named_and_the_best_one_used(cli, finished):
    whole = tensor_hash(load(finished / "checkpoints" / "last.pt")["model"])
    (finished / "checkpoints" / "last.pt").write_bytes(b"")
    mark_interrupted(finished)
    result = cli("train", *TINY, "hydra.run.dir=run")
    assert result.code == 0, result.err
    assert "last.pt is damaged" in result.out
    assert tensor_hash(load(finished / "checkpoints" / "last.pt")["model"]) == whole


def test_a_damaged_last_checkpoint_is_mended_where_the_best_one_leaves_no_step(cli, finished):
    folder = finished / "checkpoints"
    last = load(folder / "last.pt")
    save({**last, "progress": {**last["progress"], "best_epoch": last["progress"]["epoch"]}}, folder / "best.pt")
    (folder / "last.pt").write_bytes(b"")
    mark_interrupted(finished)
    result = cli("train", *TINY, "hydra.run.dir=run")
    assert result.code == 0, result.err
    assert tensor_hash(load(folder / "last.pt")["model"]) == tensor_hash(last["model"])


def test_a_run_with_no_readable_checkpoint_is_exit_3(cli, finished):
    for name in ("last", "best"):
        (finished / "checkpoints" / f"{name}.pt").write_bytes(b"PK")
    mark_interrupted(finished)
    result = cli("train", *TINY, "hydra.run.dir=run")
    assert result.code == 3
    assert "last.pt" in result.err


def interrupted(run: Path, **progress: int) -> None:
    """Make a finished run one that was killed, its last checkpoint with other `progress`."""
    mark_interrupted(run)
    last = state(run)
    save({**last, "progress": {**last["progress"], **progress}}, run / "checkpoints" / "last.pt")


@pytest.mark.parametrize("damage", ["missing", "short"])
def test_a_run_whose_best_weights_are_gone_is_refused_before_it_goes_on(cli, finished, damage):
    interrupted(finished, best_epoch=1)
    best = finished / "checkpoints" / "best.pt"
    best.unlink() if damage == "missing" else best.write_bytes(best.read_bytes()[:-100])
    result = cli("train", "trainer.resume=run")
    assert result.code == 3, result.err
    assert "best.pt is" in result.err
    assert "Traceback" not in result.err


@pytest.mark.parametrize("before", ["none", "older"])
def test_a_kill_between_the_last_and_the_best_checkpoint_loses_no_best_weights(cli, finished, before):
    best = finished / "checkpoints" / "best.pt"
    interrupted(finished, best_epoch=2)
    if before == "none":
        best.unlink()
    else:
        older = state(finished)
        save({**older, "model": {name: value * 0 for name, value in older["model"].items()}}, best)
    result = cli("train", "trainer.resume=run")
    assert result.code == 0, result.err
    assert tensor_hash(load(best)["model"]) == tensor_hash(state(finished)["model"])
    assert manifest_of(finished)["best"]["epoch"] == 2


def test_rows_after_the_checkpoint_are_not_doubled(cli, finished):
    rows = rows_of(finished)
    with (finished / "metrics.jsonl").open("a") as file:
        file.write('{"epoch": 3, "step": 99}\n{"epo')
    mark_interrupted(finished)
    assert cli("train", *TINY, "hydra.run.dir=run").code == 0
    assert rows_of(finished) == rows


def test_a_second_sigint_ends_at_once_and_the_old_checkpoint_stays(tmp_path):
    words = ("train", *RICH, "trainer.epochs=500", "hydra.run.dir=run")
    process = forked(*words, cwd=tmp_path, log=tmp_path / "log")
    wait_for_step(process, tmp_path / "run", 3)
    os.kill(process.pid, signal.SIGINT)
    os.kill(process.pid, signal.SIGINT)
    process.join(10)
    assert process.exitcode == 130
    assert state(tmp_path / "run")["progress"]["step"] >= 3


def test_a_kill_between_the_last_step_and_the_end_of_its_epoch_leaves_the_same_row(tmp_path):
    """The checkpoint of an epoch's last step is all that is left; its row is written after the resume."""
    from test_training import fit

    from cifarbench.training.loop import Training

    class KilledError(Exception):
        pass

    config = tiny_config("trainer.checkpoint_every=7", "trainer.epochs=2", "trainer.threads=1")
    fit(config, tmp_path / "whole")
    end_epoch = Training._end_epoch
    with pytest.MonkeyPatch.context() as patch:

        def die(training, tick):
            if training.progress.epoch == 1:
                raise KilledError
            end_epoch(training, tick)

        patch.setattr(Training, "_end_epoch", die)
        with pytest.raises(KilledError):
            fit(config, tmp_path / "killed")
    fit(config, tmp_path / "killed")
    killed, whole = (state(tmp_path / name)["progress"]["rows"][1]["lr"] for name in ("killed", "whole"))
    assert killed == whole > 0


@pytest.mark.parametrize(
    "values", [{"epoch": "2"}, {"step": 1 << 60}, {"rows": None}, {"best_accuracy": float("nan")}, {"nonsense": 1}]
)
def test_progress_that_no_run_wrote_is_refused(values):
    with pytest.raises((TypeError, ValueError)):
        Progress.of({**dataclasses.asdict(Progress()), **values})
