"""The keys of what comes before training: `summary`, `sanity`, `lr-find` and `baseline`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from cifarbench.config.keys import key
from cifarbench.config.schema import SplitConfig, TrainConfig
from cifarbench.errors import ConfigError

BASELINES = ("knn",)
DISTANCES = ("l2", "l1")


@dataclass(frozen=True, kw_only=True)
class SummaryConfig:
    """Everything that `cifarbench summary` needs."""

    out: str | None = key("Folder for <model>.json and <model>.csv; null: the console alone.")
    plugins: tuple[str, ...] = key("Python files with models of your own.")
    model: Any


@dataclass(frozen=True, kw_only=True)
class SanityConfig(TrainConfig):
    """Everything that `cifarbench sanity` needs: a training config, and how long the one batch is trained on."""

    steps: int = key("Optimizer steps on the one batch that must be learned by heart.", unit="steps", ge=10, le=10_000)
    images: int = key("Images in that batch, one class after the other.", unit="images", ge=10, le=500)
    out: str = key("Folder for MODEL-sanity.json and its pictures.")


@dataclass(frozen=True, kw_only=True)
class LRFindConfig(TrainConfig):
    """Everything that `cifarbench lr-find` needs: a training config, and the range of rates."""

    start: float = key("Learning rate of the first step.", gt=0, le=1000)
    end: float = key("Learning rate of the last step, unless the loss blows up before.", gt=0, le=1000)
    steps: int = key("Optimizer steps from `start` to `end`.", unit="steps", ge=20, le=10_000)
    out: str = key("Folder for MODEL-OPTIM.png and MODEL-OPTIM.json.")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.end < 10 * self.start:
            raise ConfigError(f"`end` is {self.end:g} and `start` {self.start:g}; `end` must be at least 10 times it.")


@dataclass(frozen=True, kw_only=True)
class BaselineConfig:
    """Everything that `cifarbench baseline` needs."""

    name: str = key("The baseline: knn, nearest neighbours on raw pixels.", choices=BASELINES)
    k: int | None = key("Neighbours that vote; null: the best of `ks` on the validation images.", ge=1, le=1000)
    ks: tuple[int, ...] = key("Numbers of neighbours tried where `k` is null.", ge=1, le=1000)
    distance: str = key(
        "Between images: l2, Euclidean, by matrix products; l1, sums of differences.", choices=DISTANCES
    )
    threads: int | None = key("CPU threads; null: all cores.", ge=1, le=1024, neutral=True)
    data: Any
    split: SplitConfig

    def __post_init__(self) -> None:
        if self.k is None and not self.ks:
            raise ConfigError("`k` is null and `ks` is []; give one number as `k`, or several as `ks`.")
        if self.k is None and not self.split.val_fraction:
            raise ConfigError(
                "`k` is null and nothing is validated; set `split.val_fraction` above 0, or give `k` a number."
            )
