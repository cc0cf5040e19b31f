"""The loop that tutorials show, to be timed against ours; needs torchvision."""

from __future__ import annotations

import time
from collections.abc import Iterator

import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms
from torchvision.transforms import functional

from cifarbench.compute import choose_compute, make_deterministic, synchronise, use_threads
from cifarbench.config.schema import TrainConfig
from cifarbench.data.split import Parts, Portion, channel_statistics
from cifarbench.optim.optimizers import build_optimizer
from cifarbench.training.session import build_model

TUTORIAL_BATCH = 128
_WORKERS = 2


class PilImages(Dataset):
    """Training images as PIL images through torchvision's transforms, as tutorials do it."""

    def __init__(self, train: Portion) -> None:
        mean, std = channel_statistics(train.images)
        self.images = [functional.to_pil_image(image) for image in train.images]
        self.targets = train.targets.tolist()
        self.transform = transforms.Compose(
            [
                transforms.RandomCrop(32, padding=4),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
                transforms.Normalize(mean, std),
            ]
        )

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(self.images[index]), self.targets[index]


class TutorialLoop:
    """The same model as a tutorial trains it: DataLoader with two workers, PIL transforms, fp32, batch 128."""

    def __init__(self, config: TrainConfig, parts: Parts) -> None:
        self.threads = config.trainer.threads
        self.device = choose_compute(config.trainer.device, "fp32", self.threads).device
        self.model = build_model(config).to(self.device)
        self.optimizer = build_optimizer(self.model, config.optim, self.device)
        self.batches = self._batches(parts.train)

    def seconds_a_step(self) -> float:
        """Seconds of a step, after what only the first ones do."""
        return self.loop(1) * TUTORIAL_BATCH

    def loop(self, steps: int) -> float:
        """Seconds per image over some steps, the loader's start left out."""
        make_deterministic(False)  # as no tutorial asks for more
        use_threads(self.threads)
        self._step()
        synchronise(self.device)
        started = time.perf_counter()
        for _ in range(steps):
            self._step()
        synchronise(self.device)
        return (time.perf_counter() - started) / (steps * TUTORIAL_BATCH)

    def _step(self) -> None:
        images, targets = (tensor.to(self.device) for tensor in next(self.batches))
        self.optimizer.zero_grad()
        F.cross_entropy(self.model(images), targets).backward()
        self.optimizer.step()

    def _batches(self, train: Portion) -> Iterator[tuple[Tensor, Tensor]]:
        loader = DataLoader(PilImages(train), TUTORIAL_BATCH, shuffle=True, num_workers=_WORKERS, drop_last=True)
        while True:
            yield from loader
