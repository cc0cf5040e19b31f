"""The console: a live display in a terminal, plain lines elsewhere, nothing where asked."""

from __future__ import annotations

import sys
import time
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text
from torch import nn

from cifarbench.reporting.heading import heading
from cifarbench.training.observer import Observer, RunFacts, StepReport

_REFRESH_SECONDS = 0.5
_ROWS_SHOWN = 12


def make_console(progress: str) -> Observer:
    """The console for `trainer.progress`; "auto" is live in a terminal and plain elsewhere."""
    if progress == "none":
        return Observer()
    live = progress == "live" or (progress == "auto" and sys.stdout.isatty())
    return LiveConsole() if live else PlainConsole()


def output_console() -> Console:
    """The console on stdout; where that is no terminal, lines stay whole: a log's reader copies paths from it."""
    in_terminal = sys.stdout.isatty()
    return Console(highlight=False, soft_wrap=not in_terminal, width=None if in_terminal else 120)


class _Screen(Observer):
    """What both displays share: the opening lines, notes, and the closing panel."""

    def __init__(self) -> None:
        self.console = output_console()
        self.facts: RunFacts | None = None

    def start(self, facts: RunFacts, model: nn.Module) -> None:
        """Say what is trained, on what, with how many images, and where it goes."""
        self.facts = facts
        environment, counts = facts.environment, facts.counts
        where = f"{environment['device_name']}, {environment['precision']}"
        where += f", {counted(environment['threads'], 'thread')}" if environment["device"] == "cpu" else ""
        where += f", {environment['processes']} processes" if environment["processes"] > 1 else ""
        limit = f", at most {stopwatch(facts.max_time)}" if facts.max_time else ""
        size = f"   {facts.parameters:,} parameters, {facts.flops / 1e6:,.0f} MFLOP"
        # As texts, since `[…]` in a name is no markup.
        self.console.print(Text.assemble((heading(facts.config), "bold"), size))
        images = f"{counts['train']:,} train, {counts['val']:,} validation, {counts['test']:,} test (sealed)"
        self.console.print(Text(f"{facts.dataset}: {images}", "dim"))
        length = f"{counted(facts.epochs, 'epoch')} of {facts.steps_per_epoch} steps"
        self.console.print(Text(f"{where}; {length}{limit}", "dim"))
        self.console.print(Text(facts.directory, "dim"))

    def note(self, text: str) -> None:
        """Print the line."""
        self.console.print(Text(text, "dim"))

    def result(self, report: dict[str, Any], model: nn.Module) -> None:
        """Print the closing panel: accuracy with its interval, most confused pairs, paths."""
        assert self.facts is not None
        page = ["report.html"] if self.facts.config["trainer"]["report"] else []
        paths = {"run": self.facts.directory, "in it": ", ".join([*page, "confusion_matrix.png"])}
        self.console.print(result_panel(report, self.facts.dataset, paths))


class PlainConsole(_Screen):
    """A line an epoch, for logs and pipes."""

    def epoch(self, row: dict[str, Any], is_best: bool) -> None:
        """Print the row."""
        assert self.facts is not None
        self.console.print(
            f"epoch {row['epoch']:>3}/{self.facts.epochs}  lr {row['lr']:.5f}  "
            f"train loss {row['train_loss']:.4f} acc {row['train_accuracy']:.2%}  "
            f"val loss {_number(row['val_loss'], '.4f')} acc {_number(row['val_accuracy'], '.2%')}"
            f"{' *' if is_best else '  '} {row['images_per_second']:>6.0f} img/s  {row['seconds']:.1f} s"
        )


class LiveConsole(_Screen):
    """A table of epochs with a progress bar that moves within the epoch."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[tuple[dict[str, Any], bool]] = []
        self.live: Live | None = None
        self.drawn = 0.0
        self.report: StepReport | None = None

    def start(self, facts: RunFacts, model: nn.Module) -> None:
        """Open the display, which only this process's own calls redraw: no thread competes with training."""
        super().start(facts, model)
        self.live = Live(console=self.console, auto_refresh=False, transient=False)
        self.live.start()

    def step(self, report: StepReport) -> None:
        """Redraw twice a second; the loss is read from the device only then."""
        if time.monotonic() - self.drawn >= _REFRESH_SECONDS:
            self.report = report
            self._draw()

    def epoch(self, row: dict[str, Any], is_best: bool) -> None:
        """Add the row and redraw."""
        self.rows.append((row, is_best))
        self._draw()

    def result(self, report: dict[str, Any], model: nn.Module) -> None:
        """Close the display, then print the panel."""
        self.close()
        super().result(report, model)

    def close(self) -> None:
        """Leave the last state of the table on the screen, without the bar."""
        if self.live:
            self.report = None
            self._draw()
            self.live.stop()
            self.live = None

    def _draw(self) -> None:
        assert self.live is not None
        parts: list[Any] = [epoch_table(self.rows[-_ROWS_SHOWN:], self.console.width)] if self.rows else []
        if self.report and self.facts:
            parts.append(_status(self.report, self.facts))
        self.live.update(Group(*parts), refresh=True)
        self.drawn = time.monotonic()


def epoch_table(rows: list[tuple[dict[str, Any], bool]], width: int) -> Table:
    """The epochs so far, the newest best marked; narrow terminals lose the speed and the rate first."""
    table = Table(box=None, padding=(0, 1), header_style="dim")
    wide = width >= 90
    best = max((index for index, (_, is_best) in enumerate(rows) if is_best), default=-1)
    names = ["epoch", "train loss", "train acc", "val loss", "val acc", *(["lr", "img/s"] if wide else []), "time"]
    for name in names:
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    for index, (row, _) in enumerate(rows):
        cells = [
            str(row["epoch"]),
            f"{row['train_loss']:.4f}",
            f"{row['train_accuracy']:.2%}",
            _number(row["val_loss"], ".4f"),
            _number(row["val_accuracy"], ".2%"),
            *([f"{row['lr']:.5f}", f"{row['images_per_second']:,.0f}"] if wide else []),
            stopwatch(row["seconds"]),
        ]
        table.add_row(*cells, "[green]best[/]" if index == best else "", style="bold" if index == best else "")
    return table


def _status(report: StepReport, facts: RunFacts) -> Table:
    """One line: the bar within the epoch, rate, loss, throughput, and the time that is left."""
    share = max(report.share, 1e-6)
    left = report.elapsed * (1 - share) / share
    line = Table.grid(padding=(0, 1))
    bar = ProgressBar(total=facts.steps_per_epoch, completed=report.batch, width=18, complete_style="cyan")
    text = Text.assemble(
        (f"loss {report.loss.item():.3f}", "bold"),
        f"  lr {report.lr:.4f}  {report.images_per_second:,.0f} img/s  ",
        (f"{stopwatch(left)} left", "cyan"),
    )
    line.add_row(f" epoch {report.epoch}/{facts.epochs}", bar, text)
    return line


_TITLES = {
    "test": "Test",
    "val": "Validation images: chosen on, so no test result",
    "train": "Training images: trained on, so no test result",
}


def result_panel(report: dict[str, Any], dataset: str, paths: dict[str, str], portion: str = "test") -> Panel:
    """A portion's result: accuracy with its 95 % interval, the official images, most confused pairs, paths."""
    low, high = report["accuracy_interval"]
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column()
    headline = Text.assemble((f"{report['accuracy']:.2%}", "bold green"), f" of {report['n']:,}")
    headline.append(f"   95 % interval {100 * low:.2f}–{100 * high:.2f}", "dim")
    grid.add_row({"val": "validation"}.get(portion, portion) + " accuracy", headline)
    if report["tta"] != "none":
        grid.add_row("test-time aug.", f"{report['tta']}: several views of each image averaged")
    if report["accuracy_official"] is not None:
        grid.add_row(f"official {report['n_official']:,}", f"{report['accuracy_official']:.2%}")
    if report["accuracy_without_duplicates"] is not None:
        left_out = f" without {report['n_duplicates']:,} images that have near-duplicates in the trainable part"
        grid.add_row("unseen", Text.assemble(f"{report['accuracy_without_duplicates']:.2%}", (left_out, "dim")))
    pairs = [f"{pair['true']} taken for {pair['predicted']} {pair['count']}×" for pair in report["most_confused"][:3]]
    grid.add_row("most confused", "\n".join(pairs) or "nothing")
    grid.add_row("loss, ECE", f"{report['loss']:.4f}, {report['ece']:.4f}")
    for name, path in paths.items():
        grid.add_row(name, Text(path, overflow="fold"))
    return Panel(grid, title=f"{_TITLES[portion]} · {dataset}", title_align="left", border_style="green", expand=False)


def _number(value: float | None, form: str) -> str:
    return "–" if value is None else format(value, form)


def counted(count: int, word: str) -> str:
    """1 epoch, 2 epochs."""
    return f"{count} {word}{'s' * (count != 1)}"


def stopwatch(seconds: float | None) -> str:
    """1:05, or 2:03:09 from an hour on."""
    whole = round(seconds or 0)
    hours, minutes, rest = whole // 3600, whole // 60 % 60, whole % 60
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
