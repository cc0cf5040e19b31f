"""EfficientNet without its slow parts: Tan and Le, "EfficientNet" (2019) and "EfficientNetV2" (2021).

Compound scaling, MBConv and fused MBConv blocks follow the papers; no squeeze-excite and ReLU in place of SiLU follow
the Lite models (Liu, 2020). Departures for 32x32: three halvings in place of five, stem stride 1, 3x3 kernels only,
and fused blocks wherever the map is halved or has 16 pixels or more a side.

Why, in bf16 on a 2-core AMD EPYC with torch 2.14.1 (best of 8 passes or more, machine shared): a depthwise
convolution of 192 channels on 16x16 took 78 ms a batch of 128 at stride 2 against 6 ms at stride 1, forward and
backward, and SiLU cost about 10 % of the training speed.

The base table, before `width` scales channels and `depth` scales layers:

    stage   block         expansion   channels   layers   stride   map after it
    stem    3x3           -           16         1        1        32x32
    1       fused         1           32         1        1        32x32
    2       fused         4           64         1        2        16x16
    3       fused         2           64         1        1        16x16
    4       fused         4           96         1        2        8x8
    5       MBConv        4           96         2        1        8x8
    6       fused         4           160        1        2        4x4
    7       MBConv        4           160        2        1        4x4
    last    1x1           -           512        1        1        4x4

`depth` repeats a stage's block at stride 1, so deeper models gain fused blocks in stages 2, 4 and 6.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from cifarbench.models.layers import Branch, conv, conv_bn_act, head, init_weights, scaled
from cifarbench.models.layers import activation as build_activation
from cifarbench.models.registry import register


class Stage(NamedTuple):
    """A row of the base table."""

    fused: bool
    expansion: int
    channels: int
    layers: int
    stride: int


STEM = 16
STAGES = (
    Stage(fused=True, expansion=1, channels=32, layers=1, stride=1),
    Stage(fused=True, expansion=4, channels=64, layers=1, stride=2),
    Stage(fused=True, expansion=2, channels=64, layers=1, stride=1),
    Stage(fused=True, expansion=4, channels=96, layers=1, stride=2),
    Stage(fused=False, expansion=4, channels=96, layers=2, stride=1),
    Stage(fused=True, expansion=4, channels=160, layers=1, stride=2),
    Stage(fused=False, expansion=4, channels=160, layers=2, stride=1),
)
LAST = 512


class SqueezeExcite(nn.Module):
    """Global average, 1x1, activation, 1x1, sigmoid, scale the channels. Hu et al. (2018), section 3."""

    def __init__(self, channels: int, squeezed: int, act: str) -> None:
        super().__init__()
        self.gate = nn.Sequential(
            conv(channels, squeezed, 1, bias=True), build_activation(act), conv(squeezed, channels, 1, bias=True)
        )

    def forward(self, x: Tensor) -> Tensor:
        """`(N, C, H, W)`, each channel times its gate in (0, 1)."""
        return x * self.gate(x.mean((2, 3), keepdim=True)).sigmoid()


class StochasticDepth(nn.Module):
    """Drop the whole branch of an image with probability p while training, scale the kept by 1 / (1 - p).

    Huang et al., "Deep Networks with Stochastic Depth" (2016), with the scaling in training rather than in evaluation.
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        """`(N, C, H, W)`, whole images zeroed."""
        if not self.training or self.p == 0:
            return x
        kept = torch.empty(len(x), 1, 1, 1, dtype=x.dtype, device=x.device).bernoulli_(1 - self.p)
        return x * kept.div_(1 - self.p)


def mbconv(inputs: int, outputs: int, expansion: int, stride: int, act: str, squeeze_excite: bool) -> nn.Sequential:
    """1x1 expand, BN, activation, 3x3 depthwise, BN, activation, [squeeze-excite], 1x1 project, BN."""
    inner = inputs * expansion
    return nn.Sequential(
        *(conv_bn_act(inputs, inner, 1, act) if expansion > 1 else ()),
        *conv_bn_act(inner, inner, 3, act, stride=stride, groups=inner),
        *([SqueezeExcite(inner, max(1, inputs // 4), act)] if squeeze_excite else []),
        conv(inner, outputs, 1),
        nn.BatchNorm2d(outputs),
    )


def fused_mbconv(inputs: int, outputs: int, expansion: int, stride: int, act: str) -> nn.Sequential:
    """3x3 expand, BN, activation, 1x1 project, BN; with expansion 1, only 3x3, BN, activation."""
    if expansion == 1:
        return nn.Sequential(*conv_bn_act(inputs, outputs, 3, act, stride=stride))
    inner = inputs * expansion
    return nn.Sequential(
        *conv_bn_act(inputs, inner, 3, act, stride=stride), conv(inner, outputs, 1), nn.BatchNorm2d(outputs)
    )


class Block(nn.Module):
    """Branch; where the shape stays, stochastic depth, and the input added."""

    def __init__(self, branch: nn.Sequential, residual: bool, drop: float) -> None:
        super().__init__()
        self.branch = Branch(*branch, *([StochasticDepth(drop)] if drop else [])) if residual else branch
        self.residual = residual

    def forward(self, x: Tensor) -> Tensor:
        """`(N, inputs, H, W)` to `(N, outputs, H/stride, W/stride)`."""
        return self.branch(x, x) if self.residual else self.branch(x)


def _plan(width: float, depth: float) -> list[Stage]:
    """One row per block after compound scaling, section 3.3 of the first paper; layers round up."""
    rows = []
    for row in STAGES:
        first = row._replace(channels=scaled(row.channels, width), layers=1)
        count = math.ceil(round(depth * row.layers, 6))
        rows += [first] + [first._replace(stride=1)] * (count - 1)
    return rows


@register("efficientnet_lite")
class EfficientNetLite(nn.Module):
    """3x3 stem, fused MBConv and MBConv stages, 1x1, global average, linear: `(N, 3, 32, 32)` to logits `(N, 10)`.

    Args:
        width: factor on the table's channels; results are multiples of 8.
        depth: factor on the table's layers, rounded up.
        squeeze_excite: a squeeze-excite gate in every MBConv block; fused blocks have none, as in EfficientNetV2.
        activation: a name of `layers.ACTIVATIONS`.
        stochastic_depth: drop probability of the last block's branch; it grows linearly from 0 at the first.
        dropout: before the last linear layer.
    """

    def __init__(
        self,
        *,
        width: float,
        depth: float,
        squeeze_excite: bool,
        activation: str,
        stochastic_depth: float,
        dropout: float,
    ) -> None:
        super().__init__()
        inputs, last = scaled(STEM, width), scaled(LAST, width)
        layers: list[nn.Module] = [*conv_bn_act(3, inputs, 3, activation)]
        plan = _plan(width, depth)
        for index, row in enumerate(plan):
            shape = (inputs, row.channels, row.expansion, row.stride, activation)
            branch = fused_mbconv(*shape) if row.fused else mbconv(*shape, squeeze_excite)
            residual = row.stride == 1 and inputs == row.channels
            layers.append(Block(branch, residual, stochastic_depth * index / (len(plan) - 1)))
            inputs = row.channels
        self.features = nn.Sequential(*layers, *conv_bn_act(inputs, last, 1, activation))
        self.head = head("global_average", last, 1, dropout=dropout)
        init_weights(self)

    def forward(self, images: Tensor) -> Tensor:
        """Logits `(N, 10)` of images `(N, 3, 32, 32)`."""
        return self.head(self.features(images))
