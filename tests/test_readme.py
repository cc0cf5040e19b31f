"""The README's commands are real: every verb, group and key in its code blocks exists and composes."""

from __future__ import annotations

import json
import re
import shlex
import statistics
from pathlib import Path

import pytest
from conftest import SCRIPTS
from processes import python

from cifarbench.cli import VERBS
from cifarbench.commands.hydra_app import compose
from cifarbench.commands.names import conf_dir
from cifarbench.commands.sweep import rewrite
from cifarbench.config.load import VERBS as KEYS
from cifarbench.config.load import load
from cifarbench.config.schema import TrainConfig

TEXT = (Path(__file__).parents[1] / "README.md").read_text()
PLACEHOLDERS = re.compile(r"DIR|…|HOST|SHARED|plugins=")


def commands() -> list[list[str]]:
    """Every line of a block of commands, which names no language, that calls cifarbench; without its comment."""
    blocks = re.findall(r"^```(\w*)\n(.*?)^```$", TEXT, re.DOTALL | re.MULTILINE)
    lines = [line for language, block in blocks for line in block.splitlines() if not language]
    found = [shlex.split(line, comments=True) for line in lines if "cifarbench" in line]
    return [words[words.index("cifarbench") + 1 :] for words in found if "cifarbench" in words]


def test_the_output_that_it_shows_is_that_of_the_recorded_runs():
    records = [json.loads(path.read_text()) for path in sorted((SCRIPTS / "results" / "cpu").glob("*.json"))]
    panel = next(record for record in records if (record["row"], record["seed"]) == ("lenet", 0))
    test = panel["test"]
    assert f"test accuracy     {test['accuracy']:.2%} of {test['n']:,}" in TEXT
    assert f"official 10,000   {test['accuracy_official']:.2%}" in TEXT
    assert f"unseen            {test['accuracy_without_duplicates']:.2%} without" in TEXT
    for row in ("lenet", "mlp", "linear", "knn", "speed94"):
        mine = [record for record in records if record["row"] == row]
        device = mine[0]["environment"]["device_name"]  # what is shown is of the machine of seed 0
        accuracies = [each["test"]["accuracy"] for each in mine if each["environment"]["device_name"] == device]
        spread = f" ± {100 * statistics.stdev(accuracies):.2f}" if len(accuracies) > 1 else ""
        (line,) = re.findall(rf"^ \d   .*(?:={row}\b).*%.*$", TEXT, re.MULTILINE)
        assert f" {len(accuracies)} " in line
        assert f" {statistics.mean(accuracies):.2%}{spread} " in line


def test_there_are_commands_to_check():
    assert len(commands()) > 25


@pytest.mark.parametrize("words", commands(), ids=" ".join)
def test_the_verb_exists(words):
    assert words[0] in VERBS


COMPOSED = [words for words in commands() if words[0] in ("train", "summary", "sanity", "lr-find", "tune", "bench")]
COMPOSED = [words for words in COMPOSED if not PLACEHOLDERS.search(" ".join(words))]


@pytest.mark.parametrize("words", COMPOSED, ids=" ".join)
def test_its_overrides_compose(words, cli):
    verb, *rest = words
    arguments = rewrite(rest) if verb == "train" else rest
    if any(word.startswith("hydra/launcher=slurm") for word in arguments):
        pytest.importorskip("hydra_plugins.hydra_submitit_launcher", reason="needs hydra-submitit-launcher")
    if "-m" in arguments:
        listed = cli("train", *arguments, "sweep.dry_run=true")
        assert listed.code == 0, listed.err
        return
    values = compose(verb, arguments)
    if verb in ("train", "sanity", "lr-find", "tune", "bench"):
        load(TrainConfig, {name: value for name, value in values.items() if name in TrainConfig.__dataclass_fields__})


GROUPS = sorted({path.parent.relative_to(conf_dir()).as_posix() for path in conf_dir().glob("*/**/*.yaml")})


@pytest.mark.parametrize("group", GROUPS)
def test_the_groups_table_lists_every_option(group):
    (row,) = (line for line in TEXT.splitlines() if line.startswith(f"| `{group}` |"))
    options = row.split("|")[2].split("(")[0]
    assert set(re.findall(r"`(\w+)`", options)) == {path.stem for path in (conf_dir() / group).glob("*.yaml")}


def test_every_verb_is_mentioned():
    assert [verb for verb in KEYS if f"cifarbench {verb}" not in TEXT] == []


PLUGINS = dict(re.findall(r"^```python\n# (\w+\.py)\n(.*?)^```$", TEXT, re.DOTALL | re.MULTILINE))
WITH_PLUGINS = [words for words in commands() if "plugins=" in " ".join(words) and words[0] in ("train", "data")]


def test_the_readme_shows_a_model_an_augmentation_and_an_optimizer():
    shown = " ".join(" ".join(words) for words in WITH_PLUGINS)
    assert sorted(PLUGINS) == ["mynet.py", "posterize.py", "signsgd.py"]
    assert [group for group in ("model=mynet", "augment=posterize", "optim=signsgd") if group not in shown] == []


@pytest.mark.parametrize("words", WITH_PLUGINS, ids=" ".join)
def test_its_plugins_are_files_that_train(words, tmp_path):
    for name, text in PLUGINS.items():
        (tmp_path / name).write_text(text)
    drawn = ["data=synthetic", "data.size=600"]
    quick = ["trainer.epochs=1", "trainer.limit_batches=1", "trainer.batch_size=64", "trainer.tensorboard=false"]
    small = ["trainer.progress=plain", "trainer.report=false", "trainer.threads=1"]
    other = [] if "mynet.py" in " ".join(words) else ["model=lenet"]
    further = [*quick, *small, *other] if words[0] == "train" else []
    ended = python("-m", "cifarbench", *words, *drawn, *further, cwd=tmp_path)
    assert ended.code == 0, ended.err
