"""Muon: momentum whose matrices are made nearly orthogonal before they are applied.

Jordan et al., "Muon: an optimizer for hidden layers in neural networks" (2024); the rescaling of the weights is that
of Jordan's airbench94 (2024). Departures: several matrices go through the iteration together, and the rest of
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
# A GPU is busy with one large product sooner than with several small ones, up to so many times the numbers.
_FILLED = 3


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
    x = _iterated(x.mT if is_tall else x, steps)
    return x.mT if is_tall else x


def _iterated(x: Tensor, steps: int) -> Tensor:
    """Newton-Schulz steps on wide matrices (N, R, C) of Frobenius norm 1."""
    is_alone = len(x) == 1  # a plain product is up to twice as fast on a CPU as a batched one of a single matrix
    x = x[0] if is_alone else x
    for done in range(0, steps, STEPS_AT_ONCE):
        x = _factor(x @ x.mT, min(steps - done, STEPS_AT_ONCE)) @ x
    return x[None] if is_alone else x


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
        lr: step size; in a group it may be a scalar tensor on the device of the parameters as well.
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
        # The functions of `kernels/gpu_muon.py`, for matrices on a GPU where `lr` is a scalar there.
        self.kernels: Any = None

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One step on every parameter that has a gradient."""
        loss = closure() if closure else None
        for group in self.param_groups:
            parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
            if parameters:
                gradients: list[Tensor] = [parameter.grad for parameter in parameters]
                buffers = self._buffers(parameters)
                lr = group["lr"]
                if group["orthogonal"] and self.kernels and isinstance(lr, Tensor):
                    self._turn_by_kernels(parameters, gradients, buffers, group, lr)
                elif group["orthogonal"]:
                    self._turn(parameters, _nesterov(gradients, buffers, group["momentum"]), group, lr)
                else:
                    if group["weight_decay"]:
                        gradients = list(torch._foreach_add(gradients, parameters, alpha=group["weight_decay"]))
                    _subtract(parameters, _nesterov(gradients, buffers, group["momentum"]), lr)
        return loss

    def _buffers(self, parameters: list[Tensor]) -> list[Tensor]:
        """The momentum of each, zeros at first."""
        for parameter in parameters:
            if "momentum_buffer" not in self.state[parameter]:
                self.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
        return [self.state[parameter]["momentum_buffer"] for parameter in parameters]

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over a state; its momentum is brought into the memory layout of the parameters, as steps want it."""
        super().load_state_dict(state_dict)
        for parameter, state in self.state.items():
            if "momentum_buffer" in state:
                state["momentum_buffer"] = torch.zeros_like(parameter).copy_(state["momentum_buffer"])

    def _turn(self, parameters: list[Tensor], updates: list[Tensor], group: dict[str, Any], lr: float | Tensor) -> None:
        """Orthogonalise the updates, several at once, and apply them."""
        matrices = [_matrix(parameter, parameter) for parameter in parameters]
        gradients = [_matrix(update, parameter) for update, parameter in zip(updates, parameters, strict=True)]
        if group["rescale"]:
            _rescale(matrices)
        rate, factor = (lr, 1.0) if isinstance(lr, Tensor) else (None, lr)
        for indices in _stacks([matrix.shape for matrix in matrices], together=matrices[0].is_cuda):
            turned = _orthogonalised([gradients[index] for index in indices], group["steps"], self.dtype, rate)
            for index, update in zip(indices, turned, strict=True):
                _subtract([matrices[index]], [update], factor * _lengthening(matrices[index].shape))

    def _turn_by_kernels(
        self, parameters: list[Tensor], gradients: list[Tensor], buffers: list[Tensor], group: dict[str, Any],
        lr: Tensor,
    ) -> None:  # fmt: skip
        """All that a step does to matrices, their momentum included, in few passes over them."""
        momentum = group["momentum"]
        triples = [
            (_matrix(gradient, parameter), _matrix(buffer, parameter), _matrix(parameter, parameter))
            for parameter, gradient, buffer in zip(parameters, gradients, buffers, strict=True)
        ]
        squares = [self.kernels.advance(*triple, momentum) for triple in triples]
        for indices in _stacks([parameter.shape for _, _, parameter in triples], together=True):
            chosen = [(*triples[index][:2], squares[index]) for index in indices]
            turned = _iterated(self.kernels.stack(chosen, momentum, self.dtype), group["steps"])
            for index, place in zip(indices, turned, strict=True):
                matrix = triples[index][2]
                factor = _lengthening(matrix.shape)
                self.kernels.subtract(matrix, place, squares[index], lr, factor, group["rescale"])


def _nesterov(gradients: list[Tensor], buffers: list[Tensor], momentum: float) -> list[Tensor]:
    """Gradient plus momentum, one step ahead, for each parameter; moves the buffers."""
    torch._foreach_mul_(buffers, momentum)
    torch._foreach_add_(buffers, gradients)
    return list(torch._foreach_add(gradients, buffers, alpha=momentum))


def _lengthening(shape: torch.Size) -> float:
    """√(R/C) of a tall matrix, by which its update is longer."""
    return max(1.0, shape[0] / shape[1]) ** 0.5


def _stacks(shapes: list[torch.Size], together: bool) -> list[list[int]]:
    """Which matrices go through the iteration at once: those of one shape; `together`: all, if zeros fill them up."""
    rows, columns = max(min(shape) for shape in shapes), max(max(shape) for shape in shapes)
    if together and len(shapes) * rows * columns <= _FILLED * sum(shape.numel() for shape in shapes):
        return [list(range(len(shapes)))]
    alike: dict[torch.Size, list[int]] = {}
    for index, shape in enumerate(shapes):
        alike.setdefault(shape, []).append(index)
    return list(alike.values())


def _orthogonalised(matrices: list[Tensor], steps: int, dtype: torch.dtype, rate: Tensor | None = None) -> list[Tensor]:
    """`orthogonalise` for matrices of any shapes: the smaller ones get zeros, which change no norm and no product.

    Where there is a `rate`, a scalar on their device, they come times it, in its dtype.
    """
    if len({matrix.shape for matrix in matrices}) == 1:
        stacked = torch.stack(matrices) if len(matrices) > 1 else matrices[0][None]  # a view: nothing is copied
        return list(_times(orthogonalise(stacked, steps, dtype), rate))
    wide = [matrix if len(matrix) <= matrix.shape[1] else matrix.mT for matrix in matrices]
    rows, columns = (max(matrix.shape[side] for matrix in wide) for side in (0, 1))
    stacked = matrices[0].new_zeros(len(wide), rows, columns)
    for place, matrix in zip(stacked, wide, strict=True):
        place[: len(matrix), : matrix.shape[1]] = matrix
    turned = zip(_times(orthogonalise(stacked, steps, dtype), rate), wide, matrices, strict=True)
    cut = [(full[: len(part), : part.shape[1]], part is matrix) for full, part, matrix in turned]
    return [part if is_wide else part.mT for part, is_wide in cut]


def _times(stacked: Tensor, rate: Tensor | None) -> Tensor:
    return stacked if rate is None else stacked * rate.view(1, 1, 1)  # with dimensions, its dtype counts


def _rescale(matrices: list[Tensor]) -> None:
    """Set each matrix to the Frobenius norm √R."""
    factors = list(torch._foreach_norm(matrices))
    torch._foreach_add_(factors, 1e-12)
    torch._foreach_reciprocal_(factors)
    torch._foreach_mul_(factors, [math.sqrt(len(matrix)) for matrix in matrices])
    torch._foreach_mul_(matrices, factors)


def _matrix(values: Tensor, parameter: Tensor) -> Tensor:
    """`values`, of the shape (R, ...) of `parameter`, as (R, C), the columns in the order that `parameter` lies in.

    So the parameter itself is not copied. The order of the columns is nothing to the iteration.
    """
    if parameter.ndim == 4 and parameter.is_contiguous(memory_format=torch.channels_last):
        values = values.permute(0, 2, 3, 1)
    return values.reshape(len(values), -1)


def _subtract(parameters: list[Tensor], updates: list[Tensor], lr: float | Tensor) -> None:
    """Take lr times the updates off."""
    if isinstance(lr, Tensor):
        torch._foreach_sub_(parameters, torch._foreach_mul(updates, lr))
    else:
        torch._foreach_add_(parameters, updates, alpha=-lr)
