"""What a study found: the best override line, tables, plots, and the best config as an experiment."""

from __future__ import annotations

import csv
import io
import itertools
import shlex
from pathlib import Path
from typing import Any

import optuna
from matplotlib.figure import Figure
from rich.console import Console
from rich.text import Text

from cifarbench.errors import CifarbenchError, ConfigError, NonFiniteError
from cifarbench.reporting.figures import save
from cifarbench.runs import shown_path, write_json, write_text
from cifarbench.tuning.study import ended, importance

_LAID_OVER = ("hardware", "debug")  # groups that come after an experiment, which cannot choose them therefore


def show_study(study: optuna.Study, metric: str, typed: list[str], directory: Path) -> None:
    """Print the best trial, the command that trains it, what mattered, and where the files are.

    Raises:
        NonFiniteError: no trial completed, as they diverged.
        ConfigError: no trial completed, as all were pruned.
    """
    console = Console(highlight=False, soft_wrap=True)
    trials = ended(study)
    if not _any_complete(study):
        raise _without_best(study)
    pruned = sum(trial.state == optuna.trial.TrialState.PRUNED for trial in trials)
    best = f"best validation {metric} {shown_value(study.best_value, metric)}"
    console.print(f"{len(trials)} trials, {pruned} pruned; {best}. To train it once more, and open the test part once:")
    console.print(Text(shlex.join(["cifarbench", "train", *typed, *_overrides(study)]), "bold"))
    for name, share in importance(study).items():
        console.print(Text(f"  {share:>4.0%}  {name}"))
    console.print(Text(f"{shown_path(directory)}: trials.csv, study.json, best.yaml, study.png", "dim"))


def shown_value(value: float | None, metric: str) -> str:
    """An accuracy or a loss as text."""
    if value is None:
        return "–"
    return f"{value:.2%}" if metric == "accuracy" else f"{value:.4f}"


def write_study(study: optuna.Study, typed: list[str], directory: Path) -> None:
    """Write trials.csv, study.json, best.yaml and study.png."""
    if not _any_complete(study):
        return
    write_text(directory / "trials.csv", _csv(study))
    best = {"value": study.best_value, "trial": study.best_trial.number, "overrides": [*typed, *_overrides(study)]}
    write_json(directory / "study.json", {"best": best, "importance": importance(study), "trials": _rows(study)})
    write_text(directory / "best.yaml", _experiment(study, typed))
    save(_figure(study), directory / "study.png")


def _any_complete(study: optuna.Study) -> bool:
    return any(trial.state == optuna.trial.TrialState.COMPLETE for trial in ended(study))


def _without_best(study: optuna.Study) -> CifarbenchError:
    """The error for a study none of whose trials completed: they diverged (noted with them), or were pruned."""
    trials = ended(study)
    diverged = sum(bool(trial.user_attrs.get("diverged")) for trial in trials)
    if not diverged:
        return ConfigError(
            f"`tune.pruner` ended all {len(trials)} trials early, so none is the best; set tune.pruner=none and raise "
            "`tune.trials`."
        )
    others = ", and the others were pruned" if diverged < len(trials) else ""
    return NonFiniteError(
        f"{diverged} of {len(trials)} trials diverged{others}, so none is the best; search lower rates in "
        "`tune.space`, as a new `tune.study`."
    )


def _overrides(study: optuna.Study) -> list[str]:
    return [f"{name}={_plain(value)}" for name, value in study.best_params.items()]


def _plain(value: Any) -> Any:
    return f"{value:.6g}" if isinstance(value, float) else value


def _rows(study: optuna.Study) -> list[dict[str, Any]]:
    return [
        {"number": trial.number, "state": trial.state.name.lower(), "value": _last(trial), **trial.params}
        for trial in ended(study)
    ]


def _last(trial: optuna.trial.FrozenTrial) -> float | None:
    """The trial's value; of a pruned one, the last that it reported."""
    if trial.value is not None:
        return trial.value
    return trial.intermediate_values[max(trial.intermediate_values)] if trial.intermediate_values else None


def _csv(study: optuna.Study) -> str:
    rows, text = _rows(study), io.StringIO()
    names = list(dict.fromkeys(name for row in rows for name in row))
    table = csv.DictWriter(text, names, lineterminator="\n")
    table.writeheader()
    table.writerows(rows)
    return text.getvalue()


def _experiment(study: optuna.Study, typed: list[str]) -> str:
    """The best config as a file for conf/experiment/ or --config-dir."""
    words = [text.lstrip("+") for text in [*typed, *_overrides(study)]]
    pairs = dict(word.split("=", 1) for word in words)  # of a key twice, the last counts
    groups = [(name, value) for name, value in pairs.items() if "." not in name]
    chosen = [(name, value) for name, value in groups if name not in ("seed", "plugins", "experiment", *_LAID_OVER)]
    sections: dict[str, dict[str, str]] = {}
    for path, value in pairs.items():
        section, _, name = path.partition(".")
        if name:
            sections.setdefault(section, {})[name] = value
    lines = [
        "# @package _global_",
        f"# Best of {len(ended(study))} trials on validation images: {study.best_value:.4f}.",
    ]
    lines += [f"# Found with {name}={value}: type it beside this." for name, value in groups if name in _LAID_OVER]
    entries = [value for name, value in groups if name == "experiment"]  # what the study's configs build on
    entries += [f"override /{name}: {value}" for name, value in chosen]
    if entries:
        lines += ["defaults:", *(f"  - {entry}" for entry in entries)]
    lines += [f"seed: {value}" for name, value in groups if name == "seed" and name in study.best_params]
    for section, values in sections.items():
        lines += ["", f"{section}:", *(f"  {name}: {value}" for name, value in values.items())]
    return "\n".join(lines) + "\n"


def _figure(study: optuna.Study) -> Figure:
    """Every trial's value, the best so far, and the importance of each key."""
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    history, bars = figure.subplots(1, 2, width_ratios=[3, 2])
    rows = [row for row in _rows(study) if row["value"] is not None]
    for state, colour in (("complete", "tab:blue"), ("pruned", "lightgray")):
        some = [row for row in rows if row["state"] == state]
        numbers, values = [row["number"] for row in some], [row["value"] for row in some]
        history.scatter(numbers, values, s=18, color=colour, label=state)
    better = max if study.direction == optuna.study.StudyDirection.MAXIMIZE else min
    done = [row for row in rows if row["state"] == "complete"]
    best = list(itertools.accumulate((row["value"] for row in done), better))
    history.step([row["number"] for row in done], best, where="post", color="tab:orange", label="best so far")
    history.set(xlabel="trial", ylabel="validation value")
    history.legend(fontsize=8, frameon=False)
    shares = importance(study)
    bars.barh(list(shares)[::-1], [shares[name] for name in list(shares)[::-1]], color="tab:blue")
    bars.set(xlabel="importance", xlim=(0, 1))
    return figure
