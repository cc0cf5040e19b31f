"""Rates of several configs, interleaved: each round times every one of them, so that a slow minute hits all alike."""

from __future__ import annotations

import statistics
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
    note: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """Time every contender in every round.

    Args:
        contenders: the first one is what the others, and the tutorial loop, are compared with.
        tutorial: the tutorial-style loop over the first contender's model, or None.
        rounds: how often each is timed, after one round that warms up and is dropped.
        steps: optimizer steps per timing.
        note: is told about each round.

    Returns:
        `contenders`, a list of rows, and `matmul`, the machine's best rate in operations per second; every figure is
        the median over the rounds, `range` the smallest and the largest.
    """
    contenders[0].settle()
    peak = matmul_rate(contenders[0].compute)
    samples: list[list[dict[str, Any]]] = [[] for _ in contenders]
    tutorial_rates = []
    for index in range(rounds + 1):
        for contender, taken in zip(contenders, samples, strict=True):
            taken.append(_sample(contender, steps))
        if tutorial:
            tutorial_rates.append(1 / tutorial.loop(steps))
        note(f"round {index} of {rounds}" + (" (warm-up)" if not index else ""))
    contenders[0].settle()
    peak = max(peak, matmul_rate(contenders[0].compute))
    rows = [_row(contender, taken[1:], peak) for contender, taken in zip(contenders, samples, strict=True)]
    for row, taken in zip(rows, samples, strict=True):
        row["times_first"] = _paired([s["loop"] for s in taken[1:]], [s["loop"] for s in samples[0][1:]])
    result: dict[str, Any] = {"matmul": peak, "rounds": rounds, "steps": steps, "contenders": rows}
    if tutorial:
        first = [sample["loop"] for sample in samples[0][1:]]
        result["tutorial"] = {
            "images_per_second": statistics.median(tutorial_rates[1:]),
            "range": [min(tutorial_rates[1:]), max(tutorial_rates[1:])],
            "first_times_tutorial": _paired(first, tutorial_rates[1:]),
        }
    return result


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
