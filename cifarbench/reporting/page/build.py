"""From run directories to report.html and, beside it, the same numbers as report.json."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2

from cifarbench import runs
from cifarbench.data.dataset import ImageSet
from cifarbench.reporting.page.galleries import galleries, without_pictures
from cifarbench.reporting.page.inside import inside
from cifarbench.reporting.page.record import Record, read_record
from cifarbench.reporting.page.several import comparison
from cifarbench.reporting.page.single import run_facts
from cifarbench.reporting.page.sources import Sources, open_sources

_TEMPLATES = Path(__file__).with_name("templates")


def write_run_page(
    directory: Path,
    out: Path | None = None,
    data: ImageSet | None = None,
    root: str | None = None,
    images: Sequence[int] = (),
) -> Path:
    """Write the page of one run and return its path.

    Args:
        directory: the run.
        out: the page's file; None puts report.html into the run.
        data: the run's images where they are in memory already; else they are looked for.
        root: folder of the dataset, instead of the one that the run used.
        images: numbers of images whose maps are drawn.

    Raises:
        ConfigError: `directory` is no run.
        IntegrityError: a file of it is damaged, or the dataset here is not the run's.
    """
    record = read_record(directory)
    sources = open_sources(record, data, root)
    facts = run_facts(record)
    shown = galleries(record, sources.data)
    opened = bool(record.number("test", "openings"))
    looked = inside(sources.trained, sources.data, sources.parts, images, opened) if sources.trained else None
    page = _render("run.html.j2", **facts, galleries=shown, inside=looked, notes=sources.notes, explained=len(images))
    out = out or directory / "report.html"
    _write(out, page)
    runs.write_json(_beside(out), _numbers(record, facts, shown, sources))
    return out


def _beside(page: Path) -> Path:
    """The file of a page's numbers: never run.json, test.json or another that a run's record consists of."""
    return page.with_name("report.json" if page.stem == "report" else f"{page.stem}.report.json")


def _numbers(record: Record, facts: dict[str, Any], shown: Any, sources: Sources) -> dict[str, Any]:
    """What the page shows and no other file of the run holds."""
    return {
        "run": record.name,
        "score": record.score,
        "reliability": facts["reliability"]["bins"] if facts["reliability"] else None,
        "galleries": without_pictures(shown),
        "notes": sources.notes,
    }


def write_comparison_page(directories: Sequence[Path], out: Path) -> Path:
    """Write the page that compares several runs and return its path.

    Raises:
        ConfigError: a directory is no run, stands twice, or was never tested.
        IntegrityError: the runs were tested on different images, or a file is damaged.
    """
    runs.check_distinct(directories)
    records = [read_record(directory) for directory in directories]
    runs.check_one_test_part(directories)
    facts = comparison(records)
    _write(out, _render("comparison.html.j2", **facts))
    runs.write_json(
        _beside(out),
        {name: facts[name] for name in ("passport", "n", "rows", "pairs", "differing", "recall")},
    )
    return out


def _render(template: str, **values: Any) -> str:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["percent"] = lambda value, digits=2: "–" if value is None else f"{100 * value:.{digits}f} %"
    environment.filters["points"] = lambda value: f"{100 * value:+.2f}".replace("-", "−")
    environment.filters["fixed"] = lambda value, digits=4: "–" if value is None else f"{value:.{digits}f}"
    environment.filters["p"] = lambda value: "< 0.0001" if value < 1e-4 else f"{value:.4f}"
    environment.filters["count"] = lambda value: "–" if value is None else f"{value:,.0f}"
    return environment.get_template(template).render(**values)


def _write(path: Path, page: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    # A hostile name may hold half of a character pair, which UTF-8 has no bytes for.
    runs.write_text(path, page.encode("utf-8", "replace").decode("utf-8"))
