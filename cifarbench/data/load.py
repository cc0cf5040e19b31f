"""From the `data` section of a config to its images."""

from __future__ import annotations

from collections.abc import Callable

import torch

from cifarbench.config.schema import Cifar10Config, SyntheticConfig
from cifarbench.data import cifar10
from cifarbench.data.dataset import ImageSet, image_set


def load_images(config: Cifar10Config | SyntheticConfig, say: Callable[[str], None] = lambda line: None) -> ImageSet:
    """The images that `config` names; `say` takes lines about a download."""
    if isinstance(config, Cifar10Config):
        return cifar10.load(config.root, config.download, config.mirrors, say)
    from cifarbench.data.synthetic import CLASSES, draw

    images, targets = draw(config.size)
    return image_set("synthetic", torch.from_numpy(images), torch.from_numpy(targets), CLASSES)
