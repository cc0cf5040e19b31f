"""An optimizer's state in a checkpoint: what is saved of it, and what is taken over.

torch's own `load_state_dict` compares neither names nor shapes, and brings every tensor to the type of its parameter.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from cifarbench.errors import ConfigError, IntegrityError

_SLOTS: dict[str, set[str]] = {
    "SGD": set(),
    "Adam": {"step", "exp_avg", "exp_avg_sq"},
    "AdamW": {"step", "exp_avg", "exp_avg_sq"},
    "RMSprop": {"step", "square_avg"},
    "Muon": {"momentum_buffer"},
}
_OURS = ("torch.optim.", "cifarbench.optim.")  # where these come from
_PLAIN = (Tensor, int, float, bool, str, type(None))


def is_shipped(optimizer: Optimizer) -> bool:
    """Whether it is one of ours, whose state is known; what a plugin's keeps is its own affair."""
    return type(optimizer).__name__ in _SLOTS and type(optimizer).__module__.startswith(_OURS)


def saved(optimizer: Optimizer) -> dict[str, Any]:
    """The state as a checkpoint holds it, with the optimizer's name.

    Raises:
        ConfigError: a plugin's optimizer keeps what no checkpoint may hold.
    """
    state = optimizer.state_dict()
    odd = None if is_shipped(optimizer) else _odd(state, "")
    if odd:
        raise ConfigError(
            f"optimizer {type(optimizer).__name__} keeps {odd} in its state; a checkpoint holds tensors, numbers, "
            "texts, lists and dicts alone: keep it as one of these."
        )
    return {"name": type(optimizer).__name__, **state}


def _odd(value: Any, place: str) -> str | None:
    """The first value that is not plain: "`buffer`, a deque"."""
    if isinstance(value, dict):
        named = [(str(name), inner) for name, inner in value.items()]
    elif isinstance(value, list | tuple):
        named = [(place, inner) for inner in value]
    else:
        return None if type(value) in _PLAIN or isinstance(value, Tensor) else f"`{place}`, a {type(value).__name__},"
    return next((found for name, inner in named if (found := _odd(inner, name))), None)


def load(optimizer: Optimizer, state: Any, path: Path | str) -> None:
    """Take over a state, after comparing its groups and, of shipped optimizers, its entries and their shapes.

    Raises:
        IntegrityError: the state belongs to another optimizer or model.
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    try:
        fits = state["name"] == type(optimizer).__name__ and _fits_groups(state["param_groups"], optimizer)
        shapes = {index: parameters[index].shape for index in state["state"] if isinstance(index, int)}
        if is_shipped(optimizer):
            fits = fits and _fits_slots(state["state"], shapes, _SLOTS[state["name"]])
    except (TypeError, KeyError, IndexError, AttributeError) as error:
        raise IntegrityError(f"{path} holds no optimizer state where it should be ({error!r}).") from error
    if not fits:
        raise IntegrityError(f"{path} holds the state of another optimizer or model than {type(optimizer).__name__}.")
    optimizer.load_state_dict({"state": state["state"], "param_groups": state["param_groups"]})
    if not is_shipped(optimizer):
        _retype(optimizer, state["state"], parameters)


def _fits_groups(groups: list[dict[str, Any]], optimizer: Optimizer) -> bool:
    """Whether there are as many groups of as many parameters with the same keys; a plugin's may have set more."""
    expected = optimizer.state_dict()["param_groups"]
    if len(groups) != len(expected) or not all(isinstance(group["lr"], float) for group in groups):
        return False
    same = set.__eq__ if is_shipped(optimizer) else set.__ge__
    return all(
        len(group["params"]) == len(other["params"]) and same(set(group), set(other))
        for group, other in zip(groups, expected, strict=True)
    )


def _fits_slots(state: dict[int, dict[str, Any]], shapes: dict[int, torch.Size], needed: set[str]) -> bool:
    """Whether all parameters have the same entries, at least the `needed` ones, and tensors of their own shape."""
    slots = [set(values) for values in state.values()]
    if slots and not (slots[0] >= needed and all(slot == slots[0] for slot in slots)):
        return False
    return all(
        value.shape == shapes[index]
        for index, values in state.items()
        for value in values.values()
        if isinstance(value, Tensor) and value.ndim > 0
    )


def _retype(optimizer: Optimizer, state: dict[Any, dict[str, Any]], parameters: list[Tensor]) -> None:
    """Give each tensor of a plugin's state the type that it was saved with."""
    for index, values in state.items():
        if isinstance(index, int) and isinstance(values, dict):
            parameter = parameters[index]
            tensors = {name: value for name, value in values.items() if isinstance(value, Tensor)}
            optimizer.state[parameter].update(
                {name: value.to(parameter.device, copy=True) for name, value in tensors.items()}
            )
