"""The keys of the models that CNNs are compared with, and of the early CNNs, as `models.py` describes them."""

from __future__ import annotations

import dataclasses

from cifarbench.config.keys import key
from cifarbench.config.model_rules import (
    ACTIVATION,
    ACTIVATIONS,
    DROPOUT,
    GLOBAL_HEAD,
    GLOBAL_HEADS,
    HEAD,
    HEAD_DROPOUT,
    HEADS,
    HIDDEN,
    POOLING,
    POOLINGS,
    hidden_has_head,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LinearConfig:
    """One linear layer on the pixels."""

    name: str = key("Name of the model.", choices=("linear",))
    bias: bool = key("Add a constant to each class's score.")

    fixed_size = True


@dataclasses.dataclass(frozen=True, kw_only=True)
class MLPConfig:
    """Fully connected layers on the pixels."""

    name: str = key("Name of the model.", choices=("mlp",))
    hidden: tuple[int, ...] = key("Widths of the hidden layers.", unit="features", ge=1)
    activation: str = key(ACTIVATION, choices=ACTIVATIONS)
    batch_norm: bool = key("Batch norm before each activation.")
    dropout: float = key("Share of features dropped after each activation.", ge=0, lt=1)

    fixed_size = True


@dataclasses.dataclass(frozen=True, kw_only=True)
class LeNetConfig:
    """LeNet-5: two 5x5 convolutions with pooling, then fully connected layers."""

    name: str = key("Name of the model.", choices=("lenet",))
    widths: tuple[int, int] = key("Output channels of the two convolutions.", unit="channels", ge=1)
    hidden: tuple[int, ...] = key("Widths of the hidden layers.", unit="features", ge=1)
    activation: str = key(ACTIVATION, choices=ACTIVATIONS)
    pooling: str = key(POOLING, choices=POOLINGS)
    dropout: float = key(HEAD_DROPOUT, ge=0, lt=1)

    fixed_size = True


@dataclasses.dataclass(frozen=True, kw_only=True)
class AlexNetConfig:
    """AlexNet: five convolutions, then fully connected layers."""

    name: str = key("Name of the model.", choices=("alexnet",))
    width: float = key("Factor on the channels (64 to 384), rounded to multiples of 8.", gt=0, le=8)
    batch_norm: bool = key("Batch norm before the activation of each convolution.")
    activation: str = key(ACTIVATION, choices=ACTIVATIONS)
    pooling: str = key(POOLING, choices=POOLINGS)
    head: str = key(HEAD, choices=HEADS)
    hidden: tuple[int, ...] = key(HIDDEN, unit="features", ge=1)
    dropout: float = key(HEAD_DROPOUT, ge=0, lt=1)

    def __post_init__(self) -> None:
        """Check that `hidden` has its head."""
        hidden_has_head(self.head, self.hidden)

    @property
    def fixed_size(self) -> bool:
        """Whether the head counts pixels."""
        return self.head == "flatten"


@dataclasses.dataclass(frozen=True, kw_only=True)
class GoogLeNetConfig:
    """GoogLeNet: nine Inception blocks."""

    name: str = key("Name of the model.", choices=("googlenet",))
    width: float = key("Factor on the paper's channels (16 to 384), rounded to multiples of 8.", gt=0, le=8)
    activation: str = key(ACTIVATION, choices=ACTIVATIONS)
    pooling: str = key(POOLING, choices=POOLINGS)
    head: str = key(GLOBAL_HEAD, choices=GLOBAL_HEADS)
    dropout: float = key(DROPOUT, ge=0, lt=1)
