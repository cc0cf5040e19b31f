"""An optimizer's state in a checkpoint: what is saved of it, and what is taken over.

torch's own `load_state_dict` compares neither names nor shapes, and brings every tensor to the type of its parameter.
"""

from __future__ import annotations

from collections import OrderedDict
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
_PLAIN = (int, float, bool, str, type(None))
_FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
_WHOLE = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool)


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
    """The first value that a checkpoint's reader would refuse, which takes no subclasses: "`buffer`, a deque,"."""
    kind = type(value)
    if kind is Tensor and value.layout is torch.strided and value.dtype in _FLOATS + _WHOLE:
        return None
    if kind in (dict, OrderedDict):
        named = [(str(name), part) for name, inner in value.items() for part in (name, inner)]
    elif kind in (list, tuple):
        named = [(place, inner) for inner in value]
    else:
        return None if kind in _PLAIN else f"`{place}`, a {_told(value)},"
    return next((found for name, inner in named if (found := _odd(inner, name))), None)


def _told(value: Any) -> str:
    return f"{value.dtype} {type(value).__name__}" if isinstance(value, Tensor) else type(value).__name__


def load(optimizer: Optimizer, state: Any, path: Path | str) -> None:
    """Take over a state, after comparing its groups and, of shipped optimizers, its entries and their shapes.

    Raises:
        IntegrityError: the state belongs to another optimizer or model.
    """
    parameters = _parameters(optimizer)
    try:
        fits = state["name"] == type(optimizer).__name__ and _fits_groups(state["param_groups"], optimizer)
        shapes = {index: parameters[index].shape for index in state["state"] if isinstance(index, int)}
        if is_shipped(optimizer):
            fits = fits and _fits_slots(state["state"], shapes, _SLOTS[state["name"]])
    except (TypeError, KeyError, IndexError, AttributeError) as error:
        raise IntegrityError(f"{path} holds no optimizer state where it should be ({error!r}).") from error
    if not fits:
        raise IntegrityError(f"{path} holds the state of another optimizer or model than {type(optimizer).__name__}.")
    take_over(optimizer, state)


def take_over(optimizer: Optimizer, state: dict[str, Any]) -> None:
    """Load a state as it is: torch would bring all that a plugin's optimizer keeps to the types of the parameters."""
    optimizer.load_state_dict({"state": state["state"], "param_groups": state["param_groups"]})
    if is_shipped(optimizer):
        return
    parameters = _parameters(optimizer)
    for key, values in state["state"].items():
        place = parameters[key] if isinstance(key, int) else key
        device = (parameters[key] if isinstance(key, int) else parameters[0]).device
        loaded = optimizer.state[place]
        optimizer.state[place] = _again(values, device)
        if isinstance(key, int) and isinstance(loaded.get("step"), Tensor):  # which torch may leave on the CPU
            optimizer.state[place]["step"] = _again(values["step"], loaded["step"].device)


def _parameters(optimizer: Optimizer) -> list[Tensor]:
    """All parameters in the order of a state's numbers."""
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def _again(value: Any, device: torch.device) -> Any:
    """A copy of plain values, the tensors in their own types on the device."""
    if isinstance(value, Tensor):
        return value.to(device, copy=True)
    if isinstance(value, dict):
        return type(value)((name, _again(inner, device)) for name, inner in value.items())
    return type(value)(_again(inner, device) for inner in value) if isinstance(value, list | tuple) else value


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
