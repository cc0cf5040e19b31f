"""Batch normalisation over the batches of all processes, on any device; torch's own needs a GPU."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn


class _Sum(torch.autograd.Function):
    """The sum of a tensor over the processes, whose gradient is summed over them too."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, values: Tensor) -> Tensor:
        total = values.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, gradient: Tensor) -> Tensor:
        total = gradient.contiguous().clone()
        dist.all_reduce(total)
        return total


class SyncBatchNorm2d(nn.BatchNorm2d):
    """Batch norm whose training statistics are those of all processes' images together.

    Ioffe and Szegedy (2015), on the global batch. Sums are taken in fp32, about the running mean, so that little is
    cancelled, and gradients flow through their exchange: several processes train as one does with the same batch.
    """

    def forward(self, x: Tensor) -> Tensor:
        """`(N, C, H, W)` of this process to the same, normalised."""
        if not self.training:
            return super().forward(x)
        assert self.running_mean is not None
        middle = self.running_mean.clone()  # the same in every process
        pixels = x.float() - middle[None, :, None, None]
        count = pixels.new_tensor([pixels.numel() / pixels.shape[1]])
        total = _Sum.apply(torch.cat([pixels.sum((0, 2, 3)), pixels.square().sum((0, 2, 3)), count]))
        count = total[-1].detach()
        mean, square = (total[:-1] / count).chunk(2)
        variance = (square - mean.square()).clamp_min(0.0)
        self._keep(mean.detach() + middle, variance.detach(), count)
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
