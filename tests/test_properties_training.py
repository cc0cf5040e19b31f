"""Properties of durations, schedules, checkpoints and metrics."""

from __future__ import annotations

import dataclasses
import itertools
import math
import struct
import tempfile
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from sklearn import metrics as sk

from cifarbench.config.durations import RunLength, check_span, seconds, span
from cifarbench.config.optim import ConstantConfig, DecayConfig, MultiStepConfig, OneCycleConfig, StepConfig
from cifarbench.data.dataset import CLASSES
from cifarbench.errors import ConfigError
from cifarbench.evaluation.metrics import score
from cifarbench.optim.schedules import factor
from cifarbench.training import checkpoint

checked = settings(derandomize=True, deadline=None, database=None)

# --- durations -------------------------------------------------------------------------------------------------------

NUMBERS = st.from_regex(r"\A[0-9]{1,6}(\.[0-9]{1,6})?\Z")
LENGTHS = st.builds(RunLength, epochs=st.integers(1, 400), steps_per_epoch=st.integers(1, 2000))


@settings(checked, max_examples=200)
@given(number=NUMBERS, unit=st.sampled_from("smh"), space=st.sampled_from(["", " "]))
def test_any_time_above_0_becomes_its_seconds(number, unit, space):
    exact = Fraction(number) * {"s": 1, "m": 60, "h": 3600}[unit]
    assume(exact > 0)
    assert seconds(f"{number}{space}{unit}", "k") == pytest.approx(float(exact), rel=1e-12)


@settings(checked, max_examples=200)
@given(number=NUMBERS, unit=st.sampled_from(["%", "epoch", "epochs", "step", "steps"]), length=LENGTHS)
def test_any_span_becomes_its_share_of_the_run(number, unit, length):
    whole = 100 if unit == "%" else length.epochs if unit.startswith("epoch") else length.steps
    if unit == "%" and Fraction(number) > 100:
        with pytest.raises(ConfigError, match="`k`"):
            check_span(f"{number}{unit}", "k")
        return
    check_span(f"{number}{unit}", "k")
    assert span(f"{number}{unit}", length).end == pytest.approx(float(Fraction(number) / whole), rel=1e-12)


@settings(checked, max_examples=300)
@given(text=st.text("0123456789.smh%epochtn -+e\n١", max_size=9) | st.text(max_size=5))
@example("9" * 400 + "s")
@example("9" * 400 + "epochs")
def test_any_text_is_a_finite_duration_or_refused_by_name(text):
    for read in (lambda: seconds(text, "a.key"), lambda: check_span(text, "a.key") or span(text, RunLength(3, 5)).end):
        value, refusal = 0.0, "`a.key`"
        try:
            value = read()
        except ConfigError as refused:
            refusal = str(refused)
        assert "`a.key`" in refusal
        assert 0 <= value < math.inf


# --- schedules -------------------------------------------------------------------------------------------------------

SPANS = st.one_of(
    st.integers(0, 100).map("{}%".format),
    st.integers(0, 500).map("{}epochs".format),
    st.integers(0, 10**6).map("{}steps".format),
)
ABOVE_0 = SPANS.filter(lambda text: not text.startswith("0")) | st.sampled_from(["0.000001%", "0.1steps"])
SHARES = st.floats(0, 1)
DECAYS = st.builds(DecayConfig, name=st.sampled_from(["linear", "cosine"]), warmup=SPANS, final=SHARES)
CYCLES = st.builds(OneCycleConfig, name=st.just("onecycle"), warmup=SPANS, start=SHARES, final=SHARES)
GAMMAS = st.floats(0, 1, exclude_min=True)
STEPS = st.builds(StepConfig, name=st.just("step"), warmup=SPANS, every=ABOVE_0, gamma=GAMMAS)
MILESTONES = st.lists(SPANS, max_size=4).map(tuple)
MULTISTEPS = st.builds(MultiStepConfig, name=st.just("multistep"), warmup=SPANS, milestones=MILESTONES, gamma=GAMMAS)
CONSTANTS = st.builds(ConstantConfig, name=st.just("constant"), warmup=SPANS)
GRID = [step / 300 for step in range(301)]


@settings(checked, max_examples=250)
@given(config=DECAYS | CYCLES | STEPS | MULTISTEPS | CONSTANTS, length=LENGTHS)
@example(config=StepConfig(name="step", warmup="0%", every=f"0.{'0' * 322}1%", gamma=0.5), length=RunLength(9, 9))
def test_the_rate_of_any_schedule_stays_between_0_and_its_peak(config, length):
    curve = factor(config, length)
    assert all(0 <= curve(progress, progress) <= 1 + 1e-12 for progress in GRID)


@settings(checked, max_examples=250)
@given(config=DECAYS | CYCLES | STEPS | MULTISTEPS | CONSTANTS, length=LENGTHS)
def test_after_the_warm_up_no_rate_rises(config, length):
    curve, warmup = factor(config, length), span(config.warmup, length).end
    rates = [curve(progress, progress) for progress in GRID if progress >= warmup]
    assert all(later <= earlier + 1e-9 for earlier, later in itertools.pairwise(rates))


@settings(checked, max_examples=250)
@given(config=DECAYS | CYCLES | CONSTANTS, length=LENGTHS)
def test_a_warm_up_never_falls(config, length):
    curve, warmup = factor(config, length), span(config.warmup, length).end
    rates = [curve(progress, progress) for progress in GRID if progress < warmup]
    assert all(later >= earlier - 1e-9 for earlier, later in itertools.pairwise(rates))


@settings(checked, max_examples=150)
@given(config=DECAYS | CYCLES, pace=st.floats(1, 8), epochs=st.integers(1, 5))
def test_under_a_time_limit_a_warm_up_in_epochs_reaches_the_peak_and_the_rate_never_jumps(config, pace, epochs):
    length = RunLength(100, 50)  # of which the limit holds 100 / pace epochs
    curve = factor(dataclasses.replace(config, warmup=f"{epochs}epochs"), length)
    places = [step / length.steps for step in range(round(length.steps / pace))]
    rates = [curve(min(1.0, pace * counted), counted) for counted in places]
    assert max(rates) == pytest.approx(1.0, abs=0.02)
    assert rates[epochs * 50] == max(rates)
    assert all(abs(later - earlier) < 0.06 for earlier, later in itertools.pairwise(rates))
    assert rates[-1] == pytest.approx(config.final, abs=0.03)


@settings(checked, max_examples=150)
@given(config=DECAYS | CYCLES, length=LENGTHS)
def test_decaying_schedules_end_at_their_final_share(config, length):
    warmup = span(config.warmup, length).end
    assume(warmup < 1)
    assert factor(config, length)(1.0, 1.0) == pytest.approx(config.final, abs=1e-9)


@settings(checked, max_examples=150)
@given(config=CYCLES, length=LENGTHS)
def test_one_cycle_begins_at_its_start_where_it_has_a_warm_up(config, length):
    begins = config.start if span(config.warmup, length).end > 0 else 1.0
    assert factor(config, length)(0.0, 0.0) == pytest.approx(begins, abs=1e-9)


@settings(checked, max_examples=250)
@given(config=DECAYS | CYCLES, length=LENGTHS, progress=SHARES, part=SHARES)
def test_smooth_schedules_change_within_a_step_by_no_more_than_their_slope(config, length, progress, part):
    curve, warmup, step = factor(config, length), span(config.warmup, length).end, 1 / length.steps
    # Half a cosine over a stretch is π/2 times as steep as a line; the warm-up and the decay have a stretch each.
    stretches = [stretch for stretch in (warmup, 1 - warmup) if stretch > 0]
    steepest = math.pi / 2 / min(stretches)
    later = min(1.0, progress + part * step)
    assert abs(curve(later, later) - curve(progress, progress)) <= steepest * (later - progress) + 1e-9


# --- checkpoints -----------------------------------------------------------------------------------------------------

DTYPES = [
    torch.float32,
    torch.float64,
    torch.float16,
    torch.bfloat16,
    torch.uint8,
    torch.int8,
    torch.int16,
    torch.int32,
]
DTYPES += [torch.int64, torch.bool]


@st.composite
def tensors(draw: Any) -> torch.Tensor:
    """A tensor of any type and up to four sides, often a view with strides of its own."""
    shape = tuple(draw(st.lists(st.integers(0, 4), max_size=4)))
    count, dtype = math.prod(shape), draw(st.sampled_from(DTYPES))
    raw = np.random.default_rng(draw(st.integers(0, 999))).bytes(count * dtype.itemsize)
    tensor = torch.frombuffer(bytearray(raw), dtype=torch.uint8) if raw else torch.zeros(0, dtype=torch.uint8)
    tensor = (tensor % 2 == 0 if dtype is torch.bool else tensor.view(dtype)).reshape(shape)
    view = draw(st.sampled_from(["whole", "transposed", "every other", "expanded", "part"]))
    if not shape or view == "whole":
        return tensor
    if view == "transposed":
        return tensor.movedim(0, -1)
    if view == "every other":
        return tensor[..., ::2]
    return tensor[:1].expand(3, *shape[1:]) if view == "expanded" and shape[0] else tensor[1:]


LEAVES = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(st.characters(exclude_categories=["Cs"]))
    | tensors()
)
KEYS = st.text(max_size=6) | st.integers(0, 99)
STATES = st.recursive(
    LEAVES,
    lambda inner: (
        st.lists(inner, max_size=3) | st.lists(inner, max_size=3).map(tuple) | st.dictionaries(KEYS, inner, max_size=3)
    ),
    max_leaves=8,
)


def bits(value: Any) -> Any:
    """A value that is equal for two states that are the same to the last bit, type, stride and NaN."""
    if isinstance(value, torch.Tensor):
        content = (
            value.flatten().clone(memory_format=torch.contiguous_format).view(torch.uint8).tolist()
            if value.numel()
            else []
        )
        return ("tensor", value.dtype, tuple(value.shape), value.stride(), content)
    if isinstance(value, dict):
        return {name: bits(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return (type(value), [bits(item) for item in value])
    return (type(value), struct.pack("d", value) if isinstance(value, float) else value)


@settings(checked, max_examples=150)
@given(states=st.lists(STATES, min_size=len(checkpoint.PARTS), max_size=len(checkpoint.PARTS)))
def test_any_state_of_tensors_and_plain_values_comes_back_bit_for_bit_however_often(states):
    state = {name: {"content": value} for name, value in zip(checkpoint.PARTS, states, strict=True)}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "last.pt"
        checkpoint.save(state, path)
        once = checkpoint.load(path)
        checkpoint.save(once, path)
        twice = checkpoint.load(path)
    assert bits({name: once[name] for name in state}) == bits(state)
    assert bits(twice) == bits(once)


# --- metrics ---------------------------------------------------------------------------------------------------------


@st.composite
def answers(draw: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits (n, 10) and targets (n,), of which some classes are missing and some never answered."""
    count, source = draw(st.integers(1, 80)), np.random.default_rng(draw(st.integers(0, 2**32)))
    present = draw(st.lists(st.integers(0, 9), min_size=1, max_size=10, unique=True))
    targets = source.choice(present, count)
    logits = source.normal(0, draw(st.sampled_from([0.1, 3.0, 40.0])), (count, 10))
    logits[:, draw(st.lists(st.integers(0, 9), max_size=4))] -= 60
    return torch.from_numpy(logits).float(), torch.from_numpy(targets)


@settings(checked, max_examples=40)
@given(answers=answers())
def test_a_report_is_scikit_learns_with_any_classes_missing(answers):
    logits, targets = answers
    report, predicted = score(logits, targets, CLASSES, None), logits.argmax(1)
    every = list(range(10))
    assert report["confusion_matrix"] == sk.confusion_matrix(targets, predicted, labels=every).tolist()
    assert report["accuracy"] == pytest.approx(sk.accuracy_score(targets, predicted))
    expected = sk.precision_recall_fscore_support(targets, predicted, labels=every, zero_division=0)
    rows = [[report["per_class"][name][key] for name in CLASSES] for key in ("precision", "recall", "f1", "support")]
    assert np.array(rows) == pytest.approx(np.array(expected, float))
    logs = logits.double().log_softmax(1)
    assert report["nll"] == pytest.approx(-logs[torch.arange(len(targets)), targets].mean().item())


@settings(checked, max_examples=40)
@given(answers=answers(), seed=st.integers(0, 1000))
def test_a_report_is_within_its_bounds_and_ignores_the_order_of_images(answers, seed):
    logits, targets = answers
    report = score(logits, targets, CLASSES, None)
    matrix = np.array(report["confusion_matrix"])
    assert matrix.sum() == report["n"] == len(targets)
    assert matrix.sum(1).tolist() == np.bincount(targets, minlength=10).tolist()
    assert matrix.trace() / matrix.sum() == pytest.approx(report["accuracy"])
    assert 0 <= report["ece"] <= 1
    assert 0 <= report["brier"] <= 2
    low, high = report["accuracy_interval"]
    assert 0 <= low <= report["accuracy"] <= high <= 1
    order = torch.from_numpy(np.random.default_rng(seed).permutation(len(targets)))
    again = score(logits[order], targets[order], CLASSES, None)
    for name in ("ece", "brier", "nll", "accuracy"):
        assert again.pop(name) == pytest.approx(report.pop(name), abs=1e-12)
    for name in ("per_class", "confusion_matrix", "most_confused", "n"):
        assert again[name] == report[name]
