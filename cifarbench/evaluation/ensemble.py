"""Several trained models as one: their probabilities averaged, or their weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from cifarbench.errors import IntegrityError
from cifarbench.evaluation.comparison import compare, mean_gain
from cifarbench.evaluation.metrics import wilson_interval
from cifarbench.evaluation.predictions import Predictions

_SMALLEST = 1e-45  # the logarithm stays finite


def mean_predictions(members: Sequence[Predictions]) -> Predictions:
    """The members' mean probabilities, as logits (their logarithms).

    Raises:
        IntegrityError: the members do not answer for the same images in the same order.
    """
    first = members[0]
    _check_same_images(members)
    mean = torch.stack([member.probabilities for member in members]).mean(0)
    return Predictions(first.indices, first.targets, mean.clamp_min(_SMALLEST).log().float())


def _check_same_images(members: Sequence[Predictions]) -> None:
    first = members[0]
    for member in members[1:]:
        same = torch.equal(member.indices, first.indices) and torch.equal(member.targets, first.targets)
        if not same:
            raise IntegrityError("the runs' predictions.npz answer for different test images; they have no mean.")


def mean_weights(states: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """The mean of every floating-point tensor over `states` ("Model soups", Wortsman et al., 2022).

    Counters are those of the first state.

    Raises:
        IntegrityError: the states hold other names or shapes.
    """
    shapes = [{name: value.shape for name, value in state.items()} for state in states]
    if any(other != shapes[0] for other in shapes[1:]):
        raise IntegrityError(
            "the runs hold weights of different shapes; only runs of one architecture can be averaged."
        )
    return {
        name: torch.stack([state[name].double() for state in states]).mean(0).to(value.dtype)
        if value.is_floating_point()
        else value
        for name, value in states[0].items()
    }


@torch.no_grad()
def renew_batch_norm(model: nn.Module, batches: Sequence[Tensor]) -> None:
    """Measure batch norm's running statistics anew on normalised training `batches`, as averaged weights need.

    Izmailov et al., "Averaging Weights Leads to Wider Optima" (2018), section 3.2.
    """
    norms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    if not norms:
        return
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a plain mean over the batches
        norm.train()
    for batch in batches:
        model(batch)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    model.eval()


def gains(ensemble: Predictions, members: Sequence[Predictions]) -> dict[str, Any]:
    """What the ensemble gains over the mean of its members and over each one, as plain values.

    Raises:
        IntegrityError: they do not answer for the same images in the same order.
    """
    _check_same_images([ensemble, *members])
    mean, interval = mean_gain(ensemble.right, torch.stack([member.right for member in members]))
    rows = []
    for member in members:
        against = compare(member.right, ensemble.right)
        rows.append(
            {
                "accuracy": member.right.double().mean().item(),
                "accuracy_interval": list(wilson_interval(int(member.right.sum()), len(member.right))),
                "gain": against.difference,
                "gain_interval": list(against.interval),
                "p": against.p,
            }
        )
    return {"gain_over_mean": mean, "gain_over_mean_interval": list(interval), "members": rows}
