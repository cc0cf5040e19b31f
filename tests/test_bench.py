"""`cifarbench bench` as a user types it, and its statistics by hand."""

from __future__ import annotations

import json
import math
import os
import random
import signal
from unittest import mock

import pytest
import torch
import yaml
from conftest import TINY, manifest_of, wait_until
from processes import forked

from cifarbench.benchmark.contenders import Contender
from cifarbench.benchmark.machine import matmul_rate
from cifarbench.benchmark.throughput import _paired, _steps_within
from cifarbench.benchmark.time_to_accuracy import summarise
from cifarbench.commands.hydra_app import compose
from cifarbench.compute import Compute
from cifarbench.errors import ConfigError

FAST = ["bench.rounds=2", "bench.steps=2", "hydra.run.dir=out"]


def result(folder):
    return json.loads((folder / "out" / "bench.json").read_text())


def test_throughput_times_every_config_and_the_tutorial_loop(cli, tmp_path):
    ended = cli("bench", *TINY, *FAST, "bench.tutorial=true", "bench.against=['optim=adamw trainer.batch_size=32']")
    assert ended.code == 0, ended.err
    assert "optim=adamw trainer.batch_size=32" in ended.out
    found = result(tmp_path)
    first, second = found["contenders"]
    assert first["times_first"] == 1
    assert second["batch_size"] == 32 != first["batch_size"]
    for row in (first, second):
        low, high = row["range"]
        assert 0 < low <= row["images_per_second"] <= high
        assert set(row["microseconds"]) == {"augment", "forward", "backward", "optimizer"}
        assert row["of_matmul"] == pytest.approx(row["flops_per_second"] / found["matmul"])
        # The phases are parts of a step, so their sum is of its size, however noisy the machine.
        assert 0.2 < sum(row["microseconds"].values()) * row["images_per_second"] / 1e6 < 5
    assert found["tutorial"]["images_per_second"] > 0
    assert not (tmp_path / "outputs").exists()


@pytest.mark.parametrize(("seconds", "steps"), [("1e-9", 1), ("1e9", 6)])
def test_a_timing_takes_as_many_steps_as_its_seconds_hold(cli, tmp_path, seconds, steps):
    words = ["bench.rounds=1", "bench.steps=6", f"bench.seconds={seconds}", "hydra.run.dir=out"]
    seen, timed = [], Contender.bare

    def watched(contender, count):
        seen.append(count)
        return timed(contender, count)

    with mock.patch.object(Contender, "bare", watched):
        assert cli("bench", *TINY, *words).code == 0
    assert seen == [1, steps]  # to warm up, and in the one round
    assert [row["steps"] for row in result(tmp_path)["contenders"]] == [steps]


@pytest.mark.parametrize(("step", "steps"), [(0.9, 5), (6.0, 1), (0.01, 20)])
def test_five_seconds_hold_this_many_steps_of_at_most_twenty(step, steps):
    assert _steps_within(5.0, step, 20) == steps


def test_accuracy_runs_seeds_keeps_their_directories_and_does_not_repeat_them(cli, tmp_path):
    arguments = ["bench", *TINY, "bench.measure=accuracy", "bench.seeds=2", "bench.target=0.05", "hydra.run.dir=out",
                 "trainer.epochs=1", "trainer.tensorboard=false"]  # fmt: skip
    assert cli(*arguments).code == 0
    row = result(tmp_path)["configs"][0]
    assert row["n"] == 2
    assert [run["seed"] for run in row["runs"]] == [0, 1]
    manifests = [json.loads((tmp_path / "out" / f"0-seed{seed}" / "run.json").read_text()) for seed in (0, 1)]
    assert [run["accuracy"] for run in row["runs"]] == [manifest["test"]["accuracy"] for manifest in manifests]
    for manifest in manifests:
        timing = manifest["timing"]
        assert 0 < timing["training"] <= timing["train"] < timing["train_test"] < timing["cold"]
    before = [(tmp_path / "out" / f"0-seed{seed}" / "run.json").read_bytes() for seed in (0, 1)]
    assert cli(*arguments).code == 0
    assert before == [(tmp_path / "out" / f"0-seed{seed}" / "run.json").read_bytes() for seed in (0, 1)]


def test_the_runs_of_a_race_take_options_from_a_folder_of_ones_own_and_lie_in_any(cli, tmp_path):
    (tmp_path / "mine" / "augment").mkdir(parents=True)
    (tmp_path / "mine" / "augment" / "plain.yaml").write_text("defaults: [none, _self_]\nname: plain\n")
    words = ["augment=plain", "bench.measure=accuracy", "bench.seeds=1", "trainer.epochs=1", "hydra.run.dir='b (1)'"]
    ended = cli("bench", *TINY, *words, "--config-dir=mine")
    assert ended.code == 0, ended.err
    assert yaml.safe_load((tmp_path / "b (1)/0-seed0/config.yaml").read_text())["augment"]["name"] == "plain"


def test_a_config_that_cannot_be_trained_is_refused_before_anything_is_timed(cli, tmp_path):
    for against, word in (("optm=sgd", "optm"), ("optim.lr=-1", "`optim.lr`"), ('a \\"b', "cannot be split")):
        ended = cli("bench", *TINY, *FAST, f'bench.against=["{against}"]')
        assert (ended.code, word in ended.err) == (2, True), ended.err


def manifest(accuracy, seconds):
    timing = {"cold": seconds + 3, "train": seconds, "train_test": seconds + 1}
    return {"test": {"accuracy": accuracy}, "timing": timing, "environment": {}}


def test_statistics_by_hand():
    found = summarise([manifest(0.940, 10), manifest(0.944, 12), manifest(0.942, 14)], 0.94)
    assert found["mean"] == pytest.approx(0.942)
    assert found["std"] == pytest.approx(0.002)
    # Student's t, one-sided 95 % at two degrees of freedom, from a table.
    assert found["bar"] == pytest.approx(0.94 + 2.919986 * 0.002 / math.sqrt(3))
    assert not found["passes"]
    assert summarise([manifest(0.943, 10), manifest(0.947, 12), manifest(0.945, 14)], 0.94)["passes"]
    assert (found["train"], found["train_test"], found["cold"]) == (12, 13, 15)


def test_one_run_proves_nothing_and_noise_is_no_pass():
    assert not summarise([manifest(0.99, 1)], 0.94)["passes"]
    assert not summarise([manifest(0.93, 1), manifest(0.96, 1)], 0.94)["passes"]


def test_a_mean_at_the_target_passes_in_one_of_twenty():
    draw = random.Random(0)
    runs = 1500
    for count in (2, 5):
        passed = sum(
            summarise([manifest(draw.gauss(0.94, 0.002), 1) for _ in range(count)], 0.94)["passes"] for _ in range(runs)
        )
        assert abs(passed / runs - 0.05) < 3.5 * math.sqrt(0.05 * 0.95 / runs), count


def test_each_config_is_timed_with_its_own_threads(cli, tmp_path):
    words = ["bench.rounds=1", "bench.steps=1", "trainer.threads=2", 'bench.against=["trainer.threads=1"]']
    seen = []
    timed = Contender.loop

    def watched(contender, steps):
        seconds = timed(contender, steps)
        seen.append((contender.config.trainer.threads, torch.get_num_threads()))
        return seconds

    with mock.patch.object(Contender, "loop", watched):
        assert cli("bench", *TINY, *words, "hydra.run.dir=b").code == 0
    assert seen == [(2, 2), (1, 1)] * 2  # to warm up, and in the one round
    result = json.loads((tmp_path / "b" / "bench.json").read_text())
    assert [row["threads"] for row in result["contenders"]] == [2, 1]
    assert result["environment"]["threads"] == 2


def test_a_signal_ends_a_race_with_its_run_saved(tmp_path):
    words = ["bench.measure=accuracy", "bench.seeds=2", "trainer.epochs=200", "hydra.run.dir=b"]
    race = forked("bench", *TINY, *words, cwd=tmp_path, log=tmp_path / "log")
    run = tmp_path / "b" / "0-seed0"
    wait_until((run / "checkpoints" / "last.pt").exists)
    os.kill(race.pid, signal.SIGTERM)
    race.join(60)
    assert (race.exitcode, manifest_of(run)["status"]) == (143, "interrupted"), (tmp_path / "log").read_text()
    assert "hydra.run.dir=b goes on with it" in (tmp_path / "log").read_text()
    with pytest.raises(ProcessLookupError):
        os.kill(manifest_of(run)["process"]["pid"], 0)


def test_an_accuracy_that_is_never_measured_is_refused(cli):
    ended = cli("bench", *TINY, "bench.measure=accuracy", "trainer.test=false")
    assert (ended.code, "`trainer.test` is false" in ended.err) == (2, True)


def test_ratios_are_taken_round_by_round():
    assert _paired([2, 20, 300], [1, 10, 100]) == 2


def test_the_machine_multiplies():
    assert matmul_rate(Compute(torch.device("cpu"), "fp32"), repeats=1) > 1e8


def test_a_label_is_printed_as_it_was_typed(cli, monkeypatch):
    def measure(contenders, tutorial, rounds, steps, seconds, say):
        say("plugins=[/home/ann/mynet.py] and plugins=[mynet.py] :cat:")
        raise ConfigError("enough")

    monkeypatch.setattr("cifarbench.benchmark.throughput.measure", measure)
    ended = cli("bench", *TINY, *FAST)
    assert (ended.code, ended.err.strip()) == (2, "cifarbench: enough")
    assert "plugins=[/home/ann/mynet.py] and plugins=[mynet.py] :cat:" in ended.out


def test_bench_composes_what_train_does():
    bench = compose("bench", ["model=vgg"])
    del bench["bench"]
    assert bench == compose("train", ["model=vgg"])
