"""Modules that take our own operations in training steps and in evaluation on a CPU or GPU, and torch's otherwise.

`use_kernels` turns the modules of a finished model into these by their class alone: names, parameters, buffers and
state dicts stay as they were.
"""

from __future__ import annotations

from typing import Any, TypeGuard

import torch
from torch import Tensor, nn

from cifarbench.kernels import functions, gpu, winograd
from cifarbench.kernels.convolution import Convolution, FewChannels
from cifarbench.kernels.functions import LAYOUT, Activation, MaxPool, NormActivation, affine_activation
from cifarbench.kernels.library import load
from cifarbench.models import layers
from cifarbench.models.whitening import Whitening

_MANY = 16  # input channels
_FEW_THREADS = 8  # with more, what one thread does alone would be a large part of a step


def are_there(device: torch.device, precision: str) -> bool:
    """Whether there are operations of our own for passes in `precision` on `device`."""
    if precision == "fp16":
        return False
    return load(precision == "bf16") is not None if device.type == "cpu" else gpu.are_there(device)


def use_kernels(model: nn.Module, device: torch.device, precision: str) -> bool:
    """Let `model` work with our own operations from now on, where they can be had; returns whether it does.

    Args:
        model: in channels_last memory; it is changed in place, by the classes of its modules.
        device: of the model.
        precision: of its passes, "bf16" or "fp32".
    """
    if not are_there(device, precision):
        return False
    library = load(precision == "bf16") if device.type == "cpu" else None
    for module in model.modules():
        found = _own_conv(module, library) if type(module) is nn.Conv2d else _OWN.get(type(module))
        if found is not None and _is_of_the_kind(module):
            module.__class__ = found
    return True


def _own_conv(conv: nn.Conv2d, library: Any) -> type[nn.Conv2d] | None:
    """What a convolution becomes, None where it stays torch's; `library` is the CPU's, None on a GPU."""
    if library is None:
        return None
    has_few = conv.in_channels < _MANY
    if library.has_tiles():  # with few channels the products there would mostly add zeros
        return Conv if functions.is_plain(conv) and not has_few and conv.out_channels % 32 == 0 else None
    if not has_few and library.has_winograd() and winograd.takes(conv):
        return WinogradConv
    is_usual = conv.groups == 1 and conv.padding_mode == "zeros" and not isinstance(conv.padding, str)
    return FewChannelsConv if has_few and is_usual and torch.get_num_threads() <= _FEW_THREADS else None


def _is_of_the_kind(module: nn.Module) -> bool:
    """Whether a module's options are those that the kernels are for."""
    if isinstance(module, nn.MaxPool2d):
        shape = module.kernel_size, module.stride, module.padding, module.dilation, module.return_indices
        return shape == (2, 2, 0, 1, False)
    if isinstance(module, nn.BatchNorm2d):
        return module.affine and module.track_running_stats and module.momentum is not None
    return not isinstance(module, nn.GELU) or module.approximate == "none"


def _is_watched(module: nn.Module) -> bool:
    """Whether somebody looks at what this module itself takes or gives."""
    return bool(
        module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
    )


def _takes(module: nn.Module, x: Tensor, *devices: str) -> bool:
    """Whether these are maps for the kernels of `devices`, in a training step or in evaluation without gradients.

    A module that is watched works by torch's operations, which tables of layers follow.
    """
    return (
        module.training == torch.is_grad_enabled()
        and not _is_watched(module)
        and x.device.type in devices
        and x.dtype in (torch.bfloat16, torch.float32)
        and x.ndim == 4
        and x.numel() > 0
        and x.is_contiguous(memory_format=LAYOUT)
    )


def _of_products() -> torch.dtype:
    """The dtype that products on a CPU have now."""
    return torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else torch.float32


class Norm(nn.BatchNorm2d):
    """Batch norm; in a `Chain`, together with the activation that follows it."""

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to the same."""
        return self.normalised(x, "identity") if self.takes(x) else super().forward(x)

    def takes(self, x: Tensor) -> bool:
        """Whether `normalised` can be asked for; what torch refuses, or has in other numbers, is left to it."""
        return (
            _takes(self, x, "cpu", "cuda")
            and x.shape[1] == self.num_features
            and self.weight.dtype == self.bias.dtype == torch.float32
            and self.running_mean is not None
            and self.running_mean.dtype == torch.float32
            and not (self.training and x.numel() == x.shape[1])
        )

    def normalised(self, x: Tensor, act: str, added: Tensor | None = None) -> Tensor:
        """act(batch norm(x) + added); in training with a step of the running statistics."""
        mean, variance, steps, momentum = self.running_mean, self.running_var, self.num_batches_tracked, self.momentum
        assert mean is not None
        assert variance is not None
        assert steps is not None
        assert momentum is not None
        if not self.training:
            scale = self.weight * torch.rsqrt(variance + self.eps)
            affine = gpu.affine_activation if x.is_cuda else affine_activation
            return affine(x, scale, self.bias - mean * scale, act, added)
        if x.is_cuda:
            running = mean, variance, steps
            return gpu.NormActivation.apply(x, self.weight, self.bias, added, running, self.eps, momentum, act)
        y, batch_mean, batch_variance = NormActivation.apply(x, self.weight, self.bias, self.eps, act, added)
        count = x.numel() // x.shape[1]
        with torch.no_grad():
            mean.lerp_(batch_mean, momentum)
            variance.lerp_(batch_variance * (count / max(count - 1, 1)), momentum)
            steps.add_(1)
        return y


class Chain(nn.Sequential):
    """A Sequential in which a batch norm and its activation are one step, and a convolution and its maxima may be."""

    def forward(self, x: Tensor) -> Tensor:
        """What a Sequential gives."""
        return _through([*self], x)


class Branch(layers.Branch):
    """A residual branch whose last norm, the shortcut and the activation are one step."""

    def forward(self, x: Tensor, shortcut: Tensor | float, activation: nn.Module | None = None) -> Tensor:  # type: ignore[override]
        """activation(layers(x) + shortcut)."""
        modules = [*self]
        last = modules.pop() if modules and isinstance(modules[-1], Norm) else None
        x = _through(modules, x)
        act = "identity" if activation is None else _act(activation)
        if act and last and last.takes(x) and _is_alike(shortcut, x):
            return last.normalised(x, act, shortcut)
        total = (last(x) if last else x) + shortcut
        return total if activation is None else activation(total)


def _through(modules: list[nn.Module], x: Tensor) -> Tensor:
    """The modules one after the other, but a norm together with its activation, and a convolution with its maxima."""
    while modules:
        module, *modules = modules
        if isinstance(module, Norm) and module.takes(x):
            act = _act(modules[0]) if modules else None
            modules = modules[1:] if act else modules
            x = module.normalised(x, act or "identity")
        elif type(module) is nn.Conv2d and modules and _are_one(module, modules[0], x):
            modules = modules[1:]
            x = gpu.ConvPool.apply(x, module.weight, module.training)
        else:
            x = module(x)
    return x


def _are_one(conv: nn.Conv2d, after: nn.Module, x: Tensor) -> bool:
    """Whether a convolution and the maxima after it are one operation for these maps."""
    return (
        isinstance(after, Pool)
        and not after.ceil_mode
        and not _is_watched(after)
        and _takes(conv, x, "cuda")
        and min(x.shape[2:]) > 1
        and gpu.takes_conv_pool(conv, x)
    )


def _act(module: nn.Module) -> str | None:
    """The activation's name for the kernels; None where they have no such thing, or somebody watches it."""
    return None if _is_watched(module) else _ACTIVATIONS.get(type(module))


def _is_alike(shortcut: Tensor | float, x: Tensor) -> TypeGuard[Tensor]:
    """Whether the shortcut is a map with the shape, dtype and memory layout of `x`."""
    return (
        isinstance(shortcut, Tensor)
        and (shortcut.shape, shortcut.dtype, shortcut.device) == (x.shape, x.dtype, x.device)
        and shortcut.is_contiguous(memory_format=LAYOUT)
    )


class Gelu(nn.GELU):
    """GELU whose derivative is worked out with it."""

    def forward(self, x: Tensor) -> Tensor:
        """Each number through the activation."""
        return Activation.apply(x, "gelu") if _takes(self, x, "cpu") else super().forward(x)


class Silu(nn.SiLU):
    """SiLU whose derivative is worked out with it."""

    def forward(self, x: Tensor) -> Tensor:
        """Each number through the activation."""
        return Activation.apply(x, "silu") if _takes(self, x, "cpu") else super().forward(x)


class Pool(nn.MaxPool2d):
    """2x2 maximum."""

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to half of both sides."""
        if _takes(self, x, "cpu", "cuda") and min(x.shape[2:]) > 1:
            return (gpu.MaxPool if x.is_cuda else MaxPool).apply(x, self.ceil_mode)
        return super().forward(x)


class GlobalMax(layers.GlobalMax):
    """Maximum over height and width; on a GPU."""

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to (N, C)."""
        return gpu.GlobalMax.apply(x) if _takes(self, x, "cuda") else super().forward(x)


class Conv(nn.Conv2d):
    """3x3 convolution with a weight gradient of our own, and small maps side by side; on a CPU."""

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to (N, K, H, W)."""
        if _takes(self, x, "cpu") and x.dtype == torch.bfloat16:
            with torch.autocast("cpu", enabled=False):
                return Convolution.apply(x, self.weight, self.bias)
        return super().forward(x)


class WinogradConv(nn.Conv2d):
    """3x3 convolution with fewer products, where that is faster; on a CPU."""

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to (N, K, H, W); what torch refuses, or has in other numbers, is left to it."""
        is_taken = _takes(self, x, "cpu") and x.dtype == _of_products() and x.shape[1] == self.in_channels
        if is_taken and winograd.takes(self) and winograd.is_faster(x, self.out_channels):
            return winograd.Winograd.apply(x, self.weight, self.bias)
        return super().forward(x)


class FewChannelsConv(nn.Conv2d):
    """Convolution of few input channels whose threads do not wait for each other; on a CPU, in training in bfloat16."""

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to (N, K, H', W')."""
        if self.training and _of_products() == torch.bfloat16 and _takes(self, x, "cpu"):
            with torch.autocast("cpu", enabled=False):
                geometry = self.stride, self.padding, self.dilation
                return FewChannels.apply(x.to(torch.bfloat16), self.weight, self.bias, *geometry)
        return super().forward(x)


class Stem(Whitening):
    """Whitening with its activation in one pass over the images; on a GPU."""

    def forward(self, images: Tensor) -> Tensor:
        """Whitened 2x2 patches of each image, through the activation."""
        act = _act(self.activation)
        if act is None or self.weight.requires_grad or images.requires_grad or images.dtype != torch.float32:
            return super().forward(images)
        images = images.contiguous(memory_format=LAYOUT) if images.is_cuda else images
        if not _takes(self, images, "cuda"):
            return super().forward(images)
        dtype = torch.get_autocast_dtype("cuda") if torch.is_autocast_enabled("cuda") else images.dtype
        return gpu.Whiten.apply(images, self.weight, self.bias, act, dtype)


# What a `Chain` takes together with the norm before it.
_ACTIVATIONS: dict[type[nn.Module], str] = {nn.ReLU: "relu", Gelu: "gelu", Silu: "silu"}

_OWN: dict[type[nn.Module], type[nn.Module]] = {
    nn.Sequential: Chain,
    layers.Branch: Branch,
    nn.BatchNorm2d: Norm,
    nn.GELU: Gelu,
    nn.SiLU: Silu,
    nn.MaxPool2d: Pool,
    layers.GlobalMax: GlobalMax,
    Whitening: Stem,
}
