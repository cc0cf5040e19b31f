"""Counter-based draws: distributions against closed forms, and dependence on nothing but their counters."""

import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from cifarbench.data.random import Draws, _mix, _mix_, _signed

COUNT = 20_000
# SplitMix64 from state 1234567, as other implementations give it.
REFERENCE = (6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431)


def draws(seed=1, epoch=0, count=COUNT):
    return Draws(seed, epoch, torch.arange(count))


def ks_distance(values, cdf):
    """Kolmogorov & Smirnov's distance, scaled so that 1.95 is exceeded once in a thousand samples."""
    ordered = values.double().flatten().sort().values
    n = len(ordered)
    expected = torch.tensor([cdf(value) for value in ordered.tolist()], dtype=torch.float64)
    steps = torch.arange(n, dtype=torch.float64) / n
    return max((expected - steps).max().item(), (steps + 1 / n - expected).max().item()) * math.sqrt(n)


def correlation(first, second):
    return torch.corrcoef(torch.stack((first.double().flatten(), second.double().flatten())))[0, 1].abs().item()


def test_hash_is_splitmix64():
    states = [1234567 + 0x9E3779B97F4A7C15 * step for step in range(1, 5)]
    assert tuple(_mix(state) for state in states) == REFERENCE
    hashed = _mix_(torch.tensor([_signed(state) for state in states]))
    assert hashed.tolist() == [_signed(word) for word in REFERENCE]


def test_uniform_is_uniform_over_images():
    values = draws().uniform("crop")
    assert values.dtype == torch.float32
    assert values.shape == (COUNT,)
    assert values.min() >= 0
    assert values.max() < 1
    assert ks_distance(values, lambda x: x) < 1.95


def test_uniform_is_uniform_over_positions_of_one_image():
    values = draws(count=1).uniform("noise", 3, 32, 32)
    assert values.shape == (1, 3, 32, 32)
    assert ks_distance(values, lambda x: x) < 1.95


def test_uniform_is_uniform_over_epochs_of_one_image():
    values = torch.cat([draws(epoch=epoch, count=1).uniform("crop") for epoch in range(2000)])
    assert ks_distance(values, lambda x: x) < 1.95


@pytest.mark.parametrize("high", [2, 9, 14, 31])
def test_integers_are_even(high):
    values = draws().integers("policy", high)
    assert values.dtype == torch.int64
    counts = torch.bincount(values, minlength=high).double()
    assert len(counts) == high
    chi_square = ((counts - COUNT / high) ** 2 / (COUNT / high)).sum().item()
    freedom = high - 1
    assert chi_square < freedom + 3.3 * math.sqrt(2 * freedom) + 6  # beyond the 99.9 % point of each


def test_integers_reach_the_ends_of_a_wide_range():
    values = draws().integers("wide", 2**31)
    assert values.min() >= 0
    assert values.max() < 2**31
    assert values.max() > 0.999 * 2**31


def test_normal_is_normal_and_independent_in_its_pairs():
    values = draws(count=7).normal("noise", 3, 31, 31)
    assert values.shape == (7, 3, 31, 31)
    assert ks_distance(values, lambda x: 0.5 * (1 + math.erf(x / math.sqrt(2)))) < 1.95
    flat = values.flatten(1)
    half = (flat.shape[1] + 1) // 2
    assert correlation(flat[:, : half - 1], flat[:, half:]) < 4 / math.sqrt(7 * half)
    assert correlation(flat[:, : half - 1].square(), flat[:, half:].square()) < 4 / math.sqrt(7 * half)


@pytest.mark.parametrize(
    ("alpha", "cdf"),
    [
        (0.5, lambda x: 2 / math.pi * math.asin(math.sqrt(min(max(x, 0.0), 1.0)))),
        (1.0, lambda x: x),
        (2.0, lambda x: 3 * x**2 - 2 * x**3),
        (3.0, lambda x: x**3 * (10 - 15 * x + 6 * x**2)),
    ],
)
def test_beta_has_its_closed_form(alpha, cdf):
    values = draws().beta("mixup", alpha)
    assert values.shape == (COUNT,)
    assert ks_distance(values, cdf) < 1.95


@pytest.mark.parametrize("alpha", [0.01, 0.1, 0.2, 10.0])
def test_beta_has_its_moments(alpha):
    values = draws().beta("mixup", alpha).double()
    assert values.min() >= 0
    assert values.max() <= 1
    variance = 1 / (4 * (2 * alpha + 1))
    assert values.mean().item() == pytest.approx(0.5, abs=4 * math.sqrt(variance / COUNT))
    assert values.var().item() == pytest.approx(variance, rel=0.05)


def test_coin_falls_by_its_probability():
    some = draws()
    assert not some.coin("flip", 0.0).any()
    assert some.coin("flip", 1.0).all()
    share = some.coin("flip", 0.3).double().mean().item()
    assert share == pytest.approx(0.3, abs=4 * math.sqrt(0.21 / COUNT))


def test_draws_ignore_batch_and_order():
    whole = draws()
    chosen = torch.tensor([17, 3, 19_999, 3, 0])
    part = Draws(1, 0, chosen)
    assert torch.equal(part.uniform("a", 5), whole.uniform("a", 5)[chosen])
    assert torch.equal(part.integers("b", 9, 2), whole.integers("b", 9, 2)[chosen])
    assert torch.equal(part.coin("c", 0.5), whole.coin("c", 0.5)[chosen])


def test_more_positions_keep_the_first():
    assert torch.equal(draws().uniform("a", 2), draws().uniform("a", 7)[:, :2])


@pytest.mark.parametrize(
    "other",
    [
        lambda: draws(seed=2).uniform("a"),
        lambda: draws(seed=1 + 2**40).uniform("a"),
        lambda: draws(epoch=1).uniform("a"),
        lambda: draws().uniform("b"),
        lambda: draws().uniform("a", 2)[:, 1],
        lambda: draws().uniform("a").roll(1),
    ],
    ids=["seed", "high bits of the seed", "epoch", "stream", "position", "image"],
)
def test_every_counter_matters(other):
    first = draws().uniform("a")
    second = other()
    assert (first == second).sum() < 10
    assert correlation(first, second) < 4 / math.sqrt(COUNT)


def test_seed_and_epoch_do_not_trade_places():
    assert not torch.equal(draws(seed=3, epoch=4).uniform("a"), draws(seed=4, epoch=3).uniform("a"))
    assert not torch.equal(draws(seed=3, epoch=1).uniform("a"), draws(seed=4, epoch=0).uniform("a"))


def test_global_generator_is_neither_read_nor_moved():
    before = torch.get_rng_state()
    first = draws().normal("a", 2)
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(3)
    assert torch.equal(draws().normal("a", 2), first)


def test_another_process_draws_the_same():
    expression = "Draws(5, 6, torch.arange(9)).uniform('a').tolist()"
    code = f"import torch; from cifarbench.data.random import Draws; print({expression})"
    environment = {**os.environ, "PYTHONHASHSEED": "12345"}
    root = Path(__file__).parents[1]
    printed = subprocess.check_output([sys.executable, "-c", code], cwd=root, env=environment, text=True)
    assert printed.strip() == str(Draws(5, 6, torch.arange(9)).uniform("a").tolist())


def test_largest_seed_is_taken():
    assert ks_distance(draws(seed=2**63 - 1).uniform("a"), lambda x: x) < 1.95


@pytest.mark.parametrize(("seed", "epoch"), [(-1, 0), (2**63, 0), (0, -1)])
def test_out_of_range_counters_are_refused(seed, epoch):
    with pytest.raises(ValueError, match="must be"):
        draws(seed=seed, epoch=epoch)


@pytest.mark.parametrize("images", [torch.arange(3, dtype=torch.int32), torch.zeros(2, 2, dtype=torch.int64)])
def test_images_must_be_a_row_of_int64(images):
    with pytest.raises(ValueError, match="int64"):
        Draws(0, 0, images)
