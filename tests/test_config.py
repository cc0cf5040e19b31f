"""Config: every shipped option composes and passes its checks, and everything else is refused with a sentence."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest
import yaml

from cifarbench.commands.hydra_app import compose
from cifarbench.commands.names import conf_dir
from cifarbench.config.keys import build, key
from cifarbench.config.load import CHOICES, VERBS, differences, load, to_plain
from cifarbench.config.schema import TrainConfig
from cifarbench.config.tune import TuneVerbConfig
from cifarbench.errors import ConfigError

CONF = conf_dir()
OPTIONS = sorted((path.parent.name, path.stem) for path in CONF.glob("*/*.yaml") if path.parent.name not in ("hydra",))


def test_every_group_of_the_contract_has_its_options():
    expected = {
        "data": {"cifar10", "synthetic"},
        "split": {"last20", "official", "train_last20"},
        "model": {"simple_cnn", "vgg", "resnet", "efficientnet_lite"},
        "augment": {
            *("none", "flip", "standard", "cutout", "affine", "noise", "color", "randaugment"),
            *("trivialaugment", "mixup", "cutmix", "strong"),
        },
        "optim": {"sgd", "adam", "adamw", "rmsprop"},
        "scheduler": {"constant", "step", "multistep", "linear", "cosine", "onecycle", "plateau"},
        "trainer": {"default", "quick"},
        "experiment": {"tutorial_cnn"},
        "hardware": {"gpu"},
        "debug": {"overfit_batch", "limit"},
    }
    shipped: dict[str, set[str]] = {}
    for group, option in OPTIONS:
        shipped.setdefault(group, set()).add(option)
    assert expected.keys() <= shipped.keys()
    assert all(expected[group] <= shipped[group] for group in expected)


@pytest.mark.parametrize(("group", "option"), OPTIONS)
def test_every_option_composes_and_passes_its_checks(group, option):
    verb, kind = ("tune", TuneVerbConfig) if group == "tune" else ("train", TrainConfig)
    config = load(kind, compose(verb, [f"{group}={option}"]))
    assert load(kind, to_plain(config)) == config


@pytest.mark.parametrize(("group", "option"), OPTIONS)
def test_every_option_opens_with_a_sentence(group, option):
    lines = (CONF / group / f"{option}.yaml").read_text().splitlines()
    sentence = next(line for line in lines if line.startswith("#") and "@package" not in line)
    assert sentence.endswith((".", "?"))


EXPERIMENTS = [option for group, option in OPTIONS if group == "experiment"]


@pytest.mark.parametrize("word", ["augment=none", "optim=rmsprop", "scheduler=plateau", "model=lenet", "trainer=quick"])
@pytest.mark.parametrize("experiment", ["speed96", "tutorial_cnn", "wrn28_10"])
def test_an_option_typed_beside_an_experiment_counts_whole(experiment, word):
    group = word.split("=")[0]
    both = compose("train", [f"experiment={experiment}", word])
    assert both[group] == compose("train", [word])[group]
    alone = compose("train", [f"experiment={experiment}"])
    assert {name: both[name] for name in both if name != group} == {n: alone[n] for n in alone if n != group}


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_the_options_of_an_experiment_may_be_typed_again(experiment):
    text = (CONF / "experiment" / f"{experiment}.yaml").read_text()
    own = [f"{group}={option}" for group, option in re.findall(r"override /(\w+): (\w+)", text)]
    assert own
    words = [f"experiment={experiment}"]
    assert compose("train", [*words, *own]) == compose("train", words)


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_experiment_can_be_tried_on_one_batch(experiment):
    config = load(TrainConfig, compose("train", [f"experiment={experiment}", "debug=overfit_batch"]))
    assert (config.augment.name, config.scheduler.name, config.trainer.overfit_batch) == ("none", "constant", True)


def test_hardware_is_laid_over_an_experiment_and_changes_nothing_else():
    alone = compose("train", ["experiment=speed94"])
    there = compose("train", ["hardware=gpu", "experiment=speed94"])
    gpu = {"device": "cuda", "micro_batch": None, "cuda_graphs": True, "deterministic": False}
    assert alone["trainer"]["micro_batch"]
    assert there == {**alone, "trainer": {**alone["trainer"], **gpu}}
    typed = compose("train", ["hardware=gpu", "experiment=speed94", "trainer.deterministic=true"])
    assert typed["trainer"]["deterministic"] is True


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_hardware_goes_with_every_experiment(experiment):
    assert load(TrainConfig, compose("train", [f"experiment={experiment}", "hardware=gpu"])).trainer.cuda_graphs


def test_an_optimizer_whose_steps_are_not_recorded_is_told_the_remedy():
    words = ["optim=rmsprop", "hardware=gpu"]
    with pytest.raises(ConfigError, match=r"take one of muon, sgd, adam, adamw, or trainer\.cuda_graphs=false"):
        load(TrainConfig, compose("train", words))
    assert not load(TrainConfig, compose("train", [*words, "trainer.cuda_graphs=false"])).trainer.cuda_graphs


def test_an_experiment_may_build_on_another(cli, tmp_path):
    folder = tmp_path / "mine" / "experiment"
    folder.mkdir(parents=True)
    lines = ["# @package _global_", "defaults: [speed96, override /augment: cutout]", "optim: {lr: 0.2}"]
    (folder / "longer.yaml").write_text("\n".join(lines))
    shown = cli("train", "--config-dir", "mine", "experiment=longer", "--cfg", "job")
    ours = yaml.safe_load(shown.out)
    base = compose("train", ["experiment=speed96"])
    assert ours["augment"] == compose("train", ["augment=cutout"])["augment"]
    assert ours["optim"] == {**base["optim"], "lr": 0.2}
    assert ours["model"] == base["model"]


@pytest.mark.parametrize(("section", "name"), [(s, n) for s, table in CHOICES.items() for n in table])
def test_yaml_and_dataclass_have_the_same_keys(section, name):
    path = next(p for p in (CONF / section).glob("*.yaml") if yaml.safe_load(p.read_text())["name"] == name)
    fields = {field.name for field in dataclasses.fields(CHOICES[section][name])}
    assert set(yaml.safe_load(path.read_text())) == fields


def test_verbs_and_their_yaml_have_the_same_keys():
    for verb, cls in VERBS.items():
        assert set(compose(verb, [])) == {field.name for field in dataclasses.fields(cls)}


def test_no_yaml_names_a_callable():
    assert not [path for path in CONF.rglob("*.yaml") if "_target_" in path.read_text()]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sample:
    """A section with a key of each type."""

    rate: float = key("A rate.", gt=0)
    count: int = key("A count.", ge=1, unit="images")
    flag: bool = key("A flag.")
    word: str = key("A word.", choices=["left", "right"])
    pair: tuple[float, float] = key("Two shares.", ge=0, lt=1)
    sizes: tuple[int, ...] = key("Sizes.", ge=1)
    limit: int | None = key("A limit.", ge=1)


GOOD = {"rate": 1, "count": 2, "flag": True, "word": "left", "pair": [0.1, 0.2], "sizes": [1, 2], "limit": None}


def test_good_values_come_out_typed():
    sample = build(Sample, GOOD)
    assert sample == Sample(rate=1.0, count=2, flag=True, word="left", pair=(0.1, 0.2), sizes=(1, 2), limit=None)
    assert type(sample.rate) is float


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("rate", -0.1, ["`s.rate`", "-0.1", "above 0"]),
        ("rate", float("nan"), ["nan", "finite"]),
        ("rate", float("inf"), ["inf", "finite"]),
        ("rate", "1e-3", ["'1e-3'", "finite number"]),
        ("rate", True, ["True", "number"]),
        ("count", 1.5, ["1.5", "whole number", "images"]),
        ("count", True, ["True", "whole number"]),
        ("count", 0, ["0", "at least 1"]),
        ("flag", 2, ["2", "true or false"]),
        ("flag", 1, ["1", "true or false"]),
        ("word", "lefft", ["'lefft'", "left, right", 'mean "left"']),
        ("pair", [0.1], ["2 entries"]),
        ("pair", [0.1, 1.0], ["s.pair[1]", "below 1"]),
        ("sizes", 3, ["list"]),
        ("sizes", [1, 0], ["s.sizes[1]", "at least 1"]),
        ("limit", 0, ["at least 1"]),
    ],
)
def test_bad_values_name_key_value_and_rule(name, value, words):
    with pytest.raises(ConfigError) as caught:
        build(Sample, {**GOOD, name: value}, "s")
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_unknown_and_missing_keys_are_named():
    with pytest.raises(ConfigError, match=r'unknown key "s.rat".*Did you mean "s.rate"'):
        build(Sample, {**GOOD, "rat": 1}, "s")
    with pytest.raises(ConfigError, match=r"`s.rate` is missing"):
        build(Sample, {name: value for name, value in GOOD.items() if name != "rate"}, "s")


@pytest.mark.parametrize("key_name", [field.name for field in dataclasses.fields(TrainConfig)])
def test_every_key_has_a_sentence(key_name):
    for cls in [*VERBS.values(), *(c for table in CHOICES.values() for c in table.values())]:
        for field in dataclasses.fields(cls):
            if "rule" in field.metadata:
                assert field.metadata["rule"].sentence.endswith((".", "?")), (cls, field.name)


BAD = [
    (["model=vgh"], ["vgh", "vgg", "Did you mean"]),
    (["optm=adamw"], ["optm", "optim"]),
    (["optim.lrr=1"], ["optim.lrr", "optim.lr"]),
    (["+optim.lrr=1"], ["optim.lrr", "optim.lr"]),
    (["+nonsense=1"], ["nonsense"]),
    (["optim.lr=nan"], ["optim.lr", "nan", "above 0"]),
    (["optim.lr=inf"], ["optim.lr", "inf"]),
    (["optim.lr=-1"], ["optim.lr", "-1", "above 0"]),
    (["trainer.batch_size=0"], ["trainer.batch_size", "at least 1"]),
    (["data=synthetic", "data.size=1200", "trainer.batch_size=1000"], ["trainer.batch_size", "1000", "864"]),
    (["model=vgg,resnet"], ["-m"]),
    (["optim=sgd", "optim.nesterov=2"], ["optim.nesterov", "true or false"]),
    (["optim.nesterov=true"], ["optim.nesterov", "optim=sgd", "not chosen"]),
    (["trainer.epochs=1.5"], ["trainer.epochs", "1.5", "whole number"]),
    (["trainer.max_time=12:30"], ["trainer.max_time", "10m"]),
    (["trainer.max_time=0s"], ["trainer.max_time"]),
    (["trainer.max_time=10"], ["trainer.max_time", "'10'", "10m"]),
    (["trainer.device=gpu"], ["trainer.device", 'Did you mean "cuda"?']),
    (["lr=0.1"], ['Did you mean "optim.lr"?']),
    (["trainer.lr=0.1"], ['Did you mean "optim.lr"?']),
    (["trainer.epohcs=1"], ['Did you mean "trainer.epochs"?']),
    (["dataset=cifar10"], ['Did you mean "data"?']),
    (["scheduler.warmup=150%"], ["scheduler.warmup"]),
    (["scheduler.warmup=3"], ["scheduler.warmup"]),
    (["model=../../x"], ["model"]),
    (["hydra.runn.dir=x"], ["hydra.runn"]),
    (["model.depth=12", "model=vgg"], ["model.depth", "12", "11"]),
    (["seed=-1"], ["seed"]),
    (["optim=sgd", "optim.momentum=0"], ["optim.nesterov", "momentum"]),
    (["scheduler=plateau", "split.val_fraction=0"], ["plateau", "val_fraction"]),
    (["model=$(touch x);"], ["model"]),
    (["a=b=c=["], []),
    (["hydra/job_logging=[1]"], []),
    (["trainer.resume=nowhere"], ["trainer.resume", "nowhere"]),
    (["trainer.micro_batch=500"], ["trainer.micro_batch", "256"]),
    (["plugins=[nothing.py]"], ["nothing.py"]),
    (["++plugins=float(nan)"], ["plugins", "nan", "list"]),
    ([f"plugins=['{CONF / 'train.yaml'}']"], ["plugins", "train.yaml", ".py"]),
    (["seed=${nope:1}", "seed=-1"], ["seed"]),
    (["--experimental-rerun=x.pickle"], ["unpickle"]),
]


@pytest.mark.parametrize(("arguments", "words"), BAD, ids=[" ".join(arguments) for arguments, _ in BAD])
def test_a_bad_command_line_is_one_sentence_and_exit_2(cli, arguments, words):
    result = cli("train", *arguments)
    assert result.code == 2, result
    assert result.err.startswith("cifarbench: ")
    assert "Traceback" not in result.err
    assert all(word in result.err for word in words), result.err
    assert not list(Path.cwd().rglob("*.pt"))
    assert not Path("x").exists()
    assert not list(Path.cwd().glob("outputs/*/*")), "an empty run directory was left"


def test_differences_name_what_changes_weights_and_nothing_else():
    first = load(TrainConfig, compose("train", ["optim.lr=0.1"]))
    second = load(TrainConfig, compose("train", ["optim.lr=0.2", "trainer.tensorboard=false", "data.root=elsewhere"]))
    assert differences(first, second) == ["`optim.lr`: 0.1 in the run, 0.2 asked for"]
    third = load(TrainConfig, compose("train", ["optim=adamw"]))
    assert differences(first, third) == ["`optim.name`: 'muon' in the run, 'adamw' asked for"]
