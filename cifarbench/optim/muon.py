"""Muon: momentum whose matrices are made nearly orthogonal before they are applied.

Jordan et al., "Muon: an optimizer for hidden layers in neural networks" (2024); the rescaling of the weights is that
of Jordan's airbench94 (2024). Departures: matrices of one shape go through the iteration together, and the rest of
the parameters (biases, norms, the last layer) take Nesterov steps in the same optimizer, so that there is one state.

Shapes: N matrices of R rows (a convolution's output channels) and C columns (its inputs times its window).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

# The odd polynomial a·x + b·x³ + c·x⁵ lifts small singular values fast, and then holds them at about 0.7 to 1.2.
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
# In bf16 what G has lost of the smallest singular values grows with each further step that is not taken on X itself.
STEPS_AT_ONCE = 3


def orthogonalise(matrices: Tensor, steps: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Push the singular values of each matrix towards 1 by Newton-Schulz steps; the singular vectors stay.

    A step is X ← (a + bG + cG²)X with the small square matrix G = XXᵀ. Every step's factor is a polynomial in the first
    G, so up to `STEPS_AT_ONCE` of them are multiplied out there, with two products of the wide X in all.

    Args:
        matrices: (N, R, C) float, any scale.
        steps: applications of the polynomial to the singular values, which start at a Frobenius norm of 1.
        dtype: of the products; bfloat16 is enough for training.

    Returns:
        (N, R, C) in `dtype`.
    """
    x = (matrices / (torch.linalg.matrix_norm(matrices, keepdim=True) + 1e-7)).to(dtype)
    is_tall = x.shape[1] > x.shape[2]
    x = x.mT if is_tall else x
    is_alone = len(x) == 1  # a plain product is up to twice as fast on a CPU as a batched one of a single matrix
    x = x[0] if is_alone else x
    for done in range(0, steps, STEPS_AT_ONCE):
        x = _factor(x @ x.mT, min(steps - done, STEPS_AT_ONCE)) @ x
    x = x[None] if is_alone else x
    return x.mT if is_tall else x


def _factor(gram: Tensor, steps: int) -> Tensor:
    """The matrix that takes X through `steps` steps at once, from XXᵀ; both (R, R) or (N, R, R)."""
    product = factor = _factor_of_one(gram)
    for _ in range(steps - 1):
        gram = factor @ gram @ factor
        factor = _factor_of_one(gram)
        product = factor @ product
    return product


def _factor_of_one(gram: Tensor) -> Tensor:
    a, b, c = COEFFICIENTS
    add_product = torch.addmm if gram.ndim == 2 else torch.baddbmm
    factor = add_product(gram, gram, gram, beta=b, alpha=c)
    factor.diagonal(dim1=-2, dim2=-1).add_(a)
    return factor


class Muon(torch.optim.Optimizer):
    """Orthogonalised Nesterov momentum for groups with `orthogonal=True`, plain Nesterov momentum for the others.

    An orthogonal group's parameter (R, ...) is taken as a matrix of R rows; its step is lr times a matrix whose
    singular values are near 1, times √(R/C) where R exceeds C. Weight decay (L2) is for the other groups.

    Args:
        groups: parameter groups, each with `orthogonal`, and `lr`, `momentum` and `weight_decay` where they differ.
        lr: step size.
        momentum: decay of the momentum buffers.
        weight_decay: added to the gradient of groups that are not orthogonal, times the parameter.
        steps: Newton-Schulz steps.
        rescale: set each matrix to Frobenius norm √R before its step, for networks whose norms follow their weights.
        dtype: of the matrix products.
    """

    def __init__(
        self,
        groups: Iterable[dict[str, Any]],
        lr: float,
        *,
        momentum: float,
        weight_decay: float = 0.0,
        steps: int = 3,
        rescale: bool = True,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        defaults = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "steps": steps, "rescale": rescale}
        super().__init__(groups, {**defaults, "orthogonal": True})
        self.dtype = dtype

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One step on every parameter that has a gradient."""
        loss = closure() if closure else None
        for group in self.param_groups:
            parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
            if parameters:
                updates = self._nesterov(parameters, group)
                self._turn(parameters, updates, group) if group["orthogonal"] else _add(parameters, updates, group)
        return loss

    def _nesterov(self, parameters: list[Tensor], group: dict[str, Any]) -> list[Tensor]:
        """Gradient plus momentum, one step ahead, for each parameter; moves the buffers."""
        gradients: list[Tensor] = [parameter.grad for parameter in parameters]  # type: ignore[misc]
        if group["weight_decay"] and not group["orthogonal"]:
            gradients = list(torch._foreach_add(gradients, parameters, alpha=group["weight_decay"]))
        for parameter in parameters:
            if "momentum_buffer" not in self.state[parameter]:
                self.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
        buffers = [self.state[parameter]["momentum_buffer"] for parameter in parameters]
        torch._foreach_mul_(buffers, group["momentum"])
        torch._foreach_add_(buffers, gradients)
        return list(torch._foreach_add(gradients, buffers, alpha=group["momentum"]))

    def _turn(self, parameters: list[Tensor], updates: list[Tensor], group: dict[str, Any]) -> None:
        """Orthogonalise the updates, all of one shape at once, and apply them."""
        shapes: dict[tuple[int, int], list[int]] = {}
        for index, parameter in enumerate(parameters):
            shapes.setdefault((len(parameter), parameter.numel() // len(parameter)), []).append(index)
        for (rows, columns), indices in shapes.items():
            matrices = [_matrix(updates[index], parameters[index]) for index in indices]
            stacked = torch.stack(matrices) if len(matrices) > 1 else matrices[0][None]  # a view: nothing is copied
            turned = orthogonalise(stacked, group["steps"], self.dtype)
            scale = -group["lr"] * max(1.0, rows / columns) ** 0.5
            for index, matrix in zip(indices, turned, strict=True):
                parameter = _matrix(parameters[index], parameters[index])
                if group["rescale"]:
                    parameter.mul_(math.sqrt(rows) / (torch.linalg.vector_norm(parameter) + 1e-12))
                parameter.add_(matrix, alpha=scale)


def _matrix(values: Tensor, parameter: Tensor) -> Tensor:
    """`values`, of the shape (R, ...) of `parameter`, as (R, C), the columns in the order that `parameter` lies in.

    So the parameter itself is not copied. The order of the columns is nothing to the iteration.
    """
    if parameter.ndim == 4 and parameter.is_contiguous(memory_format=torch.channels_last):
        values = values.permute(0, 2, 3, 1)
    return values.reshape(len(values), -1)


def _add(parameters: list[Tensor], updates: list[Tensor], group: dict[str, Any]) -> None:
    torch._foreach_add_(parameters, updates, alpha=-group["lr"])
