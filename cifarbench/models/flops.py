"""What a model costs, in numbers that stand in every run's record."""

from __future__ import annotations

from torch import nn

from cifarbench.models.layer_table import layer_table


def count_flops(model: nn.Module) -> int:
    """Operations of one forward pass for one image (3, 32, 32), by torch's formulas; a multiply-add counts as two."""
    return sum(row.flops for row in layer_table(model))


def count_parameters(model: nn.Module) -> int:
    """Trainable parameters."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def count_zeros(model: nn.Module) -> int:
    """Trainable parameters that are exactly 0, as an L1 penalty leaves them."""
    return sum(int((parameter == 0).sum()) for parameter in model.parameters() if parameter.requires_grad)
