"""Receptive fields: which window of the image a number depends on, followed from operation to operation.

Araujo, Norris and Sim, "Computing Receptive Fields of Convolutional Neural Networks" (2019): a window of k pixels on a
map whose neighbours lie `jump` pixels apart in the image widens the field by (k - 1) · jump, and a stride multiplies
the jump. Where branches meet, the largest field counts. Windows are not cut at the image's border, so a field may be
larger than the image; what it has beyond the border is padding.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

Pair = tuple[int, int]


class Field(NamedTuple):
    """What one number of a tensor sees of the image, by height and width.

    `window` is in px; `jump` the px between neighbours; `spread` how many places of a map one flattened row holds.
    """

    window: Pair
    jump: Pair
    spread: Pair = (1, 1)


class Window(NamedTuple):
    """A convolution or pooling: kernel, stride and padding in px of the map it is laid on, and that map's size."""

    kernel: Pair
    stride: Pair
    padding: Pair
    dilation: Pair
    size: Pair
    pools: bool


IMAGE = Field((1, 1), (1, 1))
Tracked = Sequence[tuple[Tensor, "Field | None"]]
_WHOLE = {torch.ops.aten.mean, torch.ops.aten.amax, torch.ops.aten.amin, torch.ops.aten.sum}
_PADS = {torch.ops.aten.constant_pad_nd, torch.ops.aten.reflection_pad2d, torch.ops.aten.replication_pad2d}
_PRODUCTS = {torch.ops.aten.mm, torch.ops.aten.addmm}


def window_of(packet: Any, args: tuple) -> Window | None:
    """The window that a convolution or pooling lays on its first argument; None for anything else."""
    if packet is torch.ops.aten.convolution and args[0].ndim == 4 and not args[6]:
        kernel = (args[1].shape[2], args[1].shape[3])
        return Window(kernel, _pair(args[3]), _pair(args[4]), _pair(args[5]), _size(args[0]), pools=False)
    if packet in (torch.ops.aten.max_pool2d_with_indices, torch.ops.aten.max_pool2d, torch.ops.aten.avg_pool2d):
        kernel = _pair(args[1])
        stride = _pair(args[2]) if len(args) > 2 and args[2] else kernel
        padding = _pair(args[3]) if len(args) > 3 else (0, 0)
        is_max = packet is not torch.ops.aten.avg_pool2d
        dilation = _pair(args[4]) if is_max and len(args) > 4 else (1, 1)
        return Window(kernel, stride, padding, dilation, _size(args[0]), pools=True)
    return None


def follow(packet: Any, args: tuple, tracked: Tracked, out: Tensor) -> Field | None:
    """The field of `out`, which the operation made from `args`; None where it cannot be told.

    Args:
        packet: the operation, e.g. `torch.ops.aten.convolution`.
        args: its positional arguments.
        tracked: those among its tensors that depend on the image, with their fields.
        out: (one of) its results.
    """
    if any(field is None for _, field in tracked):
        return None
    window = window_of(packet, args)
    if window:
        reach = _pairs(lambda k, d: (k - 1) * d, window.kernel, window.dilation)
        return _widen(_first(tracked), reach, window.stride)
    special = _SPECIAL.get(packet)
    if special:
        return special(args, tracked)
    return _together(tracked, out)


def _reduced(args: tuple, tracked: Tracked) -> Field | None:
    """A mean, sum or extreme over height and width sees the whole map."""
    source, dims = tracked[0][0], {dim % tracked[0][0].ndim for dim in (args[1] if len(args) > 1 else ())}
    if source.ndim != 4 or not {2, 3} <= dims:
        return None
    size = _size(source)
    return _widen(_first(tracked), (size[0] - 1, size[1] - 1), size)


def _multiplied(args: tuple, tracked: Tracked) -> Field | None:
    """A matrix product sees every place that its rows were flattened from."""
    field = _first(tracked)
    wide = _widen(field, (field.spread[0] - 1, field.spread[1] - 1), field.spread)
    return wide._replace(spread=(1, 1))


def _adaptive(args: tuple, tracked: Tracked) -> Field | None:
    """Adaptive pooling of H places to n takes windows of ceil(H / n), one more where n does not divide H."""
    size, outputs = _size(tracked[0][0]), _pair(args[1])
    kernel = _pairs(lambda h, n: -(-h // n) + (h % n > 0), size, outputs)
    return _widen(_first(tracked), (kernel[0] - 1, kernel[1] - 1), _pairs(lambda h, n: h // n, size, outputs))


def _sliced(args: tuple, tracked: Tracked) -> Field | None:
    """A slice with a step, as in x[:, :, ::2], is a stride."""
    step, dim = args[4] if len(args) > 4 else 1, args[1] if len(args) > 1 else 0
    dim %= tracked[0][0].ndim
    return _widen(_first(tracked), (0, 0), (step if dim == 2 else 1, step if dim == 3 else 1))


_SPECIAL: dict[Any, Callable[[tuple, Tracked], Field | None]] = {
    **dict.fromkeys(_WHOLE, _reduced),
    **dict.fromkeys(_PRODUCTS, _multiplied),
    **dict.fromkeys(_PADS, lambda args, tracked: _first(tracked)),
    torch.ops.aten._adaptive_avg_pool2d: _adaptive,
    torch.ops.aten.adaptive_max_pool2d: _adaptive,
    torch.ops.aten.slice: _sliced,
}


def _together(tracked: Tracked, out: Tensor) -> Field | None:
    """The field where operations work place by place, join branches, or flatten a map; None for any other change."""
    fields = [(tensor, field) for tensor, field in tracked if field is not None]
    window = _largest([field.window for _, field in fields])
    if out.ndim == 4 and all(tensor.ndim == 4 for tensor, _ in fields):
        whole = [field for tensor, field in fields if _size(tensor) == _size(out)]
        return Field(window, _largest([field.jump for field in whole])) if whole else None
    if out.ndim == 2 and all(tensor.ndim == 2 for tensor, _ in fields):
        return Field(window, _largest([f.jump for _, f in fields]), _largest([f.spread for _, f in fields]))
    source, field = fields[0]
    if len(fields) == 1 and out.ndim == 2 and source.ndim == 4 and out.shape[0] == source.shape[0]:
        return field._replace(spread=_size(source))
    return None


def _widen(field: Field, reach: Pair, stride: Pair) -> Field:
    window = (field.window[0] + reach[0] * field.jump[0], field.window[1] + reach[1] * field.jump[1])
    return Field(window, (field.jump[0] * stride[0], field.jump[1] * stride[1]), field.spread)


def _first(tracked: Tracked) -> Field:
    field = tracked[0][1]
    assert field is not None
    return field


def _largest(pairs: list[Pair]) -> Pair:
    return max(pair[0] for pair in pairs), max(pair[1] for pair in pairs)


def _pairs(rule: Callable[[int, int], int], first: Pair, second: Pair) -> Pair:
    return rule(first[0], second[0]), rule(first[1], second[1])


def _pair(values: Any) -> Pair:
    numbers = [values] if isinstance(values, int) else list(values)
    return int(numbers[0]), int(numbers[-1])


def _size(tensor: Tensor) -> Pair:
    return int(tensor.shape[2]), int(tensor.shape[3])
