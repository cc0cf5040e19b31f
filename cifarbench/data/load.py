"""From the `data` section of a config to its images."""

from __future__ import annotations

from collections.abc import Callable, Hashable

import torch

from cifarbench.config.schema import Cifar10Config, SyntheticConfig
from cifarbench.data import cifar10
from cifarbench.data.dataset import ImageSet, image_set

_last: dict[Hashable, ImageSet] = {}  # the images that were asked for last, by where they came from


def load_images(config: Cifar10Config | SyntheticConfig, say: Callable[[str], None] = lambda line: None) -> ImageSet:
    """The images that `config` names; `say` takes lines about a download.

    Runs that follow each other in one process share them, and nobody changes them. Files are read and checked again
    once one of them is written.
    """
    source = _source(config)
    if source is None or source not in _last:
        _last.clear()
        found = _read(config, say)
        _last[source or _source(config)] = found  # as it was before: what is written meanwhile is read again
        return found
    return _last[source]


def _source(config: Cifar10Config | SyntheticConfig) -> Hashable:
    """What tells one set of images from another; None while files are missing."""
    return cifar10.written(config.root) if isinstance(config, Cifar10Config) else ("synthetic", config.size)


def _read(config: Cifar10Config | SyntheticConfig, say: Callable[[str], None]) -> ImageSet:
    if isinstance(config, Cifar10Config):
        return cifar10.load(config.root, config.download, config.mirrors, say)
    from cifarbench.data.synthetic import CLASSES, draw

    images, targets = draw(config.size)
    return image_set("synthetic", torch.from_numpy(images), torch.from_numpy(targets), CLASSES)
