"""LeNet-5: LeCun et al., "Gradient-Based Learning Applied to Document Recognition" (1998), section II.B.

The paper's input has 32x32 pixels, so its sizes stand: 5x5 convolutions without padding, 6 and 16 maps, 120 and 84
units. Departures: three input channels; each map of the second layer sees all maps of the first, not a chosen few;
pooling is a plain mean, without a trained factor and bias; tanh without the paper's factors; the third convolution,
which covers its whole 5x5 map, is written as the linear layer that it is; softmax in place of radial basis functions.
"""

from __future__ import annotations

from torch import Tensor, nn

from cifarbench.models.layers import activation as build_activation
from cifarbench.models.layers import head, init_weights, pieces
from cifarbench.models.layers import pooling as build_pooling
from cifarbench.models.registry import register

KERNEL = 5  # px, both sides
LAST_MAP = 5  # px, both sides: 32 - 4 = 28, halved 14, - 4 = 10, halved 5


@register("lenet")
class LeNet(nn.Module):
    """(5x5, activation, pooling) twice, flatten, (linear, activation) for each hidden width, linear.

    `(N, 3, 32, 32)` to logits `(N, 10)`.

    Args:
        widths: output channels of the two convolutions.
        hidden: widths of the hidden layers.
        activation, pooling: names of the tables in `layers`.
        dropout: before the first and before the last linear layer.
    """

    def __init__(
        self, *, widths: tuple[int, int], hidden: tuple[int, ...], activation: str, pooling: str, dropout: float
    ) -> None:
        super().__init__()
        self.features = nn.Sequential()
        for inputs, outputs in zip((3, widths[0]), widths, strict=True):
            self.features.extend(
                [
                    nn.Conv2d(inputs, outputs * pieces(activation), KERNEL),
                    build_activation(activation),
                    build_pooling(pooling, outputs, activation),
                ]
            )
        self.head = head("flatten", widths[1], LAST_MAP, hidden=hidden, act=activation, dropout=dropout)
        init_weights(self)

    def forward(self, images: Tensor) -> Tensor:
        """Logits `(N, 10)` of images `(N, 3, 32, 32)`."""
        return self.head(self.features(images))
