"""VGG: Simonyan and Zisserman, "Very Deep Convolutional Networks for Large-Scale Image Recognition" (2015).

The convolutions are table 1's configurations A, B, D and E. Departures for 32x32: batch norm after every convolution
(and hence no bias in it), a small head in place of 4096-4096-1000, and as many of the five stages as are asked for: the
last pooling of five leaves a map of 1x1.
"""

from __future__ import annotations

from torch import Tensor, nn

from cifarbench.models.layers import IMAGE_SIZE, conv_bn_act, dirac_, init_weights, look_up, pooling, scaled
from cifarbench.models.layers import head as build_head
from cifarbench.models.registry import register
from cifarbench.models.whitening import stem

WIDTHS = (64, 128, 256, 512, 512)
# Depth counts the layers with weights in the paper's networks: these convolutions and three linear layers.
CONVOLUTIONS = {
    11: (1, 1, 2, 2, 2),
    13: (2, 2, 2, 2, 2),
    16: (2, 2, 3, 3, 3),
    19: (2, 2, 4, 4, 4),
}


def stage(inputs: int, outputs: int, convolutions: int, act: str, pool: str) -> nn.Sequential:
    """(3x3, BN, activation) for each convolution, pooling: `(N, C, H, W)` to `(N, outputs, H/2, W/2)`."""
    layers: list[nn.Module] = []
    for index in range(convolutions):
        layers += conv_bn_act(outputs if index else inputs, outputs, 3, act)
    return nn.Sequential(*layers, pooling(pool, outputs, act))


@register("vgg")
class VGG(nn.Module):
    """Up to five stages of 3x3 convolutions with pooling, then a head: `(N, 3, 32, 32)` to logits `(N, 10)`.

    Args:
        depth: 11, 13, 16 or 19, as the paper counts.
        width: factor on the paper's channels (64, 128, 256, 512, 512); results are multiples of 8.
        stages: how many of the five are there, counted from the first.
        activation, pooling, head: names of the tables in `layers`.
        hidden: widths of the flatten head's hidden layers.
        dropout: the head's dropout.
        whitening: a frozen whitening layer before the first stage.
        dirac: the first filters of every convolution start as the identity.

    Raises:
        ConfigError: for another depth, or a name that is in no table.
    """

    def __init__(
        self,
        *,
        depth: int,
        width: float,
        stages: int,
        activation: str,
        pooling: str,
        head: str,
        hidden: tuple[int, ...],
        dropout: float,
        whitening: bool,
        dirac: bool,
    ) -> None:
        super().__init__()
        self.stem, inputs = stem(whitening, activation)
        self.features = nn.Sequential()
        for base, convolutions in [*zip(WIDTHS, look_up("vgg depth", depth, CONVOLUTIONS), strict=True)][:stages]:
            outputs = scaled(base, width)
            self.features.append(stage(inputs, outputs, convolutions, activation, pooling))
            inputs = outputs
        self.head = build_head(head, inputs, IMAGE_SIZE >> stages, hidden=hidden, act=activation, dropout=dropout)
        init_weights(self)
        if dirac:
            dirac_(self)

    def forward(self, images: Tensor) -> Tensor:
        """Logits `(N, 10)` of images `(N, 3, 32, 32)`."""
        return self.head(self.features(self.stem(images)))
