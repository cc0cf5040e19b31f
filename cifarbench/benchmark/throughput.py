"""Rates of several configs, interleaved: each round times every one of them, so that a slow minute hits all alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from cifarbench.benchmark.contenders import Contender
from cifarbench.benchmark.machine import matmul_rate

if TYPE_CHECKING:
    from cifarbench.benchmark.tutorial import TutorialLoop

# A backward pass takes twice the products of a forward pass: one for the inputs and one for the weights.
_PASSES = 3


def measure(
    contenders: Sequence[Contender],
    tutorial: TutorialLoop | None,
    rounds: int,
    steps: int,
    seconds: float,
    note: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """Time every contender in every round.

    Args:
        contenders: the first one is what the others, and the tutorial loop, are compared with.
        tutorial: the tutorial-style loop over the first contender's model, or None.
        rounds: how often each is timed, after one step of each that warms up and is dropped.
        steps: optimizer steps per timing, at most.
        seconds: about what a timing may take: a slow config takes fewer steps, as many in each round.
        note: is told about each round.

    Returns:
        `contenders`, a list of rows, and `matmul`, the machine's best rate in operations per second; every figure is
        the median over the rounds, `range` the smallest and the largest.
    """
    contenders[0].settle()
    peak = matmul_rate(contenders[0].compute)
    counts = [_steps_within(seconds, each.seconds_a_step(), steps) for each in contenders]
    unhurried = _steps_within(seconds, tutorial.seconds_a_step(), steps) if tutorial else 0
    note("warmed up")
    samples: list[list[dict[str, Any]]] = [[] for _ in contenders]
    tutorial_rates = []
    started = time.perf_counter()
    for index in range(1, rounds + 1):
        for contender, taken, count in zip(contenders, samples, counts, strict=True):
            taken.append(_sample(contender, count))
        if tutorial:
            tutorial_rates.append(1 / tutorial.loop(unhurried))
        left = (time.perf_counter() - started) / index * (rounds - index)
        note(f"round {index} of {rounds}" + (f", about {left:.0f} s left" if index < rounds else ""))
    contenders[0].settle()
    peak = max(peak, matmul_rate(contenders[0].compute))
    rows = [_row(contender, taken, peak) for contender, taken in zip(contenders, samples, strict=True)]
    first = [sample["loop"] for sample in samples[0]]
    for row, taken, count in zip(rows, samples, counts, strict=True):
        row |= {"times_first": _paired([sample["loop"] for sample in taken], first), "steps": count}
    result: dict[str, Any] = {"matmul": peak, "rounds": rounds, "contenders": rows}
    if tutorial:
        result["tutorial"] = {
            "images_per_second": statistics.median(tutorial_rates),
            "range": [min(tutorial_rates), max(tutorial_rates)],
            "first_times_tutorial": _paired(first, tutorial_rates),
            "steps": unhurried,
        }
    return result


def _steps_within(seconds: float, step: float, most: int) -> int:
    """How many steps of `step` seconds fit into `seconds`; at least one, `most` at most."""
    return max(1, int(min(most, seconds / step)))


def _sample(contender: Contender, steps: int) -> dict[str, Any]:
    """Images per second of the loop and of the bare loop, and the phases in seconds per image."""
    return {
        "bare": 1 / contender.bare(steps),
        "loop": 1 / contender.loop(steps),
        "phases": contender.phases(max(steps // 2, 1)),
    }


def _row(contender: Contender, samples: list[dict[str, Any]], peak: float) -> dict[str, Any]:
    loop = [sample["loop"] for sample in samples]
    rate = statistics.median(loop)
    achieved = rate * contender.flops * _PASSES
    return {
        "label": contender.label,
        "images_per_second": rate,
        "range": [min(loop), max(loop)],
        "bare": statistics.median(sample["bare"] for sample in samples),
        "of_bare": _paired(loop, [sample["bare"] for sample in samples]),
        "microseconds": {
            name: 1e6 * statistics.median(sample["phases"][name] for sample in samples) for name in samples[0]["phases"]
        },
        "flops_per_second": achieved,
        "of_matmul": achieved / peak,
        "precision": contender.compute.precision,
        "threads": contender.threads,
        "batch_size": len(contender.batch),
        "micro_batch": contender.micro,
    }


def _paired(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """The median over the rounds of the ratio within each round."""
    return statistics.median(a / b for a, b in zip(ours, theirs, strict=True))
