"""The linear classifier f(x, W) = Wx + b, and the fully connected network: what CNNs are compared with.

Fully connected: Rumelhart, Hinton and Williams, "Learning representations by back-propagating errors" (1986), with
batch norm (Ioffe and Szegedy 2015) and any activation as options. Both see an image as 3,072 numbers in no order.
Departure: the first weights of the linear classifier are of std 0.001, since 3,072 inputs add up and its ten rows,
drawn as images, are the templates that it has learned.
"""

from __future__ import annotations

from torch import Tensor, nn

from cifarbench.models.layers import CLASSES, IMAGE_SIZE, init_weights, pieces
from cifarbench.models.layers import activation as build_activation
from cifarbench.models.registry import register

PIXELS = 3 * IMAGE_SIZE * IMAGE_SIZE


@register("linear")
class Linear(nn.Module):
    """Flatten, linear: `(N, 3, 32, 32)` to logits `(N, 10)`.

    Args:
        bias: a constant for each class.
    """

    def __init__(self, *, bias: bool) -> None:
        super().__init__()
        self.flatten = nn.Flatten()
        self.classifier = nn.Linear(PIXELS, CLASSES, bias=bias)
        init_weights(self)
        nn.init.normal_(self.classifier.weight, std=0.001)

    def forward(self, images: Tensor) -> Tensor:
        """Logits `(N, 10)` of images `(N, 3, 32, 32)`."""
        return self.classifier(self.flatten(images))


def hidden_layer(inputs: int, outputs: int, act: str, batch_norm: bool, dropout: float) -> nn.Sequential:
    """Linear, [BN], activation, [dropout]: `(N, inputs)` to `(N, outputs)`."""
    width = outputs * pieces(act)
    return nn.Sequential(
        nn.Linear(inputs, width, bias=not batch_norm),
        *([nn.BatchNorm1d(width)] if batch_norm else []),
        build_activation(act),
        *([nn.Dropout(dropout)] if dropout else []),
    )


@register("mlp")
class MLP(nn.Module):
    """Flatten, (linear, [BN], activation, [dropout]) for each hidden width, linear.

    `(N, 3, 32, 32)` to logits `(N, 10)`.

    Args:
        hidden: widths of the hidden layers; () makes the linear classifier with other first weights.
        activation: a name of `layers.ACTIVATIONS`.
        batch_norm: before each activation; the linear layer before it then has no bias.
        dropout: after each activation.
    """

    def __init__(self, *, hidden: tuple[int, ...], activation: str, batch_norm: bool, dropout: float) -> None:
        super().__init__()
        widths = (PIXELS, *hidden)
        self.flatten = nn.Flatten()
        self.hidden = nn.Sequential(
            *(
                hidden_layer(inputs, outputs, activation, batch_norm, dropout)
                for inputs, outputs in zip(widths, hidden, strict=False)
            )
        )
        self.classifier = nn.Linear(widths[-1], CLASSES)
        init_weights(self)

    def forward(self, images: Tensor) -> Tensor:
        """Logits `(N, 10)` of images `(N, 3, 32, 32)`."""
        return self.classifier(self.hidden(self.flatten(images)))
