"""torch's optimizers without torch's compiler.

Two wrappers in `torch.optim` tell the compiler to leave a method alone, and import it for that: two to four seconds at
the first step of a run that compiles nothing, or compiles its model only. Here the methods run as they are. A torch
that wraps them differently just takes those seconds again.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.optim import Optimizer


def make(kind: type[Optimizer], *values: Any, **named: Any) -> Optimizer:
    """The optimizer `kind(*values, **named)`, of that name and with that state; not to be compiled itself."""
    for method in (Optimizer.add_param_group, Optimizer.zero_grad, Optimizer.state_dict, Optimizer.load_state_dict):
        plain = getattr(method, "__wrapped__", None)
        if plain is not None and not hasattr(plain, "__dynamo_disable"):
            plain.__dynamo_disable = plain
    return _eager(kind)(*values, **named)


def _eager(kind: type[Optimizer]) -> type[Optimizer]:
    """The class with a step that switches gradients off, as the wrapped one does, and tells no compiler of it."""
    step: Any = kind.step
    while hasattr(step, "hooked"):  # what the first optimizer of a class puts around it, for profilers
        step = step.__wrapped__
    if getattr(getattr(step, "__code__", None), "co_name", "") != "_use_grad":
        return kind
    plain = torch.no_grad()(step.__wrapped__)
    return type(kind.__name__, (kind,), {"step": plain, "__module__": kind.__module__})
