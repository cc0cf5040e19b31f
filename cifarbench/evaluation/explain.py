"""What a network looks at: its first kernels, its activation maps, and Grad-CAM, by hooks of our own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CONVOLUTIONS: tuple[type, ...] = (nn.Conv2d,)
ACTIVATIONS: tuple[type, ...] = (nn.ReLU, nn.LeakyReLU, nn.SiLU, nn.GELU, nn.ELU, nn.Sigmoid, nn.Tanh)
_SMALLEST_MAP = 4  # px: coarser maps say little about where in 32 px a class was seen


@dataclass(frozen=True)
class Kernels:
    """First-layer weights as images (k, 3, h, w) float32; `of_classes` where each is one class's template."""

    layer: str
    weights: Tensor
    of_classes: bool


def first_kernels(model: nn.Module) -> Kernels | None:
    """The weights that meet the image first: a convolution's kernels, or a linear layer's rows seen as 32x32 images."""
    for name, weight in model.named_parameters():
        if weight.ndim == 4 and weight.shape[1] == 3:
            return Kernels(name.removesuffix(".weight"), weight.detach().float().cpu(), False)
        if weight.ndim == 2 and weight.shape[1] == 3 * 32 * 32:
            rows = weight.detach().float().cpu().view(-1, 3, 32, 32)
            only = sum(parameter.ndim == 2 for parameter in model.parameters()) == 1 and len(rows) == 10
            return Kernels(name.removesuffix(".weight"), rows, only)
        if weight.ndim > 1:
            return None
    return None


def map_layers(model: nn.Module, image: Tensor, kinds: tuple[type, ...] = CONVOLUTIONS) -> list[tuple[str, int]]:
    """The layers of `kinds` in the order in which they run, as (name, side of the map in px), for `image` (1, 3, H, W).

    Layers that give no map of at least 2 px a side are left out.
    """
    order: list[tuple[str, int]] = []

    def note(name: str) -> Callable:
        def hook(module: nn.Module, inputs: object, output: Tensor) -> None:
            if output.ndim == 4 and output.shape[-1] > 1:
                order.append((name, output.shape[-1]))

        return hook

    names = [name for name, module in model.named_modules() if isinstance(module, kinds)]
    with _hooked({name: note(name) for name in names}, model), torch.no_grad():
        model(image)
    return order


def grad_cam_layer(layers: Sequence[tuple[str, int]]) -> str | None:
    """The deepest of `map_layers` whose map is at least 4 px a side, else the deepest of all; None without any."""
    wide = [name for name, side in layers if side >= _SMALLEST_MAP]
    return wide[-1] if wide else (layers[-1][0] if layers else None)


def activation_maps(model: nn.Module, images: Tensor, layers: Sequence[str]) -> dict[str, Tensor]:
    """The output (N, C, H, W) float32 of each named layer for normalised `images` (N, 3, 32, 32)."""
    found: dict[str, Tensor] = {}

    def keep(name: str) -> Callable:
        # A copy: an activation after the layer may overwrite its output in place.
        return lambda module, inputs, output: found.__setitem__(name, output.detach().float().clone())

    with _hooked({name: keep(name) for name in layers}, model), torch.no_grad():
        model(images)
    return found


def grad_cam(model: nn.Module, images: Tensor, targets: Tensor, layer: str) -> Tensor:
    """Where in each image the evidence for a class lies (Selvaraju et al., "Grad-CAM", 2017, equations 1 and 2).

    The layer's maps are weighted by the mean gradient of the class's logit over each map, summed, and cut at 0.

    Args:
        model: in evaluation mode.
        images: (N, 3, 32, 32) normalised.
        targets: (N,) int64, the class asked about in each image.
        layer: the name of a convolution or activation of the model; where it runs several times, its last run
            counts. A convolution whose output is overwritten in place by an activation gives the activation's map.

    Returns:
        (N, h, w) float32 at least 0, of the layer's resolution, each divided by its maximum unless that is 0.
    """
    kept: list[Tensor] = []
    with _hooked({layer: lambda module, inputs, output: kept.append(output)}, model), torch.enable_grad():
        logits = model(images.detach().requires_grad_())
        maps = kept[-1]
        (gradient,) = torch.autograd.grad(logits.gather(1, targets[:, None]).sum(), maps)
    weights = gradient.mean((2, 3), keepdim=True)
    heat = F.relu((weights * maps).sum(1)).detach().float()
    peak = heat.amax((1, 2), keepdim=True)
    return heat / torch.where(peak > 0, peak, torch.ones_like(peak))


class _hooked:  # noqa: N801 - a context manager, read as a phrase
    """Forward hooks on named layers of a model, taken off at the end."""

    def __init__(self, hooks: dict[str, Callable], model: nn.Module) -> None:
        self.hooks, self.model = hooks, model
        self.handles: list = []

    def __enter__(self) -> None:
        modules = dict(self.model.named_modules())
        self.handles = [modules[name].register_forward_hook(hook) for name, hook in self.hooks.items()]

    def __exit__(self, *error: object) -> None:
        for handle in self.handles:
            handle.remove()
