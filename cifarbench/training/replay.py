"""A step's whole work as one CUDA graph: recorded once for each kind of step, then launched as one piece.

On a fast GPU the hundreds of short operations of a small network's step take less time than their launches one by one
(NVIDIA, "CUDA C++ Programming Guide", section CUDA Graphs; torch.cuda.graphs).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from cifarbench.compute import Compute
from cifarbench.config.schema import TrainerConfig

Work = Callable[[Tensor, Tensor], Tensor]
_WARM_UPS = 2  # steps of a kind before it is recorded: kernels are chosen and compiled, and states allocated


def records_steps(trainer: TrainerConfig, compute: Compute, processes: int) -> bool:
    """Whether the steps of a run are taken whole: those of one process, as gradients are exchanged between steps of
    several, and not in fp16, where a scaler looks at them before it decides. A CPU takes them whole without a record.
    """
    is_there = compute.device.type in ("cuda", "cpu")
    return trainer.cuda_graphs and is_there and compute.precision != "fp16" and processes == 1


class Replay:
    """Does a step's work again by replaying what it launched.

    Args:
        work: from the step's images and targets to its loss, a scalar. It must change nothing but tensors, in place,
            and depend on nothing but them and the kind of the step: what Python decides is recorded as it was.
    """

    def __init__(self, work: Work) -> None:
        self.work = work
        self._seen: Counter[Hashable] = Counter()
        self._graphs: dict[Hashable, _Graph] = {}

    def __call__(self, kind: Hashable, images: Tensor, targets: Tensor) -> Tensor:
        """The loss of the step; steps of one `kind`, shapes and dtypes are alike in all that Python decides."""
        if not images.is_cuda:
            return self.work(images, targets)
        key = kind, images.shape, targets.shape, targets.dtype
        if key not in self._graphs:
            self._seen[key] += 1
            if self._seen[key] <= _WARM_UPS:
                return self.work(images, targets)
            self._graphs[key] = _Graph(self.work, images, targets)
        return self._graphs[key](images, targets)


class Rates:
    """An optimizer's learning rates on the device: a graph would keep a number of Python's as it was when recorded.

    The optimizer's groups have theirs in Python, for reports and checkpoints, but for the time of a step.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, device: torch.device) -> None:
        self.optimizer = optimizer
        self._peaks = [group["initial_lr"] for group in optimizer.param_groups]
        self._peaks_there = torch.tensor(self._peaks, device=device)
        self._there = torch.zeros_like(self._peaks_there)

    def set(self, scale: float) -> None:
        """Make each rate this part of its group's `initial_lr`; before the first time it is 0."""
        peaks = [group["initial_lr"] for group in self.optimizer.param_groups]
        if peaks != self._peaks:  # a checkpoint's
            self._peaks, self._peaks_there = peaks, torch.tensor(peaks, device=self._there.device)
        torch.mul(self._peaks_there, scale, out=self._there)

    @contextmanager
    def lent(self) -> Iterator[None]:
        """Within it, the groups' `lr` are scalars on the device, and Adam takes it that it may be recorded."""
        groups = self.optimizer.param_groups  # a loaded state brings new ones
        kept = [dict(group) for group in groups]
        for group, rate in zip(groups, self._there, strict=True):
            group.update({"lr": rate, "capturable": True} if "capturable" in group else {"lr": rate})
        try:
            yield
        finally:
            for group, values in zip(groups, kept, strict=True):
                group.update(values)


class _Graph:
    """The recorded work, and the places that it reads and writes."""

    def __init__(self, work: Work, images: Tensor, targets: Tensor) -> None:
        self.images, self.targets = images.clone(), targets.clone()
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.loss = work(self.images, self.targets)

    def __call__(self, images: Tensor, targets: Tensor) -> Tensor:
        self.images.copy_(images)
        self.targets.copy_(targets)
        self.graph.replay()
        return self.loss.clone()
