"""The published table: its runs as a user starts them, their records, and the page that is made from those alone."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import numpy as np
import pytest
import reproduce
import results
import torch
import yaml
from conftest import SCRIPTS, manifest_of, rows_of, wait_until
from PIL import Image
from processes import Result, script
from scipy import stats
from table import fresh
from table.progress import Entry, seconds_left
from table.records import COMMITTED, read_records, recipe_of, record_of, write_note
from table.rows import LIST as ROWS
from table.rows import PROFILES, Job, Plan, Row, read_rows
from table.rows import rows_of as rows_in
from table.standing import Asked, standing

from cifarbench.config.load import to_plain
from cifarbench.training.checkpoint import load, tensor_hash

SMALL = (
    "data=synthetic data.size=600 model.first_widths=[8,8] model.second_widths=[8,8] model.spatial_dropout=[0.0,0.0] "
    "trainer.batch_size=60 trainer.epochs=3 trainer.threads=1 trainer.report=false trainer.tensorboard=false"
)
TOO_MANY = "trainer.batch_size=5000"
QUICK = {"seeds": 1, "minutes": 0.1}
LIST = {
    "add": {"quick": {"train": SMALL, "peek": SMALL}},
    "sections": [
        {
            "title": "Small ones",
            "text": "Two of them.",
            "rows": [
                {"name": "bad", "command": "train model=simple_cnn", "quick": {**QUICK, "add": TOO_MANY}},
                {"name": "small", "command": "train model=simple_cnn", "published": "12 % (nobody)", "quick": QUICK},
                {"name": "looked", "command": "peek model=simple_cnn", "quick": QUICK},
            ],
        }
    ],
}  # fmt: skip
CIFAR10 = "88cb2239d6faefc5313a1d8af7f0e1a122be82a5a0930f0bea3314cf9c3f44ca"


def called(module, capture, *arguments: str) -> Result:
    """Run a script's command line in this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [f"scripts/{module.__name__}.py", *arguments])
        capture.readouterr()
        threads = torch.get_num_threads()
        try:
            code = module.main()
        except SystemExit as leaving:
            code = int(leaving.code or 0)
        torch.set_num_threads(threads)
    return Result(code, *capture.readouterr())


def written(folder: Path, **changes) -> str:
    """Write the list of rows, with `changes` to the row `small`, and return its path."""
    values = json.loads(json.dumps(LIST))
    values["sections"][0]["rows"][1].update(changes)
    path = folder / "rows.yaml"
    path.write_text(yaml.safe_dump(values))
    return str(path)


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> tuple[Path, Result]:
    """A folder in which the list was run once, and what that said; a test that changes it takes a copy."""
    home, out, err = tmp_path_factory.mktemp("reproduced"), io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        patch.chdir(home)
        patch.setattr(sys, "argv", ["scripts/reproduce.py", "--rows", written(home)])
        code = reproduce.main()
    return home, Result(code, out.getvalue(), err.getvalue())


@pytest.fixture
def home(finished, tmp_path, monkeypatch) -> Path:
    """A copy of the finished folder, to work in."""
    shutil.copytree(finished[0], tmp_path / "home")
    monkeypatch.chdir(tmp_path / "home")
    return tmp_path / "home"


# --- runs ------------------------------------------------------------------------------------------------------------


def test_a_failing_row_leaves_the_others_and_ends_with_exit_1(finished):
    home, said = finished
    assert said.code == 1
    assert "`trainer.batch_size` is 5000" in said.err
    assert {path.name for path in (home / "outputs/reproduce/results/quick").iterdir()} == {
        "small-seed0.json",
        "looked-seed0.json",
    }
    assert "Not yet measured: on the profile quick: bad." in (home / "outputs/reproduce/RESULTS.md").read_text()


def test_a_second_call_trains_nothing_and_changes_nothing(home, capsys):
    before = snapshot(home)
    again = called(reproduce, capsys, "--rows", "rows.yaml", "--only", "small", "looked")
    assert again.code == 0, again.err
    assert snapshot(home) == before


def test_a_missing_record_is_written_again_from_its_run(home, capsys):
    record = home / "outputs/reproduce/results/quick/small-seed0.json"
    before = record.read_bytes()
    record.unlink()
    assert called(reproduce, capsys, "--rows", "rows.yaml", "--only", "small").code == 0
    assert record.read_bytes() == before


def job_of(folder: Path, **changes) -> Job:
    rows = rows_in(read_rows(Path(written(folder, **changes))))
    return Job(next(row for row in rows if row.name == "small"), "quick", 0)


def test_a_run_of_the_same_command_is_done(home):
    assert standing(job_of(home), Asked()).status == "done"


@pytest.mark.parametrize("word", ["optim.momentum=0.5", "data.size=1200", "split.seed=3", "trainer.tta=flip"])
def test_a_run_whose_config_or_data_differ_is_not_reused(home, word):
    found = standing(job_of(home, quick={**QUICK, "add": word}), Asked())
    assert found.status == "other"
    assert word.split("=")[0] in found.reason


def test_a_run_on_other_images_is_not_reused(home):
    path = home / "outputs/reproduce/quick/small/seed0/run.json"
    manifest = json.loads(path.read_text())
    manifest["dataset"]["fingerprint"] = "0" * 64
    path.write_text(json.dumps(manifest))
    found = standing(job_of(home), Asked())
    assert (found.status, found.reason.startswith("dataset: 000000000000")) == ("other", True)


def test_an_unfinished_baseline_is_no_run_to_go_on_with(home):
    """It has no checkpoints: the command would refuse its directory for ever."""
    path = home / "outputs/reproduce/quick/near/seed0"
    path.mkdir(parents=True)
    shutil.copy(home / "outputs/reproduce/quick/small/seed0/run.json", path)
    words = ("data=synthetic", "data.size=600")
    job = Job(Row("near", "near", "", "baseline", ("knn", *words), "", {"quick": Plan((0,), 1.0)}), "quick", 0)
    config = to_plain(Asked().config(job))
    for status, expected in (("completed", "done"), ("failed", "other"), ("running", "other")):
        manifest = manifest_of(home / "outputs/reproduce/quick/small/seed0")
        (path / "run.json").write_text(json.dumps({**manifest, "status": status}))
        (path / "config.yaml").write_text(yaml.safe_dump(config))
        assert standing(job, Asked()).status == expected


def test_a_directory_with_another_run_is_set_aside_whole(home, capsys):
    run = home / "outputs/reproduce/quick/small/seed0"
    before = {path.name: path.read_bytes() for path in run.iterdir() if path.is_file()}
    written(home, quick={**QUICK, "add": "optim.momentum=0.5"})
    ended = called(reproduce, capsys, "--rows", "rows.yaml", "--only", "small", "--minutes", "1e-9")
    aside = run.with_name("seed0-before1")
    assert {path.name: path.read_bytes() for path in aside.iterdir() if path.is_file()} == before
    assert not run.exists()
    assert "0 of 1 runs are done; go on with: python" in ended.err


def test_an_interrupted_run_goes_on_when_the_command_is_given_again(tmp_path, monkeypatch, capsys):
    longer = written(tmp_path, quick={**QUICK, "add": "trainer.epochs=12"})
    command = [sys.executable, str(SCRIPTS / "reproduce.py"), "--rows", longer, "--only", "small"]
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    run = tmp_path / "outputs/reproduce/quick/small/seed0"
    wait_until(lambda: (run / "metrics.jsonl").is_file() and len(rows_of(run)) > 1)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert "go on with: python" in said
    assert "--only small" in said
    manifest = manifest_of(run)
    assert manifest["status"] == "interrupted"
    with pytest.raises(ProcessLookupError):
        os.kill(manifest["process"]["pid"], 0)
    monkeypatch.chdir(tmp_path)
    assert called(reproduce, capsys, "--rows", longer, "--only", "small").code == 0
    assert [row["epoch"] for row in rows_of(run)] == list(range(1, 13))
    assert [session["resumed_from"] for session in manifest_of(run)["sessions"]] == [None, "last.pt"]
    assert json.loads((tmp_path / "outputs/reproduce/results/quick/small-seed0.json").read_text())["sessions"] == 2


def test_a_shared_machine_leaves_accuracies_without_times(home):
    job = job_of(home)
    whole = record_of(job, job.directory)
    write_note(job.directory, shared=True)
    shared = record_of(job, job.directory)
    assert (shared["timing"], shared["not_timed"]) == (None, "not timed: the machine was shared")
    assert shared["test"] == whole["test"]
    write_note(job.directory, shared=False)  # going on alone does not make the time whole
    assert record_of(job, job.directory)["timing"] is None


# --- the list --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"publisht": "1 %"}, 'Did you mean "published"'),
        ({"command": "trian model=vgg"}, "begins with 'trian'"),
        ({"quick": {"seeds": 0, "minutes": 1}}, "above 0"),
        ({"quick": {**QUICK, "add": "optim.lrr=1"}}, "optim.lr"),
        ({"cpu": {**QUICK, "add": "data=synthetic"}}, "holds cifar10 alone"),
    ],
)
def test_a_wrong_row_is_refused_before_anything_runs(tmp_path, monkeypatch, capsys, change, said):
    monkeypatch.chdir(tmp_path)
    profile = "cpu" if "cpu" in change else "quick"
    ended = called(reproduce, capsys, "--rows", written(tmp_path, **change), "--profile", profile)
    assert ended.code == 2
    assert said in ended.err
    assert not (tmp_path / "outputs").exists()


def test_every_row_of_the_published_list_composes_on_its_datasets():
    """A command that cpu and gpu share is composed once."""
    asked, rows = Asked(), rows_in(read_rows())
    jobs = [Job(row, profile, 0) for row in rows for profile in row.plans]
    assert {(job.profile, asked.config(job).data.name) for job in jobs} == set(PROFILES.items())


def test_both_tutorial_rows_train_one_network_for_as_many_epochs_on_one_split():
    theirs, ours = (
        Asked().config(Job(row, "cpu", 0)) for row in rows_in(read_rows()) if row.name.startswith("tutorial")
    )
    assert (theirs.trainer.epochs, theirs.split) == (ours.trainer.epochs, ours.split)
    assert theirs.model == dataclasses.replace(ours.model, init="torch")  # first weights are part of a recipe
    assert (theirs.optim.name, ours.optim.name) == ("adam", "muon")


def test_the_list_shows_every_run_and_runs_none(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    ended = called(reproduce, capsys, "--rows", written(tmp_path, quick={**QUICK, "seeds": 3}), "--list")
    names = [tuple(line.split()[:3]) for line in ended.out.splitlines()[:-1]]
    assert names == [("bad", "seed", "0"), *(("small", "seed", "0"), ("looked", "seed", "0"))] + [
        ("small", "seed", seed) for seed in ("1", "2")
    ]
    assert not (tmp_path / "outputs").exists()


def test_runs_in_one_process_are_those_of_their_own_without_cold_times(home, capsys):
    before = read_records(home / "outputs/reproduce/results", "synthetic")
    shutil.rmtree(home / "outputs/reproduce/quick/small")
    ended = called(
        reproduce, capsys, "--rows", written(home, quick={**QUICK, "seeds": 2}), "--only", "small", "--one-process"
    )
    assert ended.code == 0, ended.err
    after = [run for run in read_records(home / "outputs/reproduce/results", "synthetic") if run.row == "small"]
    assert [run.seed for run in after] == [0, 1]
    assert after[0].values["weights"] == next(run for run in before if run.row == "small").values["weights"]
    assert all(run.seconds("cold") is None and run.seconds("train") > 0 for run in after)


def test_missing_leaves_out_what_has_a_record(home, capsys):
    ended = called(reproduce, capsys, "--rows", "rows.yaml", "--missing", "--list")
    assert [line.split()[0] for line in ended.out.splitlines()[:-1]] == ["bad"]


def test_an_unknown_row_is_refused_with_the_nearest(capsys):
    ended = called(reproduce, capsys, "--only", "lenett", "--list")
    assert (ended.code, 'Did you mean "lenet"' in ended.err) == (2, True)


# --- the page, doubted -----------------------------------------------------------------------------------------------


def test_a_fresh_rerun_has_other_seeds_and_leaves_what_is_published_alone(home, capsys):
    before = snapshot(home / "outputs")
    ended = called(reproduce, capsys, "--rows", "rows.yaml", "--only", "small", "--fresh")
    assert ended.code == 0, ended.err
    after = snapshot(home / "outputs")
    assert {path: after[path] for path in before} == before
    added = {Path(path).relative_to(home / "outputs").parts[:3] for path in after.keys() - before.keys()}
    assert added == {("fresh", "quick", "small"), ("fresh", "results", "quick")}
    record = json.loads((home / "outputs/fresh/results/quick/small-seed1.json").read_text())
    assert record["seed"] == 1
    line = rf"small +[\d.]+% +1 +{record['test']['accuracy']:.2%} +1 +– +–"
    assert re.search(line, ended.out)
    again = called(reproduce, capsys, "--rows", "rows.yaml", "--only", "small", "--fresh", "--missing")
    assert re.search(line, again.out)  # nothing is left to run, and all is compared


def compared(home: Path, published: list[float], rerun: list[float]) -> fresh.Comparison:
    """What is said of these accuracies of one row."""
    (record,) = (
        found for found in read_records(home / "outputs/reproduce/results", "synthetic") if found.row == "small"
    )
    made = [[dataclasses.replace(record, accuracy=value) for value in values] for values in (published, rerun)]
    (found,) = fresh.compare(rows_in(read_rows(home / "rows.yaml")), *made)
    return found


@pytest.mark.parametrize(("mean", "holds"), [(0.5, True), (0.52, True), (0.53, False), (0.47, False)])
def test_a_published_mean_holds_within_the_interval_of_the_rerun(home, mean, holds):
    rerun = [0.49, 0.50, 0.51]
    low, high = stats.t.interval(0.95, 2, loc=0.5, scale=stats.sem(rerun))
    assert (low < mean < high) == holds
    assert compared(home, [mean - 0.1, mean + 0.1], rerun).holds == holds


def test_one_new_run_says_nothing(home):
    assert compared(home, [0.5, 0.5], [0.9]).holds is None


def test_the_chance_to_hold_is_that_of_drawn_results(home):
    draw = np.random.default_rng(0)
    old, new = draw.normal(size=(20_000, 4)).mean(1), draw.normal(size=(20_000, 3))
    half = stats.t.ppf(0.975, 2) * new.std(1, ddof=1) / 3**0.5
    share = (abs(old - new.mean(1)) < half).mean()
    assert compared(home, [0.5, 0.51, 0.52, 0.53], [0.5, 0.51, 0.52]).chance == pytest.approx(share, abs=0.01)


# --- the time that is left -------------------------------------------------------------------------------------------


def entry(name: str, minutes: float, **values) -> Entry:
    row = Row(name, name, "", "train", (), "", {"cpu": Plan((0,), minutes)})
    return Entry(Job(row, "cpu", 0), **values)


def test_before_any_run_the_list_says_how_long_it_takes():
    assert seconds_left([entry("a", 2), entry("b", 3)]) == 5 * 60


def test_measured_runs_correct_the_estimates():
    done = entry("a", 2, status="done", seconds=60.0)  # half of what the list expected
    assert seconds_left([done, entry("a", 2), entry("b", 3)]) == 60 + 90
    assert seconds_left([done, entry("b", 3, limit=180.0)]) == 180


def test_a_running_job_goes_by_its_own_pace():
    running = entry("a", 1, status="running", epochs=10, share=0.6, base=0.2, seen=40.0, elapsed=50.0)
    assert seconds_left([running]) == pytest.approx(40 - 10)  # 0.4 in 40 s, so 40 s more, of which 10 are gone


def test_what_failed_or_was_left_takes_no_more_time():
    assert seconds_left([entry("a", 2, status="failed"), entry("b", 2, status="left")]) == 0


# --- records and the page --------------------------------------------------------------------------------------------


@pytest.fixture
def table(finished, tmp_path, monkeypatch):
    """Records made up from a real one: `put(seed, accuracy, …)` adds one, `write(…)` runs results.py over them."""
    monkeypatch.chdir(tmp_path)
    made = json.loads((finished[0] / "outputs/reproduce/results/quick/small-seed0.json").read_text())
    made["dataset"] = {"name": "cifar10", "fingerprint": CIFAR10}
    written(tmp_path, cpu=QUICK)

    class Table:
        folder, page = tmp_path / "records", tmp_path / "RESULTS.md"
        record = made

        def put(self, seed: int, accuracy: float, **changes) -> Path:
            path = self.folder / "cpu" / f"small-seed{seed}.json"
            path.parent.mkdir(parents=True, exist_ok=True)
            test = {**made["test"], "accuracy": accuracy, "accuracy_official": accuracy - 0.01}
            path.write_text(json.dumps({**made, "profile": "cpu", "seed": seed, "test": test, **changes}))
            return path

        def run(self, capture, *arguments: str) -> Result:
            where = ["--records", str(self.folder), "--page", str(self.page), "--rows", "rows.yaml"]
            return called(results, capture, *where, *arguments)

        def rows(self) -> list[list[str]]:
            lines = [line for line in self.page.read_text().splitlines() if line.startswith("| `")]
            return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]

    return Table()


def test_the_page_holds_mean_spread_and_interval_of_the_records(table, capsys):
    values = [0.8512, 0.8431, 0.8499, 0.8620]
    for seed, value in enumerate(values):
        table.put(seed, value)
    assert table.run(capsys).code == 0
    ((command, split, n, accuracy, interval, official, *_, published),) = table.rows()
    read = [json.loads(path.read_text())["test"] for path in table.folder.glob("cpu/*.json")]
    found = np.array([test["accuracy"] for test in read])
    half = stats.t.ppf(0.975, 3) * found.std(ddof=1) / 2
    typed = ["cifarbench", "train", "model=simple_cnn", *SMALL.split()]
    assert command == f"`{shlex.join(typed)}`"
    assert (split, n, published) == ("last20", "4", "12 % (nobody)")
    assert accuracy == f"{100 * found.mean():.2f}% ± {100 * found.std(ddof=1):.2f}"
    assert interval == f"{100 * (found.mean() - half):.2f} to {100 * (found.mean() + half):.2f}"
    assert official == f"{100 * np.mean([test['accuracy_official'] for test in read]):.2f}%"
    (row,) = csv.DictReader(io.StringIO((table.folder / "results.csv").read_text()))
    assert float(row["mean"]) == pytest.approx(found.mean())
    assert float(row["high"]) - float(row["mean"]) == pytest.approx(half)


def test_a_single_run_has_no_spread_and_no_interval(table, capsys):
    table.put(0, 0.85)
    table.run(capsys)
    ((_, _, n, accuracy, interval, *_),) = table.rows()
    assert (n, accuracy, interval) == ("1", "85.00%", "–")


OTHERS = [
    {"environment": {"device_name": "Another CPU"}},
    {"environment": {"torch": "9.9"}},
    {"environment": {"threads": 7}},
    {"config": {"optim": {"name": "sgd", "lr": 0.3}}},
    {"split": {"fingerprint": "1" * 64}},
]


@pytest.mark.parametrize("other", OTHERS, ids=["machine", "torch", "threads", "recipe", "split"])
def test_runs_of_another_machine_version_recipe_or_split_are_never_averaged(table, capsys, other):
    (key, change), = other.items()  # fmt: skip
    changed = {key: {**table.record[key], **change} if isinstance(change, dict) else change}
    table.put(0, 0.80)
    table.put(1, 0.82)
    table.put(2, 0.90, **changed)
    assert table.run(capsys).code == 0
    assert sorted((row[2], row[3].split("%")[0]) for row in table.rows()) == [("1", "90.00"), ("2", "81.00")]


def test_a_record_from_before_a_key_existed_is_averaged_with_later_ones(table, capsys):
    config = json.loads(json.dumps(table.record["config"]))
    del config["trainer"]["sync_norm"]
    table.put(0, 0.80)
    table.put(1, 0.82, config=config)
    table.run(capsys)
    assert [row[2] for row in table.rows()] == ["2"]


@pytest.mark.parametrize(
    ("change", "lines"),
    [({"kernels": "torch", "report": True}, ["2"]), ({"tta": "flip"}, ["1", "1"]), ({"untimed_steps": 3}, ["1", "1"])],
    ids=["neutral", "scoring", "clocks"],
)
def test_keys_that_can_change_neither_a_score_nor_a_time_leave_records_comparable(table, capsys, change, lines):
    config = json.loads(json.dumps(table.record["config"]))
    assert all(config["trainer"][name] != value for name, value in change.items())
    config["trainer"].update(change)
    table.put(0, 0.80)
    table.put(1, 0.82, config=config)
    table.run(capsys)
    assert [row[2] for row in table.rows()] == lines


def test_a_run_that_went_on_elsewhere_is_not_averaged_with_those_of_one_machine(table, capsys):
    table.put(0, 0.80)
    table.put(1, 0.82, earlier_environments=[{**table.record["environment"], "device_name": "Another CPU"}])
    table.run(capsys)
    assert [row[2] for row in table.rows()] == ["1", "1"]
    assert "Another CPU" in table.page.read_text()


def test_times_are_means_of_the_runs_that_were_timed(table, capsys):
    clocks = {"training": 1.0, "train_test": 40.0, "cold": 50.0}
    for seed, seconds in enumerate((30.0, 34.0)):
        table.put(seed, 0.8, timing={**clocks, "train": seconds})
    table.put(2, 0.8, timing=None, not_timed="not timed: the machine was shared")
    table.run(capsys)
    ((*_, train, _, _, _),) = table.rows()
    assert train == "32.0 s (n = 2)"
    assert "not timed: the machine was shared" in table.page.read_text()


@pytest.mark.parametrize("fingerprint", ["f" * 64, CIFAR10])
def test_drawn_images_are_refused_beside_cifar10(table, capsys, fingerprint):
    table.put(0, 0.8)
    name = "synthetic" if fingerprint == CIFAR10 else "cifar10"  # the name alone does not make it CIFAR-10
    table.put(1, 0.8, dataset={"name": name, "fingerprint": fingerprint})
    ended = table.run(capsys)
    assert ended.code == 3
    assert "small-seed1.json" in ended.err
    assert not table.page.exists()


def test_a_record_under_another_name_or_with_an_impossible_accuracy_is_refused(table, capsys):
    table.put(0, 0.8).rename(table.folder / "cpu" / "small-seed7.json")
    assert table.run(capsys).code == 3
    (table.folder / "cpu" / "small-seed7.json").unlink()
    table.put(0, 1.8)
    assert table.run(capsys).code == 3


def test_the_check_passes_on_what_was_just_written(table, capsys):
    table.put(0, 0.8)
    table.run(capsys)
    before = snapshot(table.folder)
    assert table.run(capsys, "--check").code == 0
    assert snapshot(table.folder) == before


def edit_page(table):
    table.page.write_text(re.sub(r"80\.00%", "81.00%", table.page.read_text()))


def edit_csv(table):
    (table.folder / "results.csv").write_text("row\n")


def add_record(table):
    table.put(1, 0.9)


def redraw(table):
    Image.new("RGB", (9, 9)).save(table.folder / "accuracy_time.png")


@pytest.mark.parametrize("change", [edit_page, edit_csv, add_record, redraw])
def test_the_check_notices(table, capsys, change):
    table.put(0, 0.8)
    table.run(capsys)
    change(table)
    ended = table.run(capsys, "--check")
    assert (ended.code, "disagrees with the records" in ended.out) == (1, True)


def test_a_page_elsewhere_links_its_figures_and_pictures_that_are_no_figures_stay(table, capsys, tmp_path):
    table.put(0, 0.8)
    table.run(capsys)
    drawn, earlier, theirs = (table.folder / f"{name}.png" for name in ("accuracy_time", "earlier", "holiday"))
    shutil.copy(drawn, earlier)
    Image.new("RGB", (9, 9)).save(theirs)
    table.page = tmp_path / "far" / "away" / "PAGE.md"
    ended = table.run(capsys)
    assert ended.code == 0, ended.err
    (link,) = re.findall(r"!\[.*\]\((.*)\)", table.page.read_text())
    assert (table.page.parent / link).resolve() == drawn.resolve()
    assert (earlier.exists(), theirs.exists()) == (False, True)
    assert table.run(capsys, "--check").code == 0


def test_without_records_the_page_is_absent_or_says_so(table, capsys):
    assert table.run(capsys, "--check").code == 0
    table.run(capsys)
    assert "No run has been recorded yet." in table.page.read_text()
    assert table.run(capsys, "--check").code == 0


def test_the_committed_page_is_what_the_committed_records_say(capsys):
    ended = called(results, capsys, "--check")
    assert ended.code == 0, ended.out + ended.err


def test_a_committed_record_is_of_the_recipe_that_its_command_composes_now():
    rows, asked = {row.name: row for row in rows_in(read_rows(ROWS))}, Asked()
    records = read_records(COMMITTED, "cifar10")
    assert records
    for record in records:
        job, remedy = Job(rows[record.row], record.profile, record.seed), f"{record.path.name}: run again, or remove it"
        assert record.profile in job.row.plans, remedy
        now = recipe_of(to_plain(asked.config(job)))
        assert (record.values["label"], recipe_of(record.values["config"])) == (job.label, now), remedy


# --- choosing the epoch on test --------------------------------------------------------------------------------------


def test_peek_trains_as_train_does_and_counts_an_opening_an_epoch(finished):
    looked, small = (finished[0] / f"outputs/reproduce/quick/{name}/seed0" for name in ("looked", "small"))
    assert manifest_of(looked)["weights"] == manifest_of(small)["weights"]
    assert rows_of(looked) == rows_of(small)
    assert (manifest_of(looked)["test"]["openings"], manifest_of(small)["test"]["openings"]) == (3, 1)


@pytest.mark.parametrize("word", ["trainer.checkpoint_epochs=0", "trainer.validate_every=2", "trainer.tta=flip"])
def test_peek_refuses_what_would_leave_an_epoch_without_its_weights_or_score(tmp_path, word):
    done = script(SCRIPTS / "peek.py", "data=synthetic", word, cwd=tmp_path)
    assert (done.code, word.split("=")[0] in done.out) == (2, True), done.out


def test_peek_scores_every_epochs_own_weights(finished):
    looked, small = (finished[0] / f"outputs/reproduce/quick/{name}/seed0" for name in ("looked", "small"))
    peek = json.loads((looked / "peek.json").read_text())
    assert peek["val_accuracy"] == [row["val_accuracy"] for row in rows_of(small)]
    picked = int(np.argmax(peek["val_accuracy"]))
    assert peek["test_accuracy"][picked] == manifest_of(small)["test"]["accuracy"]
    assert manifest_of(looked)["test"]["accuracy"] == peek["test_accuracy"][picked]
    kept = [tensor_hash(load(looked / f"epochs/{epoch}.pt")["model"]) for epoch in (1, 2, 3)]
    assert len(set(kept)) == 3
    assert kept[-1] == tensor_hash(load(small / "checkpoints/last.pt")["model"])


def test_the_page_says_what_choosing_on_test_adds(table, capsys):
    runs = [([0.5, 0.9, 0.7], [0.60, 0.70, 0.75]), ([0.8, 0.6, 0.7], [0.66, 0.69, 0.68])]
    for seed, (val, test) in enumerate(runs):
        path = table.put(seed, 0.7, row="looked", peek={"val_accuracy": val, "test_accuracy": test})
        path.rename(path.with_name(f"looked-seed{seed}.json"))
    assert table.run(capsys).code == 0, "the page is written"
    ((*_, last, fair, best, gain, interval, _, _),) = table.rows()
    gains = np.array([0.75 - 0.70, 0.69 - 0.66])
    half = stats.t.ppf(0.975, 1) * gains.std(ddof=1) / np.sqrt(2)
    assert (last[:6], fair[:6], best[:6]) == ("71.50%", "68.00%", "72.00%")
    assert gain == f"{100 * gains.mean():+.2f} ± {100 * gains.std(ddof=1):.2f}"
    assert interval == f"{100 * (gains.mean() - half):.2f} to {100 * (gains.mean() + half):.2f}"


def test_records_are_read_back_in_order(table):
    for seed in (2, 0, 1):
        table.put(seed, 0.8)
    assert [record.seed for record in read_records(table.folder, "cifar10")] == [0, 1, 2]
