"""Parameter groups and optimizers from a checked config."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from cifarbench.config.optim import AdamConfig, RMSpropConfig, SGDConfig

OptimizerConfig = SGDConfig | AdamConfig | RMSpropConfig


def parameter_groups(model: nn.Module, config: OptimizerConfig) -> list[dict[str, Any]]:
    """Two groups: weights, with weight decay, and biases and norms (every tensor below 2-D), by option without."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    weights = [parameter for parameter in trained if parameter.ndim >= 2]
    small = [parameter for parameter in trained if parameter.ndim < 2]
    small_decay = config.weight_decay if config.decay_norm_bias else 0.0
    groups = [
        {"params": weights, "weight_decay": config.weight_decay},
        {"params": small, "weight_decay": small_decay},
    ]
    return [group for group in groups if group["params"]]


def build_optimizer(model: nn.Module, config: OptimizerConfig, device: torch.device) -> torch.optim.Optimizer:
    """The optimizer that `config` names over the model's groups, fused where torch has a fused kernel."""
    groups = parameter_groups(model, config)
    fused = device.type in ("cpu", "cuda")
    if isinstance(config, SGDConfig):
        return torch.optim.SGD(groups, config.lr, momentum=config.momentum, nesterov=config.nesterov, fused=fused)
    if isinstance(config, RMSpropConfig):
        return torch.optim.RMSprop(groups, config.lr, alpha=config.alpha, eps=config.eps, momentum=config.momentum)
    kind = torch.optim.AdamW if config.name == "adamw" else torch.optim.Adam
    return kind(groups, config.lr, betas=config.betas, eps=config.eps, fused=fused)
