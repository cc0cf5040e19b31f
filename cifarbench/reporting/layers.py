"""The layer table on the console, and as JSON and CSV."""

from __future__ import annotations

import csv
import io
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from cifarbench.runs import write_json, write_text

_COSTS = ("parameters", "memory_kb", "flops")
_UNITS = {"parameters": "parameters", "memory_kb": "memory", "flops": "FLOPs"}
_NARROW = 96  # columns, below which the kind of a layer is left out


def write_summary(summary: dict[str, Any], folder: Path) -> list[Path]:
    """Write <model>.json with all of it and <model>.csv with a line a layer; returns the paths."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{summary['model']}.json", folder / f"{summary['model']}.csv"]
    write_json(paths[0], summary)
    text = io.StringIO()
    table = csv.DictWriter(text, list(summary["layers"][0]), lineterminator="\n")
    table.writeheader()
    table.writerows({**layer, "shape": "x".join(map(str, layer["shape"]))} for layer in summary["layers"])
    write_text(paths[1], text.getvalue())
    return paths


def print_summary(summary: dict[str, Any], width: int | None = None) -> None:
    """Print layers, stages, peaks and warnings; `width` in columns, else the terminal's."""
    console = Console(highlight=False, width=width or (None if sys.stdout.isatty() else 110))
    field = summary["receptive_field"]
    size = f"   {summary['parameters']:,} parameters{_frozen(summary)}"
    console.print(Text.assemble((summary["model"], "bold"), size))
    console.print(
        f"[dim]{_count(summary['flops'])}FLOP and {_memory(summary['memory_kb'])} of activations an image; "
        f"receptive field {'unknown' if field is None else f'{field} px'}[/]\n"
    )
    console.print(_layers(summary, console.width >= _NARROW))
    console.print(_stages(summary))
    console.print(_peaks(summary))
    for warning in summary["warnings"]:
        console.print(Text(f"! {warning}", style="yellow"))
    note = "FLOPs: products in convolutions and linear layers, a multiply-add counting as two. Memory: outputs in fp32."
    console.print(f"[dim]{note} Receptive field and jump: px of the image, not cut at its border.[/]")


def _frozen(summary: dict[str, Any]) -> str:
    return f" and {summary['frozen']:,} frozen ones" if summary["frozen"] else ""


def _layers(summary: dict[str, Any], wide: bool) -> Table:
    table = Table(box=None, padding=(0, 1), header_style="dim", title_justify="left")
    table.add_column("layer", overflow="fold")
    if wide:
        table.add_column("kind", no_wrap=True)
    for name in ("output", "parameters", "KB", "FLOPs", "field", "jump"):
        table.add_column(name, justify="right", no_wrap=True)
    most = {cost: peak["layer"] for cost, peak in summary["peaks"].items()}
    for layer in summary["layers"]:
        table.add_row(*_cells(layer, wide, [cost for cost, name in most.items() if name == layer["layer"]]))
    return table


def _cells(layer: dict[str, Any], wide: bool, peaks_here: Iterable[str]) -> list[Text]:
    """A layer's cells: dim where it has no weights, bold yellow where it is the largest of all."""
    style = "" if layer["parameters"] or layer["flops"] else "dim"
    costs = {
        "parameters": f"{layer['parameters']:,}" if layer["parameters"] else "–",
        "memory_kb": _kb(layer["memory_kb"]),
        "flops": _count(layer["flops"]).rstrip() if layer["flops"] else "–",
    }
    most = [Text(text, "bold yellow" if cost in peaks_here else style) for cost, text in costs.items()]
    shape = Text("×".join(map(str, layer["shape"])), style)
    sees = [Text("?" if layer[name] is None else str(layer[name]), style) for name in ("field", "jump")]
    kind = [Text(layer["kind"], style)] if wide else []
    return [Text(layer["layer"], style), *kind, shape, *most, *sees]


def _stages(summary: dict[str, Any]) -> Table:
    table = Table(box=None, padding=(0, 1), header_style="dim", title="\nshare of each map size", title_justify="left")
    table.add_column("map", justify="right")
    for cost in _COSTS:
        table.add_column(_UNITS[cost], no_wrap=True)
    for stage in summary["stages"]:
        table.add_row(stage["map"], *(_bar(stage[f"{cost}_share"]) for cost in _COSTS))
    return table


def _bar(share: float, width: int = 14) -> Text:
    full = round(share * width)
    return Text.assemble((f"{share:5.1%} ".rjust(7), ""), ("█" * full, "cyan"), ("·" * (width - full), "dim"))


def _peaks(summary: dict[str, Any]) -> Text:
    amounts = {"memory_kb": _memory, "flops": lambda value: f"{_count(value)}FLOP", "parameters": "{:,}".format}
    parts = [
        f"{_UNITS[cost]} in {peak['layer']} ({amounts[cost](peak[cost])})" for cost, peak in summary["peaks"].items()
    ]
    return Text(f"\nmost {', '.join(parts)}")


def _count(value: float) -> str:
    """1,234 as "1.23 k", and so on with M and G, ready for a unit."""
    for factor, prefix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= factor:
            return f"{value / factor:.3g} {prefix}" if value < 999.5 * factor else f"{value / factor:,.0f} {prefix}"
    return f"{value:.0f} "


def _kb(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 else f"{value:.2f}".rstrip("0").rstrip(".")


def _memory(value: float) -> str:
    return f"{value / 1024:,.2f} MB" if value >= 1024 else f"{_kb(value)} KB"
