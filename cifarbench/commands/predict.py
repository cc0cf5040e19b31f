"""`cifarbench predict run=DIR IMAGE…`: what a trained model says is on image files."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from cifarbench import runs
from cifarbench.commands.plugins import load_plugins
from cifarbench.commands.words import gather
from cifarbench.config.after import PredictConfig
from cifarbench.config.load import load
from cifarbench.errors import ConfigError

_KEYS = tuple(field.name for field in dataclasses.fields(PredictConfig))
_BATCH = 500
_MANY = 50  # files from which on progress is shown
_WIDE = 100_000  # characters, more than a line of the table has
_NAME = 20  # characters of a file name that stand in one line at least


def rewrite(arguments: list[str]) -> list[str]:
    """Turn `run=DIR a.png b.png` into `run=DIR images=[a.png,b.png]`."""
    return gather(arguments, "images", _KEYS)


def run(values: dict[str, Any], directory: Path, overrides: list[str]) -> int:
    """Answer for every file; 0 where each could be read, else 2."""
    load_plugins(values.get("plugins") or [])
    config = load(PredictConfig, values)
    form = _form(config)
    from cifarbench.training.restore import find_checkpoint, restore

    path = find_checkpoint(config.run, config.checkpoint, config.which)
    trained = restore(path)
    rows = answers(trained, config)
    failed = sum("error" in row for row in rows)
    facts = {"checkpoint": str(path), "classes": list(trained.classes), "images": len(rows), "failed": failed}
    if form == "table":
        _write(_as_table(rows, config.top, config.out is None and sys.stdout.isatty()), config.out)
    else:
        _write(_as_json(rows, facts) if form == "json" else _as_csv(rows, config.top), config.out)
    for row in rows:
        if "error" in row:
            print(f"cifarbench: {_printable(row['file'])}: {_printable(row['error'])}", file=sys.stderr)
    if failed:
        rest = "; the others are answered" if failed < len(rows) else ""
        print(f"cifarbench: {failed} of {len(rows)} files gave no image{rest}.", file=sys.stderr)
    return 2 if failed else 0


def _form(config: PredictConfig) -> str:
    if config.format != "auto":
        return config.format
    ending = Path(config.out).suffix.lower() if config.out else ".txt"
    forms = {".json": "json", ".csv": "csv", ".txt": "table"}
    if ending not in forms:
        raise ConfigError(f"`out` is {config.out!r}; its name must end in {', '.join(forms)}, or set `format`.")
    return forms[ending]


def answers(trained: Any, config: PredictConfig) -> list[dict[str, Any]]:
    """A row for each file: `file`, and either `top`, (class, probability) pairs, or `error`."""
    from cifarbench.data.image_files import ImageError, find, read

    ask = _asker(trained, config)
    rows: list[dict[str, Any]] = []
    waiting: list[tuple[dict[str, Any], Any]] = []
    for name in _with_progress(list(find(config.images))):
        rows.append({"file": name})
        try:
            waiting.append((rows[-1], read(name)))
        except ImageError as error:
            rows[-1]["error"] = str(error)
        if len(waiting) == _BATCH:
            ask(waiting)
            waiting.clear()
    ask(waiting)
    return rows


def _asker(trained: Any, config: PredictConfig) -> Callable[[list[tuple[dict[str, Any], Any]]], None]:
    """A function that puts `top` into each row of (row, image) pairs."""
    import torch

    from cifarbench.evaluation.predict import predict
    from cifarbench.training.restore import tested_views

    compute = trained.compute(config.device, config.precision, config.threads)
    model, trainer = trained.on(compute), trained.config.trainer
    tta = tested_views(trained) if config.tta == "auto" else config.tta

    def ask(waiting: list[tuple[dict[str, Any], Any]]) -> None:
        if not waiting:
            return
        images = torch.stack([image for _, image in waiting]).to(compute.device)
        logits = predict(model, images, trained.statistics, compute, tta, trainer.channels_last)
        best = logits.cpu().double().softmax(1).topk(config.top)
        for (row, _), shares, places in zip(waiting, best.values.tolist(), best.indices.tolist(), strict=True):
            row["top"] = [(trained.classes[place], share) for place, share in zip(places, shares, strict=True)]

    return ask


def _with_progress(names: list[str]) -> Iterable[str]:
    """The names, with a bar on the terminal's error stream where there are many."""
    if len(names) < _MANY or not sys.stderr.isatty():
        return names
    from rich.console import Console
    from rich.progress import track

    return track(names, description="predicting", console=Console(stderr=True), transient=True)


def _printable(text: str) -> str:
    """A file name or message without characters that a terminal would obey or UTF-8 cannot write."""
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text)


def _as_table(rows: list[dict[str, Any]], top: int, fold: bool) -> str:
    """A line for each file that was read; with `fold`, long names take several where the terminal is too narrow."""
    from rich.console import Console
    from rich.measure import Measurement
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("file", overflow="fold")
    for place in range(top):
        table.add_column("answer" if place == 0 else f"{place + 1}.", no_wrap=True)
        table.add_column("", justify="right", no_wrap=True)
    shown = [(Text(_printable(row["file"])), row["top"]) for row in rows if "top" in row]
    for name, likely in shown:
        cells = [cell for label, share in likely for cell in (Text(_printable(label)), Text(f"{share:.1%}"))]
        cells[0].stylize("bold")
        table.add_row(name, *cells)
    if not shown:
        return ""
    # Without a terminal lines stay whole: a file's or a log's reader copies paths from it.
    # Where only the width is given, rich takes 80 on a dumb terminal.
    console = Console(highlight=False, width=_WIDE, height=1, force_terminal=fold)
    if fold:
        whole = Measurement.get(console, console.options, table).maximum
        longest = max(name.cell_len for name, _ in shown)
        # rich leaves out what is wider than its console; a terminal wraps it.
        console.width = max(Console().width, whole - max(longest - _NAME, 0))
    with console.capture() as captured:
        console.print(table)
    return "".join(f"{line.rstrip()}\n" for line in captured.get().splitlines())


def _as_json(rows: list[dict[str, Any]], facts: dict[str, Any]) -> str:
    def plain(row: dict[str, Any]) -> dict[str, Any]:
        if "error" in row:
            return row
        top = [{"class": label, "probability": share} for label, share in row["top"]]
        return {"file": row["file"], "prediction": row["top"][0][0], "top": top}

    # ASCII, so that a file name that is no UTF-8 comes through as well.
    return json.dumps({**facts, "predictions": [plain(row) for row in rows]}, indent=2) + "\n"


def _as_csv(rows: list[dict[str, Any]], top: int) -> str:
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    heads = [head for place in range(1, top + 1) for head in (f"class_{place}", f"probability_{place}")]
    table.writerow(["file", *heads, "error"])
    table.writerows([_printable(row["file"]), *_cells(row, top), row.get("error", "")] for row in rows)
    return text.getvalue()


def _cells(row: dict[str, Any], top: int) -> Iterator[str]:
    for place in range(top):
        label, share = row["top"][place] if "top" in row else ("", None)
        yield label
        yield "" if share is None else f"{share:.6f}"


def _write(text: str, out: str | None) -> None:
    if out is None:
        print(text, end="")
        return
    path = Path(out)
    path.parent.mkdir(parents=True, exist_ok=True)
    runs.write_text(path, text)
    print(runs.shown_path(path))
