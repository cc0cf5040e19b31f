"""Checkpoints of older schemas, brought to the newest one step at a time.

Schema 2 wrote whitening, growing sizes and further keys into the config, and each group's full rate (`initial_lr`)
into the optimizer's state. Schema 3 wrote `trainer.untimed_steps`, and the seconds of such steps into the progress;
schema 4 wrote `trainer.checkpoint_epochs`, schema 5 `trainer.kernels` and the `model.init` of simple_cnn, schema 6 the
`model.sha256` of plugins, schema 7 the `model.stages` of vgg, schema 8 `trainer.compile_mode`, schema 9
`trainer.cuda_graphs`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from cifarbench.config.history import complete

SCHEMA = 9


def migrate(state: dict[str, Any]) -> dict[str, Any]:
    """The state of a checkpoint, whose `schema` is from 1 to `SCHEMA`, as `SCHEMA` has it.

    Raises:
        KeyError, TypeError, AttributeError: the state is not what its schema says.
    """
    while state["schema"] < SCHEMA:
        state = {**_STEPS[state["schema"]](state), "schema": state["schema"] + 1}
    return state


def _to_2(state: dict[str, Any]) -> dict[str, Any]:
    config = complete(state["config"])
    groups = [{"initial_lr": config["optim"]["lr"], **group} for group in state["optimizer"]["param_groups"]]
    return {**state, "config": config, "optimizer": {**state["optimizer"], "param_groups": groups}}


def _with_later_keys(state: dict[str, Any]) -> dict[str, Any]:
    return {**state, "config": complete(state["config"])}


_STEPS: dict[int, Callable[[dict[str, Any]], dict[str, Any]]] = {
    1: _to_2,
    2: _with_later_keys,
    3: _with_later_keys,
    4: _with_later_keys,
    5: _with_later_keys,
    6: _with_later_keys,
    7: _with_later_keys,
    8: _with_later_keys,
}
