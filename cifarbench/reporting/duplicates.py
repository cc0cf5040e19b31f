"""Near-duplicates side by side, for a person to look at."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from cifarbench.data.dataset import ImageSet
from cifarbench.data.duplicates import Pair

_COLUMNS = 6


def pairs_figure(data: ImageSet, pairs: Sequence[Pair], note: str) -> Figure:
    """Each pair as two images with their numbers, classes and correlation."""
    rows = -(-len(pairs) // _COLUMNS)
    figure = Figure(figsize=(2.4 * _COLUMNS, 1.75 * rows + 0.5), layout="constrained")
    cells = np.atleast_1d(figure.subplots(rows, _COLUMNS, squeeze=False)).ravel()
    for axes in cells:
        axes.axis("off")
    for axes, pair in zip(cells, pairs, strict=False):
        two = np.concatenate(
            [_picture(data, pair.first), np.full((32, 2, 3), 255, np.uint8), _picture(data, pair.second)], 1
        )
        axes.imshow(two, interpolation="nearest")
        names = " / ".join(dict.fromkeys(data.classes[int(data.targets[index])] for index in (pair.first, pair.second)))
        axes.set_title(f"{pair.first} · {pair.second}\n{names}  {pair.correlation:.3f}", fontsize=7)
    figure.supxlabel(note, fontsize=7, color="gray")
    return figure


def _picture(data: ImageSet, index: int) -> np.ndarray:
    return data.images[index].permute(1, 2, 0).numpy()
