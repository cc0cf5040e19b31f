"""Command lines of every verb, valid ones changed in one to four places."""

from __future__ import annotations

import dataclasses
import random
import typing
from collections.abc import Iterator

from cifarbench.cli import VERBS
from cifarbench.config.load import CHOICES
from cifarbench.config.load import VERBS as CONFIGS
from fuzzing import values
from fuzzing.case import Case
from fuzzing.corpus import RUNS, TINY, command_of

_SMALL = ("data=synthetic", "data.size=600", "threads=1")
# (records that it needs, a line that works), several for a verb
_LINES: dict[str, tuple[tuple[tuple[str, ...], tuple[str, ...]], ...]] = {
    "train": (
        ((), TINY),
        (("run_a",), ("trainer.resume=run_a",)),
        ((), ("-m", *TINY, "seed=1,2")),
        (("sweep",), command_of("sweep")[1:]),
    ),
    "eval": ((("run_a",), ("run=run_a",)), (("run_a",), ("checkpoint=run_a/checkpoints/last.pt", "portion=val"))),
    "report": ((("run_a",), ("run_a",)), (tuple(RUNS), (*RUNS, "out=both.html"))),
    "predict": ((("run_a", "photos"), ("run=run_a", "photos")), (("run_a", "photos"), ("run=run_a", "photos/*.png"))),
    "ensemble": ((tuple(RUNS), tuple(RUNS)), (tuple(RUNS), (*RUNS, "average=weights"))),
    "export": ((("run_a",), ("run_a", "format=safetensors")),),
    "tune": (((), (*TINY, "optim=sgd", "tune=sgd", "tune.trials=1")), (("study",), command_of("study")[1:])),
    "leaderboard": (
        ((*RUNS, "sweep"), (".",)),
        ((*RUNS, "sweep"), ("sweep", "--compare", *RUNS, "out=board")),
        (tuple(RUNS), (*RUNS, "--verified", "by=val", "sort=flops")),
    ),
    "verify": ((("run_a",), ("run_a",)), (tuple(RUNS), (*RUNS, "limit=10m"))),
    "bench": (((), (*TINY, "bench.rounds=1", "bench.steps=1")),),
    "summary": (((), ("model=lenet",)), ((), ("model=simple_cnn", "out=sums"))),
    "sanity": (((), (*TINY, "steps=10", "images=10")),),
    "lr-find": (((), (*TINY, "steps=20")),),
    "baseline": (((), ("knn", *_SMALL, "k=1")), ((), ("knn", *_SMALL, "ks=[1,3]"))),
    "data": (
        (("batches",), ("check", "data.root=batches")),
        ((), ("show", *_SMALL[:2], "rows=1")),
        (("batches",), ("fetch", "data.root=batches", "data.mirrors=[]")),
    ),
}
# What is quick is drawn more often than what trains.
_WEIGHTS = {"train": 5, "leaderboard": 3, "summary": 3, "tune": 0.7, "bench": 0.7, "sanity": 0.7, "lr-find": 0.7}
_KEPT = {
    *TINY,
    "format=safetensors",
    "rows=1",
    "steps=10",
    "steps=20",
    "images=10",
    "bench.rounds=1",
    "bench.steps=1",
}  # without them a valid line takes long
_HYDRA = (
    *("hydra.run.dir", "hydra.sweep.dir", "hydra.sweep.subdir", "hydra.mode", "hydra.job.name", "hydra.verbose"),
    *("hydra/launcher", "hydra/sweeper", "hydra/job_logging", "hydra/output", "hydra.output_subdir", "hydra.runn.dir"),
    *("hydra.job.chdir", "hydra.job.env_set", "hydra.searchpath", "hydra.launcher._target_", "hydra.sweeper.params"),
    *("+hydra.callbacks.x", "hydra.sweeper._target_", "hydra.job.config.override_dirname.exclude_keys", "hydra"),
)
_FLAGS = (
    *(
        "--help",
        "-h",
        "--version",
        "-m",
        "--multirun",
        "--info",
        "-i",
        "--hydra-help",
        "--resolve",
        "--run",
        "-r",
        "-mm",
    ),
    *("--cfg", "-c", "--cfg=job", "--cfg=x", "--config-dir", "--config-dir=.", "--config-name", "--config-name=eval"),
    *(
        "--config-path=..",
        "--package",
        "-p",
        "-p=model",
        "--experimental-rerun=x",
        "--compare",
        "--verified",
        "--",
        "-",
    ),
    *("--shell-completion", "-sc", "--nonsense", "-x", "---", "--cfg job", "-c=hydra", "--info=defaults", "-é"),
)
# Keys whose larger values are valid and mean long work; they get only what is refused, or small.
_WORK = ("epochs", "size", "limit_batches", "steps", "images", "rounds", "seeds", "trials", "seed", "patience", "rows")
_LONG = ("trainer.compile=true", "overfit_batch=true", "format=onnx", "format=torch_export", "trials=", "compile=true")
_PATHS = (
    "hydra.run.dir",
    "hydra.sweep.dir",
    "hydra.output_subdir",
    "hydra.sweep.subdir",
    "out",
    "data.root",
    "root",
    "run",
    "checkpoint",
    "folder",
    "compare",
)
_FETCHING = {"train", "tune", "bench", "sanity", "lr-find", "baseline", "data"}


def draw_case(draw: random.Random) -> Case:
    """One changed command line; now and then an unchanged one, which has to work."""
    verb = draw.choices(list(_LINES), [_WEIGHTS.get(verb, 2) for verb in _LINES])[0]
    needs, line = draw.choice(_LINES[verb])
    words = list(line)
    changes = draw.choice((1, 1, 1, 2, 2, 3, 4)) if draw.random() < 0.97 else 0
    kinds = []
    for _ in range(changes):
        kind, change = draw.choice(list(_CHANGES.items()))
        words = change(draw, verb, words)
        kinds.append(kind)
    argv = (verb if draw.random() < 0.985 else _typo(draw, verb), *words)
    return Case(verb, kinds[0] if len(kinds) == 1 else "several" if kinds else "unchanged", _tamed(argv), needs)


def may_fetch(case: Case) -> bool:
    """Whether the command asks for the real dataset, which it may try to fetch."""
    return case.verb in _FETCHING


def named_paths(argv: tuple[str, ...]) -> Iterator[str]:
    """The paths that a command line itself says to write to."""
    for text in argv:
        name, _, value = text.lstrip("+~").partition("=")
        if value and name in _PATHS:
            yield value.strip("'\"[]")
        elif "=" not in text and not text.startswith("-"):
            yield text  # a run directory as a plain word


def _tamed(argv: tuple[str, ...]) -> tuple[str, ...]:
    """The line without what is valid and only takes long, and without NUL, which no command line can hold."""
    kept = [text.replace("\0", "") for text in argv if not any(part in text for part in _LONG)]
    return tuple(kept) if argv[0] != "tune" else (*kept, "tune.trials=1")


def _keys(verb: str) -> list[str]:
    """Every dotted key of the verb, whichever options are chosen."""
    keys = []
    hints = typing.get_type_hints(CONFIGS[verb])
    for field in dataclasses.fields(CONFIGS[verb]):
        kinds = CHOICES[field.name].values() if field.name in CHOICES else [hints[field.name]]
        for kind in kinds:
            inner = dataclasses.fields(kind) if dataclasses.is_dataclass(kind) else ()
            keys += [f"{field.name}.{part.name}" for part in inner] or [field.name]
    return sorted(set(keys))


def _set_key(draw: random.Random, verb: str, words: list[str]) -> list[str]:
    key = draw.choice(_keys(verb))
    value = values.word(draw)
    if key.split(".")[-1] in _WORK and value.lstrip("+-").isdigit():
        value = draw.choice(("-1", "0", "1.5"))
    return [*words, f"{draw.choice(('', '', '', '', '+', '++', '~'))}{key}={value}"]


def _set_group(draw: random.Random, verb: str, words: list[str]) -> list[str]:
    group = draw.choice(("data", "split", "model", "augment", "optim", "scheduler", "trainer", "experiment", "debug"))
    options = ("vgg", "resnet", "linear", "mlp", "adamw", "rmsprop", "plateau", "strong", "official", "quick", "null")
    value = draw.choice(options) if draw.random() < 0.5 else values.word(draw)
    return _at(draw, words, f"{group}{draw.choice(('', '', '', '@x', '@_global_'))}={value}")


def _set_hydra(draw: random.Random, verb: str, words: list[str]) -> list[str]:
    value = values.word(draw) if draw.random() < 0.7 else draw.choice(("basic", "joblib", "slurm", "MULTIRUN", "RUN"))
    return [*words, f"{draw.choice(_HYDRA)}={value}"]


def _misspell(draw: random.Random, verb: str, words: list[str]) -> list[str]:
    if not words:
        return [_typo(draw, verb)]
    place = draw.randrange(len(words))
    return [*words[:place], _typo(draw, words[place]), *words[place + 1 :]]


def _typo(draw: random.Random, text: str) -> str:
    place = draw.randrange(len(text) + 1)
    letter = draw.choice("aZ0=.,'\"[]{}()$@/\\ \u00e9+~-:%*?\t")
    return draw.choice(
        (
            text[:place] + letter + text[place:],
            text[:place] + text[place + 1 :],
            text[:place] + letter + text[place + 1 :],
        )
    )


def _replace_value(draw: random.Random, verb: str, words: list[str]) -> list[str]:
    places = [place for place, text in enumerate(words) if "=" in text]
    if not places:
        return [*words, values.word(draw)]
    place = draw.choice(places)
    name = words[place].partition("=")[0]
    value = "-1" if name.split(".")[-1] in _WORK else values.word(draw)
    return [*words[:place], f"{name}={value}", *words[place + 1 :]]


def _at(draw: random.Random, words: list[str], text: str) -> list[str]:
    place = draw.randrange(len(words) + 1)
    return [*words[:place], text, *words[place:]]


def _drop(draw: random.Random, verb: str, words: list[str]) -> list[str]:
    safe = [place for place, text in enumerate(words) if text not in _KEPT]
    place = draw.choice(safe) if safe else -1
    return [text for number, text in enumerate(words) if number != place]


_CHANGES: dict[str, typing.Callable[[random.Random, str, list[str]], list[str]]] = {
    "key": _set_key,
    "key again": _set_key,
    "value": _replace_value,
    "group": _set_group,
    "hydra": _set_hydra,
    "typo": _misspell,
    "dropped": _drop,
    "twice": lambda draw, verb, words: _at(draw, words, draw.choice(words)) if words else words,
    "word": lambda draw, verb, words: _at(draw, words, values.word(draw)),
    "verb": lambda draw, verb, words: _at(draw, words, draw.choice(list(VERBS))),
    "flag": lambda draw, verb, words: _at(draw, words, draw.choice(_FLAGS)),
    "unknown": lambda draw, verb, words: _at(draw, words, f"{values.word(draw)}={values.word(draw)}"),
    "order": lambda draw, verb, words: draw.sample(words, len(words)),
}
