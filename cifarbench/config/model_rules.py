"""What several model families' keys share: choices, sentences, and the rules between keys."""

from __future__ import annotations

from cifarbench.errors import ConfigError

ELEMENTWISE = ("relu", "leaky_relu", "silu", "gelu", "elu", "sigmoid", "tanh")
ACTIVATIONS = (*ELEMENTWISE, "maxout")
POOLINGS = ("max", "average", "stride")
HEADS = ("global_average", "global_max", "flatten")
INITS = ("he", "torch")
GLOBAL_HEADS = ("global_average", "global_max")
VGG_DEPTHS = (11, 13, 16, 19)
IMAGE_SIZE = 32  # px, both sides

ACTIVATION = "Nonlinearity after each convolution and hidden layer; maxout has two linear pieces a channel."
POOLING = "How a map is halved: 2x2 max, 2x2 average, or a learned 3x3 convolution of stride 2."
HEAD = "Classifier: mean or maximum over the map and linear, or `flatten`: all pixels, hidden layers, linear."
GLOBAL_HEAD = "Classifier: mean or maximum over the map, linear."
HIDDEN = "Widths of the hidden layers of `head=flatten`; [] for none."
DROPOUT = "Share of features dropped before the last linear layer."
WHITENING = "Put a frozen 2x2 layer first that decorrelates pixels, computed from training images (Page 2019)."
DIRAC = "Start the first filters of every convolution as the identity (Zagoruyko and Komodakis 2017)."
HEAD_DROPOUT = "Share of features dropped in the head: before its first and before its last linear layer."


def same_length(first: str, ones: tuple, second: str, others: tuple, part: str) -> None:
    """Raise ConfigError unless two lists that have one value per `part` are of one length."""
    if len(ones) != len(others):
        raise ConfigError(
            f"`model.{second}` is {list(others)}, {len(others)} long, but `model.{first}` is {list(ones)}, "
            f"{len(ones)} long; each has one value per {part}. Give both the same length."
        )


def halvings_fit(name: str, values: tuple, part: str, most: int) -> None:
    """Raise ConfigError unless a list holds 1 to `most` values, as many as a 32 px map can be halved."""
    if not 1 <= len(values) <= most:
        raise ConfigError(
            f"`model.{name}` is {list(values)}, {len(values)} {part}s; a {IMAGE_SIZE} px image allows 1 to {most}. "
            f"Change the length of each list that has one value per {part}."
        )


def hidden_has_head(head: str, hidden: tuple[int, ...]) -> None:
    """Raise ConfigError where hidden layers are asked for with a head that has none."""
    if hidden and head != "flatten":
        raise ConfigError(
            f"`model.hidden` is {list(hidden)}, but model.head={head} has no hidden layers. "
            "Set model.head=flatten, or model.hidden=[]."
        )
