"""The leaderboard and the judge: grouping, ranking, statistics, and runs that were tampered with."""

from __future__ import annotations

import dataclasses
import json
import random
import re
import shutil
import time
from pathlib import Path

import pytest
from conftest import TINY, tiny_config

from cifarbench.commands.hydra_app import compose
from cifarbench.commands.leaderboard import rewrite
from cifarbench.config.before import BaselineConfig
from cifarbench.config.judge import LeaderboardConfig
from cifarbench.config.load import identity, load
from cifarbench.errors import ConfigError, IntegrityError
from cifarbench.leaderboard import judge
from cifarbench.leaderboard.ranking import boards, compare, group, interval
from cifarbench.leaderboard.records import Record, find
from cifarbench.reporting.leaderboard import print_boards
from cifarbench.runs import shown_path

scipy_stats = pytest.importorskip("scipy.stats")


def record(accuracy, seed=0, recipe="a", dataset="cifar10", split="last20", openings=1, **changes):
    return Record(
        **{
            "directory": Path(f"{recipe}-{seed}"),
            "label": f"recipe={recipe}",
            "identity": recipe,
            "seed": seed,
            "dataset": (dataset, f"{dataset}-bytes"),
            "split": (split, f"{split}-indices"),
            "model": "vgg",
            "parameters": 10,
            "flops": 20,
            "test_images": 12_000,
            "val_images": 100,
            "test_accuracy": accuracy,
            "official_accuracy": None,
            "val_accuracy": accuracy,
            "openings": openings,
            "seconds": 60.0,
            "device": "a CPU",
            "precision": "bf16",
            **changes,
        }
    )


def test_repeats_are_one_row_and_the_best_mean_comes_first():
    (board,) = boards([record(0.8, 0, "a"), record(0.9, 1, "a"), record(0.86, 0, "b"), record(0.5, 0, "c")], "test")
    assert [(row.label, row.n, row.mean) for row in board.groups] == [
        ("recipe=b", 1, 0.86),
        ("recipe=a", 2, pytest.approx(0.85)),
        ("recipe=c", 1, 0.5),
    ]


def test_the_same_seed_twice_counts_once():
    assert group([record(0.8), record(0.8), record(0.9, seed=1)], "test").n == 2


def test_different_data_is_never_in_one_table():
    mixed = [record(0.8), record(0.9, dataset="synthetic"), record(0.7, split="official"), record(0.6, seed=1)]
    found = boards(mixed, "test")
    assert [(board.dataset[0], board.split[0], len(board.groups[0].records)) for board in found] == [
        ("cifar10", "last20", 2),
        ("cifar10", "official", 1),
        ("synthetic", "last20", 1),
    ]
    with pytest.raises(IntegrityError, match="cannot be compared"):
        compare(group(mixed[:1], "test"), group(mixed[1:2], "test"), "test")


def test_other_validation_images_leave_the_test_part_as_it_is():
    mixed = [record(0.8), record(0.9, recipe="b", split="last20")]
    mixed[1] = dataclasses.replace(mixed[1], split=("last20", "all-48,000-trained-on"))
    (board,) = boards(mixed, "test")
    assert [row.label for row in board.groups] == ["recipe=b", "recipe=a"]
    assert compare(group(mixed[:1], "test"), group(mixed[1:], "test"), "test").difference == pytest.approx(0.1)
    assert len(boards(mixed, "val")) == 2
    with pytest.raises(IntegrityError, match="cannot be compared"):
        compare(group(mixed[:1], "val"), group(mixed[1:], "val"), "val")


def test_what_is_not_counted_or_not_alike_is_said(capsys):
    config = load(LeaderboardConfig, compose("leaderboard", []))
    twice = dataclasses.replace(record(0.1), directory=Path("another"))
    print_boards(boards([record(0.8), twice, record(0.8, 1, precision="fp32")], "test"), config, [])
    said = capsys.readouterr().out
    assert "not counted, as another run has the same recipe and seed: another" in said
    assert "† the runs are of different machines or number formats" in said
    assert "80.00% ± 0.00" in said


def test_a_narrow_terminal_shows_what_the_recipes_are(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    config = load(LeaderboardConfig, compose("leaderboard", []))
    pair = [record(0.9, label="model=vgg optim=adamw"), record(0.8, recipe="b", label="model=resnet optim=sgd")]
    print_boards(boards(pair, "test"), config, [])
    lines = re.sub(r"\x1b\[[\d;]*m", "", capsys.readouterr().out).splitlines()
    assert max(map(len, lines[:6])) <= 80
    for word in ("model=vgg", "optim=adamw", "model=resnet", "90.00%", "1:00"):
        assert any(word in line for line in lines), lines


@pytest.mark.parametrize("sort", ["parameters", "flops", "seconds"])
def test_other_orders_put_the_smallest_first(sort):
    runs = [record(0.9, recipe="big", **{sort: 30}), record(0.8, recipe="small", **{sort: 3})]
    (board,) = boards(runs, "test", sort)
    assert [row.label for row in board.groups] == ["recipe=small", "recipe=big"]


def test_intervals_by_hand():
    low, high = interval([0.90, 0.92, 0.94], 12_000)
    half = 4.302652729911275 * 0.02 / 3**0.5  # Student's t, two degrees of freedom, from a table
    assert (low, high) == (pytest.approx(0.92 - half), pytest.approx(0.92 + half))
    low, high = interval([0.5], 100)
    assert (low, high) == (pytest.approx(0.4038, abs=1e-4), pytest.approx(0.5962, abs=1e-4))  # Wilson, 50 of 100
    assert group([record(0.5)], "val").interval == (low, high)  # of the 100 validation images, not the 12,000


def test_noise_is_called_noise_in_nineteen_of_twenty():
    draw = random.Random(0)
    false = 0
    for _ in range(1000):
        groups = [
            group([record(draw.gauss(0.9, 0.003), seed, name) for seed in range(3)], "test") for name in ("a", "b")
        ]
        false += compare(*groups, "test").differs
    assert false <= 50 + 3 * (1000 * 0.05 * 0.95) ** 0.5  # the bar of 5 %, and three standard errors


def test_a_real_difference_is_found_and_one_seed_says_nothing():
    good = group([record(0.90 + 0.001 * seed, seed, "good") for seed in range(3)], "test")
    bad = group([record(0.85 + 0.001 * seed, seed, "bad") for seed in range(3)], "test")
    assert compare(bad, good, "test").differs
    assert "the second is better" in compare(bad, good, "test").sentence
    assert "the first is better" in compare(good, bad, "test").sentence
    alone = compare(bad, group([record(0.99, 0, "lucky")], "test"), "test")
    assert not alone.differs
    assert "nothing can be said" in alone.sentence
    near = compare(good, group([record(0.9008 + 0.002 * seed, seed, "near") for seed in range(3)], "test"), "test")
    assert "within noise" in near.sentence


def test_identity_is_of_what_changes_the_weights():
    base = identity(tiny_config())
    assert identity(tiny_config("seed=3", "trainer.tensorboard=false", "trainer.threads=1")) == base
    for other in ("optim.lr=0.2", "model.dropout=0.1", "augment=flip", "split.val_fraction=0.2"):
        assert identity(tiny_config(other)) != base


def test_identity_of_a_baseline_is_of_what_changes_its_answers():
    def of(*words):
        return identity(load(BaselineConfig, compose("baseline", list(words))))

    assert of("threads=1", "data.root=elsewhere") == of()
    assert len({of(), of("k=5"), of("ks=[1,2]"), of("distance=l1"), of("split=official")}) == 5


def test_the_command_line_of_a_comparison():
    assert rewrite(["a", "--compare", "x", "y", "--verified", "by=val"]) == [
        "verified=true",
        "by=val",
        "folder=['a']",
        "compare=['x','y']",
    ]
    with pytest.raises(ConfigError, match="two run directories"):
        rewrite(["--compare", "x"])


def test_the_text_of_where_may_be_an_override(cli, runs):
    found = cli("leaderboard", str(runs), "where=optim.lr=0.05")
    assert found.code == 0, found.err
    assert "lr=0.05" in found.out
    assert "lr=0.2" not in found.out
    for text in ("where='optim.lr=0.05'", 'where="optim.lr=0.05"', "where="):
        assert cli("leaderboard", str(runs), text).code == 0


@pytest.mark.parametrize("label", ["plugins=[mynet.py]", "plugins=[/a/mynet.py]", "plugins=[:cat:]"])
def test_a_label_is_shown_as_it_was_typed(capsys, label):
    config = load(LeaderboardConfig, compose("leaderboard", []))
    print_boards(boards([record(0.9, label=label), record(0.8, recipe="b")], "test"), config, [f"{label} is left out"])
    assert capsys.readouterr().out.count(label) == 2


@pytest.mark.parametrize("part", ["test", "val"])
@pytest.mark.parametrize("count", [0, -1, 60_001])
def test_a_part_of_no_images_is_a_damaged_record_and_costs_no_other(cli, runs, tmp_path, part, count):
    folder = Path(shutil.copytree(runs, tmp_path / "copy"))
    damaged = sorted(folder.glob("sweep/*/run.json"))[0].parent
    change(damaged, **{f"split__{part}": count})
    ended = cli("leaderboard", str(folder), f"by={part}")
    assert ended.code == 0, ended.err
    assert f"`split.{part}` is {count}" in " ".join(ended.out.split())
    assert "passport" in ended.out


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two recipes with two seeds each, in a folder of their own."""
    from cifarbench.cli import main

    folder = tmp_path_factory.mktemp("runs")
    arguments = [
        *TINY,
        "data.size=600",
        "trainer.epochs=1",
        "trainer.tensorboard=false",
        "optim.lr=0.05,0.2",
        "seed=1,2",
    ]
    assert main(["train", "-m", *arguments, f"hydra.sweep.dir={folder}/sweep", "trainer.progress=none"]) == 0
    return folder


def test_leaderboard_finds_groups_and_writes(cli, runs, tmp_path):
    ended = cli("leaderboard", str(runs), f"out={tmp_path}/board")
    assert ended.code == 0, ended.err
    assert "not CIFAR-10" in ended.out
    rows = json.loads((tmp_path / "board" / "leaderboard.json").read_text())["rows"]
    assert [row["n"] for row in rows] == [2, 2]
    for row in rows:
        accuracies = [json.loads((runs / run / "test.json").read_text())["accuracy"] for run in row["runs"]]
        assert row["test_mean"] == pytest.approx(sum(accuracies) / 2)
    assert (tmp_path / "board" / "leaderboard.md").read_text().count("\n| ") == 3
    assert len((tmp_path / "board" / "leaderboard.csv").read_text().splitlines()) == 3


def test_what_only_tried_things_is_not_ranked_and_a_key_counts_as_it_was_typed_last(cli, runs, tmp_path):
    (first, second, *_) = sorted(path.parent for path in runs.glob("**/run.json"))
    tried, doubled = (
        Path(shutil.copytree(home, tmp_path / "more" / name)) for home, name in ((first, "a"), (second, "b"))
    )
    for run, words in (
        (tried, ["debug=limit", "seed=7"]),
        (doubled, ["model=lenet", "model=vgg", "model.debug=1", "seed=8"]),
    ):
        manifest = json.loads((run / "run.json").read_text())
        (run / "run.json").write_text(json.dumps({**manifest, "command": ["cifarbench", "train", *words]}))
    shown = cli("leaderboard", "more").out
    assert "1 of 2 runs are left out, of debug=…; where=debug= shows them." in shown
    assert "model=vgg" in shown
    assert "model=lenet" not in shown
    assert "debug=limit" in cli("leaderboard", "more", "where=debug=limit").out
    assert 'Did you mean "simple_cnn"?' in cli("leaderboard", "more", "only=simple_cn").out


def test_leaderboard_compares_recipes_over_all_their_seeds(cli, runs):
    first, second = sorted((runs / "sweep").glob("*/run.json"))[::2]
    ended = cli("leaderboard", str(runs), "--compare", str(first.parent), str(second.parent))
    assert ended.code == 0, ended.err
    assert "2 seeds each" in ended.out
    assert "McNemar" in ended.out


def test_two_runs_of_one_recipe_are_said_to_be_that(cli, runs):
    first, second = (path.parent for path in sorted((runs / "sweep").glob("*/run.json"))[:2])
    for pair in ((first, second), (first, first)):
        ended = cli("leaderboard", str(runs), "--compare", *map(str, pair))
        assert ended.code == 0, ended.err
        assert "Both directories are runs of one recipe" in ended.out
        assert "noise" not in ended.out
    assert "McNemar" in ended.out  # the two models can be compared all the same


@pytest.mark.parametrize("is_older", [False, True])
def test_other_views_in_the_test_are_another_recipe(runs, tmp_path, is_older):
    folder = shutil.copytree(runs, tmp_path / "copy")
    path = sorted(folder.glob("sweep/*/run.json"))[0]
    manifest = json.loads(path.read_text())
    assert manifest["test"]["tta"] == "none"
    if is_older:  # before run.json said so
        del manifest["test"]["tta"]
        config = path.with_name("config.yaml")
        config.write_text(config.read_text().replace("tta: none", "tta: flip"))
    else:
        manifest["test"]["tta"] = "flip"
    path.write_text(json.dumps(manifest))
    (before,), (after,) = boards(find([runs]), "test"), boards(find([folder]), "test")
    assert sorted(row.n for row in before.groups) == [2, 2]
    assert sorted(row.n for row in after.groups) == [1, 1, 2]


def test_times_on_different_machines_have_no_mean():
    assert group([record(0.8), record(0.9, seed=1)], "test").seconds == 60
    assert group([record(0.8), record(0.9, seed=1, device="another CPU")], "test").seconds is None


def test_an_opened_seal_and_a_damaged_record_are_named(cli, runs, tmp_path):
    folder = shutil.copytree(runs, tmp_path / "copy")
    first, second = sorted(folder.glob("sweep/*/run.json"))[:2]
    manifest = json.loads(first.read_text())
    manifest["test"]["openings"] = 3
    first.write_text(json.dumps(manifest))
    second.write_text("{")
    ended = cli("leaderboard", str(folder))
    assert ended.code == 0
    assert "opened more than once" in ended.out
    assert f"{second.parent.name}" in ended.out
    assert "is left out" in ended.out


@pytest.mark.timed
def test_a_thousand_runs_in_three_seconds(runs, tmp_path):
    manifest = json.loads(next(runs.glob("sweep/*/run.json")).read_text())
    for seed in range(1000):
        (tmp_path / str(seed)).mkdir()
        (tmp_path / str(seed) / "run.json").write_text(json.dumps({**manifest, "seed": seed}))
    started = time.perf_counter()
    (board,) = boards(find([tmp_path]), "test")
    assert board.groups[0].n == 1000
    assert time.perf_counter() - started < 3


# --- verify ----------------------------------------------------------------------------------------------------------


def verdicts(run):
    return {check["rule"]: check["verdict"] for check in json.loads((run / judge.VERDICT).read_text())["checks"]}


@pytest.fixture
def run(runs, tmp_path):
    return shutil.copytree(sorted(runs.glob("sweep/0-*"))[0], tmp_path / "run")


def change(run, **entries):
    manifest = json.loads((run / "run.json").read_text())
    for path, value in entries.items():
        *sections, name = path.split("__")
        inner = manifest
        for section in sections:
            inner = inner[section]
        inner[name] = value
    (run / "run.json").write_text(json.dumps(manifest))


RULES = list(judge._RULES)


def test_an_honest_run_keeps_every_rule_but_that_it_is_not_cifar10(cli, run):
    ended = cli("verify", str(run))
    assert ended.code == 3
    found = verdicts(run)
    assert [rule for rule, verdict in found.items() if verdict != "kept"] == ["3     trainable images only"]
    assert "exactly as recorded" in ended.out


@pytest.mark.parametrize(
    ("entries", "rule"),
    [
        ({"test__accuracy": 0.99}, "accuracy"),
        ({"model__parameters": 7}, "1, 4  own model, drawn weights"),
        ({"split__fingerprint": "0" * 64}, "2     the last 20 % is for testing"),
        ({"timing__cold": 2101.0}, "5     time limit"),
        ({"sessions": []}, "1, 4  own model, drawn weights"),
    ],
)
def test_a_changed_record_breaks_its_rule(cli, run, entries, rule):
    change(run, **entries)
    assert cli("verify", str(run)).code == 3
    assert verdicts(run)[rule] == "broken"


def test_another_config_file_and_another_checkpoint_are_found(cli, run):
    (run / "config.yaml").write_text((run / "config.yaml").read_text().replace("batch_size: ", "batch_size: 1"))
    assert cli("verify", str(run)).code == 3
    assert verdicts(run)["config"] == "broken"
    damaged = bytearray((run / "checkpoints" / "best.pt").read_bytes())
    damaged[len(damaged) // 2] ^= 1
    (run / "checkpoints" / "best.pt").write_bytes(damaged)
    assert cli("verify", str(run)).code == 3
    assert verdicts(run) == {"record": "broken"}


def test_the_split_and_the_limit_are_the_tutors_choice(cli, run):
    assert cli("verify", str(run), "limit=null").code == 3
    assert verdicts(run)["5     time limit"] == "kept"
    assert cli("verify", str(run), "protocol=official", "limit=0.001s").code == 3
    found = verdicts(run)
    assert (found["2     the last 20 % is for testing"], found["5     time limit"]) == ("broken", "broken")


def test_a_verdict_ends_with_any_change(run):
    judge.keep(run, [judge.Check("all", "kept", "")], "last20", 2100.0)
    assert judge.is_verified(run, "last20", 2100.0)
    change(run, seed=99)
    assert not judge.is_verified(run, "last20", 2100.0)


def test_a_verdict_by_laxer_rules_is_none(cli, run):
    for protocol, limit, stands in [
        ("last20", 60.0, True),
        ("last20", 2100.0, True),
        ("last20", 2101.0, False),
        ("last20", None, False),
        ("official", 60.0, False),
    ]:
        judge.keep(run, [judge.Check("all", "kept", "")], protocol, limit)
        assert judge.is_verified(run, "last20", 2100.0) == stands
        ended = cli("leaderboard", str(run), "--verified")
        assert (f" 1  {shown_path(run)}\n" in ended.out, "1 of 1 runs are left out" in ended.out) == (
            stands,
            not stands,
        )
    assert cli("leaderboard", str(run), "--verified", "protocol=official").out.count("passport") == 1


def test_a_real_run_passes(cli, cifar10_root, tmp_path):
    arguments = [*TINY, "data=cifar10", f"data.root={cifar10_root}", "trainer.epochs=1", "trainer.limit_batches=2"]
    tiny = [argument for argument in arguments if not argument.startswith(("data=synthetic", "data.size"))]
    assert cli("train", *tiny, "hydra.run.dir=run", "trainer.tensorboard=false").code == 0
    ended = cli("verify", "run")
    assert ended.code == 0, ended.out
    assert cli("leaderboard", ".", "--verified").out.count("passport") == 1
