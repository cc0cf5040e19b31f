"""Averaged weights against torch's own, and what a seed of every step draws."""

from __future__ import annotations

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from cifarbench.compute import draw_from
from cifarbench.training.averaging import Average


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4 * 36, 10))


def test_the_average_is_that_of_torch_and_starts_anew_when_told():
    model = network()
    ours, theirs = (
        Average(model, 0.9),
        AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=True),
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for step in range(6):
        model(torch.randn(8, 3, 8, 8)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        if step == 3:
            ours.restart()
            theirs.n_averaged.zero_()
        ours.update_parameters(model)
        theirs.update_parameters(model)
        for (name, mine), other in zip(ours.state_dict().items(), theirs.state_dict().values(), strict=True):
            if mine.is_floating_point() or name == "n_averaged":
                assert torch.equal(mine, other), name
        assert (step != 3) or torch.equal(ours.module[0].weight, model[0].weight)
    assert ours.module[1].num_batches_tracked == model[1].num_batches_tracked == 6
    assert ours.state_dict().keys() == theirs.state_dict().keys()


def test_a_step_draws_what_torch_draws_from_its_seed():
    torch.manual_seed(1 << 40)
    expected = torch.rand(5), nn.functional.dropout(torch.ones(50), 0.5)
    draw_from(1 << 40, torch.device("cpu"))
    assert torch.equal(torch.rand(5), expected[0])
    assert torch.equal(nn.functional.dropout(torch.ones(50), 0.5), expected[1])
