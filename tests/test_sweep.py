"""Sweeps as a user types them: failures, kills, reruns, repeats, and several jobs at once."""

from __future__ import annotations

import csv
import io
import json
import re
from pathlib import Path

import pytest
from conftest import TINY, manifest_of, rows_of, wait_until
from processes import forked, in_terminal, shell
from rich.console import Console

from cifarbench import runs
from cifarbench.commands.sweep import rewrite
from cifarbench.errors import ConfigError
from cifarbench.reporting.sweep import _live, print_table
from cifarbench.sweeps import FAILURE, Job, Jobs
from cifarbench.training.checkpoint import load, tensor_hash

SMALL = [*TINY, "data.size=600", "trainer.epochs=1", "trainer.tensorboard=false", "trainer.threads=1"]


def jobs_of(sweep):
    return json.loads((sweep / "sweep.json").read_text())["jobs"]


def only_sweep(folder):
    (found,) = (folder / "outputs" / "sweep").iterdir()
    return found


def weights(job):
    return tensor_hash(load(job / "checkpoints" / "last.pt")["model"])


def test_the_same_sweep_again_skips_what_is_finished(cli, tmp_path):
    arguments = ["train", "-m", *SMALL, "seed=1,2"]
    assert cli(*arguments).code == 0
    sweep = only_sweep(tmp_path)
    before = {path: path.read_bytes() for path in sweep.glob("*/run.json")}
    assert len(before) == 2
    again = cli(*arguments)
    assert again.code == 0
    assert again.out.count("already complete") == 2
    assert only_sweep(tmp_path) == sweep
    assert {path: path.read_bytes() for path in sweep.glob("*/run.json")} == before


def test_a_job_is_named_as_its_directory_is(cli):
    """Names such as 0-seed=1 hold what Hydra's grammar would read as something else."""
    assert cli("train", "-m", *SMALL, "seed=1", "optim.lr=0.1,0.2", "hydra.sweep.dir=few").code == 0
    job = "few/0-optim.lr=0.1"
    assert cli("eval", f"run={job}", "portion=val").code == 0
    assert "already complete" in cli("train", f"trainer.resume={job}").out
    assert cli("train", *SMALL, "optim.lr=0.1", f"trainer.fork={job}", "hydra.run.dir=next").code == 0


def test_another_config_is_another_sweep(cli, tmp_path):
    for rate in ("0.1", "0.2"):
        assert cli("train", "-m", *SMALL, f"optim.lr={rate}", "seed=1").code == 0
    assert len(list((tmp_path / "outputs" / "sweep").iterdir())) == 2


def test_another_order_of_the_values_is_another_sweep(cli, tmp_path):
    for rates in ("-1,-2", "-2,-1"):  # which fail at once
        assert cli("train", "-m", *SMALL, f"optim.lr={rates}").code == 1
    sweeps = list((tmp_path / "outputs" / "sweep").iterdir())
    found = [[path.name for path in sorted(sweep.glob("*-*"))] for sweep in sweeps]
    assert sorted(found) == [["0-optim.lr=-1", "1-optim.lr=-2"], ["0-optim.lr=-2", "1-optim.lr=-1"]]


def test_a_sweep_whose_directory_was_named_by_the_sorted_values_is_gone_on_with(cli, tmp_path):
    arguments = ["train", "-m", *SMALL, "optim.lr=-2,-1"]
    assert cli(*arguments).code == 1
    plan = cli("train", "-m", *SMALL, "optim.lr=-1,-2", "sweep.dry_run=true").out
    earlier = tmp_path / plan.partition(" jobs in ")[2].partition(";")[0]
    assert not earlier.exists()
    only_sweep(tmp_path).rename(earlier)
    assert "0  failed       optim.lr=-2" in cli(*arguments, "sweep.dry_run=true").out
    assert cli(*arguments).code == 1
    assert only_sweep(tmp_path) == earlier


def test_jobs_of_two_sweeps_in_one_directory_are_shown_by_their_own_results(cli, tmp_path):
    for rates in ("-1,-2", "-3,-1,-2"):
        assert cli("train", "-m", *SMALL, f"optim.lr={rates}", "hydra.sweep.dir=own").code == 1
        jobs = jobs_of(tmp_path / "own")
        assert [job["label"] for job in jobs] == [f"optim.lr={rate}" for rate in rates.split(",")]
        for job in jobs:
            assert job["directory"] == f"{job['number']}-{job['label']}"
            assert f"`optim.lr` is {job['label'].removeprefix('optim.lr=')}" in job["message"]
    assert len(list((tmp_path / "own").glob("*-*"))) == 5


def test_the_table_finds_every_directory_that_hydra_names(cli, tmp_path):
    words = ["optim.lr=-1", "++seed=choice(1)", "model.second_widths=[8, 8],[8,8,8]", 'model.name=simple_cnn,"a: é, b"']
    ended = cli("train", "-m", *SMALL, *words, "hydra.sweep.dir=odd")
    assert "4 of 4 jobs failed" in ended.err
    named = {path.name for path in (tmp_path / "odd").iterdir() if path.is_dir()}
    assert {job["directory"] for job in jobs_of(tmp_path / "odd")} == named
    assert len(named) == 4


@pytest.mark.parametrize("values", ["seed=shuffle(1,2)", "seed=shuffle(range(1,5))", "model=glob(l*)"])
def test_values_in_no_order_are_refused(cli, values):
    ended = cli("train", "-m", *SMALL, values)
    assert (ended.code, "type the values, in their order" in ended.err) == (2, True), ended.err


@pytest.mark.parametrize("key", ["hydra.sweep.subdir=x", "+hydra.sweeper.params.seed=5"])
def test_a_key_that_names_the_jobs_otherwise_is_refused(cli, tmp_path, key):
    ended = cli("train", "-m", *SMALL, "seed=1,2", key, "hydra.sweep.dir=own")
    assert (ended.code, key in ended.err) == (2, True)
    assert not (tmp_path / "own").exists()


def test_a_job_gives_the_same_result_alone_and_after_others(cli, tmp_path):
    assert cli("train", "-m", *SMALL, "seed=1,2", "hydra.sweep.dir=sweep").code == 0
    assert cli("train", *SMALL, "seed=2", "hydra.run.dir=alone").code == 0
    second = tmp_path / "sweep" / "1-seed=2"
    assert weights(second) == weights(tmp_path / "alone")
    assert rows_of(second) == rows_of(tmp_path / "alone")


def test_failures_are_listed_and_the_others_finish(cli, tmp_path):
    (tmp_path / "leave.py").write_text(
        "import sys\nfrom torch import nn\nfrom cifarbench.models.registry import register\n"
        "@register('leave')\nclass Leave(nn.Module):\n    def __init__(self):\n        sys.exit(7)\n"
    )
    shared = [argument for argument in SMALL if not argument.startswith("model")]
    ended = cli("train", "-m", *shared, "plugins=[leave.py]", "model=leave,simple_cnn", "optim.lr=0.1,-1")
    assert ended.code == 1
    assert "3 of 4 jobs failed" in ended.err
    rows = {row["label"]: row for row in csv.DictReader(io.StringIO((only_sweep(tmp_path) / "sweep.csv").read_text()))}
    failed = {label for label, row in rows.items() if row["status"] == "failed"}
    fine = "optim.lr=0.1, model=simple_cnn"
    assert rows.keys() - failed == {fine}
    assert "sys.exit(7)" in rows["optim.lr=0.1, model=leave"]["message"]
    assert all("`optim.lr` is -1" in row["message"] for label, row in rows.items() if "lr=-1" in label)
    assert all(row["message"] in ended.out for row in rows.values())
    (done,) = (job for job in jobs_of(only_sweep(tmp_path)) if job["status"] == "done")
    assert done["label"] == fine
    assert manifest_of(only_sweep(tmp_path) / done["directory"])["test"]["accuracy"] == done["test_accuracy"]


def test_a_job_that_another_process_runs_is_no_failure(cli, tmp_path):
    words = ["train", "-m", *SMALL, "seed=1,2", "hydra.sweep.dir=sweep"]
    assert cli(*words).code == 0
    first = tmp_path / "sweep" / "0-seed=1"
    runs.write_json(first / "run.json", {**manifest_of(first), "status": "interrupted"})
    holder = runs.RunDirectory(first)
    holder.acquire()
    try:
        ended = cli(*words)
    finally:
        holder.release()
    assert ended.code == 1
    assert "1 of 2 jobs are run by another process" in ended.err
    assert [job["status"] for job in jobs_of(tmp_path / "sweep")] == ["interrupted", "done"]
    assert not (first / FAILURE).exists()
    assert cli(*words).code == 0, "what it left is gone on with"


def test_a_sweep_in_a_terminal_finds_its_jobs(tmp_path):
    words = [word for word in SMALL if not word.startswith("trainer.progress")]
    code, said = in_terminal("train", "-m", *words, "seed=1,2", cwd=tmp_path)
    assert code == 0, said
    again = shell("train", "-m", *words, "seed=1,2", cwd=tmp_path)
    assert again.out.count("already complete") == 2, "a pipe finds what a terminal left"
    assert [job["status"] for job in jobs_of(only_sweep(tmp_path))] == ["done", "done"]
    assert {path.name for path in only_sweep(tmp_path).glob("[01]*")} == {"0-seed=1", "1-seed=2"}


def test_a_job_with_a_spoilt_config_fails_and_the_sweep_ends_with_its_table(cli, tmp_path):
    arguments = ["train", "-m", *SMALL, "hydra.sweep.dir=sweep"]
    assert cli(*arguments).code == 0
    config = tmp_path / "sweep" / "0-job" / "config.yaml"
    kept = config.read_text()
    for epochs in ("-.inf", "[.nan, -.inf]"):
        config.write_text(kept.replace("epochs: 1\n", f"epochs: {epochs}\n"))
        ended = cli(*arguments)
        assert (ended.code, "1 of 1 jobs failed" in ended.err) == (1, True)
        assert "a bug" not in ended.err + ended.out
        (job,) = jobs_of(tmp_path / "sweep")
        assert (job["status"], job["epochs"]) == ("failed", None)
        assert "trainer.epochs" in job["message"]
        assert job["message"] in ended.out


def test_what_is_no_number_in_a_jobs_files_is_no_result(tmp_path):
    job = tmp_path / "0-job"
    job.mkdir()
    (job / "run.json").write_text(
        json.dumps({"status": "completed", "best": {"val_accuracy": "x"}, "test": {"accuracy": 2}})
    )
    (job / "metrics.jsonl").write_text('{"seconds": "x"}\n{"seconds": 3}\n{"seconds": true}\n')
    (read,) = Jobs(tmp_path, [("", "0-job")]).read()
    assert (read.status, read.val_accuracy, read.test_accuracy, read.seconds) == ("done", None, None, 3)


def test_a_dry_run_lists_the_jobs_and_runs_none(cli, tmp_path):
    ended = cli("train", "-m", *SMALL, "seed=1,2", "optim.lr=0.1,0.2", "sweep.dry_run=true")
    assert ended.code == 0
    assert [f"optim.lr={rate}, seed={seed}" in ended.out for seed in (1, 2) for rate in (0.1, 0.2)] == [True] * 4
    assert not (tmp_path / "outputs").exists()


def test_a_dry_run_refuses_jobs_that_could_not_run(cli, tmp_path):
    ended = cli("train", "-m", *SMALL, "optim.lr=0.1,abc", "trainer.epochs=1,-1", "sweep.dry_run=true")
    assert ended.code == 2
    assert "3 of the 4 jobs that were looked into cannot run" in ended.err
    assert re.search(r"^cifarbench: job 1: `trainer\.epochs` is -1", ended.err, re.MULTILINE)
    assert re.search(r"^cifarbench: job 2, 3: `optim\.lr` is 'abc'", ended.err, re.MULTILINE)
    assert not (tmp_path / "outputs").exists()
    assert "add -m" in cli("train", "sweep.dry_run=true").err


def test_repeat_is_a_sweep_over_seeds(cli, tmp_path):
    assert cli("train", *SMALL, "repeat=2", "seed=5").code == 0
    assert sorted(manifest_of(path.parent)["seed"] for path in only_sweep(tmp_path).glob("*/run.json")) == [5, 6]


@pytest.mark.parametrize("bad", [["repeat=0"], ["repeat=x"], ["repeat=2", "seed=1,2"]])
def test_a_bad_repeat_is_refused(bad):
    with pytest.raises(ConfigError, match="`repeat`"):
        rewrite(bad)


@pytest.mark.parametrize("flag", [["--config-dir", "mine"], ["--config-dir=mine"], ["-cd", "mine"]])
def test_a_sweep_takes_options_from_a_folder_of_ones_own(cli, tmp_path, flag):
    (tmp_path / "mine" / "augment").mkdir(parents=True)
    (tmp_path / "mine" / "augment" / "plain.yaml").write_text("defaults: [none, _self_]\nname: plain\n")
    shared = [*SMALL, "optim.lr=-1"]  # which fails at once
    for line in (["-m", *flag, *shared, "augment=plain,none"], [*shared, "augment=plain", "repeat=2", *flag]):
        ended = cli("train", *line)
        assert (ended.code, "2 of 2 jobs failed" in ended.err) == (1, True), ended.err
        assert ended.err.count("`optim.lr` is -1") == 2


def test_what_hydra_refuses_in_a_sweep_is_one_sentence(cli):
    result = cli("train", "-m", "augment@_global_=quick", "hydra.sweep.dir=sweep")
    assert result.code == 2
    assert result.err.startswith("cifarbench: ")


def test_an_unknown_sweep_key_is_refused(cli):
    ended = cli("train", "-m", *SMALL, "sweep.dryrun=true")
    assert (ended.code, "sweep.dry_run" in ended.err) == (2, True)


def test_twelve_jobs_killed_twice_end_as_if_they_had_not_been(cli, tmp_path):
    lasting = ["trainer.epochs=2", "trainer.checkpoint_every=1"]
    arguments = ["train", "-m", *SMALL, *lasting, "optim.lr=0.1,0.2,0.3,-1", "seed=1,2,3"]
    assert cli(*arguments, "hydra.sweep.dir=whole").code == 1
    killed, labels = tmp_path / "killed", [job["label"] for job in jobs_of(tmp_path / "whole")]
    names = [f"{number}-{label.replace(', ', ',')}" for number, label in enumerate(labels)]
    for number in (1, 5):
        sweep = forked(*arguments, "hydra.sweep.dir=killed", cwd=tmp_path, log=tmp_path / "log")
        job = killed / names[number]
        wait_until(lambda job=job: (job / "checkpoints" / "last.pt").exists())
        sweep.kill()
        sweep.join()
    before = {path: path.read_bytes() for path in killed.glob("*/test.json")}
    assert 4 <= len(before) < 9
    ended = cli(*arguments, "hydra.sweep.dir=killed")
    assert ended.code == 1, ended.err
    assert "3 of 12 jobs failed" in ended.err
    done = [path.parent for path in killed.glob("*/test.json")]
    assert len(done) == 9
    assert {path: path.read_bytes() for path in before} == before  # nothing was trained again
    for job in done:
        assert weights(job) == weights(tmp_path / "whole" / job.name)
        assert manifest_of(job)["test"]["openings"] == 1
        assert len(rows_of(job)) == 2

    def table(sweep):
        return [{name: value for name, value in job.items() if name != "seconds"} for job in jobs_of(sweep)]

    assert table(killed) == table(tmp_path / "whole")
    assert [job["status"] for job in jobs_of(killed)] == ["done"] * 9 + ["failed"] * 3


# --- the table -------------------------------------------------------------------------------------------------------


def write_job(directory: Path, status: str, **entries: object) -> Path:
    directory.mkdir(parents=True)
    (directory / "run.json").write_text(json.dumps({"status": status, **entries}))
    (directory / "config.yaml").write_text("trainer: {epochs: 3}\n")
    return directory


def test_only_what_was_written_since_is_read_again(tmp_path, monkeypatch):
    planned = [(status, f"{number}-{status}") for number, status in enumerate(("completed", "failed", "running"))]
    _, failed, running = (write_job(tmp_path / name, status) for status, name in planned)
    (failed / FAILURE).write_text('{"message": "too hot"}')
    jobs, read = Jobs(tmp_path, planned), []
    for name in ("read_manifest", "read_config"):
        real = getattr(runs, name)
        monkeypatch.setattr(runs, name, lambda path, real=real, name=name: read.append((name, path)) or real(path))
    assert [job.status for job in jobs.read()] == ["done", "failed", "running"]
    read.clear()
    for epoch in (1, 2):
        with (running / "metrics.jsonl").open("a") as file:
            file.write('{"val_accuracy": 0.5}\n')
        assert [(job.epoch, job.epochs) for job in jobs.read()] == [(0, 3), (0, 3), (epoch, 3)]
    assert read == [("read_manifest", running)] * 2
    (failed / FAILURE).unlink()
    (failed / "run.json").write_text('{"status": "running"}')
    assert [job.status for job in jobs.read()] == ["done", "running", "running"]


def test_only_the_best_of_a_whole_long_sweep_is_marked(capsys):
    jobs = [Job(number, f"seed={number}", "done", val_accuracy=number / 100) for number in range(60)]
    jobs[40] = Job(40, "seed=40", "done", val_accuracy=0.9)
    print_table(Path("few"), jobs)
    lines = capsys.readouterr().out.splitlines()
    (best,) = (line for line in lines if "best" in line)
    assert "seed=40" in best
    assert sum("seed=" in line for line in lines) == 60


def test_the_time_left_follows_from_the_jobs_that_ended_since_the_sweep_began():
    def shown(now: list[Job]) -> str:
        console = Console(record=True, width=120, file=io.StringIO())
        console.print(_live(Path("few"), now, before, 60.0))
        return console.export_text()

    before = [Job(0, "a", "done"), Job(1, "b", "failed"), Job(2, "c", "waiting"), Job(3, "d", "waiting")]
    assert "left" not in shown(before)
    assert "2 of 4 jobs ended " in shown(before)
    assert "3 of 4 jobs ended, about 1:00 left" in shown([*before[:2], Job(2, "c", "done"), before[3]])


# --- several at once -------------------------------------------------------------------------------------------------


def test_jobs_side_by_side_share_the_cores(cli, tmp_path):
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher", reason="needs hydra-joblib-launcher")
    arguments = [argument for argument in SMALL if not argument.startswith("trainer.threads")]
    side = ["hydra/launcher=processes", "hydra.launcher.n_jobs=2", "hydra.sweep.dir=side"]
    ended = shell("train", "-m", *arguments, "seed=1,2,3", "optim.lr=0.1", *side, cwd=tmp_path)
    assert ended.code == 0, ended.err
    jobs = [path.parent for path in (tmp_path / "side").glob("*/run.json")]
    assert len(jobs) == 3
    assert {manifest_of(job)["environment"]["threads"] for job in jobs} == {1}
    one = cli("train", *SMALL, "seed=3", "optim.lr=0.1", "hydra.run.dir=alone")
    assert one.code == 0
    assert weights(tmp_path / "side" / "2-seed=3") == weights(tmp_path / "alone")


def test_jobs_go_through_the_cluster_launcher(tmp_path):
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher", reason="needs hydra-submitit-launcher")
    arguments = ["train", "-m", *SMALL, "optim.lr=0.1,-1", "hydra/launcher=local_cluster", "hydra.sweep.dir=far"]
    ended = shell(*arguments, cwd=tmp_path)
    assert ended.code == 1, ended.err
    assert {job["label"]: job["status"] for job in jobs_of(tmp_path / "far")} == {
        "optim.lr=0.1": "done",
        "optim.lr=-1": "failed",
    }
    assert "`optim.lr` is -1" in ended.out


def test_the_slurm_launcher_composes(cli):
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher", reason="needs hydra-submitit-launcher")
    shown = cli("train", *SMALL, "hydra/launcher=slurm", "hydra.launcher.partition=gpu", "--cfg", "hydra")
    assert shown.code == 0, shown.err
    assert "SlurmLauncher" in shown.out
    assert "partition: gpu" in shown.out
