"""A plain stack of convolution blocks, the network of a first CIFAR-10 tutorial.

Idea: LeCun et al., "Gradient-Based Learning Applied to Document Recognition" (1998): convolve, pool, classify.
Departures: two 3x3 convolutions before each pooling, ReLU, and batch norm (Ioffe and Szegedy 2015). Made for 32x32:
b blocks leave a map of 32 / 2^b pixels a side, so there can be five at most.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from cifarbench.models.layers import IMAGE_SIZE, activation, conv, dirac_, init_weights, look_up, pieces, pooling
from cifarbench.models.layers import head as build_head
from cifarbench.models.registry import register
from cifarbench.models.whitening import stem

INITS: dict[str, Callable[[nn.Module], object]] = {"he": init_weights, "torch": lambda model: None}
# Which of a block's two convolutions a batch norm follows.
NORMS = {"all": (True, True), "first": (True, False), "none": (False, False)}


def _conv_layers(inputs: int, outputs: int, norm: bool, bias: bool, act: str) -> list[nn.Module]:
    inner = outputs * pieces(act)
    layers: list[nn.Module] = [conv(inputs, inner, bias=bias or not norm)]
    if norm:
        layers.append(nn.BatchNorm2d(inner))
    return [*layers, activation(act)]


def block(
    inputs: int, first: int, second: int, *, norm: str, bias: bool, dropout: float, act: str, pool: str
) -> nn.Sequential:
    """3x3, [BN], activation, 3x3, [BN], activation, pooling, 2-D dropout: `(N, C, H, W)` to `(N, second, H/2, W/2)`."""
    norm_first, norm_second = look_up("norm", norm, NORMS)
    return nn.Sequential(
        *_conv_layers(inputs, first, norm_first, bias, act),
        *_conv_layers(first, second, norm_second, bias, act),
        pooling(pool, second, act),
        *([nn.Dropout2d(dropout)] if dropout else []),
    )


@register("simple_cnn")
class SimpleCNN(nn.Module):
    """Blocks of two 3x3 convolutions with pooling, then a head: `(N, 3, 32, 32)` to logits `(N, 10)`.

    Args:
        first_widths, second_widths: output channels of the first and second convolution, one per block.
        norm: batch norm after `all` convolutions, the `first` of each block, or `none`.
        bias: True gives every convolution a bias; False leaves it out where a batch norm would cancel it.
        spatial_dropout: share of whole channels dropped after a block's pooling (Tompson et al. 2015), one per block.
        activation, pooling, head: names of the tables in `layers`.
        hidden: widths of the flatten head's hidden layers.
        dropout: the head's dropout.
        whitening: a frozen whitening layer before the first block.
        dirac: the first filters of every convolution start as the identity.
        init: `he` (`layers.init_weights`), or `torch`, the weights that its layers draw by themselves.
    """

    def __init__(
        self,
        *,
        first_widths: tuple[int, ...],
        second_widths: tuple[int, ...],
        norm: str,
        bias: bool,
        spatial_dropout: tuple[float, ...],
        activation: str,
        pooling: str,
        head: str,
        hidden: tuple[int, ...],
        dropout: float,
        whitening: bool,
        dirac: bool,
        init: str,
    ) -> None:
        super().__init__()
        self.stem, inputs = stem(whitening, activation)
        self.features = nn.Sequential()
        for first, second, dropped in zip(first_widths, second_widths, spatial_dropout, strict=True):
            self.features.append(
                block(inputs, first, second, norm=norm, bias=bias, dropout=dropped, act=activation, pool=pooling)
            )
            inputs = second
        size = IMAGE_SIZE >> len(first_widths)
        self.head = build_head(head, inputs, size, hidden=hidden, act=activation, dropout=dropout)
        look_up("init", init, INITS)(self)
        if dirac:
            dirac_(self)

    def forward(self, images: Tensor) -> Tensor:
        """Logits `(N, 10)` of images `(N, 3, 32, 32)`."""
        return self.head(self.features(self.stem(images)))
