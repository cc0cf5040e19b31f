"""Several processes as one run, by torchrun or by hand, on the CPU, against one process with the same global batch."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path
from unittest import mock

import pytest
import torch
from conftest import TINY, in_this_process, manifest_of, mark_interrupted, rows_of, wait_until
from processes import forked
from torch import nn

from cifarbench.errors import IntegrityError
from cifarbench.training.checkpoint import load
from cifarbench.training.distributed import World
from cifarbench.training.resume import _check_same_checkpoint
from cifarbench.training.sync_norm import synchronise_norms

FP32 = [*TINY, "trainer.precision=fp32", "augment=standard"]
# Batch statistics are each process's own, unless they are exchanged.
EXACT = [*FP32, "model.norm=none", "model.bias=true", "optim.lr=0.01", "trainer.untimed_steps=1"]


def starter(*flags: str) -> list[str]:
    run = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    return [*run, *flags, "-m", "cifarbench"]


def torchrun(*arguments: str, cwd: Path) -> subprocess.CompletedProcess:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [*starter(), *arguments], cwd=cwd, env=environment, capture_output=True, text=True, timeout=150, check=False
    )


def by_hand(*arguments: str, cwd: Path) -> list[tuple[int | None, str]]:
    """Start the two processes as any other launcher may, by the variables that torchrun sets too.

    Returns the exit code of each and what it said, the first one's first.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}
    ranks = []
    for rank in range(2):
        with mock.patch.dict(os.environ, {**place, "RANK": str(rank), "LOCAL_RANK": str(rank)}):
            ranks.append(forked(*arguments, cwd=cwd, log=cwd / f"rank{rank}.log"))
    for process in ranks:
        process.join(120)
    return [(process.exitcode, (cwd / f"rank{rank}.log").read_text()) for rank, process in enumerate(ranks)]


@pytest.fixture(scope="module")
def runs_of_one_and_two(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    assert in_this_process("train", *EXACT, f"hydra.run.dir={folder / 'one'}") == 0
    done = torchrun("train", *EXACT, "hydra.run.dir=two", cwd=folder)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


def test_two_processes_leave_one_run_directory_with_counts_over_both(runs_of_one_and_two):
    manifest = manifest_of(runs_of_one_and_two / "two")
    assert manifest["status"] == "completed"
    assert manifest["environment"]["processes"] == 2
    assert manifest["test"]["openings"] == 1
    assert manifest["split"]["train"] == 864
    assert {path.name for path in runs_of_one_and_two.iterdir() if path.is_dir()} == {"one", "two"}


def test_two_processes_train_like_one(runs_of_one_and_two):
    one, two = (load(runs_of_one_and_two / name / "checkpoints" / "last.pt")["model"] for name in ("one", "two"))
    for name, weights in one.items():
        torch.testing.assert_close(two[name], weights, rtol=1e-3, atol=1e-4)
    for first, second in zip(rows_of(runs_of_one_and_two / "one"), rows_of(runs_of_one_and_two / "two"), strict=True):
        assert second["train_loss"] == pytest.approx(first["train_loss"], abs=1e-4)
        assert second["train_accuracy"] == pytest.approx(first["train_accuracy"], abs=3 / 864)
        assert second["val_loss"] == pytest.approx(first["val_loss"], abs=1e-4)


def test_with_norms_exchanged_two_processes_train_like_one(cli, tmp_path):
    arguments = [*FP32, "trainer.sync_norm=true", "optim.lr=0.02"]
    assert cli("train", *arguments, "hydra.run.dir=one").code == 0
    ends = by_hand("train", *arguments, "hydra.run.dir=two", cwd=tmp_path)
    assert [code for code, _ in ends] == [0, 0], ends
    one, two = (load(tmp_path / name / "checkpoints" / "last.pt")["model"] for name in ("one", "two"))
    for name, weights in one.items():
        torch.testing.assert_close(two[name], weights, rtol=1e-2, atol=1e-3)
    for first, second in zip(rows_of(tmp_path / "one"), rows_of(tmp_path / "two"), strict=True):
        assert second["train_loss"] == pytest.approx(first["train_loss"], abs=1e-3)


def test_a_process_that_finds_another_checkpoint_than_the_first_is_refused(tmp_path, monkeypatch):
    """As on two machines that do not share the run's folder: one would go on where the other starts anew."""
    monkeypatch.setattr(World, "tell", lambda world, value: "one of step 7")
    with pytest.raises(IntegrityError, match="no checkpoint for process 1 and one of step 7 for the first"):
        _check_same_checkpoint(None, World(1, 2), tmp_path)
    _check_same_checkpoint({"progress": {"step": 7}}, World(1, 2), tmp_path)


def test_gradients_and_loss_are_summed_over_the_processes(monkeypatch):
    monkeypatch.setattr(
        "torch.distributed.all_reduce", lambda values: values.mul_(2)
    )  # two processes of the same batch
    layer = nn.Linear(3, 2)
    layer(torch.ones(1, 3)).square().sum().backward()
    before = [parameter.grad.clone() for parameter in layer.parameters()]
    assert World(0, 2).add_gradients(layer, torch.tensor(0.7)).item() == pytest.approx(1.4)
    for parameter, gradient in zip(layer.parameters(), before, strict=True):
        assert parameter.grad.equal(2 * gradient)


def test_shares_that_differ_by_an_image_take_as_many_passes(tmp_path):
    # Of 33 images one process has 17, the other 16: with an exchange in every norm, passes have to be alike in number.
    words = ["trainer.sync_norm=true", "data.size=600", "trainer.batch_size=33", "trainer.micro_batch=16"]
    ends = by_hand("train", *FP32, *words, "trainer.epochs=1", "hydra.run.dir=run", cwd=tmp_path)
    assert [code for code, _ in ends] == [0, 0], ends
    assert not any("Warning" in said for _, said in ends)


@pytest.mark.parametrize(("world", "batch", "micro"), [(1, 129, 128), (2, 33, 16), (3, 7, 2), (2, 2, 1), (4, 5, None)])
def test_passes_are_one_number_for_all_processes_and_none_is_empty(world, batch, micro):
    positions = torch.arange(batch)
    passes = World(0, world).passes(batch, micro)
    seen = [World(rank, world).share(positions).tensor_split(passes) for rank in range(world)]
    sizes = [len(part) for parts in seen for part in parts]
    assert min(sizes) > 0
    assert max(sizes) <= (micro or batch) + (micro == 1)  # an image each: the larger share has one more
    assert torch.cat([part for parts in seen for part in parts]).sort().values.equal(positions)


def test_a_loss_that_is_not_finite_in_one_process_ends_all_alike(tmp_path):
    (tmp_path / "odd.py").write_text(
        "import os\n"
        "from torch import nn\n"
        "from cifarbench.models.registry import register\n"
        "@register('odd')\n"
        "class Odd(nn.Module):\n"
        "    def __init__(self) -> None:\n"
        "        super().__init__()\n"
        "        self.layer = nn.Linear(3072, 10)\n"
        "    def forward(self, x):\n"
        "        broken = self.training and os.environ.get('RANK') == '1'\n"
        "        return self.layer(x.flatten(1)) * (float('nan') if broken else 1.0)\n"
    )
    words = ["plugins=[odd.py]", "model=odd", "data=synthetic", "data.size=600", "trainer.precision=fp32"]
    ends = by_hand("train", *words, "hydra.run.dir=run", cwd=tmp_path)
    assert [code for code, _ in ends] == [4, 4], ends
    assert "the loss became nan at step 1" in ends[0][1]


def test_norms_of_nearly_constant_channels_stay_finite_and_exact(monkeypatch):
    monkeypatch.setattr("torch.distributed.all_reduce", lambda values: None)  # one process alone
    generator = torch.Generator().manual_seed(0)
    images = 10.3 + 1e-3 * torch.randn(8, 50, 4, 4, generator=generator)
    ours, theirs = nn.BatchNorm2d(50, eps=1e-12), nn.BatchNorm2d(50, eps=1e-12).double()
    synchronise_norms(ours)
    with torch.no_grad():
        for _ in range(60):  # the running mean comes near
            found, right = ours(images), theirs(images.double())
    torch.testing.assert_close(found.double(), right, rtol=0, atol=2e-3)
    torch.testing.assert_close(ours.running_var.double(), theirs.running_var, rtol=1e-2, atol=1e-6)
    flat = torch.full((4, 50, 2, 2), 10.3) + torch.rand(1, 50, 1, 1, generator=generator)
    assert bool(ours(flat).isfinite().all())


@pytest.mark.parametrize(
    ("kind", "options", "shape"),
    [
        (nn.BatchNorm1d, {}, (6, 5)),
        (nn.BatchNorm1d, {"affine": False}, (6, 5, 7)),
        (nn.BatchNorm2d, {"momentum": None}, (6, 5, 3, 3)),
        (nn.BatchNorm2d, {"track_running_stats": False}, (6, 5, 3, 3)),
        (nn.BatchNorm3d, {"affine": False, "momentum": 0.3}, (6, 5, 2, 2, 2)),
    ],
)
def test_every_batch_norm_of_torchs_sees_both_processes_images(monkeypatch, kind, options, shape):
    monkeypatch.setattr("torch.distributed.all_reduce", lambda values: values.mul_(2))  # both have the same batch
    generator = torch.Generator().manual_seed(0)
    ours, theirs = nn.Sequential(kind(5, **options)), kind(5, **options).double()
    synchronise_norms(ours)
    for step in range(3):
        x = (torch.randn(shape, generator=generator) * (step + 1) + step).requires_grad_()
        whole = torch.cat([x.detach(), x.detach()]).double().requires_grad_()
        weights = torch.randn(shape, generator=generator)
        found, right = ours(x), theirs(whole)
        torch.testing.assert_close(found.double(), right[: len(x)], rtol=1e-4, atol=1e-5)
        (found * weights).sum().backward()
        (right * torch.cat([weights, weights]).double()).sum().backward()
        torch.testing.assert_close(x.grad.double(), whole.grad[: len(x)], rtol=1e-3, atol=1e-4)
    for name, value in theirs.state_dict().items():
        torch.testing.assert_close(ours[0].state_dict()[name].double(), value.double(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(ours.eval()(x).double(), theirs.eval()(x.double()), rtol=1e-4, atol=1e-5)


def test_a_finished_run_asked_for_again_lets_every_process_end(runs_of_one_and_two, tmp_path):
    folder = shutil.copytree(runs_of_one_and_two / "two", tmp_path / "two")
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    ends = by_hand("train", *EXACT, "hydra.run.dir=two", cwd=tmp_path)
    assert [(code, said.count("already complete")) for code, said in ends] == [(0, 1), (0, 0)], ends
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_another_number_of_processes_is_refused(runs_of_one_and_two, cli, tmp_path):
    folder = shutil.copytree(runs_of_one_and_two / "two", tmp_path / "two")
    mark_interrupted(folder)
    ended = cli("train", *EXACT, "hydra.run.dir=two")
    assert (ended.code, "by 2 processes" in ended.err) == (3, True)


def ranks_of(launcher: int) -> list[int]:
    """The launcher's processes, first rank first."""
    children = Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split()
    return sorted(int(child) for child in children)


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="finds the ranks through Linux's /proc")
@pytest.mark.parametrize("restarts", [0, 1])
def test_a_rank_that_dies_ends_the_job_soon_and_a_restart_goes_on(tmp_path, restarts):
    arguments = [*EXACT, "trainer.epochs=8", "trainer.checkpoint_every=1", "trainer.tensorboard=false"]
    flags = [f"--max-restarts={restarts}", "--monitor-interval=0.2"]
    log = (tmp_path / "log").open("w")
    job = subprocess.Popen(
        [*starter(*flags), "train", *arguments, "hydra.run.dir=run"],
        cwd=tmp_path, env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=log, stderr=log,
    )  # fmt: skip
    wait_until(lambda: (tmp_path / "run" / "checkpoints" / "last.pt").exists())
    os.kill(ranks_of(job.pid)[-1], signal.SIGKILL)
    code = job.wait(timeout=120)
    log.close()
    state = load(tmp_path / "run" / "checkpoints" / "last.pt")
    if restarts:
        assert code == 0, (tmp_path / "log").read_text()[-3000:]
        assert state["progress"]["epoch"] == 8
        assert len(manifest_of(tmp_path / "run")["sessions"]) == 2
    else:
        assert code != 0
        assert not list((tmp_path / "run" / "checkpoints").glob("*.part"))
        ends = by_hand("train", *arguments, "hydra.run.dir=run", cwd=tmp_path)
        assert [code for code, _ in ends] == [0, 0], ends
        assert load(tmp_path / "run" / "checkpoints" / "last.pt")["progress"]["epoch"] == 8


def test_a_bad_config_ends_all_processes(tmp_path):
    done = torchrun("train", *TINY, "optim.lr=-1", cwd=tmp_path)
    assert done.returncode != 0
    assert "`optim.lr` is -1" in done.stderr


def test_shares_cover_everything_once():
    items = torch.arange(11)
    parts = [World(rank, 3).share(items) for rank in range(3)]
    assert sorted(torch.cat(parts).tolist()) == items.tolist()


def test_a_world_of_one_changes_nothing():
    world, rows = World(), torch.arange(6.0).view(3, 2)
    assert torch.equal(world.gather_rows(rows, 3), rows)
    assert world.highest([1.0, 2.0]) == [1.0, 2.0]
    assert world.tell("x") == "x"
