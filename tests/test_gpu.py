"""On a CUDA GPU, where there is one: no step waits for it, runs repeat and resume exactly, and the CPU agrees."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import warnings
from collections.abc import Sequence

import pytest
import torch
from conftest import TINY, manifest_of, tiny_config
from processes import forked
from test_augment import EVERYTHING, MEAN, OFF, STD
from test_resume import wait_for_step

from cifarbench.commands.hydra_app import compose
from cifarbench.config.augment import AugmentConfig
from cifarbench.config.keys import build
from cifarbench.config.load import load as checked
from cifarbench.config.schema import RECORDED, TrainConfig
from cifarbench.data.augment import Augment
from cifarbench.data.batches import epoch_order
from cifarbench.data.load import load_images
from cifarbench.data.random import Draws
from cifarbench.data.split import split
from cifarbench.training.checkpoint import load, tensor_hash
from cifarbench.training.observer import Observer
from cifarbench.training.probe import prepare

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU"),
    pytest.mark.filterwarnings("ignore:.torch.jit.*deprecated"),  # torch, which warns of itself
    pytest.mark.filterwarnings("ignore:The CUDA Graph is empty"),
    pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype"),
]

SHARES = (0.1, 0.5, 0.9)  # of the run: the fast recipe has another size in each
GPU = ["trainer.device=cuda", "trainer.tensorboard=false"]
DRAWN = ["data=synthetic", "data.size=4000", "trainer.batch_size=500"]
FAST = ["experiment=speed94", *DRAWN, "trainer.micro_batch=null"]
SIMPLE = [*DRAWN, "model=simple_cnn"]
UNTIMED = ["trainer.untimed_steps=3", "trainer.checkpoint_epochs=0", "trainer.report=false"]


def prepared(config):
    data = load_images(config.data)
    return prepare(config, split(data, config.split), Observer())


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(
    "words",
    [
        ["augment=affine"],
        ["augment=mixup", "trainer.ema=0.9", "trainer.clip_norm=1.0"],
        ["trainer.loss=mse", "optim.l1=0.001"],
    ],
)
def test_a_step_never_waits_for_the_device(words, precision):
    training = prepared(tiny_config(*GPU, *words, f"trainer.precision={precision}"))
    assert waits_of(training) == 0


def test_a_drawn_policy_waits_once_a_step():
    """For how many images drew each operation."""
    assert waits_of(prepared(tiny_config(*GPU, "augment=trivialaugment"))) <= len(SHARES)


def test_a_step_of_the_fast_recipe_never_waits_for_the_device():
    assert waits_of(prepared(checked(TrainConfig, compose("train", [*FAST, *GPU])))) == 0


def waits_of(training) -> int:
    """How often the device was waited for in one step of each of SHARES, after one of each to warm up."""
    size = training.trainer.batch_size
    order = epoch_order(len(training.setting.train), 0, 0).to("cuda")
    assert training.setting.train.images.is_cuda
    batches = [order[first : first + size] for first in range(0, 6 * size, size)]
    tick = 0.0
    for batch, share in zip(batches, SHARES, strict=False):
        tick = training.advance(batch, share, tick)  # allocates the optimizer's state and chooses kernels
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            for batch, share in zip(batches[3:], SHARES, strict=True):
                tick = training.advance(batch, share, tick)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert training.progress.step == 2 * len(SHARES)
    return sum("synchroniz" in str(warning.message) for warning in seen)


def test_an_augmented_batch_is_the_same_as_on_the_cpu():
    config = build(AugmentConfig, {**OFF, **EVERYTHING, "name": "all", "gaussian_noise": 0.0})
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (64, 3, 32, 32), dtype=torch.uint8, generator=generator)
    numbers = torch.arange(64)
    augment = Augment(config, MEAN, STD)
    there = augment(images.cuda(), Draws(3, 1, numbers.cuda())).cpu()
    here = augment(images, Draws(3, 1, numbers))
    # One step of 256 where a resampled value lies on the edge between two.
    assert ((there - here).abs() < 1.5 / 255 / min(STD)).double().mean() > 0.999


def test_two_runs_with_one_seed_end_alike_and_a_stopped_one_as_if_it_had_not_been(cli, tmp_path):
    words = [*TINY, *GPU, "augment=mixup", "trainer.ema=0.9", "trainer.epochs=20", "trainer.checkpoint_every=1"]
    for name in ("one", "two"):
        assert cli("train", *words, f"hydra.run.dir={name}").code == 0
    process = forked("train", *words, "hydra.run.dir=stopped", cwd=tmp_path, log=tmp_path / "log")
    wait_for_step(process, tmp_path / "stopped", 3)
    os.kill(process.pid, signal.SIGTERM)
    process.join(60)
    assert process.exitcode == 143
    assert cli("train", "trainer.resume=stopped").code == 0
    ends = [load(tmp_path / name / "checkpoints" / "last.pt") for name in ("one", "two", "stopped")]
    for part in ("model", "ema"):
        assert len({tensor_hash(state[part]) for state in ends}) == 1, part
    assert manifest_of(tmp_path / "stopped")["environment"]["device"] == "cuda"


def test_the_gpu_scores_a_run_of_the_cpu_as_the_cpu_does(cli, tmp_path):
    assert cli("train", *TINY, "trainer.device=cpu", "trainer.precision=fp32", "hydra.run.dir=run").code == 0
    ended = cli("eval", "run=run", "portion=val", "device=cuda", "precision=fp32")
    assert ended.code == 0, ended.err
    (written,) = (tmp_path / "run" / "eval").glob("*-val-*.json")
    best = manifest_of(tmp_path / "run")["best"]["val_accuracy"]
    assert json.loads(written.read_text())["accuracy"] == pytest.approx(best, abs=2 / 96)


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["trainer.cuda_graphs=true"],
        ["trainer.compile=true"],
        ["trainer.compile=true", "trainer.cuda_graphs=true"],
        ["trainer.compile=true", "trainer.compile_mode=reduce-overhead"],
        ["trainer.compile=true", "trainer.compile_mode=max-autotune"],
    ],
    ids=" ".join,
)
def test_the_fast_recipe_runs_end_to_end(cli, tmp_path, words):
    ended = cli("train", *FAST, *GPU, *words, *UNTIMED, "trainer.progress=plain", "hydra.run.dir=run")
    assert ended.code == 0, ended.err
    timing = manifest_of(tmp_path / "run")["timing"]
    assert timing["untimed"] > 0
    assert 0 < timing["training"] <= timing["train"] < timing["train_test"] < timing["cold"]


# --- recorded steps, and our own kernels -----------------------------------------------------------------------------


def losses_of(*words: str, shares: Sequence[float] = SHARES) -> list[float]:
    """The losses of four steps at each of `shares`, the batches changing; the rate falls from one to the next."""
    training = prepared(checked(TrainConfig, compose("train", [*words, *GPU])))
    losses = []
    for index in range(4 * len(shares)):
        positions = torch.arange(500, device="cuda") + 250 * (index % 8)
        training.advance(positions, shares[index // 4], 0.0)
        losses.append(training.health.unchecked[-1][2])
    return [float(loss) for loss in losses]


@pytest.mark.parametrize(
    "words",
    [
        FAST,
        ["model=vgg"],
        ["model=resnet", "optim=adamw"],
        ["model=efficientnet_lite"],
        ["augment=strong"],
        ["model=simple_cnn", "optim=sgd"],
        ["model=simple_cnn", "optim=adam", "optim.weight_decay=0.01"],
    ],
)
def test_recorded_steps_and_our_own_kernels_do_what_torch_does_one_by_one(words):
    words = [*DRAWN, *words, "trainer.precision=fp32"]
    torchs = [*words, "trainer.kernels=torch"]
    plain = losses_of(*torchs)
    assert max(plain) - min(plain) > 0.1, "it learns something"
    assert losses_of(*torchs, "trainer.cuda_graphs=true") == pytest.approx(plain, rel=0.02)
    for share in SHARES:  # each from the first weights: within eight steps a change of 1e-4 in them grows to 2 %
        ours = losses_of(*words, "trainer.cuda_graphs=true", shares=[share])
        assert ours == pytest.approx(losses_of(*torchs, shares=[share]), rel=0.005)


@pytest.mark.parametrize("is_loaded", [False, True], ids=["", "went on"])
@pytest.mark.parametrize("name", RECORDED)
def test_a_recorded_step_sees_its_rate_change(name, is_loaded):
    words = [*SIMPLE, *GPU, f"optim={name}", "trainer.cuda_graphs=true"]
    training = prepared(checked(TrainConfig, compose("train", words)))
    positions = torch.arange(500, device="cuda")
    if is_loaded:
        training.optimizer.load_state_dict(training.optimizer.state_dict())
    for _ in range(4):
        training.advance(positions, 0.5, 0.0)
    assert len(training.replay._graphs) == 1
    weights, moved = [parameter.detach() for parameter in training.model.parameters()], []
    for scale in (0.0, 0.0, 1.0):  # the first of these still brings Muon's matrices to their norm
        before = [weight.clone() for weight in weights]
        training.factor = lambda share, scale=scale: scale
        training.advance(positions, 0.5, 0.0)
        moved.append(max(float((weight - was).abs().max()) for weight, was in zip(weights, before, strict=True)))
    assert moved[1] < 1e-5 < 1e-3 < moved[2]
    assert len(training.replay._graphs) == 1


def test_in_bf16_our_own_kernels_learn_as_torchs_operations_do():
    plain, ours = (
        losses_of(*FAST, "trainer.cuda_graphs=true", f"trainer.kernels={kind}") for kind in ("torch", "auto")
    )
    assert ours == pytest.approx(plain, rel=0.05)


def test_the_fast_recipe_is_recorded_with_a_graph_for_each_phase():
    training = prepared(checked(TrainConfig, compose("train", [*FAST, *GPU, "trainer.cuda_graphs=true"])))
    positions = torch.arange(500, device="cuda")
    for share in SHARES:
        for _ in range(4):
            training.advance(positions, share, 0.0)
    assert len(training.replay._graphs) == len(SHARES)
    assert training.ema.n_averaged == 5, "the copy of the last step before 60 %, and four"


@pytest.mark.parametrize("words", [FAST, [*SIMPLE, "optim=sgd"], [*SIMPLE, "optim=adamw"]])
def test_steps_before_the_clock_leave_no_trace_in_what_was_recorded(cli, tmp_path, words):
    words = [*words, *GPU, "trainer.cuda_graphs=true", "trainer.precision=fp32", "trainer.epochs=2"]
    for name, count in (("with", 3), ("without", 0)):
        assert cli("train", *words, f"trainer.untimed_steps={count}", f"hydra.run.dir={name}").code == 0
    rows = [json.loads((tmp_path / name / "metrics.jsonl").read_text().splitlines()[0]) for name in ("with", "without")]
    assert rows[0]["train_loss"] == pytest.approx(rows[1]["train_loss"], rel=0.01)


def test_forward_passes_agree_with_the_cpu():
    for name in ("simple_cnn", "vgg", "resnet", "efficientnet_lite", "speednet"):
        config = checked(TrainConfig, compose("train", ["data=synthetic", "data.size=1200", f"model={name}"]))
        trainer = dataclasses.replace(config.trainer, device="cpu", precision="fp32", compile=False)
        model = prepared(dataclasses.replace(config, trainer=trainer)).model.eval()
        images = torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(1))
        with torch.no_grad():
            here, there = model(images), model.cuda()(images.cuda()).cpu()
        torch.testing.assert_close(there, here, rtol=5e-3, atol=5e-3)  # TF32 and another order of sums
