"""The command line as a user types it: help, speed, Hydra's grammar, completion."""

from __future__ import annotations

import dataclasses
import re
import shlex
import subprocess
import sys
import time

import pytest
from conftest import TINY, manifest_of
from processes import command, python, shell

from cifarbench.commands.names import conf_dir
from cifarbench.config.load import CHOICES
from cifarbench.config.schema import SplitConfig, TrainerConfig


@pytest.mark.timed
@pytest.mark.parametrize(
    ("arguments", "code"),
    [(["--help"], 0), (["--version"], 0), (["trian"], 2), (["train", "model=vgh"], 2), (["train", "optm=adamw"], 2)],
)
def test_answers_without_work_come_fast(tmp_path, arguments, code):
    times = []
    for _ in range(5):
        started = time.perf_counter()
        assert shell(*arguments, cwd=tmp_path).code == code
        times.append(time.perf_counter() - started)
    assert min(times) < 0.5


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["train", "-m", "model=vgg,resnt"], '"resnet"'),
        (["train", "experiment=tutorial_cn"], '"tutorial_cnn"'),
        (["bench", "debg=limit"], '"debug"'),
        (["tune", "augmnt.crop=4"], '"augment'),
        (["eval", "model=vgg"], '"model"'),  # a group, but none of eval's
    ],
)
def test_a_name_that_is_not_there_is_refused_before_hydra_is_imported(tmp_path, arguments, word):
    code = f"import sys; from cifarbench.cli import main; print(main({arguments!r})); print('hydra' in sys.modules)"
    result = python("-c", code, cwd=tmp_path)
    assert result.out == "2\nFalse\n"
    assert word in result.err


def test_names_of_ones_own_folder_are_left_to_hydra(tmp_path):
    (tmp_path / "mine" / "model").mkdir(parents=True)
    (tmp_path / "mine" / "model" / "small.yaml").write_text("name: linear\n")
    result = shell("train", "--config-dir", "mine", "model=small", "--cfg", "job", cwd=tmp_path)
    assert result.code == 0, result.err
    assert "name: linear" in result.out


def test_import_and_composition_do_not_import_torch(tmp_path):
    code = (
        "import sys; from cifarbench.cli import main; import cifarbench.commands.help; "
        "main(['train', '--help']); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, check=False).returncode == 0


def test_a_terminal_without_unicode_still_gets_its_answer(tmp_path):
    assert shell("--help", cwd=tmp_path, PYTHONIOENCODING="ascii").code == 0


def test_a_misspelt_verb_is_told_the_nearest(cli):
    result = cli("trian")
    assert result.code == 2
    assert 'Did you mean "train"' in result.err


def test_help_lists_every_option_and_every_key_with_its_sentence(cli):
    result = cli("train", "--help")
    assert result.code == 0
    text = " ".join(result.out.split())
    for path in conf_dir().glob("*/*.yaml"):
        assert f" {path.stem} " in text, path
    sections = [("trainer", TrainerConfig), ("split", SplitConfig)]
    sections += [(name, cls) for name, table in CHOICES.items() for cls in table.values()]
    for section, cls in sections:
        for field in dataclasses.fields(cls):
            if field.name == "name" and section in CHOICES:
                continue  # the option itself
            rule = field.metadata["rule"]
            assert " ".join(rule.sentence.split()) in text, (section, field.name)
            assert f"{section}.{field.name}=" in text, (section, field.name)
    assert "trainer.epochs=20" in text
    assert "(epochs; at least 1" in text


def test_help_follows_what_is_chosen(cli):
    assert "trainer.epochs=3" in cli("train", "trainer=quick", "--help").out


def test_cfg_job_shows_the_composed_config(cli):
    result = cli("train", "model=vgg", "optim.lr=0.25", "--cfg", "job")
    assert result.code == 0
    assert "name: vgg" in result.out
    assert "lr: 0.25" in result.out


@pytest.mark.parametrize(
    ("arguments", "action"),
    [(["--cfg", "job", "show"], "show"), (["show", "rows=2", "--cfg", "job"], "show"), (["--cfg", "job"], "check")],
)
def test_what_data_does_is_told_from_a_flags_value(cli, arguments, action):
    result = cli("data", *arguments)
    assert result.code == 0, result.err
    assert f"action: {action}" in result.out


def test_info_and_hydra_help_answer(cli):
    assert "Defaults Tree" in cli("train", "--info", "defaults-tree").out
    assert "--multirun" in cli("train", "--hydra-help").out


def test_a_config_dir_of_ones_own_adds_options(cli, tmp_path):
    (tmp_path / "mine" / "trainer").mkdir(parents=True)
    (tmp_path / "mine" / "trainer" / "tiny.yaml").write_text("defaults: [default, _self_]\nepochs: 7\n")
    result = cli("train", "--config-dir", str(tmp_path / "mine"), "trainer=tiny", "--cfg", "job")
    assert "epochs: 7" in result.out
    for flag in (["--config-dir", "mine"], ["--config-dir=mine"], ["-cd", "mine"], ["-cd=mine"]):
        result = cli("train", *flag, "trainer=tiny", "--help")
        assert "trainer.epochs=7" in result.out, result.err
        assert re.search(r"^ +\* tiny +In .*tiny\.yaml\.$", result.out, re.MULTILINE), (
            "an option of one's own is listed"
        )


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("train lenet", "Did you mean model=lenet?"),
        ("summary adamw", '"adamw" is no setting.'),
        ("train seed 3", "key=value, like seed=1"),
        ("train --epochs 3", "Did you mean trainer.epochs=…?"),
        ("leaderboard --top 3", "Did you mean top=…?"),
        ("train -m --foo seed=1,2", 'unknown flag "--foo"'),
        ("train +seed=3", "without a +"),
        ("train ~model", "takes away what a run needs"),
        ("train model=", 'unknown option for `model`: "".'),
        ("train optim=SGD", 'Did you mean "sgd"?'),
        ("export there onnx", "'onnx' is no directory"),
        ("eval there", "there has no last.pt"),
    ],
)
def test_a_slip_is_told_its_remedy(cli, tmp_path, line, told):
    (tmp_path / "there").mkdir()
    result = cli(*line.split())
    assert (result.code, told in result.err) == (2, True), result.err


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("train -model=lenet", "Did you mean model=…?"),
        ("train -seed=3", "Did you mean seed=…?"),
        ("train -cfg job", 'unknown flag "-cfg"'),
    ],
)
def test_a_flag_that_hydra_does_not_have_is_told_its_key(cli, line, told):
    result = cli(*line.split())
    assert (result.code, told in result.err) == (2, True), result.err


@pytest.mark.parametrize(
    "line",
    [
        "train ~debug --cfg job",
        "train --cfg job -p seed -- seed=5",
        "train --cfg=job --pack seed",
        "train -cjob ++trainer.epochs=3",
        "train --cfg job +optim.note=1",
        "train --cfg job 'experiment=linear' hardware=gpu ~hardware",
        "train --cfg job --resolve",
        "train --info defaults",
        "train --multirun seed=1,2 sweep.dry_run=true",
        "train --cfg job hydra.run.dir='a folder'",
    ],
)
def test_what_hydra_allows_is_not_refused(cli, line):
    result = cli(*shlex.split(line))
    assert "unknown flag" not in result.err
    assert "takes away" not in result.err
    assert "is no setting" not in result.err
    assert result.code == 0, result.err


@pytest.mark.parametrize(
    ("words", "marked"),
    [
        (["train"], ["resnet", "muon", "onecycle", "default"]),
        (["train", "model=lenet", "trainer=quick", "hardware=gpu"], ["lenet", "quick", "gpu"]),
        (["train", "experiment=linear"], ["linear"]),
        (["tune", "optim=sgd"], ["sgd", "resnet"]),
        (["train", "-m", "model=lenet,vgg", "seed=1,2"], ["resnet"]),
    ],
)
def test_help_marks_what_is_chosen(cli, words, marked):
    shown = cli(*words, "--help")
    assert shown.code == 0, shown.err
    assert set(marked) <= set(re.findall(r"^ +\* (\w+) ", shown.out, re.MULTILINE))


def test_a_file_in_the_place_of_a_folder_is_named(cli, tmp_path):
    (tmp_path / "file").touch()
    result = cli("train", "data=synthetic", "hydra.run.dir=file")
    assert (result.code, "file: a file is there, where a folder is needed" in result.err) == (5, True), result.err


def test_help_shows_the_keys_of_the_chosen_options(cli):
    shown = cli("train", "model=lenet", "--help").out
    assert "[lenet]" in shown
    assert "[resnet]" not in shown
    assert "[sgd]" in shown, "of a group that nothing was typed of, all"


@pytest.mark.parametrize("columns", [80, 100])
def test_the_first_help_fits_its_terminal(columns, monkeypatch, cli):
    monkeypatch.setenv("COLUMNS", str(columns))
    lines = cli("--help").out.splitlines()
    assert max(map(len, lines)) <= columns
    assert len(lines) > 25


def test_a_config_dir_that_is_not_there_is_refused_by_name(cli):
    for words in (["--cfg", "job"], ["--help"], ["-m", "seed=1,2"]):
        result = cli("train", "--config-dir=nowhere", *words)
        assert (result.code, "nowhere" in result.err) == (2, True), result.err


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("cifarbench tr", "train"),
        ("cifarbench train mod", "model="),
        ("cifarbench train model=", "model=vgg"),
        ("cifarbench train trainer.ep", "trainer.epochs="),
    ],
)
def test_completion_offers_verbs_groups_options_and_keys(tmp_path, line, expected):
    environment = {"COMP_LINE": line, "COMP_POINT": str(len(line))}
    assert expected in shell("-sc", "query=bash", cwd=tmp_path, **environment).out.split()


def test_the_completion_script_is_bash(tmp_path):
    script = shell("-sc", "install=bash", cwd=tmp_path)
    assert script.code == 0
    assert subprocess.run(["bash", "-n"], input=script.out, text=True, check=False).returncode == 0
    assert "complete" in script.out


def test_a_multirun_gives_each_job_a_directory(cli, tmp_path):
    result = cli("train", "-m", *TINY, "trainer.epochs=1", "seed=1,2", "hydra.sweep.dir=sweep")
    assert result.code == 0, result.err
    runs = sorted(path for path in (tmp_path / "sweep").iterdir() if path.is_dir())
    assert [manifest_of(run)["seed"] for run in runs] == [1, 2]
    assert all("seed=" in run.name for run in runs)


def test_a_failing_job_does_not_stop_a_multirun(cli, tmp_path):
    result = cli("train", "-m", *TINY, "trainer.epochs=1", "optim.lr=0.1,-1,0.2", "hydra.sweep.dir=sweep")
    assert result.code == 1
    assert "optim.lr" in result.err
    assert "1 of 3 jobs failed" in result.err
    assert len(list(tmp_path.glob("sweep/*/test.json"))) == 2


def test_fifty_names_in_one_second_differ():
    from cifarbench.runs import run_name

    assert len({run_name("vgg") for _ in range(50)}) == 50


def test_names_cannot_leave_their_folder():
    from cifarbench.runs import job_label, run_name

    for hostile in ("../../x", "a/b", "$(touch x)", "..", "é" * 300):
        assert "/" not in run_name(hostile)
        assert ".." not in run_name(hostile)
        assert job_label(hostile) not in (".", "..", "")
        assert len(job_label(hostile)) <= 100


def test_a_bug_is_called_a_bug_and_debug_shows_the_traceback(cli, monkeypatch):
    def broken(*arguments):
        raise RuntimeError("the hamster is tired")

    monkeypatch.setattr("cifarbench.commands.data.run", broken)
    result = cli("data", "check")
    assert result.code == 1
    assert "a bug: RuntimeError: the hamster is tired" in result.err
    with pytest.raises(RuntimeError):
        cli("data", "check", "--debug")


def test_module_and_script_are_the_same_command(tmp_path):
    done = subprocess.run(command("--version"), cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("cifarbench ")


def test_an_interruption_while_the_config_is_composed_is_one(cli, monkeypatch):
    from hydra._internal.config_loader_impl import ConfigLoaderImpl

    def interrupted(*values: object, **named: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(ConfigLoaderImpl, "_compose_config_from_defaults_list", interrupted)
    result = cli("train", "data=synthetic")
    assert (result.code, result.err.strip()) == (130, "cifarbench: interrupted")
