"""`cifarbench bench` as a user types it, and its statistics by hand."""

from __future__ import annotations

import json
import math

import pytest
import torch
from conftest import TINY

from cifarbench.benchmark.machine import matmul_rate
from cifarbench.benchmark.throughput import _paired
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
    assert found["bar"] == pytest.approx(0.94 + 1.645 * 0.002 / math.sqrt(3))
    assert found["passes"]
    assert (found["train"], found["train_test"], found["cold"]) == (12, 13, 15)


def test_one_run_proves_nothing_and_noise_is_no_pass():
    assert not summarise([manifest(0.99, 1)], 0.94)["passes"]
    assert not summarise([manifest(0.93, 1), manifest(0.96, 1)], 0.94)["passes"]


def test_ratios_are_taken_round_by_round():
    assert _paired([2, 20, 300], [1, 10, 100]) == 2


def test_the_machine_multiplies():
    assert matmul_rate(Compute(torch.device("cpu"), "fp32"), repeats=1) > 1e8


def test_a_label_is_printed_as_it_was_typed(cli, monkeypatch):
    def measure(contenders, tutorial, rounds, steps, say):
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
