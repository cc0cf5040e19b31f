"""Parameter groups and optimizers from a checked config."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.optim import SGD, Adam, AdamW, RMSprop

from cifarbench.config.optim import AdamConfig, DecayingConfig, MuonConfig, PlainConfig, RMSpropConfig, SGDConfig
from cifarbench.config.own import arguments, is_own
from cifarbench.errors import ConfigError
from cifarbench.optim import eager
from cifarbench.optim.muon import Muon
from cifarbench.optim.registry import OWN

# A step of SGD moves the logits by lr times the squared length of the last layer's input, so the rate that still
# converges falls as that layer widens.
HEAD_INPUTS = 512


def parameter_groups(model: nn.Module, config: PlainConfig) -> list[dict[str, Any]]:
    """Two groups: weights, with weight decay, and biases and norms (every tensor below 2-D), by option without."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    weights = [parameter for parameter in trained if parameter.ndim >= 2]
    small = [parameter for parameter in trained if parameter.ndim < 2]
    groups: list[dict[str, Any]] = [{"params": weights, "lr": config.lr}, {"params": small, "lr": config.lr}]
    if isinstance(config, DecayingConfig):
        groups[0]["weight_decay"] = config.weight_decay
        groups[1]["weight_decay"] = config.weight_decay if config.decay_norm_bias else 0.0
    return [group for group in groups if group["params"]]


def muon_groups(model: nn.Module, config: MuonConfig) -> list[dict[str, Any]]:
    """Three groups: matrices, which are orthogonalised; biases and norms; the last linear layer's weights.

    A last layer of more than `HEAD_INPUTS` inputs gets `head_lr` · HEAD_INPUTS / inputs.
    """
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    linear = [module.weight for module in model.modules() if isinstance(module, nn.Linear)]
    last = linear[-1] if linear else None
    matrices = [parameter for parameter in trained if parameter.ndim >= 2 and parameter is not last]
    small = [parameter for parameter in trained if parameter.ndim < 2]
    head_lr = config.head_lr * (1.0 if last is None else min(1.0, HEAD_INPUTS / last.shape[1]))
    side: dict[str, Any] = {"orthogonal": False, "momentum": config.side_momentum}
    groups = [
        {"params": matrices, "lr": config.lr, "orthogonal": True, "momentum": config.momentum},
        {"params": small, "lr": config.bias_lr, "weight_decay": config.weight_decay / config.bias_lr, **side},
        {
            "params": [] if last is None else [last],
            "lr": head_lr,
            "weight_decay": config.weight_decay / head_lr,
            **side,
        },
    ]
    return [group for group in groups if group["params"]]


def build_optimizer(
    model: nn.Module, config: PlainConfig | MuonConfig, device: torch.device, precision: str = "fp32"
) -> torch.optim.Optimizer:
    """The optimizer that `config` names over the model's groups, fused where torch has a fused kernel.

    Every group's `initial_lr` is its peak rate, which a schedule multiplies. Muon's products are in bf16 where that is
    the `precision`, else in fp32: devices that choose fp16 have no bf16.
    """
    optimizer = _optimizer(model, config, device, precision)
    for group in optimizer.param_groups:
        group["initial_lr"] = group["lr"]
    if isinstance(config, PlainConfig) and config.l1:
        # Momentum adds up a lasting gradient to 1 / (1 - momentum) times itself, and so what is held against it.
        momentum = config.momentum if isinstance(config, SGDConfig | RMSpropConfig) else 0.0
        strength = config.l1 / (1 - momentum)
        optimizer.register_step_post_hook(lambda *_: _shrink(optimizer, strength))
    return optimizer


@torch.no_grad()
def _shrink(optimizer: torch.optim.Optimizer, strength: float) -> None:
    """Move every weight that took a step by lr · `strength` towards 0, and no further; biases and norms stay.

    It is the proximal operator of the L1 norm, soft thresholding (Parikh & Boyd, "Proximal Algorithms", 2014, section
    6.5.2), so that SGD ends where the loss plus l1 · Σ|w| is least. The penalty's gradient, ± l1, would let weights
    swing about 0 instead. As with AdamW's decay, running squares do not scale it.
    """
    overflowed = getattr(optimizer, "found_inf", None)  # a fused step skips itself, where fp16 gradients overflow
    for group in optimizer.param_groups:
        weights = [parameter for parameter in group["params"] if parameter.ndim >= 2 and parameter.grad is not None]
        if weights:
            most = group["lr"] * strength  # a scalar on the device where `lr` is one
            most = most if overflowed is None else most * (1 - overflowed)
            torch._foreach_sub_(weights, [weight.clamp(-most, most) for weight in weights])


def _optimizer(
    model: nn.Module, config: PlainConfig | MuonConfig, device: torch.device, precision: str
) -> torch.optim.Optimizer:
    if isinstance(config, MuonConfig):
        dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        return eager.make(
            Muon,
            muon_groups(model, config),
            config.lr,
            momentum=config.momentum,
            steps=config.steps,
            rescale=config.rescale,
            dtype=dtype,
        )
    groups = parameter_groups(model, config)
    fused = device.type in ("cpu", "cuda")
    if isinstance(config, SGDConfig):
        return eager.make(SGD, groups, config.lr, momentum=config.momentum, nesterov=config.nesterov, fused=fused)
    if isinstance(config, RMSpropConfig):
        return eager.make(RMSprop, groups, config.lr, alpha=config.alpha, eps=config.eps, momentum=config.momentum)
    if is_own(config):
        return _own(groups, config)
    assert isinstance(config, AdamConfig)
    kind = AdamW if config.name == "adamw" else Adam
    return eager.make(kind, groups, config.lr, betas=config.betas, eps=config.eps, fused=fused)


def _own(groups: list[dict[str, Any]], config: PlainConfig) -> torch.optim.Optimizer:
    """The optimizer of a plugin; ConfigError where it is none, or refuses what it is given."""
    name, made = config.name, OWN.find(config.name)
    values = {"lr": config.lr, **arguments(config)}
    try:
        is_class = isinstance(made, type) and issubclass(made, torch.optim.Optimizer)
        optimizer = eager.make(made, groups, **values) if is_class else made(groups, **values)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"optim={name} cannot be made ({type(error).__name__}: {error}).") from error
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise ConfigError(f"optim={name} makes a {type(optimizer).__name__}; it must be a torch.optim.Optimizer.")
    return optimizer
