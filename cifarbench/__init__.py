"""cifarbench: CIFAR-10 experiments from the command line, with a test set that stays sealed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cifarbench.notebook import Run

__version__ = "0.1.0"


def load(path: str | Path, plugins: Sequence[str] = ()) -> Run:
    """A trained run for a notebook or a script: its network, its classes, its metrics, its answers.

    Args:
        path: a run directory, or a checkpoint file.
        plugins: the files of one's own that it was trained with.

    Raises:
        ConfigError: there is no such run, or a plugin fails.
        IntegrityError: a file of it is damaged, or it was trained with a plugin that is not named.
    """
    from cifarbench import notebook  # it brings torch, which takes seconds: not for `import cifarbench`

    return notebook.load(path, plugins)
