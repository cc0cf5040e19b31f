"""The layer table: one image goes through a model, and each layer's shape, cost and receptive field is noted.

Operations are watched below autograd, so any model is described as it runs: functional calls, branches and all. A
row is a layer, or what a module computes beside its children, such as the addition in a residual block; such a row is
named by its first and last operation.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry
from torch.utils.weak import WeakIdKeyDictionary

from cifarbench.models.receptive import IMAGE, Field, Window, follow, window_of

_BYTES = 4  # of an activation in fp32


@dataclass
class Row:
    """One layer.

    `shape` without the batch; `memory_kb` of the output in fp32 (1,024 bytes); `flops` of matrix products and
    convolutions, a multiply-add counting as two; `field` and `jump` in px, None where they cannot be told.
    """

    layer: str
    kind: str
    shape: tuple[int, ...]
    parameters: int
    memory_kb: float
    flops: int
    field: int | None
    jump: int | None
    window: Window | None = None

    @property
    def place(self) -> str:
        """The size of the map, "16×16", or "vector"."""
        return f"{self.shape[1]}×{self.shape[2]}" if len(self.shape) == 3 else "vector"


def layer_table(model: nn.Module, size: int = 32) -> list[Row]:
    """The rows of `model`, in the order in which they run on one image `(3, size, size)`; the model is left as it was.

    Parameters stand in the row of the first operation of the module that owns them.
    """
    twin = copy.deepcopy(model).to("cpu").eval()
    image = torch.zeros(1, 3, size, size)
    watch = _Watch(twin, image)
    with torch.no_grad(), watch:
        twin(image)
    return watch.rows


class _Watch(TorchDispatchMode):
    """Sees every operation, knows the module it runs in, and follows what depends on the image."""

    def __init__(self, model: nn.Module, image: Tensor) -> None:
        super().__init__()
        self.rows: list[Row] = []
        self.fields = WeakIdKeyDictionary()
        self.fields[image] = IMAGE
        self.running: list[tuple[str, nn.Module, int]] = []
        self.calls = 0
        self.row_of: tuple[str, nn.Module, int] | None = None
        self.counted: set[nn.Module] = set()
        for name, module in model.named_modules():
            module.register_forward_pre_hook(lambda module, args, name=name: self._enter(name, module))
            module.register_forward_hook(lambda module, args, output: self.running.pop() and None)

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Nothing is compiled here, so torch need not load its compiler, a second's work, to keep away from it."""
        return False

    def _enter(self, name: str, module: nn.Module) -> None:
        self.calls += 1
        self.running.append((name, module, self.calls))

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        inputs = [value for value in tree_leaves((args, kwargs)) if isinstance(value, Tensor)]
        tracked = [(value, self.fields[value]) for value in inputs if value in self.fields]
        results = [value for value in tree_leaves(out) if isinstance(value, Tensor)]
        if not tracked or not results:
            return out
        packet = func.overloadpacket
        field = follow(packet, args, tracked, results[0])
        for result in results:
            self.fields[result] = field
        flops = flop_registry[packet](*args, **kwargs, out_val=out) if packet in flop_registry else 0
        self._note(packet, results[0], field, int(flops), window_of(packet, args))
        return out

    def _note(self, packet: Any, out: Tensor, field: Field | None, flops: int, window: Window | None) -> None:
        """Add the operation to its layer's row, which is a new one where another layer ran in between."""
        name, module, _ = self.running[-1]
        is_leaf = next(module.children(), None) is None and name
        operation = packet.__name__.strip("_")
        if self.row_of is not self.running[-1]:
            self.row_of = self.running[-1]
            kind = type(module).__name__ if is_leaf else operation
            self.rows.append(Row(name or "(model)", kind, (), self._parameters(module), 0.0, 0, None, None))
        row = self.rows[-1]
        if not is_leaf and not row.kind.endswith(operation):
            row.kind = f"{row.kind.split('…')[0]}…{operation}"
        row.shape = tuple(out.shape[1:])
        row.memory_kb = out.numel() * _BYTES / 1024  # of one image, which the batch is
        row.flops += flops
        row.field = max(field.window) if field else None
        row.jump = max(field.jump) if field else None
        row.window = window or row.window

    def _parameters(self, module: nn.Module) -> int:
        if module in self.counted:
            return 0
        self.counted.add(module)
        return sum(parameter.numel() for parameter in module.parameters(recurse=False))


def stages(rows: list[Row]) -> dict[str, dict[str, float]]:
    """What the layers of each map size hold together: parameters, memory_kb and flops, from the largest map on."""
    table: dict[str, dict[str, float]] = {}
    for row in rows:
        entry = table.setdefault(row.place, {"parameters": 0, "memory_kb": 0.0, "flops": 0})
        for name in entry:
            entry[name] += getattr(row, name)
    return table


def peaks(rows: list[Row]) -> dict[str, Row]:
    """The row with the most memory_kb, flops and parameters each."""
    return {name: max(rows, key=lambda row: getattr(row, name)) for name in ("memory_kb", "flops", "parameters")}


def warnings(rows: list[Row], model: nn.Module, size: int = 32) -> list[str]:
    """Sentences about what does not suit images of `size` px: stem, receptive field, padding, idle parameters."""
    found = [*_stem(rows, size), *_field(rows, size), *_padding(rows)]
    idle = sum(parameter.numel() for parameter in model.parameters()) - sum(row.parameters for row in rows)
    if idle:
        found.append(f"{idle:,} parameters belong to layers that the forward pass does not run.")
    return found


def _stem(rows: list[Row], size: int) -> Iterator[str]:
    """What the first convolution and the halvings before the second one do to a small image."""
    layers = [row for row in rows if row.window]
    filters = [index for index, row in enumerate(layers) if row.window and not row.window.pools and _sees(row)]
    if not filters:
        return
    first = layers[filters[0]]
    assert first.window
    if max(first.window.kernel) * 4 >= size:
        kernel = "×".join(map(str, first.window.kernel))
        yield f"The first window, {kernel} in {first.layer}, covers much of a {size} px image; 3×3 suits it."
    after = layers[filters[1] if len(filters) > 1 else -1]
    assert after.window
    if min(after.window.size) * 2 < size - 2 * max(first.window.kernel):
        shape = "×".join(map(str, after.window.size))
        yield (
            f"The stem leaves a {shape} map of a {size} px image before its second convolution ({after.layer}): it was "
            "made for larger images. Take stride 1 in the first convolution, and no pooling after it."
        )


def _sees(row: Row) -> bool:
    """Whether the layer's window is wider than one place."""
    return row.window is not None and max(row.window.kernel) > 1


def _field(rows: list[Row], size: int) -> Iterator[str]:
    """Whether the last map's features see the image before a global mean or maximum joins them."""
    maps = [row for row in rows if len(row.shape) == 3]
    if not maps:
        return
    last = maps[-1]
    after = rows[rows.index(last) + 1 :]
    is_flattened = any(row.kind.endswith(("Flatten", "view", "reshape")) for row in after) and last.shape[1] > 1
    if not is_flattened and last.field is not None and last.field < size:
        yield (
            f"A feature of the last map sees {last.field} of {size} px: the head can only count what such windows "
            "show. More layers, larger kernels or an earlier halving widen it."
        )


def _padding(rows: list[Row]) -> Iterator[str]:
    """The first convolution whose window lies on padding for the most part, because its map has become so small."""
    for row in rows:
        if row.window and not row.window.pools and (share := padding_share(row.window)) > 0.5:
            kernel, size = ("×".join(map(str, pair)) for pair in (row.window.kernel, row.window.size))
            yield f"{share:.0%} of the {kernel} window of {row.layer} lies on padding, as its map has {size} places."
            return


def padding_share(window: Window) -> float:
    """The share of the kernel's places, over all positions, that lie outside the map."""
    inside = 1.0
    for kernel, stride, padding, dilation, size in zip(*window[:5], strict=True):
        starts = range(-padding, size + padding - dilation * (kernel - 1), stride)
        hits = sum(0 <= start + dilation * tap < size for start in starts for tap in range(kernel))
        inside *= hits / max(len(starts) * kernel, 1)
    return 1 - inside
