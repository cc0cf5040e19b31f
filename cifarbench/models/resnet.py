"""ResNet, its pre-activation form and Wide ResNet.

He et al., "Deep Residual Learning for Image Recognition" (2016); He et al., "Identity Mappings in Deep Residual
Networks" (2016); Zagoruyko and Komodakis, "Wide Residual Networks" (2016). Departures for 32x32: the stem is one 3x3
convolution of stride 1 without pooling, as in section 4.2 of the first paper, also for the ImageNet sizes; a
bottleneck's stride is in its 3x3 convolution, not its first 1x1.

    ResNet-18      basic, blocks (2, 2, 2, 2), widths (64, 128, 256, 512)
    ResNet-20      basic, blocks (3, 3, 3), widths (16, 32, 64), shortcut pad
    WRN-28-10      basic, blocks (4, 4, 4), widths (160, 320, 640), stem_width 16, preactivation
"""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn

from cifarbench.models.layers import Branch, conv, conv_bn_act, dirac_, init_weights, look_up
from cifarbench.models.layers import activation as build_activation
from cifarbench.models.layers import head as build_head
from cifarbench.models.layers import pooling as build_pooling
from cifarbench.models.registry import register
from cifarbench.models.whitening import stem as build_stem

# Name to a function of input channels, output channels and stride.
Shortcuts = dict[str, Callable[[int, int, int], nn.Module]]

# Output channels of a block over its width.
EXPANSIONS = {"basic": 1, "bottleneck": 4}


def _convolutions(kind: str, inputs: int, width: int, stride: int) -> list[nn.Conv2d]:
    if kind == "basic":
        return [conv(inputs, width, 3, stride=stride), conv(width, width, 3)]
    return [conv(inputs, width, 1), conv(width, width, 3, stride=stride), conv(width, 4 * width, 1)]


class PadShortcut(nn.Module):
    """Every stride-th pixel, zero channels appended: option A of the ResNet paper, without parameters."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.extra = outputs - inputs
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        """`(N, inputs, H, W)` to `(N, outputs, H/stride, W/stride)`."""
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.extra))


def projection(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    """1x1 convolution, BN: option B of the ResNet paper."""
    return nn.Sequential(conv(inputs, outputs, 1, stride=stride), nn.BatchNorm2d(outputs))


def bare_projection(inputs: int, outputs: int, stride: int) -> nn.Conv2d:
    """1x1 convolution: option B on an input that the block has normalised already."""
    return conv(inputs, outputs, 1, stride=stride)


class NoShortcut(nn.Module):
    """Nothing to add: the plain network that the ResNet paper compares with (section 4.2)."""

    def __init__(self, *shape: int) -> None:
        super().__init__()

    def forward(self, x: Tensor) -> float:
        """Zero."""
        return 0.0


class Block(nn.Module):
    """(conv, BN, activation) for all but the last, conv, BN, add the shortcut, activation.

    The convolutions are 3x3, 3x3 in a basic block and 1x1, 3x3, 1x1 in a bottleneck.
    """

    shortcuts: Shortcuts = {"projection": projection, "pad": PadShortcut, "none": NoShortcut}

    def __init__(self, kind: str, inputs: int, width: int, stride: int, act: str, shortcut: str) -> None:
        super().__init__()
        *inner, last = _convolutions(kind, inputs, width, stride)
        self.branch = Branch()
        for convolution in inner:
            self.branch.extend([convolution, nn.BatchNorm2d(convolution.out_channels), build_activation(act)])
        self.branch.extend([last, nn.BatchNorm2d(last.out_channels)])
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != last.out_channels or shortcut == "none":
            self.shortcut = look_up("shortcut", shortcut, self.shortcuts)(inputs, last.out_channels, stride)
        self.activation = build_activation(act)

    def forward(self, x: Tensor) -> Tensor:
        """`(N, inputs, H, W)` to `(N, outputs, H/stride, W/stride)`."""
        return self.branch(x, self.shortcut(x), self.activation)


class PreactivationBlock(nn.Module):
    """BN, activation, conv for each convolution, add the shortcut.

    A shortcut that changes the shape starts after the first BN and activation, one that does not at the input.
    """

    shortcuts: Shortcuts = {"projection": bare_projection, "pad": PadShortcut, "none": NoShortcut}

    def __init__(self, kind: str, inputs: int, width: int, stride: int, act: str, shortcut: str) -> None:
        super().__init__()
        first, *rest = _convolutions(kind, inputs, width, stride)
        self.preactivation = nn.Sequential(nn.BatchNorm2d(inputs), build_activation(act))
        self.branch = nn.Sequential(first)
        for convolution in rest:
            self.branch.extend([nn.BatchNorm2d(convolution.in_channels), build_activation(act), convolution])
        outputs = rest[-1].out_channels
        self.shortcut: nn.Module | None = None
        if stride != 1 or inputs != outputs or shortcut == "none":
            self.shortcut = look_up("shortcut", shortcut, self.shortcuts)(inputs, outputs, stride)

    def forward(self, x: Tensor) -> Tensor:
        """`(N, inputs, H, W)` to `(N, outputs, H/stride, W/stride)`."""
        active = self.preactivation(x)
        return self.branch(active) + (x if self.shortcut is None else self.shortcut(active))


@register("resnet")
class ResNet(nn.Module):
    """3x3 stem, stages of residual blocks, global average, linear: `(N, 3, 32, 32)` to logits `(N, 10)`.

    Args:
        block: `basic` or `bottleneck` (1x1, 3x3, 1x1, with four times its width as output).
        blocks: residual blocks, one number per stage; every stage but the first halves height and width, and only
            the first may have none.
        widths: channels of the 3x3 convolutions, one number per stage.
        stem_width: output channels of the stem; 0 takes the first stage's width.
        preactivation: BN and activation before each convolution instead of after it.
        shortcut: where shapes differ, `projection` (a 1x1 convolution) or `pad` (zero channels, no parameters);
            `none` leaves out every shortcut.
        zero_init_residual: every branch starts at 0 (Goyal et al. 2017, section 5.1): the scale of its last BN or,
            with preactivation, its last convolution.
        pooling: what halves the map at the start of a stage: `stride` (its first block's stride, as published), or
            `max` or `average` pooling before that block, whose shortcut then sees every pixel.
        activation: a name of `layers.ACTIVATIONS`.
        head: `global_average` or `global_max`.
        dropout: before the last linear layer.
        whitening: a frozen whitening layer before the stem.
        dirac: the first filters of every convolution start as the identity.
    """

    def __init__(
        self,
        *,
        block: str,
        blocks: tuple[int, ...],
        widths: tuple[int, ...],
        stem_width: int,
        preactivation: bool,
        shortcut: str,
        zero_init_residual: bool,
        pooling: str,
        activation: str,
        head: str,
        dropout: float,
        whitening: bool,
        dirac: bool,
    ) -> None:
        super().__init__()
        expansion = look_up("block", block, EXPANSIONS)
        kind = PreactivationBlock if preactivation else Block
        self.whitening, channels = build_stem(whitening, activation)
        inputs = stem_width or widths[0]
        first = (conv(channels, inputs),) if preactivation else conv_bn_act(channels, inputs, 3, activation)
        self.stem = nn.Sequential(*first)
        self.stages = nn.Sequential()
        for stage, (count, width) in enumerate(zip(blocks, widths, strict=True)):
            layers = nn.Sequential()
            if stage and pooling != "stride":
                layers.append(build_pooling(pooling, inputs, activation))
            for index in range(count):
                stride = 2 if stage and not index and pooling == "stride" else 1
                layers.append(kind(block, inputs, width, stride, activation, shortcut))
                inputs = expansion * width
            self.stages.append(layers)
        if preactivation:
            self.stages.extend([nn.BatchNorm2d(inputs), build_activation(activation)])
        self.head = build_head(head, inputs, 1, dropout=dropout)
        init_weights(self)
        if dirac:
            dirac_(self)
        if zero_init_residual:
            _zero_branches(self)

    def forward(self, images: Tensor) -> Tensor:
        """Logits `(N, 10)` of images `(N, 3, 32, 32)`."""
        return self.head(self.stages(self.stem(self.whitening(images))))


def _zero_branches(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, Block | PreactivationBlock):
            nn.init.zeros_(module.branch[-1].get_parameter("weight"))
