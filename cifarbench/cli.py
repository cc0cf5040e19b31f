"""The front door: verbs, their dispatch to Hydra, exit codes, and how errors are shown."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from cifarbench import __version__
from cifarbench.errors import ConfigError, explain
from cifarbench.output import outlive_readers

VERBS = {
    "train": "train a model, keep its checkpoints, and score the test part once",
    "eval": "score a run or a checkpoint again",
    "report": "show a run as a page, or compare several: cifarbench report DIR [DIR…]",
    "predict": "say what is on image files: cifarbench predict run=DIR IMAGE…",
    "ensemble": "average several runs: cifarbench ensemble DIR DIR…",
    "export": "write a model for use elsewhere: cifarbench export DIR format=onnx",
    "tune": "search hyperparameters on validation images, with several workers if you like",
    "leaderboard": "rank and compare finished runs: cifarbench leaderboard [DIR…]",
    "verify": "judge runs by the rules of the competition: cifarbench verify DIR…",
    "bench": "time configs against each other, or measure time to an accuracy",
    "summary": "show a model layer by layer: shapes, parameters, memory, FLOPs, receptive field",
    "sanity": "check model, data and optimizer before training; exit 1 if a check fails",
    "lr-find": "raise the learning rate step by step and suggest one",
    "baseline": "score a method without training: cifarbench baseline knn",
    "data": "fetch, check or show the dataset: cifarbench data fetch|check|show",
}
HELP = """usage: cifarbench VERB [group=option] [key=value] …

CIFAR-10 experiments with a sealed test set.

verbs:
{verbs}

first steps:
  cifarbench train data=synthetic trainer=quick    drawn images, no download
  cifarbench train model=vgg optim=adamw           the real CIFAR-10
  cifarbench train -m model=vgg,resnet seed=1,2    a sweep of four runs
  cifarbench VERB --help                           every group, option and key

options: --help, --version, --debug (traceback), -sc install=bash (completion)
Hydra's own flags follow the verb: -m, --cfg job, --info, --config-dir, …
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit code; a failure is one plain sentence on stderr."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    outlive_readers()
    _let_idle_threads_sleep()
    debug = "--debug" in arguments
    arguments = [argument for argument in arguments if argument != "--debug"]
    try:
        return _dispatch(arguments)
    except KeyboardInterrupt:
        print("cifarbench: interrupted", file=sys.stderr)
        return 130
    except Exception as error:
        if debug:
            raise
        return _report(error)


def _columns() -> int:
    import shutil

    return shutil.get_terminal_size((100, 24)).columns


def _help() -> str:
    import textwrap

    width = min(_columns(), 110)
    lines = [
        textwrap.fill(text, width, initial_indent=f"  {verb:<13}", subsequent_indent=" " * 15, break_on_hyphens=False)
        for verb, text in VERBS.items()
    ]
    return HELP.format(verbs="\n".join(lines))


def _let_idle_threads_sleep() -> None:
    """Let OpenMP's threads sleep while they wait, before torch loads its library; the user's own settings win.

    By default they spin for a while, on cores that another program, or the very thread that they wait for, could use.
    """
    if sys.platform == "linux" and not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & os.environ.keys():
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"


def _dispatch(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("--help", "-h", "help"):
        print(_help(), end="")
        return 0 if arguments else 2
    verb, rest = arguments[0], arguments[1:]
    if verb == "--version":
        print(f"cifarbench {__version__}")
        return 0
    if verb in ("-sc", "--shell-completion"):
        from cifarbench.commands.completion import complete

        return complete(rest, VERBS)
    if verb not in VERBS:
        from cifarbench.config.keys import unknown

        raise unknown("verb", verb, VERBS)
    if int(os.environ.get("RANK", "0")) > 0:
        return _follow(verb)
    from cifarbench.commands.hydra_app import run_verb

    return run_verb(verb, rest)


def _follow(verb: str) -> int:
    """A further torchrun process: it takes its config from the first one, so Hydra runs only there."""
    if verb != "train":
        raise ConfigError(f"`{verb}` runs in one process; start it without torchrun.")
    from cifarbench.commands.train import follow

    return follow()


def _report(error: Exception) -> int:
    """Print the error as a sentence and return its exit code."""
    sentence, code = explain(error)
    text = f"cifarbench: {sentence}"
    if sys.stderr.isatty():  # which would break words; elsewhere a sentence stays one line
        import textwrap

        text = textwrap.fill(text, _columns(), break_long_words=False, break_on_hyphens=False)
    print(text, file=sys.stderr)
    return code
