"""Parameter groups and optimizers from a checked config."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.optim import SGD, Adam, AdamW, RMSprop

from cifarbench.config.optim import AdamConfig, MuonConfig, RMSpropConfig, SGDConfig
from cifarbench.optim import eager
from cifarbench.optim.muon import Muon

PlainConfig = SGDConfig | AdamConfig | RMSpropConfig
OptimizerConfig = PlainConfig | MuonConfig

# A step of SGD moves the logits by lr times the squared length of the last layer's input, so the rate that still
# converges falls as that layer widens.
HEAD_INPUTS = 512


def parameter_groups(model: nn.Module, config: PlainConfig) -> list[dict[str, Any]]:
    """Two groups: weights, with weight decay, and biases and norms (every tensor below 2-D), by option without."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    weights = [parameter for parameter in trained if parameter.ndim >= 2]
    small = [parameter for parameter in trained if parameter.ndim < 2]
    small_decay = config.weight_decay if config.decay_norm_bias else 0.0
    groups = [
        {"params": weights, "lr": config.lr, "weight_decay": config.weight_decay},
        {"params": small, "lr": config.lr, "weight_decay": small_decay},
    ]
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
    model: nn.Module, config: OptimizerConfig, device: torch.device, precision: str = "fp32"
) -> torch.optim.Optimizer:
    """The optimizer that `config` names over the model's groups, fused where torch has a fused kernel.

    Every group's `initial_lr` is its peak rate, which a schedule multiplies. Muon's products are in bf16 where that is
    the `precision`, else in fp32: devices that choose fp16 have no bf16.
    """
    optimizer = _optimizer(model, config, device, precision)
    for group in optimizer.param_groups:
        group["initial_lr"] = group["lr"]
    return optimizer


def _optimizer(
    model: nn.Module, config: OptimizerConfig, device: torch.device, precision: str
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
    kind = AdamW if config.name == "adamw" else Adam
    return eager.make(kind, groups, config.lr, betas=config.betas, eps=config.eps, fused=fused)
