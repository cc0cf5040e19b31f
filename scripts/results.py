"""Write RESULTS.md and its picture from the records in `scripts/results/`, and from nothing else.

    python scripts/results.py [--check]

A record is the bench.json of `cifarbench bench bench.measure=accuracy …`, kept under a name of its own. `--check`
writes nothing and fails if RESULTS.md is not what the records say.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

ROOT = Path(__file__).resolve().parents[1]
RECORDS = ROOT / "scripts" / "results"
TARGET, PICTURE = ROOT / "RESULTS.md", RECORDS / "accuracy_time.png"

_HEAD = """# Results

Made by `python scripts/results.py` from the records in `scripts/results/`; do not edit. Each row is the mean over n
runs that differ in their seed; σ is their standard deviation, the interval that of the mean by Student's t. Test
images were scored once a run, after training. Times are wall clock: `train` from the first weights to the last step,
`train + test` with the test's forward passes, `cold` from the command to the test's end.
"""
_COLUMNS = "| command | n | test accuracy | σ | official 10,000 | train | train + test | cold | hardware |"
# Two-sided 95 % points of Student's t for 1 to 9 degrees of freedom; beyond, the normal's is close.
_T95 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)


def rows() -> list[dict[str, Any]]:
    """Every config of every record, in the records' order."""
    records = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(RECORDS.glob("*.json"))]
    return [row for record in records for row in record["configs"]]


def markdown(found: list[dict[str, Any]]) -> str:
    """The whole of RESULTS.md."""
    lines = [_COLUMNS, "|---" * _COLUMNS.count(" | ") + "|---|"]
    return "\n".join([_HEAD, *lines, *map(_line, found), "", f"![accuracy over time]({PICTURE.relative_to(ROOT)})", ""])


def _line(row: dict[str, Any]) -> str:
    official = [run["accuracy_official"] for run in row["runs"] if run["accuracy_official"] is not None]
    facts = row["environment"]
    hardware = f"{facts['device_name']}, {facts['threads']} threads, {facts['precision']}, torch {facts['torch']}"
    cells = [
        f"`cifarbench train {row['label']}`",
        str(row["n"]),
        f"{row['mean']:.2%}{_interval(row)}",
        "–" if row["std"] is None else f"{100 * row['std']:.2f}",
        f"{sum(official) / len(official):.2%}" if official else "–",
        *(f"{row[clock]:,.0f} s" for clock in ("train", "train_test", "cold")),
        hardware,
    ]
    return "| " + " | ".join(cells) + " |"


def _interval(row: dict[str, Any]) -> str:
    if row["std"] is None:
        return ""
    t = _T95[row["n"] - 2] if row["n"] - 2 < len(_T95) else 1.96
    half = t * row["std"] / math.sqrt(row["n"])
    return f" ± {100 * half:.2f}"


def picture(found: list[dict[str, Any]]) -> Figure:
    """Test accuracy over the train + test clock, a point a run."""
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for row in found:
        times = [run["train_test"] / 60 for run in row["runs"]]
        axes.scatter(times, [100 * run["accuracy"] for run in row["runs"]], s=18, label=row["label"])
    axes.set(xlabel="train + test, minutes", ylabel="test accuracy, %", xscale="log")
    axes.grid(alpha=0.3, which="both")
    axes.legend(fontsize=7, frameon=False, loc="lower right")
    return figure


def main() -> int:
    """Write the page and its picture, or check the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if RESULTS.md is not up to date")
    found = rows()
    text = markdown(found)
    if parser.parse_args().check:
        same = TARGET.is_file() and TARGET.read_text(encoding="utf-8") == text
        print(
            "RESULTS.md is up to date" if same else "RESULTS.md disagrees with scripts/results: run scripts/results.py"
        )
        return 0 if same else 1
    TARGET.write_text(text, encoding="utf-8")
    picture(found).savefig(PICTURE, dpi=120)
    print(f"{TARGET.name}: {len(found)} rows")
    return 0


if __name__ == "__main__":
    sys.exit(main())
