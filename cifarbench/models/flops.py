"""Floating-point operations of a forward pass, by torch's own counter."""

from __future__ import annotations

import copy

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode


def count_flops(model: nn.Module) -> int:
    """Operations of one forward pass for one image (3, 32, 32); a multiply-add counts as two."""
    twin = copy.deepcopy(model).to("cpu").eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        twin(torch.zeros(1, 3, 32, 32))
    return counter.get_total_flops()


def count_parameters(model: nn.Module) -> int:
    """Trainable parameters."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
