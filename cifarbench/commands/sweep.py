"""Sweeps: `-m` runs one job for each combination, survives failures and kills, and ends with a table of all jobs."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import itertools
import json
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from cifarbench import runs
from cifarbench.commands.side_by_side import Beside, Stopped, relayed_signals
from cifarbench.commands.words import config_folder, flags_apart
from cifarbench.config.load import load
from cifarbench.config.schema import TrainConfig
from cifarbench.errors import ConfigError, Interrupted, InUseError, SweepError, explain
from cifarbench.sweeps import FAILURE, Job, Jobs
from cifarbench.training.signals import StopRequest

if TYPE_CHECKING:
    from omegaconf import DictConfig

_COMPOSED = 200  # jobs that a dry run looks into, at a fifth of a second each
MULTIRUN = {"-m", "--multirun"}
_NAMING = ("hydra.sweep.subdir", "hydra.sweeper.params", "hydra.job.config.override_dirname")


def rewrite(arguments: list[str]) -> list[str]:
    """Turn `repeat=5` into a sweep over five seeds, from `seed` on.

    Raises:
        ConfigError: `repeat` is no whole number above 0, or stands beside several seeds.
    """
    repeats = [argument.removeprefix("repeat=") for argument in arguments if argument.startswith("repeat=")]
    if not repeats:
        return arguments
    seeds = [argument.removeprefix("seed=") for argument in arguments if argument.startswith("seed=")]
    first = seeds[-1] if seeds else "0"
    if not repeats[-1].isdecimal() or not int(repeats[-1]):
        raise ConfigError(f"`repeat` is {repeats[-1]!r}; it must be a whole number of seeds above 0.")
    if not first.isdecimal():
        raise ConfigError(f"`repeat` takes seeds from `seed` on, which is {first!r}; give one seed, or several alone.")
    rest = [argument for argument in arguments if not argument.startswith(("repeat=", "seed="))]
    swept = f"seed=range({first},{int(first) + int(repeats[-1])})"
    return [*rest, swept] if MULTIRUN & set(rest) else ["-m", *rest, swept]


class Sweep:
    """The jobs of one command line, in a directory whose name follows from their configs.

    So the same command finds what it left behind: finished jobs are skipped, interrupted ones resumed.

    Raises:
        ConfigError: a key would name the jobs' directories otherwise, or a `sweep.` key is none.
    """

    def __init__(self, verb: str, arguments: list[str]) -> None:
        flags, words = flags_apart(arguments)
        self.is_dry = _flag(words, "sweep.dry_run")
        typed = [word for word in words if not word.startswith("sweep.")]
        quiet = _quiet(typed)  # names neither the sweep's directory nor a job's
        # Hydra's parser wants its overrides in one piece, so flags go to the front.
        self.arguments = ["-m", *(flag for flag in flags if flag not in MULTIRUN), *typed, *quiet]
        given = [word for word in typed if word.startswith("hydra.sweep.dir=")]
        overrides = list({override.key_or_group: override for override in _parsed(typed)}.values())  # the last counts
        _check_naming(overrides)
        swept = [override for override in overrides if override.is_sweep_override()]
        shared = [override for override in overrides if not override.is_sweep_override()]
        if given:
            self.directory = Path(given[-1].partition("=")[2].strip("'\""))
        else:
            self.directory = _directory(verb, shared, swept, config_folder(arguments))
            self.arguments.append(f"hydra.sweep.dir={self.directory}")
        names = ",".join([*(override.key_or_group for override in shared), *(word.partition("=")[0] for word in quiet)])
        self.arguments.append(f"hydra.job.config.override_dirname.exclude_keys=[{names}]")
        choices = [[(override, value) for value in override.sweep_string_iterator()] for override in swept]
        self._combinations = list(itertools.product(*choices))
        self._jobs = Jobs(self.directory, [_names(number, chosen) for number, chosen in enumerate(self._combinations)])
        self._compose = functools.partial(_composed, verb, shared, config_folder(arguments))

    def jobs(self) -> list[Job]:
        """Every job as the disk shows it now."""
        return self._jobs.read()

    def refused(self) -> dict[str, list[int]]:
        """What is wrong with jobs whose config breaks a rule, each with the jobs' numbers; of the first hundreds."""
        found: dict[str, list[int]] = {}
        for number, chosen in enumerate(self._combinations[:_COMPOSED]):
            try:
                load(TrainConfig, self._compose([f"{each.get_key_element()}={value}" for each, value in chosen]))
            except ConfigError as error:
                found.setdefault(str(error), []).append(number)
        return found


def _parsed(typed: list[str]) -> list[Any]:
    from hydra.core.override_parser.overrides_parser import OverridesParser

    return OverridesParser.create().parse_overrides(typed)


def _check_naming(overrides: list[Any]) -> None:
    """Raise ConfigError where a key changes how jobs are numbered or named, by which their directories are found."""
    for override in overrides:
        if override.is_sweep_override() and re.search(r"=\s*(shuffle|glob)\(|shuffle=true", override.input_line):
            raise ConfigError(
                f"`{override.input_line}`: a sweep's jobs have numbers, by which the same command finds them again; "
                "type the values, in their order."
            )
        if override.key_or_group.startswith(_NAMING):
            raise ConfigError(
                f"`{override.input_line}`: a sweep names its jobs' directories itself, to find them again; "
                "leave the key out, and sweep by `key=value,value`."
            )


def _values(override: Any) -> list[str]:
    """The values that a sweep override takes, each as `key=value`."""
    return [f"{override.key_or_group}={value}" for value in override.sweep_string_iterator()]


def _names(number: int, chosen: Sequence[tuple[Any, str]]) -> tuple[str, str]:
    """What differs in a job, and the name that `hydra.sweep.subdir` in conf/train.yaml gives its directory."""
    label = ", ".join(f"{override.key_or_group}={value}" for override, value in chosen)
    words = sorted(f"{override.get_key_element()}={value}" for override, value in chosen)
    return label, f"{number}-{runs.job_label(','.join(words))}"


def _directory(verb: str, shared: list[Any], swept: list[Any], folder: str | None) -> Path:
    """The sweep's directory, by what is swept and a hash of every config that it holds, in the order of its jobs.

    An earlier version hashed the values sorted, so that several orders had one directory: what it left there of this
    order is gone on with.
    """
    base = _composed(verb, shared, folder, [])
    label = runs.job_label("+".join(override.key_or_group for override in swept))

    def named(values: list[str]) -> Path:
        content = json.dumps([base, values], sort_keys=True)
        return Path("outputs/sweep") / f"{label}-{hashlib.sha256(content.encode()).hexdigest()[:8]}"

    values = [value for override in swept for value in _values(override)]
    directory, earlier = named(values), named(sorted(values))
    return earlier if not directory.is_dir() and _was_of(earlier, swept) else directory


def _composed(verb: str, shared: list[Any], folder: str | None, words: list[str]) -> dict[str, Any]:
    """The config of a job with these words beside what all jobs have."""
    from cifarbench.commands.hydra_app import compose

    lines = {override.key_or_group: override.input_line for override in shared}
    mine = [line for key, line in lines.items() if key == "hydra.searchpath" or not key.startswith("hydra")]
    return compose(verb, [*mine, *words], folder)


def _was_of(directory: Path, swept: list[Any]) -> bool:
    """Whether the last sweep in a directory was over these values in this order, by Hydra's record of its words."""
    try:
        record = yaml.safe_load((directory / "multirun.yaml").read_text(encoding="utf-8"))
        typed = record["hydra"]["overrides"]["task"]
        return all(override.input_line in typed for override in swept)
    except (OSError, ValueError, LookupError, TypeError, RecursionError, yaml.YAMLError):
        return False


def _flag(arguments: list[str], name: str) -> bool:
    """The last value of a true/false key that only the sweep reads."""
    given = [argument for argument in arguments if argument.startswith("sweep.")]
    for argument in given:
        key, _, value = argument.partition("=")
        if key != name or value not in ("true", "false"):
            raise ConfigError(f"`{argument}`: a sweep knows `{name}=true` or `{name}=false`.")
    return bool(given) and given[-1].endswith("=true")


class SweptJob:
    """One job of a sweep, as Hydra's launchers call it, in this process or another; it never raises for a failure."""

    def __init__(self, verb: str, directory: Path) -> None:
        self.verb, self.beside = verb, Beside(directory)

    def __call__(self, composed: DictConfig) -> None:
        """Run the job; a failure is kept in its directory, an interruption ends the sweep.

        In a process of its own an interrupted job just returns: the sweep waits until all have saved their step.
        """
        from hydra.core.hydra_config import HydraConfig

        directory = Path(HydraConfig.get().runtime.output_dir)
        is_worker = self.beside.is_worker()
        if is_worker:
            if self.beside.is_stopped():
                runs.remove_if_empty(directory)  # Hydra made it
                return
            self.beside.watch()
        from cifarbench.commands.hydra_app import execute

        (directory / FAILURE).unlink(missing_ok=True)
        try:
            execute(self.verb, composed, _share_out)
        except (Interrupted, KeyboardInterrupt) as error:
            if isinstance(error, Interrupted) and self.beside.is_sweep():
                raise Stopped(error.exit_code - 128) from error
            if not is_worker:
                raise
            self.beside.leave_if_alone()
        except InUseError as error:  # no failure of the job, which its holder tells the end of
            print(f"cifarbench: {directory.name} is run elsewhere: {error}", file=sys.stderr)
        except (Exception, SystemExit) as error:
            kept = _explained(error)
            directory.mkdir(parents=True, exist_ok=True)
            runs.write_json(directory / FAILURE, kept)
            print(f"cifarbench: {directory.name} failed: {kept['message']}", file=sys.stderr)


def _explained(error: BaseException) -> dict[str, Any]:
    if isinstance(error, SystemExit):
        return {"message": f"the job called sys.exit({error.code!r})", "exit_code": 1}
    assert isinstance(error, Exception)
    message, code = explain(error)
    return {"message": message, "exit_code": code}


def _share_out(values: dict[str, Any], settings: Any) -> None:
    """Give a job that runs beside others its share of the cores, and a GPU of its own where there are several."""
    workers = int(settings.launcher.get("n_jobs", 1) or 1)
    cores = os.cpu_count() or 1
    workers = cores if workers < 0 else workers
    if workers == 1 or "trainer" not in values:
        return
    if values["trainer"].get("threads") is None:
        values["trainer"]["threads"] = max(1, cores // workers)
    devices = _visible_gpus()
    if len(devices) > 1 and "torch" not in sys.modules:
        os.environ["CUDA_VISIBLE_DEVICES"] = devices[int(settings.job.num) % len(devices)]


def _visible_gpus() -> list[str]:
    listed = os.environ.get("CUDA_VISIBLE_DEVICES")
    if listed is not None:
        return [device for device in listed.split(",") if device]
    return sorted(path.name.removeprefix("nvidia") for path in Path("/dev").glob("nvidia[0-9]*"))


def run_sweep(verb: str, arguments: list[str]) -> int:
    """Run every job of a sweep and show them in a table.

    Raises:
        SweepError: some failed; their messages were shown.
        Interrupted: a signal stopped the sweep; the same command goes on with it.
    """
    import hydra

    from cifarbench.commands.hydra_app import composed_once
    from cifarbench.commands.names import conf_dir
    from cifarbench.reporting.sweep import print_plan, print_table, watch, write_tables

    sweep = Sweep(verb, arguments)
    if sweep.is_dry:
        print_plan(sweep.directory, sweep.jobs())
        refused = sweep.refused()
        for message, numbers in refused.items():
            print(f"cifarbench: job {', '.join(map(str, numbers))}: {message}", file=sys.stderr)
        if refused:
            count, looked = sum(map(len, refused.values())), min(len(sweep.jobs()), _COMPOSED)
            raise ConfigError(f"{count} of the {looked} jobs that were looked into cannot run, as said above.")
        return 0
    sys.argv = [f"cifarbench {verb}", *sweep.arguments]
    job, request = SweptJob(verb, sweep.directory), StopRequest()
    try:
        with _signals(sweep) as request, watch(sweep.directory, sweep.jobs), composed_once(arguments):
            hydra.main(config_path=str(conf_dir()), config_name=verb, version_base="1.3")(job)()
    except Stopped as stopped:
        request.number = stopped.number
    except Exception:
        if not request.number:
            raise  # otherwise the signal is behind it: it cut Hydra short, or ended a worker before that could hold it
    finally:
        if sweep.directory.is_dir():
            write_tables(sweep.directory, sweep.jobs())
    if request.number:
        raise Interrupted("the sweep was stopped; the same command goes on with it.", request.number)
    jobs = sweep.jobs()
    print_table(sweep.directory, jobs)
    elsewhere = {job.number for job in jobs if job.status != "done" and job.directory and runs.is_held(job.directory)}
    failed = [job for job in sweep.jobs() if job.status != "done" and job.number not in elsewhere]  # one may have ended
    if failed:
        raise SweepError(f"{len(failed)} of {len(jobs)} jobs failed; run the same command to try them again.")
    if elsewhere:
        again = "the same command shows their results when they have ended"
        raise SweepError(f"{len(elsewhere)} of {len(jobs)} jobs are run by another process; {again}.")
    return 0


def _signals(sweep: Sweep) -> contextlib.AbstractContextManager[StopRequest]:
    """Jobs in processes are told of signals; one in this process catches them itself."""
    launchers = [argument for argument in sweep.arguments if argument.startswith("hydra/launcher=")]
    beside = bool(launchers) and launchers[-1] != "hydra/launcher=basic"
    return relayed_signals(sweep.directory) if beside else contextlib.nullcontext(StopRequest())


def _quiet(words: list[str]) -> list[str]:
    """What is added in a terminal, where the table of jobs takes the place of each job's own display."""
    shows = any(word.startswith("trainer.progress=") for word in words)
    return [] if shows or not sys.stdout.isatty() else ["trainer.progress=none"]
