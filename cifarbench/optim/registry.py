"""Optimizers of the user's own. One file, named under `plugins=` on the command line, adds one:

    import torch
    from cifarbench.optim.registry import register

    @register("signsgd")
    class SignSGD(torch.optim.Optimizer):
        def __init__(self, params, lr: float = 1e-3, weight_decay: float = 0.0) -> None: ...

It is given parameter groups: weights, and biases with normalisation parameters. Its `lr`, which it has to take, is the
peak rate, and stands in each group as the schedule has it at that step. If it takes a `weight_decay`, that stands in
the groups too, 0 for biases and norms but by `optim.decay_norm_bias`. Its further arguments become keys of `optim`.
Its state is saved where it lies in `self.state`, as tensors and plain values.
"""

from __future__ import annotations

from cifarbench.tables import Table

OWN = Table("optimizer", given=1)
register = OWN.register
