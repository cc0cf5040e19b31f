"""GoogLeNet: Szegedy et al., "Going Deeper with Convolutions" (2015), table 1 and figure 2.

Departures for 32x32: the stem is one 3x3 convolution of stride 1 and a halving, so that the stages work on 16, 8 and
4 pixels a side in place of 28, 14 and 7; batch norm after every convolution (Ioffe and Szegedy 2015); halvings are
2x2; no auxiliary classifiers, which batch norm makes needless at this depth.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from cifarbench.models.layers import conv_bn_act, init_weights, scaled
from cifarbench.models.layers import head as build_head
from cifarbench.models.layers import pooling as build_pooling
from cifarbench.models.registry import register


class Row(NamedTuple):
    """A row of the paper's table 1: channels of the four branches, and inside them (reduce) before the 3x3 and 5x5."""

    one: int
    three_reduce: int
    three: int
    five_reduce: int
    five: int
    pool: int


STEM = 192
STAGES = (
    (Row(64, 96, 128, 16, 32, 32), Row(128, 128, 192, 32, 96, 64)),
    (
        Row(192, 96, 208, 16, 48, 64),
        Row(160, 112, 224, 24, 64, 64),
        Row(128, 128, 256, 24, 64, 64),
        Row(112, 144, 288, 32, 64, 64),
        Row(256, 160, 320, 32, 128, 128),
    ),
    (Row(256, 160, 320, 32, 128, 128), Row(384, 192, 384, 48, 128, 128)),
)


class Inception(nn.Module):
    """Four branches side by side: 1x1; 1x1, 3x3; 1x1, 5x5; 3x3 max pooling, 1x1. Each convolution with BN, activation.

    `(N, inputs, H, W)` to `(N, row.one + row.three + row.five + row.pool, H, W)`.
    """

    def __init__(self, inputs: int, row: Row, act: str) -> None:
        super().__init__()
        self.one = nn.Sequential(*conv_bn_act(inputs, row.one, 1, act))
        self.three = nn.Sequential(
            *conv_bn_act(inputs, row.three_reduce, 1, act), *conv_bn_act(row.three_reduce, row.three, 3, act)
        )
        self.five = nn.Sequential(
            *conv_bn_act(inputs, row.five_reduce, 1, act), *conv_bn_act(row.five_reduce, row.five, 5, act)
        )
        self.pool = nn.Sequential(
            nn.MaxPool2d(3, stride=1, padding=1),
            *conv_bn_act(inputs, row.pool, 1, act),
        )
        self.outputs = row.one + row.three + row.five + row.pool

    def forward(self, x: Tensor) -> Tensor:
        """The branches' maps, one after the other along the channels."""
        return torch.cat((self.one(x), self.three(x), self.five(x), self.pool(x)), dim=1)


@register("googlenet")
class GoogLeNet(nn.Module):
    """3x3 stem, pooling, nine Inception blocks in stages of 2, 5 and 2 with pooling between, a head.

    `(N, 3, 32, 32)` to logits `(N, 10)`.

    Args:
        width: factor on the paper's channels; results are multiples of 8.
        activation, pooling: names of the tables in `layers`; the 3x3 maximum inside a block stays.
        head: `global_average`, as published, or `global_max`.
        dropout: before the last linear layer; the paper drops 0.4.
    """

    def __init__(self, *, width: float, activation: str, pooling: str, head: str, dropout: float) -> None:
        super().__init__()
        inputs = scaled(STEM, width)
        self.stem = nn.Sequential(*conv_bn_act(3, inputs, 3, activation))
        self.stages = nn.Sequential()
        for rows in STAGES:
            stage = nn.Sequential(build_pooling(pooling, inputs, activation))
            for row in rows:
                block = Inception(inputs, Row(*(scaled(channels, width) for channels in row)), activation)
                stage.append(block)
                inputs = block.outputs
            self.stages.append(stage)
        self.head = build_head(head, inputs, 1, dropout=dropout)
        init_weights(self)

    def forward(self, images: Tensor) -> Tensor:
        """Logits `(N, 10)` of images `(N, 3, 32, 32)`."""
        return self.head(self.stages(self.stem(images)))
