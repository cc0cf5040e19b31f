"""Parts that every family shares: convolutions, activations, pooling, heads and the first weights.

Feature maps are `(N, C, H, W)` floats. Any memory format works; channels_last is the fast one on CPUs and GPUs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TypeVar

import torch
from torch import Tensor, nn

from cifarbench.models.registry import unknown

Key = TypeVar("Key")
Value = TypeVar("Value")

IMAGE_SIZE = 32  # px, both sides
CLASSES = 10


class Maxout(nn.Module):
    """Elementwise maximum of the two halves of the channels: `(N, 2C, …)` to `(N, C, …)`.

    Goodfellow et al., "Maxout Networks" (2013), section 2, with two linear pieces.
    """

    def forward(self, x: Tensor) -> Tensor:
        """The larger of channel c and channel C + c."""
        return torch.maximum(*x.chunk(2, dim=1))


class Branch(nn.Sequential):
    """The layers of a residual block beside its shortcut: He et al., "Deep Residual Learning" (2016), figure 2."""

    def forward(self, x: Tensor, shortcut: Tensor | float, activation: nn.Module | None = None) -> Tensor:  # type: ignore[override]
        """`activation(layers(x) + shortcut)`, `(N, C, H, W)`."""
        total = super().forward(x) + shortcut
        return total if activation is None else activation(total)


# In place wherever autograd allows it at no cost: these follow a convolution or a batch norm, neither of which
# needs its own output for the backward pass.
ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": lambda: nn.ReLU(inplace=True),
    "leaky_relu": lambda: nn.LeakyReLU(0.01, inplace=True),
    "silu": lambda: nn.SiLU(inplace=True),
    "gelu": nn.GELU,
    "elu": lambda: nn.ELU(inplace=True),
    "sigmoid": nn.Sigmoid,
    "tanh": nn.Tanh,
    "maxout": Maxout,
}


def pieces(act: str) -> int:
    """Channels that the activation takes for each one it gives; the layer before it must have so many times more."""
    return 2 if act == "maxout" else 1


def look_up(kind: str, name: Key, table: Mapping[Key, Value]) -> Value:
    """The entry of a table, or a ConfigError that lists the valid names and the nearest."""
    if name not in table:
        raise unknown(kind, name, table)
    return table[name]


def activation(name: str) -> nn.Module:
    """The nonlinearity `name` of `ACTIVATIONS`; all but maxout work on each number alone."""
    return look_up("activation", name, ACTIVATIONS)()


def conv(
    inputs: int, outputs: int, size: int = 3, *, stride: int = 1, groups: int = 1, bias: bool = False
) -> nn.Conv2d:
    """size x size convolution, padded so that stride 1 keeps height and width; no bias, as a batch norm follows."""
    return nn.Conv2d(inputs, outputs, size, stride=stride, padding=size // 2, groups=groups, bias=bias)


def conv_bn_act(
    inputs: int, outputs: int, size: int, act: str, *, stride: int = 1, groups: int = 1
) -> tuple[nn.Module, nn.Module, nn.Module]:
    """The three layers conv, BN, activation, to unpack into a Sequential: `outputs` channels after the activation."""
    inner = outputs * pieces(act)
    return conv(inputs, inner, size, stride=stride, groups=groups), nn.BatchNorm2d(inner), activation(act)


def scaled(channels: int, factor: float, multiple: int = 8) -> int:
    """`channels * factor` rounded to the nearest multiple of 8 (at least one), the widths that SIMD units like."""
    return max(multiple, int(channels * factor + multiple / 2) // multiple * multiple)


def _strided(channels: int, act: str, keep_edge: bool) -> nn.Module:
    return nn.Sequential(conv(channels, channels * pieces(act), 3, stride=2, bias=True), activation(act))


POOLINGS: dict[str, Callable[[int, str, bool], nn.Module]] = {
    "max": lambda channels, act, keep_edge: nn.MaxPool2d(2, ceil_mode=keep_edge),
    "average": lambda channels, act, keep_edge: nn.AvgPool2d(2, ceil_mode=keep_edge),
    "stride": _strided,
}


def pooling(name: str, channels: int, act: str, keep_edge: bool = True) -> nn.Module:
    """Halve height and width: 2x2 max, 2x2 average, or a learned 3x3 convolution of stride 2 with its activation.

    A map of odd size is rounded up, so that the small maps of low resolutions never vanish; without `keep_edge`
    its last row and column are dropped instead (but by the learned one, which always rounds up).

    The learned one follows Springenberg et al., "Striving for Simplicity" (2015), section 2.
    """
    return look_up("pooling", name, POOLINGS)(channels, act, keep_edge)


class GlobalAverage(nn.Module):
    """Mean over height and width: `(N, C, H, W)` to `(N, C)`."""

    def forward(self, x: Tensor) -> Tensor:
        """The mean of each channel's map."""
        return x.mean((2, 3))


class GlobalMax(nn.Module):
    """Maximum over height and width: `(N, C, H, W)` to `(N, C)`."""

    def forward(self, x: Tensor) -> Tensor:
        """The largest value of each channel's map."""
        return x.amax((2, 3))


def global_average_head(channels: int, size: int, hidden: tuple[int, ...], act: str, dropout: float) -> nn.Sequential:
    """Global average, dropout, linear. Lin et al., "Network in Network" (2014), section 3.2. No hidden layers."""
    return nn.Sequential(GlobalAverage(), nn.Dropout(dropout), nn.Linear(channels, CLASSES))


def global_max_head(channels: int, size: int, hidden: tuple[int, ...], act: str, dropout: float) -> nn.Sequential:
    """Global maximum, dropout, linear. No hidden layers."""
    return nn.Sequential(GlobalMax(), nn.Dropout(dropout), nn.Linear(channels, CLASSES))


def flatten_head(channels: int, size: int, hidden: tuple[int, ...], act: str, dropout: float) -> nn.Sequential:
    """Flatten, dropout, (linear, activation) for each hidden width, dropout, linear.

    Dropout stands before the first and before the last linear layer; without hidden layers these are one.
    """
    widths = (channels * size * size, *hidden)
    layers: list[nn.Module] = [nn.Flatten(), nn.Dropout(dropout)]
    for inputs, outputs in zip(widths, hidden, strict=False):
        layers += [nn.Linear(inputs, outputs * pieces(act)), activation(act)]
    if hidden:
        layers.append(nn.Dropout(dropout))
    return nn.Sequential(*layers, nn.Linear(widths[-1], CLASSES))


HEADS: dict[str, Callable[[int, int, tuple[int, ...], str, float], nn.Sequential]] = {
    "global_average": global_average_head,
    "global_max": global_max_head,
    "flatten": flatten_head,
}


def head(
    name: str, channels: int, size: int, *, hidden: tuple[int, ...] = (), act: str = "relu", dropout: float = 0.0
) -> nn.Sequential:
    """The classifier: features `(N, channels, size, size)` to logits `(N, 10)`."""
    return look_up("head", name, HEADS)(channels, size, hidden, act, dropout)


def init_weights(model: nn.Module) -> None:
    """Set every weight in place: convolutions, batch norms, hidden and last linear layers.

    Convolutions: Kaiming normal over fan-out with the gain of ReLU, sqrt(2) (He et al. 2015, section 2.2), where
    the fan-out of a grouped convolution is that of one group. Batch norms: scale 1, shift 0. Hidden linear layers:
    Kaiming normal over fan-in. The last linear layer: normal of std 0.01, so that the first loss is near ln 10 =
    2.303. Every bias: 0. Activations other than ReLU get the same gain.
    """
    linear = [module for module in model.modules() if isinstance(module, nn.Linear)]
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            fan_out = module.out_channels * math.prod(module.kernel_size) // module.groups
            nn.init.normal_(module.weight, std=math.sqrt(2 / fan_out))
        elif isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            nn.init.ones_(module.weight)
        elif isinstance(module, nn.Linear):
            std = 0.01 if module is linear[-1] else math.sqrt(2 / module.in_features)
            nn.init.normal_(module.weight, std=std)
        if isinstance(module, nn.Conv2d | nn.BatchNorm1d | nn.BatchNorm2d | nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)


@torch.no_grad()
def dirac_(model: nn.Module) -> None:
    """Make the first filters of every convolution that has a centre pass their input channels through unchanged.

    Zagoruyko and Komodakis, "DiracNets" (2017): a deep plain network then starts out carrying its input to its end.
    As `nn.init.dirac_` on the first `in_channels` filters, without its loop over them.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d) and module.kernel_size[0] % 2:
            count = min(module.weight.shape[:2])
            module.weight[:count] = 0
            kept = torch.arange(count)
            module.weight[kept, kept, module.kernel_size[0] // 2, module.kernel_size[1] // 2] = 1
