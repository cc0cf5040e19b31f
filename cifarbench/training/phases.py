"""What changes on the way through a run apart from the learning rate, as functions of progress."""

from __future__ import annotations

from cifarbench.config.durations import RunLength, share
from cifarbench.config.schema import TrainerConfig

FULL = 32  # px


class Phases:
    """The spans of a trainer's config as shares of a run of `length`.

    `ema_start` is where averaging begins, `stem_bias_until` where the whitening layer's bias is frozen, `starts` the
    shares at which a step's work changes, 0 first.
    """

    def __init__(self, trainer: TrainerConfig, length: RunLength) -> None:
        self.ema_start = share(trainer.ema_start, length)
        self.stem_bias_until = share(trainer.stem_bias_until, length)
        self._ends = [share(span, length) for span in trainer.size_until]
        self._sizes = trainer.sizes
        self.starts = sorted({0.0, *(end for end in (*self._ends, self.stem_bias_until, self.ema_start) if end < 1)})

    def size(self, progress: float) -> int:
        """Side in px of the training images at `progress`, 0 to 1: the first size whose span has not ended."""
        # Rounding must not let a phase of whole epochs run one step longer.
        reached = (size for size, end in zip(self._sizes, self._ends, strict=True) if progress < end - 1e-9)
        return next(reached, FULL)
