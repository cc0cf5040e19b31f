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


class _Synchronised(nn.modules.batchnorm._BatchNorm):
    """Batch norm whose training statistics are those of all processes' images together.

    Ioffe and Szegedy (2015), on the global batch. Sums are taken in fp32, about the running mean, so that little is
    cancelled, and gradients flow through their exchange: several processes train as one does with the same batch.
    """

    def forward(self, x: Tensor) -> Tensor:
        """`(N, C, …)` of this process to the same, normalised."""
        if not self.training:
            return super().forward(x)
        around, others = (1, -1, *[1] * (x.ndim - 2)), [dim for dim in range(x.ndim) if dim != 1]
        middle = x.new_zeros(x.shape[1], dtype=torch.float32)
        if self.running_mean is not None:
            middle = self.running_mean.clone()  # the same in every process
        values = x.float() - middle.view(around)
        count = values.new_tensor([values.numel() / values.shape[1]])
        total = _Sum.apply(torch.cat([values.sum(others), values.square().sum(others), count]))
        count = total[-1].detach()
        mean, square = (total[:-1] / count).chunk(2)
        variance = (square - mean.square()).clamp_min(0.0)
        if self.running_mean is not None:
            self._keep(mean.detach() + middle, variance.detach(), count)
        scale = torch.rsqrt(variance + self.eps)
        scale = scale if self.weight is None else self.weight * scale
        shift = -mean * scale if self.bias is None else self.bias - mean * scale
        return (values * scale.view(around) + shift.view(around)).to(x.dtype)

    @torch.no_grad()
    def _keep(self, mean: Tensor, variance: Tensor, count: Tensor) -> None:
        """Move the running statistics towards this batch's; the variance is kept unbiased, as torch does."""
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        self.num_batches_tracked += 1
        # Without a momentum they are the mean over all batches.
        weight = self.momentum if self.momentum is not None else 1.0 / float(self.num_batches_tracked)
        self.running_mean.lerp_(mean, weight)
        self.running_var.lerp_(variance * count / (count - 1), weight)


class _Synchronised1d(_Synchronised, nn.BatchNorm1d):
    pass


class _Synchronised2d(_Synchronised, nn.BatchNorm2d):
    pass


class _Synchronised3d(_Synchronised, nn.BatchNorm3d):
    pass


_OURS: dict[type, type] = {
    nn.BatchNorm1d: _Synchronised1d,
    nn.BatchNorm2d: _Synchronised2d,
    nn.BatchNorm3d: _Synchronised3d,
}


def synchronise_norms(model: nn.Module) -> None:
    """Let every batch norm of `model` see the batches of all processes; names and values stay as they are."""
    for module in model.modules():
        module.__class__ = _OURS.get(type(module), type(module))
