"""AlexNet: Krizhevsky, Sutskever and Hinton, "ImageNet Classification with Deep Convolutional Neural Networks" (2012).

The channels are those of Krizhevsky, "One weird trick for parallelizing convolutional neural networks" (2014): 64,
192, 384, 256, 256 on one device. Departures for 32x32: the first convolution is 5x5 at stride 1, not 11x11 at stride
4; pooling windows are 2x2 and do not overlap; batch norm, by default, in place of local response normalisation; the
fully connected layers are as narrow as the option says, in place of 4096-4096-1000.
"""

from __future__ import annotations

from torch import Tensor, nn

from cifarbench.models.layers import activation as build_activation
from cifarbench.models.layers import conv, init_weights, pieces, scaled
from cifarbench.models.layers import head as build_head
from cifarbench.models.layers import pooling as build_pooling
from cifarbench.models.registry import register

# (output channels, kernel side in px, whether a pooling follows)
LAYERS = ((64, 5, True), (192, 5, True), (384, 3, False), (256, 3, False), (256, 3, True))
LAST_MAP = 4  # px, both sides, after three halvings


@register("alexnet")
class AlexNet(nn.Module):
    """Five times conv, [BN], activation, with pooling after the first, second and fifth; then a head.

    `(N, 3, 32, 32)` to logits `(N, 10)`.

    Args:
        width: factor on the channels; results are multiples of 8.
        batch_norm: before each activation; the convolution before it then has no bias.
        activation, pooling, head: names of the tables in `layers`.
        hidden: widths of the flatten head's hidden layers.
        dropout: the head's dropout.
    """

    def __init__(
        self,
        *,
        width: float,
        batch_norm: bool,
        activation: str,
        pooling: str,
        head: str,
        hidden: tuple[int, ...],
        dropout: float,
    ) -> None:
        super().__init__()
        self.features = nn.Sequential()
        inputs = 3
        for channels, kernel, pools in LAYERS:
            outputs = scaled(channels, width)
            inner = outputs * pieces(activation)
            self.features.append(conv(inputs, inner, kernel, bias=not batch_norm))
            if batch_norm:
                self.features.append(nn.BatchNorm2d(inner))
            self.features.append(build_activation(activation))
            if pools:
                self.features.append(build_pooling(pooling, outputs, activation))
            inputs = outputs
        self.head = build_head(head, inputs, LAST_MAP, hidden=hidden, act=activation, dropout=dropout)
        init_weights(self)

    def forward(self, images: Tensor) -> Tensor:
        """Logits `(N, 10)` of images `(N, 3, 32, 32)`."""
        return self.head(self.features(images))
