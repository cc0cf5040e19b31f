"""Batch normalisation over the batches of all processes, on any device; torch's own needs a GPU."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.distributed.nn import functional as collective


class SyncBatchNorm2d(nn.BatchNorm2d):
    """Batch norm whose training statistics are those of all processes' images together.

    Ioffe and Szegedy (2015), on the global batch. Sums are taken in fp32 and gradients flow through their exchange,
    so that several processes train as one does with the same batch.
    """

    def forward(self, x: Tensor) -> Tensor:
        """`(N, C, H, W)` of this process to the same, normalised."""
        if not self.training:
            return super().forward(x)
        pixels = x.float()
        count = pixels.new_tensor([pixels.numel() / pixels.shape[1]])
        sums = torch.cat([pixels.sum((0, 2, 3)), pixels.square().sum((0, 2, 3)), count])
        total = collective.all_reduce(sums)
        count = total[-1].detach()
        mean, square = (total[:-1] / count).chunk(2)
        variance = square - mean.square()
        self._keep(mean.detach(), variance.detach(), count)
        scale = self.weight * torch.rsqrt(variance + self.eps)
        shift = self.bias - mean * scale
        return (pixels * scale[None, :, None, None] + shift[None, :, None, None]).to(x.dtype)

    @torch.no_grad()
    def _keep(self, mean: Tensor, variance: Tensor, count: Tensor) -> None:
        """Move the running statistics towards this batch's; the variance is kept unbiased, as torch does."""
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        self.num_batches_tracked += 1
        momentum = 0.1 if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean, momentum)
        self.running_var.lerp_(variance * count / (count - 1), momentum)


def synchronise_norms(model: nn.Module) -> None:
    """Let every batch norm of `model` see the batches of all processes; names and values stay as they are."""
    for module in model.modules():
        if type(module) is nn.BatchNorm2d:
            module.__class__ = SyncBatchNorm2d
