"""Checkpoints of older schemas, brought to the newest.

Schema 2 wrote whitening, growing sizes and further keys into the config, and each group's full rate (`initial_lr`)
into the optimizer's state. Schema 3 wrote `trainer.untimed_steps`, and the seconds of such steps into the progress;
schema 4 wrote `trainer.checkpoint_epochs`, schema 5 `trainer.kernels` and the `model.init` of simple_cnn, schema 6 the
`model.sha256` of plugins, schema 7 the `model.stages` of vgg, schema 8 `trainer.compile_mode`, schema 9
`trainer.cuda_graphs`, schema 10 `trainer.loss` and the `optim.l1` of every optimizer but Muon.
"""

from __future__ import annotations

from typing import Any

from cifarbench.config.history import complete

SCHEMA = 10


def migrate(state: dict[str, Any]) -> dict[str, Any]:
    """The state of a checkpoint, whose `schema` is from 1 to `SCHEMA`, as `SCHEMA` has it.

    Raises:
        KeyError, TypeError, AttributeError: the state is not what its schema says.
    """
    if state["schema"] == 1:
        state = _with_full_rates(state)
    return {**state, "config": complete(state["config"]), "schema": SCHEMA} if state["schema"] < SCHEMA else state


def _with_full_rates(state: dict[str, Any]) -> dict[str, Any]:
    rate = state["config"]["optim"]["lr"]
    groups = [{"initial_lr": rate, **group} for group in state["optimizer"]["param_groups"]]
    return {**state, "optimizer": {**state["optimizer"], "param_groups": groups}}
