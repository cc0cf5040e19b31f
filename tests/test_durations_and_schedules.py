"""Spans, times and learning-rate schedules, against torch's own schedulers and hand computations."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from conftest import tiny_config

from cifarbench.config.durations import RunLength, Span, check_span, seconds, span
from cifarbench.config.optim import (
    ConstantConfig,
    DecayConfig,
    MultiStepConfig,
    OneCycleConfig,
    PlateauConfig,
    StepConfig,
)
from cifarbench.errors import ConfigError
from cifarbench.optim.schedules import Plateau, factor

LENGTH = RunLength(epochs=10, steps_per_epoch=20)


@pytest.mark.parametrize(("text", "value"), [("90s", 90), ("10m", 600), ("35m", 2100), ("1.5h", 5400), ("2 h", 7200)])
def test_times_become_seconds(text, value):
    assert seconds(text, "k") == value


@pytest.mark.parametrize("text", ["12:30", "750", "-1m", "0s", "m", "10 minutes", "1e3s", "٣m"])
def test_bad_times_are_refused(text):
    with pytest.raises(ConfigError, match="`k`"):
        seconds(text, "k")


@pytest.mark.parametrize(
    ("text", "value"), [("10%", 0.1), ("5epochs", 0.5), ("1 epoch", 0.1), ("50steps", 0.25), ("0%", 0)]
)
def test_spans_become_shares_of_the_run(text, value):
    check_span(text, "k")
    assert span(text, LENGTH).end == pytest.approx(value)


@pytest.mark.parametrize(
    ("word", "rule"),
    [("scheduler.warmup=0.05", "it must be a span like 10%"), ("trainer.max_time=1.5", "it must be a time above 0")],
)
def test_a_number_without_its_unit_is_told_the_rule(word, rule):
    with pytest.raises(ConfigError, match=rule):
        tiny_config(word)


@pytest.mark.parametrize("text", ["101%", "3", "-5%", "5 weeks", "", "%"])
def test_bad_spans_are_refused(text):
    with pytest.raises(ConfigError, match="`k`"):
        check_span(text, "k")


def ours(config, steps: int = LENGTH.steps) -> list[float]:
    curve = factor(config, LENGTH)
    return [curve(step / LENGTH.steps, step / LENGTH.steps) for step in range(steps)]


def torchs(make, steps: int = LENGTH.steps) -> list[float]:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    scheduler = make(optimizer)
    rates = []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


def test_cosine_is_torchs():
    config = DecayConfig(name="cosine", warmup="0%", final=0.1)
    expected = torchs(lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, LENGTH.steps, eta_min=0.1))
    assert ours(config) == pytest.approx(expected, abs=1e-6)


def test_linear_is_torchs():
    config = DecayConfig(name="linear", warmup="0%", final=0.25)
    expected = torchs(lambda o: torch.optim.lr_scheduler.LinearLR(o, 1.0, 0.25, LENGTH.steps))
    assert ours(config) == pytest.approx(expected, abs=1e-6)


def test_step_is_torchs():
    config = StepConfig(name="step", warmup="0%", every="3epochs", gamma=0.2)
    expected = torchs(lambda o: torch.optim.lr_scheduler.StepLR(o, 3 * LENGTH.steps_per_epoch, 0.2))
    assert ours(config) == pytest.approx(expected)


def test_multistep_is_torchs():
    config = MultiStepConfig(name="multistep", warmup="0%", milestones=("50%", "150steps"), gamma=0.1)
    expected = torchs(lambda o: torch.optim.lr_scheduler.MultiStepLR(o, [100, 150], 0.1))
    assert ours(config) == pytest.approx(expected)


def test_onecycle_has_torchs_shape():
    config = OneCycleConfig(name="onecycle", warmup="30%", start=0.04, final=1e-5)

    def make(optimizer):
        # torch counts to the last step itself, we to the end of the run: one step more makes them agree.
        return torch.optim.lr_scheduler.OneCycleLR(
            optimizer, max_lr=1.0, total_steps=LENGTH.steps + 1, pct_start=61 / 201, div_factor=25,
            final_div_factor=4000, cycle_momentum=False,
        )  # fmt: skip

    # pct_start is chosen so that torch's peak falls on step 60, ours on 30 % of 200.
    assert ours(config) == pytest.approx(torchs(make), abs=2e-6)


@pytest.mark.parametrize("name", ["linear", "cosine"])
def test_warmup_rises_in_a_line_to_the_peak_and_decay_starts_there(name):
    rates = ours(DecayConfig(name=name, warmup="1epoch", final=0.0))
    assert rates[:20] == pytest.approx([(step + 1) / 20 for step in range(20)])
    assert rates[20] == pytest.approx(1.0)
    assert all(later < earlier for earlier, later in itertools.pairwise(rates[20:]))
    assert factor(DecayConfig(name=name, warmup="1epoch", final=0.0), LENGTH)(1.0, 1.0) == pytest.approx(0, abs=1e-12)


def test_constant_stays():
    assert set(ours(ConstantConfig(name="constant", warmup="0%"))) == {1.0}


def test_plateau_drops_like_torchs():
    losses = [1.0, 0.9, 0.95, 0.91, 0.92, 0.93, 0.94, 0.2, 0.21, 0.22, 0.23, 0.24, math.pi]
    config = PlateauConfig(name="plateau", warmup="0%", factor=0.5, patience=2, threshold=1e-3, minimum=0.1)
    plateau = Plateau(config)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    oracle = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.5, patience=2, threshold=1e-3, min_lr=0.1)
    for loss in losses:
        plateau.observe(loss)
        oracle.step(loss)
        assert plateau.scale == pytest.approx(optimizer.param_groups[0]["lr"])


def test_plateau_goes_on_from_its_state():
    config = PlateauConfig(name="plateau", warmup="0%", factor=0.5, patience=1, threshold=0.0, minimum=0.0)
    whole, half = Plateau(config), Plateau(config)
    for loss in (1.0, 1.0):
        whole.observe(loss)
        half.observe(loss)
    again = Plateau(config)
    again.restore(half.state())
    for loss in (1.0, 1.0, 1.0):
        whole.observe(loss)
        again.observe(loss)
    assert whole == again


def test_phases_of_whole_epochs_change_exactly_at_their_ends():
    from types import SimpleNamespace

    from cifarbench.training.phases import Phases

    trainer = SimpleNamespace(
        ema_start="50%", stem_bias_until="3epochs", sizes=(24, 28), size_until=("3epochs", "6epochs")
    )
    phases = Phases(trainer, RunLength(epochs=9, steps_per_epoch=25))  # type: ignore[arg-type]
    sizes = [phases.size(step / 225, step / 225) for step in range(225)]
    assert sizes == [24] * 75 + [28] * 75 + [32] * 75
    assert (phases.ema_start, phases.stem_bias_until) == (Span(0.5, False), Span(pytest.approx(1 / 3), True))
