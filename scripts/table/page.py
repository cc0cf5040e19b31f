"""RESULTS.md and the tables and figures beside the records: written from the records alone, or checked against them."""

from __future__ import annotations

import csv
import io
import os
import string
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cifarbench.reporting.console import stopwatch
from cifarbench.runs import write_text
from table import figures
from table.lines import Line, PeekLine, lines_of, peek_of
from table.records import COMMITTED, ROOT, SHARED, read_records
from table.rows import PROFILES, Section, rows_of

_HEAD = """# Results{title}

Made by `make reproduce` from the records in `{records}/`; do not edit. A line is the mean over n runs
that differ in their seed alone, on one machine with one set of versions; ± is their standard deviation σ, the interval
that of the mean at 95 % (Student's t). Test images were scored once a run, after training, unless a section says
otherwise. FLOPs are of one forward pass of an image, a multiply-add counting as two. Times are wall clock: `train`
is the first weights and all epochs, without the steps of `trainer.untimed_steps`, `cold` from the composed command,
which is a second or two after it was typed, to the test's end; runs that followed each other in one process, which had
compiled already, have no `cold`.
"""
_NONE = "No run has been recorded yet.\n"
_HEADINGS = (
    *("command", "split", "n", "test accuracy", "95 % interval", "official 10,000", "epochs", "parameters"),
    *("MFLOP", "train", "cold", "on", "published elsewhere"),
)
_PEEK_HEADINGS = (
    *("command", "split", "n", "epochs", "last epoch", "picked on validation", "picked on test: breaks the seal"),
    *("what that adds, in points", "95 % interval", "openings a run", "on"),
)
_OFTEN = "\\*"


@dataclass(frozen=True)
class Places:
    """Where the records lie, with the tables and figures beside them, and where the page goes."""

    records: Path = COMMITTED
    page: Path = ROOT / "RESULTS.md"


def write(sections: list[Section], places: Places, dataset: str) -> str:
    """Write the page and what it shows; returns a line that says so.

    Raises:
        IntegrityError: a record is damaged, misnamed, of another dataset, or of a row that the list lacks.
    """
    made, pictures, count = _made(sections, places, dataset)
    for path, text in made.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, text)
    for path, picture in pictures.items():
        picture.write(path)
    for path in _stale(places, pictures):
        path.unlink()
    return f"{places.page}: {count} lines"


def check(sections: list[Section], places: Places, dataset: str) -> list[str]:
    """What disagrees with the records, a sentence each; nothing is written.

    Raises:
        IntegrityError: as `write`.
    """
    made, pictures, count = _made(sections, places, dataset)
    if not count and not places.page.exists():
        return []
    wrong = [path for path, text in made.items() if not path.is_file() or path.read_text(encoding="utf-8") != text]
    wrong += [path for path, picture in pictures.items() if not picture.is_drawn(path)]
    return [f"{path} disagrees with the records" for path in (*wrong, *_stale(places, pictures))]


def _made(
    sections: list[Section], places: Places, dataset: str
) -> tuple[dict[Path, str], dict[Path, figures.Picture], int]:
    """The text of every file, the figures, and the number of lines."""
    lines = lines_of(rows_of(sections), read_records(places.records, dataset))
    peeks = [peek_of(line) for line in lines if line.row.verb == "peek"]
    pictures = {places.records / f"{name}.png": picture for name, picture in figures.all_of(lines, peeks).items()}
    made = {places.page: _page(sections, places, dataset, lines, peeks, pictures)}
    if lines:
        made[places.records / "results.csv"] = results_csv(lines)
    if peeks:
        made[places.records / "peek.csv"] = figures.peek_csv(peeks)
    return made, pictures, len(lines)


def _stale(places: Places, pictures: dict[Path, figures.Picture]) -> list[Path]:
    """Figures of earlier records that no record backs any more; pictures of other origin are left alone."""
    found = (path for path in sorted(places.records.glob("*.png")) if path not in pictures)
    return [path for path in found if figures.mark_of(path) is not None]


# --- the page --------------------------------------------------------------------------------------------------------


def _page(
    sections: list[Section],
    places: Places,
    dataset: str,
    lines: Sequence[Line],
    peeks: Sequence[PeekLine],
    pictures: dict[Path, figures.Picture],
) -> str:
    title = "" if dataset == "cifar10" else f": {dataset} images, which say nothing of CIFAR-10"
    marks = _marks(lines)
    shown = Path(os.path.relpath(places.records, places.page.parent)).as_posix()
    parts = [_HEAD.format(title=title, records=shown), _machines(marks) if lines else _NONE]
    links = {path.stem: f"![{picture.caption}]({shown}/{path.name})\n" for path, picture in pictures.items()}
    parts += [links[name] for name in ("accuracy_time",) if name in links]
    for section in sections:
        parts += _section(section, lines, peeks, marks, links)
    return "\n".join([*parts, _missing(sections, dataset, lines)])


def _section(
    section: Section,
    lines: Sequence[Line],
    peeks: Sequence[PeekLine],
    marks: dict[str, str],
    links: dict[str, str],
) -> list[str]:
    """Heading, text, table and figures of a section; nothing where it has no records."""
    mine = [line for line in lines if line.row in section.rows]
    if not mine:
        return []
    plain = [_cells(line, marks) for line in mine if line.row.verb != "peek"]
    peeked = [_peek_cells(peek, marks) for peek in peeks if peek.line in mine]
    parts = [f"## {section.title}\n", *([f"{section.text}\n"] if section.text else [])]
    parts += [_table(headings, rows) for headings, rows in ((_HEADINGS, plain), (_PEEK_HEADINGS, peeked)) if rows]
    if any(line.opened_often for line in mine if line.row.verb != "peek"):
        parts.append(f"{_OFTEN} the test part of a run was opened more than once.\n")
    if any(record.values["not_timed"] for line in mine for record in line.records):
        parts.append(f"Runs without times were {SHARED}.\n")
    groups = dict.fromkeys(name for line in mine for name in (line.row.group, line.row.verb))
    return [*parts, *(links[name] for name in groups if name in links)]


def _table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [headings, ["---"] * len(headings), *rows]
    return "".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |\n" for line in lines)


def _cells(line: Line, marks: dict[str, str]) -> list[str]:
    epochs = line.epochs
    return [
        f"`{line.first['label']}`",
        _split(line),
        f"{line.test.n}{_OFTEN if line.opened_often else ''}",
        line.test.words,
        line.test.interval_words,
        "–" if line.official is None else f"{line.official:.2%}",
        "–" if not epochs else "–".join(map(str, dict.fromkeys((epochs[0], epochs[-1])))),
        f"{line.first['model']['parameters']:,}",
        f"{line.first['model']['flops'] / 1e6:,.1f}",
        *(_time(line, clock) for clock in ("train", "cold")),
        marks[line.environment],
        line.row.published or "–",
    ]


def _peek_cells(peek: PeekLine, marks: dict[str, str]) -> list[str]:
    line, gain = peek.line, peek.optimism
    openings = sorted({record.values["test"]["openings"] for record in line.records})
    spread = f" ± {100 * gain.std:.2f}" if gain.std is not None else ""
    return [
        f"`{line.first['label']}`",
        _split(line),
        str(line.test.n),
        "–".join(map(str, line.epochs)),
        *(choice.words for choice in (peek.last, peek.by_validation, peek.by_test)),
        f"{100 * gain.mean:+.2f}{spread}",
        gain.interval_words,
        "–".join(map(str, openings)),
        marks[line.environment],
    ]


def _split(line: Line) -> str:
    split = line.first["split"]
    return split["name"] if split["val"] else f"{split['name']}, no validation"


def _time(line: Line, clock: str) -> str:
    """The mean of a clock; with how many runs it is of, where some were not timed."""
    found = line.seconds(clock)
    if found is None:
        return "–"
    timed = sum(record.seconds(clock) is not None for record in line.records)
    text = stopwatch(found) if found >= 100 else f"{found:.2f} s" if found < 10 else f"{found:.1f} s"
    return text if timed == line.test.n else f"{text} (n = {timed})"


def _marks(lines: Sequence[Line]) -> dict[str, str]:
    """A letter for each environment, in the order in which they come."""
    found = list(dict.fromkeys(line.environment for line in lines))
    letters = [*string.ascii_uppercase, *(f"{a}{b}" for a in string.ascii_uppercase for b in string.ascii_uppercase)]
    return dict(zip(found, letters, strict=False))


def _machines(marks: dict[str, str]) -> str:
    return "Hardware and versions:\n\n" + "".join(f"- {mark}: {words}\n" for words, mark in marks.items())


def _missing(sections: list[Section], dataset: str, lines: Sequence[Line]) -> str:
    """One line naming the rows that have no record, by profile."""
    there = {(record.profile, record.row) for line in lines for record in line.records}
    parts = []
    for profile in (name for name, held in PROFILES.items() if held == dataset):
        names = [row.name for row in rows_of(sections) if profile in row.plans and (profile, row.name) not in there]
        parts += [f"on the profile {profile}: {', '.join(names)}"] if names else []
    return f"Not yet measured: {'; '.join(parts)}.\n" if parts else "Every row has been measured.\n"


def results_csv(lines: Sequence[Line]) -> str:
    """Every line with its numbers unrounded."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    names = ["row", "profile", "command", "split", "split_fingerprint", "n", "mean", "std", "low", "high", "official"]
    table.writerow([*names, "epochs", "parameters", "flops", "train_seconds", "cold_seconds", "environment"])
    for line in lines:
        first, test = line.first, line.test
        low, high = test.interval or (None, None)
        split = [first["split"]["name"], first["split"]["fingerprint"]]
        numbers = [test.n, test.mean, test.std, low, high, line.official, " ".join(map(str, line.epochs))]
        sizes = [first["model"]["parameters"], first["model"]["flops"], line.seconds("train"), line.seconds("cold")]
        where = [line.row.name, line.records[0].profile, first["label"]]
        table.writerow([*where, *split, *numbers, *sizes, line.environment])
    return text.getvalue()
