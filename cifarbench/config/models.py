"""The keys of each model family: what `conf/model/*.yaml` may say, and the rules between keys.

Field names are the keyword arguments of the model's class. A rule that one key can break alone stands in its `key`;
a rule between keys stands in `__post_init__`. The classes rely on both and repeat neither. `fixed_size` says that a
model takes images of 32 px alone.
"""

from __future__ import annotations

import dataclasses

from cifarbench.config.classics import AlexNetConfig, GoogLeNetConfig, LeNetConfig, LinearConfig, MLPConfig
from cifarbench.config.keys import key
from cifarbench.config.model_rules import (
    ACTIVATION,
    ACTIVATIONS,
    DIRAC,
    DROPOUT,
    ELEMENTWISE,
    GLOBAL_HEAD,
    GLOBAL_HEADS,
    HEAD,
    HEAD_DROPOUT,
    HEADS,
    HIDDEN,
    IMAGE_SIZE,
    INITS,
    POOLING,
    POOLINGS,
    VGG_DEPTHS,
    WHITENING,
    halvings_fit,
    hidden_has_head,
    same_length,
)
from cifarbench.errors import ConfigError


@dataclasses.dataclass(frozen=True, kw_only=True)
class SimpleCNNConfig:
    """Blocks of two 3x3 convolutions and a pooling, then a head."""

    name: str = key("Name of the model.", choices=("simple_cnn",))
    first_widths: tuple[int, ...] = key("Output channels of each block's first convolution.", unit="channels", ge=1)
    second_widths: tuple[int, ...] = key("Output channels of each block's second convolution.", unit="channels", ge=1)
    norm: str = key("Convolutions that a batch norm follows, in each block.", choices=("all", "first", "none"))
    bias: bool = key("Give every convolution a bias; false leaves it out where a batch norm would cancel it.")
    spatial_dropout: tuple[float, ...] = key(
        "Share of whole channels dropped after each block's pooling, one value per block.", ge=0, lt=1
    )
    activation: str = key(ACTIVATION, choices=ACTIVATIONS)
    pooling: str = key(POOLING, choices=POOLINGS)
    head: str = key(HEAD, choices=HEADS)
    hidden: tuple[int, ...] = key(HIDDEN, unit="features", ge=1)
    dropout: float = key(HEAD_DROPOUT, ge=0, lt=1)
    whitening: bool = key(WHITENING)
    dirac: bool = key(DIRAC)
    init: str = key("First weights: he, as in every family; torch, its layers' own, as in tutorials.", choices=INITS)

    def __post_init__(self) -> None:
        """Check that the lists are one block each, that the map stays above 0 px, and that `hidden` has its head."""
        same_length("first_widths", self.first_widths, "second_widths", self.second_widths, "block")
        same_length("first_widths", self.first_widths, "spatial_dropout", self.spatial_dropout, "block")
        halvings_fit("first_widths", self.first_widths, "block", IMAGE_SIZE.bit_length() - 1)
        hidden_has_head(self.head, self.hidden)

    @property
    def fixed_size(self) -> bool:
        """Whether the head counts pixels."""
        return self.head == "flatten"


@dataclasses.dataclass(frozen=True, kw_only=True)
class VGGConfig:
    """VGG with batch norm."""

    name: str = key("Name of the model.", choices=("vgg",))
    depth: int = key("Layers with weights as the paper counts them: 11, 13, 16 or 19.", unit="layers")
    width: float = key("Factor on the paper's channels (64 to 512), rounded to multiples of 8.", gt=0, le=8)
    stages: int = key("How many of the paper's five stages: each ends in a pooling, the fifth at 1x1.", ge=1, le=5)
    activation: str = key(ACTIVATION, choices=ACTIVATIONS)
    pooling: str = key(POOLING, choices=POOLINGS)
    head: str = key(HEAD, choices=HEADS)
    hidden: tuple[int, ...] = key(HIDDEN, unit="features", ge=1)
    dropout: float = key(HEAD_DROPOUT, ge=0, lt=1)
    whitening: bool = key(WHITENING)
    dirac: bool = key(DIRAC)

    @property
    def fixed_size(self) -> bool:
        """Whether the head counts pixels; after five stages there is one, at any size."""
        return self.head == "flatten" and self.stages < 5

    def __post_init__(self) -> None:
        """Check that the paper has this depth, and that `hidden` has its head."""
        if self.depth not in VGG_DEPTHS:
            near = min(VGG_DEPTHS, key=lambda depth: abs(depth - self.depth))
            valid = ", ".join(map(str, VGG_DEPTHS))
            raise ConfigError(f"`model.depth` is {self.depth}; VGG has depths {valid}. The nearest is {near}.")
        hidden_has_head(self.head, self.hidden)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ResNetConfig:
    """ResNet, pre-activation ResNet and Wide ResNet."""

    name: str = key("Name of the model.", choices=("resnet",))
    block: str = key(
        "Residual block: `basic` (3x3, 3x3) or `bottleneck` (1x1, 3x3, 1x1, four times as wide at its end).",
        choices=("basic", "bottleneck"),
    )
    blocks: tuple[int, ...] = key("Residual blocks of each stage, 0 in the first alone; the others halve maps.", ge=0)
    widths: tuple[int, ...] = key("Channels of each stage's 3x3 convolutions.", unit="channels", ge=1)
    stem_width: int = key("Output channels of the first convolution; 0 takes the first of `widths`.", ge=0)
    preactivation: bool = key("Batch norm and activation before each convolution instead of after it.")
    shortcut: str = key(
        "Shortcut where shapes differ: `projection` (1x1 convolution) or `pad` (zero channels, no parameters); "
        "`none`: no shortcut anywhere, the plain network of the same depth.",
        choices=("projection", "pad", "none"),
    )
    zero_init_residual: bool = key("Start every residual branch at 0, so that each block begins as its shortcut.")
    pooling: str = key(
        "What halves the map: `stride` (of a stage's first block, as published), or 2x2 pooling before that block.",
        choices=("stride", "max", "average"),
    )
    activation: str = key("Nonlinearity after each batch norm.", choices=ELEMENTWISE)
    head: str = key(GLOBAL_HEAD, choices=GLOBAL_HEADS)
    dropout: float = key(DROPOUT, ge=0, lt=1)
    whitening: bool = key(WHITENING)
    dirac: bool = key(DIRAC)

    def __post_init__(self) -> None:
        """Check that both lists fit each other and the map, each halving has its block, and `pad` adds channels."""
        same_length("blocks", self.blocks, "widths", self.widths, "stage")
        halvings_fit("blocks", self.blocks, "stage", IMAGE_SIZE.bit_length())
        if 0 in self.blocks[1:] or self.blocks == (0,):
            raise ConfigError(
                f"`model.blocks` is {list(self.blocks)}; only the first of several stages can do without blocks. "
                "Give each other stage one or more."
            )
        if self.shortcut == "pad":
            self._check_pad()
        if self.shortcut == "none" and self.zero_init_residual:
            raise ConfigError(
                "`model.zero_init_residual` is true and `model.shortcut` none; branches that start at 0 would let "
                "nothing through. Set model.zero_init_residual=false."
            )

    def _check_pad(self) -> None:
        expansion = 4 if self.block == "bottleneck" else 1
        outputs = [self.stem_width or self.widths[0], *(expansion * width for width in self.widths)]
        if outputs != sorted(outputs):
            raise ConfigError(
                f"`model.shortcut` is pad, which can only add channels, but they go {outputs} from the stem through "
                "the stages. Make `model.widths` ascend, or set model.shortcut=projection."
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class EfficientNetLiteConfig:
    """Fused MBConv and MBConv stages under compound scaling."""

    name: str = key("Name of the model.", choices=("efficientnet_lite",))
    width: float = key("Factor on the base channels (16 to 512), rounded to multiples of 8.", gt=0, le=8)
    depth: float = key("Factor on each stage's number of blocks, rounded up.", gt=0, le=20)
    squeeze_excite: bool = key("Add a squeeze-excite gate to every MBConv block.")
    activation: str = key("Nonlinearity after each batch norm but those that end a block.", choices=ELEMENTWISE)
    stochastic_depth: float = key(
        "Probability of skipping the last block's branch for an image; it grows linearly from 0 at the first.",
        ge=0,
        lt=1,
    )
    dropout: float = key(DROPOUT, ge=0, lt=1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SpeedNetConfig:
    """The whitened network of the speedruns."""

    name: str = key("Name of the model.", choices=("speednet",))
    whitening: bool = key(WHITENING)
    widths: tuple[int, ...] = key("Channels of each group, which halves the map.", unit="channels", ge=1)
    depth: int = key("Convolutions of each group.", ge=1, le=16)
    residual: bool = key("Add each group's first map to its last.")
    pooling: str = key(POOLING, choices=POOLINGS)
    head: str = key(GLOBAL_HEAD, choices=GLOBAL_HEADS)
    activation: str = key("Nonlinearity after each batch norm and the whitening.", choices=ELEMENTWISE)
    dirac: bool = key(DIRAC)
    norm_momentum: float = key("Weight of the newest batch in the running statistics of batch norm.", gt=0, le=1)
    norm_eps: float = key("Added to the variance in batch norm.", gt=0, le=1)
    norm_scale: bool = key("Train the scale of every batch norm, and not its shift alone.")

    def __post_init__(self) -> None:
        """Check that the map stays above 0 px."""
        halvings_fit("widths", self.widths, "group", (IMAGE_SIZE - self.whitening).bit_length() - 1)
        if self.residual and self.depth == 1:
            raise ConfigError("`model.residual` is true and `model.depth` 1; a residual needs a depth of 2 or more.")


MODELS: dict[str, type] = {
    "linear": LinearConfig,
    "mlp": MLPConfig,
    "lenet": LeNetConfig,
    "alexnet": AlexNetConfig,
    "googlenet": GoogLeNetConfig,
    "simple_cnn": SimpleCNNConfig,
    "vgg": VGGConfig,
    "resnet": ResNetConfig,
    "efficientnet_lite": EfficientNetLiteConfig,
    "speednet": SpeedNetConfig,
}
SHIPPED = frozenset(MODELS)  # plugins add to the table
