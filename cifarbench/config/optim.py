"""The keys of every optimizer and every learning-rate schedule."""

from __future__ import annotations

from dataclasses import dataclass

from cifarbench.config.durations import check_span, span_amount
from cifarbench.config.keys import key
from cifarbench.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class PlainConfig:
    """What every optimizer but Muon has, those of plugins too."""

    name: str = key("The optimizer.")
    lr: float = key("Peak learning rate.", gt=0, le=1000)
    l1: float = key("L1 penalty of weights, which leaves some at exactly 0: with sgd, this times Σ|w|.", ge=0, le=1)


@dataclass(frozen=True, kw_only=True)
class DecayingConfig(PlainConfig):
    """An optimizer with weight decay."""

    weight_decay: float = key("Weight decay (for adamw decoupled, else added to the gradient).", ge=0, le=1)
    decay_norm_bias: bool = key("Whether weight decay also acts on biases and normalisation parameters.")


@dataclass(frozen=True, kw_only=True)
class SGDConfig(DecayingConfig):
    """Stochastic gradient descent (Sutskever et al., 2013, for the Nesterov form)."""

    name: str = key("The optimizer.", choices=["sgd"])
    momentum: float = key("Momentum; 0 switches it off.", ge=0, lt=1)
    nesterov: bool = key("Whether the momentum is Nesterov's.")

    def __post_init__(self) -> None:
        if self.nesterov and self.momentum == 0:
            raise ConfigError("`optim.nesterov` is true and `optim.momentum` 0; Nesterov needs a momentum above 0.")


@dataclass(frozen=True, kw_only=True)
class AdamConfig(DecayingConfig):
    """Adam (Kingma & Ba, 2015), and AdamW (Loshchilov & Hutter, 2019)."""

    name: str = key("The optimizer.", choices=["adam", "adamw"])
    betas: tuple[float, float] = key("Decay of the running mean and of the running square.", ge=0, lt=1)
    eps: float = key("Added to the denominator.", gt=0, le=1)


@dataclass(frozen=True, kw_only=True)
class RMSpropConfig(DecayingConfig):
    """RMSprop (Tieleman & Hinton, 2012)."""

    name: str = key("The optimizer.", choices=["rmsprop"])
    momentum: float = key("Momentum; 0 switches it off.", ge=0, lt=1)
    alpha: float = key("Decay of the running square.", ge=0, lt=1)
    eps: float = key("Added to the denominator.", gt=0, le=1)


@dataclass(frozen=True, kw_only=True)
class MuonConfig:
    """Muon for every matrix but the last layer's (Jordan et al., 2024), Nesterov SGD for the rest."""

    name: str = key("The optimizer.", choices=["muon"])
    lr: float = key("Peak learning rate of the matrices; an update has singular values near this.", gt=0, le=1000)
    momentum: float = key("Nesterov momentum of the matrices.", ge=0, lt=1)
    steps: int = key("Newton-Schulz steps that make an update orthogonal.", ge=1, le=20)
    rescale: bool = key("Set each matrix to Frobenius norm √rows before its step; for networks with batch norm.")
    bias_lr: float = key("Peak learning rate of biases and normalisation parameters.", gt=0, le=1000)
    head_lr: float = key("Peak learning rate of the last layer, times 512/inputs if it has more.", gt=0, le=1000)
    side_momentum: float = key("Nesterov momentum of biases, norms and the last layer.", ge=0, lt=1)
    weight_decay: float = key(
        "Share of biases and last layer taken off per step at the peak rate, times 1 / (1 - side_momentum).", ge=0, lt=1
    )


@dataclass(frozen=True, kw_only=True)
class _Schedule:
    warmup: str = key("Linear rise from 0 to the peak rate, a span of the run: 5%, 2epochs, 200steps.", unit="span")

    def __post_init__(self) -> None:
        check_span(self.warmup, "scheduler.warmup")


@dataclass(frozen=True, kw_only=True)
class ConstantConfig(_Schedule):
    """The peak rate throughout."""

    name: str = key("The schedule.", choices=["constant"])


@dataclass(frozen=True, kw_only=True)
class StepConfig(_Schedule):
    """A drop by `gamma` after every span."""

    name: str = key("The schedule.", choices=["step"])
    every: str = key("Span of the run between two drops: 30%, 10epochs.", unit="span")
    gamma: float = key("Factor of each drop.", gt=0, le=1)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_span(self.every, "scheduler.every")
        if span_amount(self.every) == 0:
            raise ConfigError(f"`scheduler.every` is {self.every!r}; the span between two drops must be above 0.")


@dataclass(frozen=True, kw_only=True)
class MultiStepConfig(_Schedule):
    """A drop by `gamma` at each milestone."""

    name: str = key("The schedule.", choices=["multistep"])
    milestones: tuple[str, ...] = key(
        "When the rate drops, as spans from the start: [50%,75%] or [100epochs].", unit="spans"
    )
    gamma: float = key("Factor of each drop.", gt=0, le=1)

    def __post_init__(self) -> None:
        super().__post_init__()
        for index, milestone in enumerate(self.milestones):
            check_span(milestone, f"scheduler.milestones[{index}]")


@dataclass(frozen=True, kw_only=True)
class DecayConfig(_Schedule):
    """A straight line, half a cosine (Loshchilov & Hutter, 2017), from the peak rate to its `final` share."""

    name: str = key("The schedule.", choices=["linear", "cosine"])
    final: float = key("Rate at the end, as a share of the peak.", ge=0, le=1)


@dataclass(frozen=True, kw_only=True)
class OneCycleConfig(_Schedule):
    """Up from `start` over the warm-up, then down to `final`, both along half a cosine (Smith & Topin, 2018)."""

    name: str = key("The schedule.", choices=["onecycle"])
    start: float = key("Rate at the start, as a share of the peak.", ge=0, le=1)
    final: float = key("Rate at the end, as a share of the peak.", ge=0, le=1)


@dataclass(frozen=True, kw_only=True)
class PlateauConfig(_Schedule):
    """A drop by `factor` when the validation loss has stopped falling."""

    name: str = key("The schedule.", choices=["plateau"])
    factor: float = key("Factor of each drop.", gt=0, lt=1)
    patience: int = key("Validations without improvement before a drop.", unit="validations", ge=0)
    threshold: float = key("Relative fall of the validation loss that counts as improvement.", ge=0, lt=1)
    minimum: float = key("Lowest rate, as a share of the peak.", ge=0, le=1)


OPTIMIZERS: dict[str, type] = {
    "sgd": SGDConfig,
    "adam": AdamConfig,
    "adamw": AdamConfig,
    "rmsprop": RMSpropConfig,
    "muon": MuonConfig,
}
SCHEDULERS: dict[str, type] = {
    "constant": ConstantConfig,
    "step": StepConfig,
    "multistep": MultiStepConfig,
    "linear": DecayConfig,
    "cosine": DecayConfig,
    "onecycle": OneCycleConfig,
    "plateau": PlateauConfig,
}
