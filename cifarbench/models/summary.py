"""All that is to be said about a model before it is trained, as plain values for the console, JSON and CSV."""

from __future__ import annotations

from typing import Any

from torch import nn

from cifarbench.models.layer_table import Row, layer_table, peaks, stages, warnings

_COSTS = ("parameters", "memory_kb", "flops")


def summarise(name: str, model: nn.Module, size: int = 32) -> dict[str, Any]:
    """Everything that is shown or written about `model`, as plain values.

    Returns:
        model, image (px), parameters (those that are trained), frozen, memory_kb and flops in all, multiply_adds,
        receptive_field of the last layer (px), layers and stages (by map size, with shares), both with frozen
        parameters, peaks (the layer with the most) and warnings.
    """
    rows = layer_table(model, size)
    parameters = list(model.parameters())
    totals = {cost: sum(getattr(row, cost) for row in rows) for cost in _COSTS}
    return {
        "model": name,
        "image": size,
        "parameters": sum(parameter.numel() for parameter in parameters if parameter.requires_grad),
        "frozen": sum(parameter.numel() for parameter in parameters if not parameter.requires_grad),
        "memory_kb": totals["memory_kb"],
        "flops": totals["flops"],
        "multiply_adds": totals["flops"] // 2,
        "receptive_field": rows[-1].field if rows else None,
        "layers": [_plain(row) for row in rows],
        "stages": [
            {
                "map": place,
                **{cost: entry[cost] for cost in _COSTS},
                **{f"{cost}_share": entry[cost] / max(totals[cost], 1e-12) for cost in _COSTS},
            }
            for place, entry in stages(rows).items()
        ],
        "peaks": {cost: {"layer": row.layer, cost: getattr(row, cost)} for cost, row in peaks(rows).items()},
        "warnings": warnings(rows, model, size),
    }


def _plain(row: Row) -> dict[str, Any]:
    names = ("layer", "kind", "shape", "parameters", "memory_kb", "flops", "field", "jump")
    return {**{name: getattr(row, name) for name in names}, "shape": list(row.shape)}
