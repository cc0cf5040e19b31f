"""Faults that are made for real, and what is left on the disk: a full disk, no memory, a clock set back, orphans."""

from __future__ import annotations

import json
import os
import re
import resource
import signal
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from conftest import TINY, manifest_of, mark_interrupted, rows_of, wait_until
from processes import command, forked, python

from cifarbench import runs
from cifarbench.leaderboard.records import find
from cifarbench.training import checkpoint

PLAIN = [*TINY, "trainer.tensorboard=false"]


def files_of_at_most(size: int) -> None:
    """Let the kernel refuse files of more than `size` bytes to this process: to it, the disk is full from there on."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def test_a_full_disk_at_a_save_is_exit_5_with_path_and_bytes_and_the_earlier_checkpoint_loads(cli, tmp_path):
    assert cli("train", *PLAIN, "hydra.run.dir=run").code == 0
    last = tmp_path / "run" / "checkpoints" / "last.pt"
    size = last.stat().st_size
    mark_interrupted(tmp_path / "run")
    last.write_bytes((tmp_path / "run" / "checkpoints" / "best.pt").read_bytes())
    earlier = last.read_bytes()
    words = ("train", *PLAIN, "hydra.run.dir=run", "trainer.epochs=2")
    full = forked(*words, cwd=tmp_path, log=tmp_path / "log", prepare=partial(files_of_at_most, size // 2))
    full.join(60)
    said = (tmp_path / "log").read_text()
    assert full.exitcode == 5, said
    assert re.search(r"checkpoints/(last|best)\.pt", said)
    assert re.search(r"a checkpoint of [\d,]+ bytes", said)
    assert "Traceback" not in said
    assert last.read_bytes() == earlier
    assert cli("train", *PLAIN, "hydra.run.dir=run").code == 0
    assert checkpoint.load(last)["progress"]["epoch"] == 2


def test_too_little_memory_is_exit_5_with_advice(cli):
    wide = ["model.first_widths=[100000]", "model.second_widths=[8]", "model.spatial_dropout=[0.0]"]
    result = cli("train", *PLAIN, *wide, "trainer.batch_size=864", "hydra.run.dir=run")
    assert result.code == 5, result.err
    assert "trainer.batch_size" in result.err
    assert "Traceback" not in result.err


def test_a_clock_that_is_set_back_leaves_order_and_durations_as_they_are(cli, tmp_path, monkeypatch):
    real, started = time.time, time.time()
    monkeypatch.setattr(time, "time", lambda: real() - (86_400 if real() - started > 1 else 0))
    assert cli("train", *TINY, "trainer.epochs=4", "hydra.run.dir=run").code == 0
    assert time.time() < started
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in rows] == [1, 2, 3, 4]
    assert all(row["seconds"] > 0 and row["images_per_second"] > 0 for row in rows)
    timing = manifest_of(tmp_path / "run")["timing"]
    assert 0 < timing["training"] <= timing["train"] <= timing["train_test"] <= timing["cold"]
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    events.Reload()
    steps = [point.step for point in events.Scalars("train/loss")]
    assert steps == [row["step"] for row in rows]


def test_a_disk_that_fills_up_under_tensorboard_alone_costs_one_warning(cli, tmp_path, monkeypatch):
    import errno

    from tensorboard.summary.writer import record_writer

    written = []

    def write(self: record_writer.RecordWriter, data: bytes) -> None:
        written.append(len(data))
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(record_writer.RecordWriter, "write", write)
    result = cli("train", *TINY, "hydra.run.dir=run")
    assert result.code == 0, result.err
    assert written
    assert result.out.count("TensorBoard logging") == 1
    assert "Traceback" not in result.err
    assert manifest_of(tmp_path / "run")["status"] == "completed"


def test_other_threads_are_said_when_a_run_goes_on(cli, tmp_path):
    assert cli("train", *PLAIN, "trainer.threads=1", "hydra.run.dir=run").code == 0
    run = tmp_path / "run"
    mark_interrupted(run)
    result = cli("train", "trainer.resume=run", "trainer.threads=2")
    assert result.code == 0, result.err
    assert "threads was 1 before and is 2 now" in result.out


def test_a_checkpoint_from_a_gpu_is_scored_on_a_cpu(cli, tmp_path):
    assert cli("train", *PLAIN, "hydra.run.dir=run").code == 0
    path = tmp_path / "gpu.pt"
    state = checkpoint.load(tmp_path / "run" / "checkpoints" / "best.pt")
    state["passport"]["environment"] |= {"device": "cuda", "device_name": "NVIDIA H200", "precision": "fp16"}
    path.write_bytes(checkpoint.sealed_bytes(state))
    for device in ("auto", "cpu"):
        result = cli("eval", f"checkpoint={path}", f"device={device}")
        assert result.code == 0, result.err
        assert "test accuracy" in result.out
    result = cli("eval", f"checkpoint={path}", "device=cpu", "precision=fp16")
    assert (result.code, "needs a GPU" in result.err) == (5, True)


@pytest.mark.parametrize("path", ["best.pt", "./best.pt", "../checkpoints/best.pt", "deeper/../best.pt", "../link.pt"])
def test_eval_inside_the_folder_of_checkpoints_counts_its_opening(cli, finished, monkeypatch, path):
    (finished / "checkpoints" / "deeper").mkdir()
    (finished / "link.pt").symlink_to(finished / "checkpoints" / "best.pt")
    monkeypatch.chdir(finished / "checkpoints")
    result = cli("eval", f"checkpoint={path}")
    assert result.code == 0, result.err
    assert manifest_of(finished)["test"]["openings"] == 2
    assert list((finished / "eval").glob("*.json"))


def test_a_checkpoint_that_is_kept_elsewhere_is_still_its_runs(cli, finished, tmp_path):
    best = finished / "checkpoints" / "best.pt"
    (tmp_path / "large").mkdir()
    best.rename(tmp_path / "large" / "best.pt")
    best.symlink_to(tmp_path / "large" / "best.pt")
    assert cli("eval", "run=run").code == 0
    assert manifest_of(finished)["test"]["openings"] == 2


def test_a_resumed_run_keeps_the_command_that_began_it(cli, finished):
    began = manifest_of(finished)["command"]
    for _ in range(2):
        mark_interrupted(finished)
        assert cli("train", "trainer.resume=run", "trainer.threads=1").code == 0
    manifest = manifest_of(finished)
    typed = ["cifarbench", "train", "trainer.resume='run'", "trainer.threads=1"]
    assert manifest["command"] == began
    assert [session["command"] for session in manifest["sessions"]] == [began, typed, typed]
    assert find([finished])[0].label.startswith("data=synthetic data.size=1200 model=simple_cnn")
    assert cli("report", "run").code == 0
    assert "optim.lr=0.1" in (finished / "report.html").read_text().split("config.yaml")[0]


def test_another_recipe_in_a_directory_without_a_checkpoint_has_its_own_command(tmp_path):
    for words, identity, expected in ((["a"], "1", ["a"]), (["b"], "1", ["a"]), (["c"], "2", ["c"])):
        holder = runs.RunDirectory(tmp_path / "run")
        holder.acquire()
        holder.command = words
        holder.begin(identity=identity, seed=0)
        holder.release()
        assert manifest_of(tmp_path / "run")["command"] == expected


def test_stored_predictions_are_never_unpickled(cli, tmp_path, two_runs):
    import shutil

    run = Path(shutil.copytree(two_runs[0], tmp_path / "run"))
    canary = tmp_path / "canary"

    class Payload:
        def __reduce__(self) -> tuple:
            return os.mkdir, (str(canary),)

    np.savez(run / "predictions.npz", indices=np.array([Payload()], dtype=object), targets=np.zeros(1), logits=0)
    for words in (["report", f"run={run}"], ["verify", str(run)], ["leaderboard", str(tmp_path)]):
        result = cli(*words)
        assert "Traceback" not in result.err
        assert result.code in (0, 1, 2, 3), (words, result.err)
    assert not canary.exists()


# --- many processes --------------------------------------------------------------------------------------------------


def test_fifty_runs_started_at_once_have_fifty_directories(tmp_path):
    script = (
        "import os, sys\nfrom pathlib import Path\nfrom cifarbench import runs\n"
        "children = []\n"
        "for _ in range(50):\n"
        "    pid = os.fork()\n"
        "    if not pid:\n"
        "        holder = runs.RunDirectory(Path(sys.argv[1]) / runs.run_name('vgg'))\n"
        "        holder.acquire(); holder.begin(); os._exit(0)\n"
        "    children.append(pid)\n"
        "sys.exit(max(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children))\n"
    )
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=False, timeout=60)
    assert done.returncode == 0
    assert len([path for path in tmp_path.iterdir() if runs.read_manifest(path)["status"] == "running"]) == 50


def session_of(leader: int) -> list[int]:
    """The processes of a session that are still alive, by /proc."""
    alive = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[3]) == leader and fields[0] != "Z":
            alive.append(int(entry.name))
    return alive


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
@pytest.mark.parametrize(
    ("send", "number", "code"),
    [(os.killpg, signal.SIGINT, 130), (os.kill, signal.SIGKILL, -9)],
    ids=["interrupted", "killed"],
)
def test_a_sweep_over_processes_that_ends_early_leaves_saved_jobs_and_no_process(tmp_path, send, number, code):
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher", reason="needs hydra-joblib-launcher")
    words = ["-m", *PLAIN, "trainer.epochs=500", "seed=1,2,3", "hydra/launcher=processes", "hydra.sweep.dir=sweep"]
    process = subprocess.Popen(
        command("train", *words),
        cwd=tmp_path,
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        wait_until(lambda: len(list(tmp_path.glob("sweep/*/checkpoints/last.pt"))) == 2)
        send(process.pid, number)  # a terminal signals the whole group, a cluster often only the first process
        assert process.wait(timeout=60) == code
        wait_until(lambda: not session_of(process.pid), 30)
    finally:
        if session_of(process.pid):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    found = [path.parent for path in tmp_path.glob("sweep/*/run.json")]
    assert [manifest_of(run)["status"] for run in found] == ["interrupted"] * 2


def test_a_signal_in_a_job_ends_the_whole_sweep_after_its_save_and_the_same_command_goes_on_with_it(cli, tmp_path):
    words = ["train", "-m", *PLAIN, "data.size=600", "trainer.epochs=6", "trainer.threads=1", "seed=1,2"]
    words += ["hydra.sweep.dir=sweep"]
    first, step = tmp_path / "sweep" / "0-seed=1", 0
    last = first / "checkpoints" / "last.pt"
    for number in (signal.SIGTERM, signal.SIGINT):
        process = forked(*words, cwd=tmp_path, log=tmp_path / "log")
        wait_until(lambda step=step: last.exists() and checkpoint.load(last)["progress"]["step"] > step)
        os.kill(process.pid, number)
        process.join(60)
        said = (tmp_path / "log").read_text()
        assert process.exitcode == 128 + number, said
        assert [path.name for path in (tmp_path / "sweep").glob("*-*")] == ["0-seed=1"]
        assert said.splitlines()[-1].endswith("the same command goes on with it.")
        assert manifest_of(first)["status"] == "interrupted"
        step = checkpoint.load(last)["progress"]["step"]
    assert cli(*words).code == 0
    assert len(manifest_of(first)["sessions"]) == 3
    assert [manifest_of(path.parent)["status"] for path in tmp_path.glob("sweep/*/run.json")] == ["completed"] * 2


def stopped_while_it_composes(then: type[Exception] | None) -> None:
    """Let SIGTERM come while Hydra composes, and Hydra fail on its way out where `then` is an error."""
    from hydra._internal.config_loader_impl import ConfigLoaderImpl

    compose = ConfigLoaderImpl.load_configuration

    def stopped(*values: object, **named: object) -> object:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        finally:
            if then is not None:
                raise then("half composed")
        return compose(*values, **named)

    ConfigLoaderImpl.load_configuration = stopped


@pytest.mark.parametrize("then", [None, AttributeError])
def test_a_sweep_over_processes_that_is_stopped_before_its_folder_exists_begins_nothing(tmp_path, then):
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher", reason="needs hydra-joblib-launcher")
    words = ["train", "-m", *PLAIN, "trainer.epochs=1", "seed=1,2", "hydra/launcher=processes", "hydra.sweep.dir=sweep"]
    prepare = partial(stopped_while_it_composes, then)
    process = forked(*words, cwd=tmp_path, log=tmp_path / "log", prepare=prepare)
    process.join(60)
    said = (tmp_path / "log").read_text()
    assert process.exitcode == 128 + signal.SIGTERM, said
    assert said == "cifarbench: the sweep was stopped; the same command goes on with it.\n"
    assert [path.name for path in tmp_path.iterdir()] == ["log"]


def test_no_signal_ends_a_worker_between_its_jobs(tmp_path):
    script = (
        "import os, signal\nfrom pathlib import Path\nfrom cifarbench.commands.side_by_side import Beside\n"
        "beside = Beside(Path())\nbeside.sweep = os.getppid()\nbeside.watch()\n"
        "for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):\n"
        "    os.kill(os.getpid(), number)\n"
    )
    assert python("-c", script, cwd=tmp_path).code == 0


def test_what_is_no_file_is_written_to_and_never_replaced(tmp_path):
    (tmp_path / "nowhere").symlink_to(os.devnull)
    runs.write_text(tmp_path / "nowhere", "a table")
    assert (tmp_path / "nowhere").is_symlink()
    assert Path(os.devnull).is_char_device()


def test_two_writers_of_one_file_leave_it_whole_and_nothing_else(tmp_path):
    texts = [json.dumps({"writer": name, "filler": name * 20_000}) for name in "ab"]
    writers = [
        threading.Thread(target=lambda text=text: [runs.write_text(tmp_path / "shared.json", text) for _ in range(100)])
        for text in texts
    ]
    for writer in writers:
        writer.start()
    while any(writer.is_alive() for writer in writers):
        if (tmp_path / "shared.json").exists():
            assert (tmp_path / "shared.json").read_text() in texts
    assert [path.name for path in tmp_path.iterdir()] == ["shared.json"]


def test_what_a_killed_writer_left_is_removed_and_what_is_being_written_is_not(tmp_path):
    old, fresh = tmp_path / ".run.json.0000.part", tmp_path / ".verify.json.0001.part"
    for path in (old, fresh):
        path.write_text("{")
    os.utime(old, (time.time() - 3600, time.time() - 3600))
    holder = runs.RunDirectory(tmp_path)
    holder.acquire()
    holder.release()
    assert (old.exists(), fresh.exists()) == (False, True)


# --- forks -----------------------------------------------------------------------------------------------------------


def test_a_fork_begins_with_the_weights_of_another_run_and_says_so(cli, tmp_path):
    assert cli("train", *PLAIN, "hydra.run.dir=first").code == 0
    words = [*PLAIN, "trainer.fork=first", "optim.lr=1e-12", "optim.weight_decay=0", "scheduler=constant"]
    result = cli("train", *words, "trainer.epochs=1", "hydra.run.dir=second")
    assert result.code == 0, result.err
    assert "forked from first/checkpoints/last.pt" in result.out
    first, second = (checkpoint.load(tmp_path / name / "checkpoints" / "last.pt") for name in ("first", "second"))
    for name, weight in first["model"].items():
        if name.endswith("weight"):
            assert (second["model"][name] - weight).abs().max() < 1e-6
    assert manifest_of(tmp_path / "second")["sessions"][0]["resumed_from"] == "first/checkpoints/last.pt"
    assert [row["epoch"] for row in rows_of(tmp_path / "second")] == [1]


def test_a_fork_of_a_run_whose_last_checkpoint_is_damaged_says_that_it_takes_the_best(cli, tmp_path, finished):
    finished.rename(tmp_path / "first")
    (tmp_path / "first" / "checkpoints" / "last.pt").write_bytes(b"")
    result = cli("train", *PLAIN, "trainer.fork=first", "trainer.epochs=1", "hydra.run.dir=second")
    assert result.code == 0, result.err
    assert "last.pt is damaged" in result.out
    assert "forked from first/checkpoints/best.pt" in result.out


@pytest.mark.parametrize(
    ("words", "code", "reason"),
    [
        (["trainer.fork=nowhere"], 2, "trainer.fork"),
        (["trainer.fork=first", "model.dropout=0.5"], 3, "model.dropout"),
        (["trainer.fork=first", "split=official"], 3, "split"),
        (["trainer.fork=first", "data.size=1800"], 3, "dataset"),
    ],
)
def test_a_fork_of_other_images_or_another_model_is_refused(cli, tmp_path, words, code, reason, two_runs):
    (tmp_path / "first").symlink_to(two_runs[0])
    result = cli("train", *PLAIN, *words, "hydra.run.dir=second")
    assert result.code == code, result.err
    assert reason in result.err
    assert not list(tmp_path.glob("second/checkpoints/*"))
