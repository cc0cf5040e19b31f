"""What changes on the way through a run apart from the learning rate, as functions of a place in it."""

from __future__ import annotations

from cifarbench.config.durations import RunLength, span
from cifarbench.config.schema import TrainerConfig

FULL = 32  # px


class Phases:
    """The spans of a trainer's config in a run of `length`.

    `ema_start` is where averaging begins, `stem_bias_until` where the whitening layer's bias is frozen, `starts` the
    shares at which a step's work changes, 0 first.
    """

    def __init__(self, trainer: TrainerConfig, length: RunLength) -> None:
        self.ema_start = span(trainer.ema_start, length)
        self.stem_bias_until = span(trainer.stem_bias_until, length)
        self._spans = [span(text, length) for text in trainer.size_until]
        self._sizes = trainer.sizes
        ends = (each.end for each in (*self._spans, self.stem_bias_until, self.ema_start))
        self.starts = sorted({0.0, *(end for end in ends if end < 1)})

    def size(self, share: float, counted: float) -> int:
        """Side in px of the training images at a place in the run: the first size whose span has not ended."""
        spans = zip(self._sizes, self._spans, strict=True)
        return next((size for size, each in spans if not each.is_over(share, counted)), FULL)
