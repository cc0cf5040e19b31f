"""The experiments that compare choices: their files say how to run them, and what they say runs."""

from __future__ import annotations

import json
import shlex

import pytest

from cifarbench.commands.hydra_app import compose
from cifarbench.commands.names import conf_dir
from cifarbench.config.load import load
from cifarbench.config.schema import TrainConfig

EXPERIMENTS = ("activations", "poolings", "heads", "depths", "losses", "regularisation")
TINY = {
    "simple_cnn": ["model.first_widths=[4,4,4]", "model.second_widths=[4,4,4]"],
    "resnet": ["model.widths=[4,4,8]"],
}
QUICK = [
    *("data=synthetic", "data.size=600", "trainer.epochs=1", "trainer.limit_batches=1", "trainer.batch_size=32"),
    *("trainer.threads=1", "trainer.tensorboard=false", "trainer.report=false", "trainer.test=false"),
    "trainer.progress=none",
]


def commands(name):
    """The arguments of each command that the experiment's file opens with, after `cifarbench`."""
    lines = (conf_dir() / "experiment" / f"{name}.yaml").read_text().splitlines()
    return [shlex.split(line.removeprefix("# cifarbench ")) for line in lines if line.startswith("# cifarbench train")]


def values(text):
    """The values of a sweep, split at the commas outside brackets."""
    parts, depth = [""], 0
    for letter in text:
        depth += (letter == "[") - (letter == "]")
        if letter == "," and not depth:
            parts.append("")
        else:
            parts[-1] += letter
    return parts


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_each_file_opens_with_its_command_and_what_to_look_for(name):
    text = (conf_dir() / "experiment" / f"{name}.yaml").read_text()
    assert "What to look for" in text
    assert commands(name)
    for arguments in commands(name):
        assert arguments[:3] == ["train", "-m", f"experiment={name}"]
        assert any(len(values(argument.split("=", 1)[1])) > 1 for argument in arguments[3:])


@pytest.mark.parametrize(
    ("name", "key", "count"), [("activations", "activation", 8), ("poolings", "pooling", 3), ("depths", "shortcut", 2)]
)
def test_every_choice_is_compared(name, key, count):
    swept = {a.split("=")[0]: values(a.split("=", 1)[1]) for a in commands(name)[0][3:]}
    found = swept[f"model.{key}"]
    assert len(set(found)) == len(found) == count
    for value in found:
        config = load(TrainConfig, compose("train", [f"experiment={name}", f"model.{key}={value}"]))
        assert getattr(config.model, key) == value


def test_pairs_of_depths_have_the_same_weights():
    from cifarbench.models.registry import build

    for blocks in ((1, 1, 1), (3, 3, 3)):
        sizes = set()
        for shortcut in ("pad", "none"):
            config = load(TrainConfig, compose("train", ["experiment=depths", f"model.shortcut={shortcut}"]))
            options = {**vars(config.model), "blocks": blocks}
            sizes.add(sum(p.numel() for p in build(**options).parameters()))
        assert len(sizes) == 1


@pytest.mark.parametrize(("name", "index"), [(name, i) for name in EXPERIMENTS for i in range(len(commands(name)))])
def test_a_tiny_version_of_each_sweep_runs(cli, tmp_path, name, index):
    verb, *arguments = commands(name)[index]
    model = load(TrainConfig, compose("train", [f"experiment={name}"])).model.name
    small = [argument.replace("[7,7,7]", "[2,2,2]").replace("1024", "16").replace("512", "8") for argument in arguments]
    result = cli(verb, *small, *QUICK, *TINY[model], "hydra.sweep.dir=sweep")
    assert result.code == 0, result.out + result.err
    jobs = 1
    for argument in arguments[2:]:
        jobs *= len(values(argument.split("=", 1)[1]))
    runs = [json.loads(path.read_text()) for path in tmp_path.glob("sweep/*/run.json")]
    assert [run["status"] for run in runs] == ["completed"] * jobs


def test_the_linear_experiment_composes():
    config = load(TrainConfig, compose("train", ["experiment=linear"]))
    assert (config.model.name, config.optim.lr, config.augment.name) == ("linear", 0.005, "none")
