"""What a run is trained on and with, and where it stands."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from cifarbench.compute import Compute
from cifarbench.data.split import Portion
from cifarbench.evaluation.predict import Statistics
from cifarbench.training.clock import Clock
from cifarbench.training.distributed import World


@dataclasses.dataclass
class Progress:
    """Where a run stands; saved with every checkpoint.

    `epoch` counts finished epochs, `batch` the steps of the running one, `totals` its loss sum, right answers and
    images so far; `seconds` all time of the run, `untimed` that of steps that were undone, `epoch_seconds` the running
    epoch's time in steps.
    """

    epoch: int = 0
    batch: int = 0
    step: int = 0
    totals: list[float] = dataclasses.field(default_factory=lambda: [0.0, 0.0, 0.0])
    seconds: float = 0.0
    untimed: float = 0.0
    epoch_seconds: float = 0.0
    best_epoch: int = 0
    best_accuracy: float = -1.0
    waited: int = 0
    ended: str = ""
    rows: list[dict[str, Any]] = dataclasses.field(default_factory=list)

    @classmethod
    def of(cls, values: dict[str, Any]) -> Progress:
        """The progress that a checkpoint holds; TypeError or ValueError where it is none."""
        read = cls(**values)
        for name, start in vars(cls()).items():
            value = getattr(read, name)
            if type(value) is not type(start) or (isinstance(value, int | float) and not -1 <= value < 1 << 53):
                raise ValueError(f"its {name} is {value!r}")
        return read


@dataclasses.dataclass(frozen=True)
class Setting:
    """What a run is trained on and with, apart from its config."""

    train: Portion
    val: Portion | None
    statistics: Statistics
    compute: Compute
    world: World
    clock: Clock
    passport: dict[str, Any]
    checkpoints: Path
