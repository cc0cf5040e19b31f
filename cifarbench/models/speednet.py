"""SpeedNet: a shallow, whitened network of convolution groups for the shortest training.

The network of Jordan's airbench (2024) and its forerunners: Page, "How to train your ResNet" (2019), and
tysam-code's hlb-CIFAR10. Departures: widths, depth, residuals, pooling and activation are options; the factor on the
logits is folded into the last layer's first weights (and, in the experiments, into its rate); the global maximum
takes maps of any size, for training at lower resolutions.

    94 %           widths (64, 256, 256), depth 2
    95 %           widths (96, 320, 384), depth 3, residual
    96 %           widths (128, 384, 512), depth 3, residual
"""

from __future__ import annotations

from torch import Tensor, nn

from cifarbench.models.layers import CLASSES, Branch, GlobalAverage, GlobalMax, conv, dirac_, look_up
from cifarbench.models.layers import activation as build_activation
from cifarbench.models.layers import pooling as build_pooling
from cifarbench.models.registry import register
from cifarbench.models.whitening import stem

HEADS = {"global_max": GlobalMax, "global_average": GlobalAverage}


class Group(nn.Module):
    """conv, pooling, BN, activation, then (conv, BN, activation) for each further convolution of `depth`.

    With `residual` the map after the first activation is added before the last one.
    """

    def __init__(
        self, inputs: int, outputs: int, *, depth: int, residual: bool, pool: str, act: str, norm: dict[str, float]
    ) -> None:
        super().__init__()
        self.enter = nn.Sequential(
            conv(inputs, outputs),
            build_pooling(pool, outputs, act, keep_edge=False),
            _norm(outputs, norm),
            build_activation(act),
        )
        self.rest = Branch() if residual else nn.Sequential()
        for index in range(depth - 1):
            self.rest.extend([conv(outputs, outputs), _norm(outputs, norm)])
            if index < depth - 2 or not residual:
                self.rest.append(build_activation(act))
        self.activation = build_activation(act) if residual else None

    def forward(self, x: Tensor) -> Tensor:
        """`(N, inputs, H, W)` to `(N, outputs, H/2, W/2)`."""
        entered = self.enter(x)
        return self.rest(entered, entered, self.activation) if self.activation else self.rest(entered)


def _norm(channels: int, options: dict[str, float]) -> nn.BatchNorm2d:
    norm = nn.BatchNorm2d(channels, eps=options["eps"], momentum=options["momentum"])
    norm.weight.requires_grad_(bool(options["scale"]))
    return norm


@register("speednet")
class SpeedNet(nn.Module):
    """[Whitening,] groups, global pooling, linear without bias: `(N, 3, H, W)` to logits `(N, 10)`.

    Args:
        whitening: a frozen whitening layer before the first group.
        widths: channels of each group, which halves height and width.
        depth: convolutions of each group.
        residual: add each group's first map to its last.
        pooling: how a group halves its map.
        head: `global_max` or `global_average`.
        activation: a name of `layers.ACTIVATIONS`.
        dirac: the first filters of every convolution start as the identity (Zagoruyko and Komodakis 2017).
        norm_momentum: weight of the newest batch in the running statistics.
        norm_eps: added to the variance.
        norm_scale: train the scale of every batch norm, and not its shift alone.
    """

    def __init__(
        self,
        *,
        whitening: bool,
        widths: tuple[int, ...],
        depth: int,
        residual: bool,
        pooling: str,
        head: str,
        activation: str,
        dirac: bool,
        norm_momentum: float,
        norm_eps: float,
        norm_scale: bool,
    ) -> None:
        super().__init__()
        norm = {"momentum": norm_momentum, "eps": norm_eps, "scale": float(norm_scale)}
        self.stem, inputs = stem(whitening, activation)
        self.groups = nn.Sequential()
        for width in widths:
            self.groups.append(
                Group(inputs, width, depth=depth, residual=residual, pool=pooling, act=activation, norm=norm)
            )
            inputs = width
        last = nn.Linear(inputs, CLASSES, bias=False)
        nn.init.normal_(last.weight, std=inputs**-1.5 / 3**0.5)
        self.head = nn.Sequential(look_up("head", head, HEADS)(), last)
        if dirac:
            dirac_(self)

    def forward(self, images: Tensor) -> Tensor:
        """Logits `(N, 10)` of images `(N, 3, H, W)`."""
        return self.head(self.groups(self.stem(images)))
