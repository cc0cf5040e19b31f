"""Hydra behind a verb: composition, our help, and its errors in our words."""

from __future__ import annotations

import contextlib
import importlib
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from cifarbench import runs
from cifarbench.commands.names import brings_configs, check_names, conf_dir, unknown_key, unknown_option
from cifarbench.commands.plugins import load_plugins, plugins_in
from cifarbench.commands.words import protect
from cifarbench.config.quoting import quoted
from cifarbench.errors import CifarbenchError, ConfigError, Interrupted, SweepError

if TYPE_CHECKING:
    from omegaconf import DictConfig

_PATHS = (
    "run",
    "checkpoint",
    "root",
    "out",
    "data.root",
    "trainer.resume",
    "trainer.fork",
    "hydra.run.dir",
    "hydra.sweep.dir",
)
_THEIRS = ("hydra", "omegaconf", "antlr4", "yaml")
# Hydra's flags that show something and run nothing; -cd, -cn and -cp name configs.
_SHOWS = re.compile(r"--cfg|--info|--hydra-help|-c(?![dnp])|-i")


def command_of(verb: str) -> ModuleType:
    """The module in `commands` that does a verb's work."""
    return importlib.import_module(f"cifarbench.commands.{verb.replace('-', '_')}")


def run_verb(verb: str, arguments: list[str]) -> int:
    """Run `cifarbench <verb> <arguments>` through Hydra and return the exit code.

    Raises:
        ConfigError: for anything that Hydra or OmegaConf refuses.
    """
    if any(argument.split("=")[0] == "--experimental-rerun" for argument in arguments):
        raise ConfigError("--experimental-rerun would unpickle a file, which could run code; use trainer.resume=DIR.")
    rewrite = getattr(command_of(verb), "rewrite", None)  # of verbs whose command line is more than Hydra's grammar
    arguments = protect(rewrite(arguments) if rewrite else arguments, *_PATHS)
    check_names(verb, arguments)
    load_plugins(plugins_in(arguments))
    if any(argument in ("--help", "-h") for argument in arguments):
        from cifarbench.commands.help import show_help

        return show_help(verb, [argument for argument in arguments if argument not in ("--help", "-h")])
    from cifarbench.commands import experiments

    experiments.install()
    runs.register_resolvers()
    os.environ["HYDRA_FULL_ERROR"] = "1"  # errors reach us instead of being printed by Hydra
    only_shows = any(_SHOWS.match(argument) for argument in arguments)
    if verb == "train" and {"-m", "--multirun"} & set(arguments) and not only_shows:
        from cifarbench.commands.sweep import run_sweep

        with in_our_words(verb):
            return run_sweep(verb, arguments)
    return _hydra(verb, arguments)


def compose(verb: str, overrides: list[str], folder: str | None = None) -> dict[str, Any]:
    """The verb's config as plain nested dicts, composed without running anything, also from inside another verb.

    `folder` is what `--config-dir` adds; inside another verb that verb's folder is there already.

    Raises:
        ConfigError: for anything that Hydra or OmegaConf refuses, or if `folder` is none.
    """
    return compose_with_choices(verb, overrides, folder)[0]


def compose_with_choices(
    verb: str, overrides: list[str], folder: str | None = None
) -> tuple[dict[str, Any], dict[str, str]]:
    """As `compose`, and beside it the option that is chosen of each group, by the names of their files."""
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from omegaconf import open_dict

    from cifarbench.commands import experiments

    experiments.install()
    is_running = GlobalHydra.instance().is_initialized()
    place = contextlib.nullcontext() if is_running else initialize_config_dir(str(conf_dir()), version_base="1.3")
    with in_our_words(verb), place:
        if folder is not None and not is_running:
            _add(folder)
        composed = hydra_compose(verb, overrides, return_hydra_config=True)
        chosen = dict(composed.hydra.runtime.choices)
        with open_dict(composed):
            del composed["hydra"]
        return _plain(composed), chosen


def _add(folder: str) -> None:
    """Let Hydra look for configs in `folder` too, as it does for its flag `--config-dir`, which it reads itself."""
    from hydra.core.config_search_path import SearchPathQuery
    from hydra.core.global_hydra import GlobalHydra

    if not Path(folder).is_dir():
        raise ConfigError(f"`--config-dir` is {folder!r}, which is no folder; name that of your groups, model/ etc.")
    loader: Any = GlobalHydra.instance().config_loader()
    places = loader.get_search_path()
    places.prepend("command-line", f"file://{Path(folder).resolve()}", SearchPathQuery(provider="schema"))
    loader.repository.initialize_sources(places)


def added_places() -> list[str]:
    """What the running command added to the places of configs, as an override for another command; [] for nothing."""
    from hydra.core.hydra_config import HydraConfig

    sources = [each for each in HydraConfig.get().runtime.config_sources if each.provider.endswith("command-line")]
    places = ",".join(quoted(f"{source.schema}://{source.path}") for source in sources)
    return [f"hydra.searchpath=[{places}]"] if places else []


def _hydra(verb: str, arguments: list[str]) -> int:
    import hydra

    codes: list[int] = []
    failures: list[Exception] = []  # Hydra would print them as its own; they are raised below

    def job(composed: DictConfig) -> None:
        _run_job(verb, composed, codes, failures)

    sys.argv = [f"cifarbench {verb}", *arguments]
    with in_our_words(verb), composed_once(arguments):
        hydra.main(config_path=str(conf_dir()), config_name=verb, version_base="1.3")(job)()
    if failures and len(codes) + len(failures) > 1:
        raise SweepError(f"{len(failures)} of {len(codes) + len(failures)} jobs failed; their messages are above.")
    if failures:
        raise failures[0]
    return max(codes, default=0)


def _run_job(verb: str, composed: DictConfig, codes: list[int], failures: list[Exception]) -> None:
    """Run one job, and add its exit code to `codes`, or its error to `failures`."""
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    settings = HydraConfig.get()
    sweeps = settings.mode == RunMode.MULTIRUN
    directory = Path(settings.runtime.output_dir)
    try:
        codes.append(execute(verb, composed))
    except Exception as error:
        runs.remove_if_empty(directory)
        if sweeps and isinstance(error, Interrupted):
            raise
        failures.append(error)
        if sweeps:
            print(f"cifarbench: {directory.name} failed: {error}", file=sys.stderr)


def execute(verb: str, composed: DictConfig, adjust: Callable[[dict[str, Any], Any], None] | None = None) -> int:
    """Do a verb's work by the config that Hydra composed, in the directory that it chose; returns the exit code.

    `adjust`, where given, may change the plain values; it is called with them and Hydra's own settings.
    """
    from hydra.core.hydra_config import HydraConfig

    settings = HydraConfig.get()
    with in_our_words(verb):
        values = _plain(composed)
    if adjust:
        adjust(values, settings)
    code: int = command_of(verb).run(values, Path(settings.runtime.output_dir), typed(settings))
    return code


def _plain(composed: Any) -> dict[str, Any]:
    from omegaconf import OmegaConf

    values = OmegaConf.to_container(composed, resolve=True)
    assert isinstance(values, dict)
    return {str(name): value for name, value in values.items()}


@contextlib.contextmanager
def composed_once(arguments: list[str]) -> Iterator[None]:
    """Hydra composes the config to look up `hydra.mode` in it, and then again to run; ours always says null, and
    composing costs most of a second. Where the user may set the mode, Hydra looks.
    """
    from hydra._internal.hydra import Hydra

    look_up = Hydra.get_mode
    if not (brings_configs(arguments) or any("hydra.mode" in argument for argument in arguments)):
        Hydra.get_mode = lambda self, config_name, overrides: None  # type: ignore[method-assign]
    try:
        yield
    finally:
        Hydra.get_mode = look_up  # type: ignore[method-assign]


def typed(settings: Any) -> list[str]:
    """The overrides of Hydra's settings as the user typed them: `${…}` in one is not looked up."""
    from omegaconf import OmegaConf

    words = OmegaConf.to_container(settings.overrides.task, resolve=False)
    assert isinstance(words, list)
    return [str(word) for word in words]


class in_our_words:  # noqa: N801 - a context manager, read as a phrase
    """Turn Hydra's and OmegaConf's errors into a ConfigError that names key, rule and remedy."""

    def __init__(self, verb: str) -> None:
        self.verb = verb

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if error is None or (isinstance(error, SystemExit) and error.code == 2):
            return
        if not isinstance(error, Exception):
            return
        if _was_interrupted(error):
            raise KeyboardInterrupt from error
        if type(error).__module__.startswith(_THEIRS):
            raise _translate(self.verb, error) from error
        if not isinstance(error, CifarbenchError | OSError | MemoryError) and _raised_by_hydra(error):
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise ConfigError(
                f"Hydra refuses this command line ({reason[:200]}); check its flags and values."
            ) from error


def _was_interrupted(error: BaseException | None) -> bool:
    """Whether a Ctrl-C is behind an error: while it composes, Hydra wraps whatever comes."""
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__cause__ or error.__context__
    return error is not None


def _raised_by_hydra(error: Exception) -> bool:
    """Whether Hydra stumbled over what was typed: of our code and theirs, theirs was at work when it was raised."""
    modules = (frame.f_globals.get("__name__", "") for frame, _ in traceback.walk_tb(error.__traceback__))
    at_work = [module for module in modules if module.startswith(("cifarbench", *_THEIRS))]
    return bool(at_work) and at_work[-1].startswith(_THEIRS)


def _translate(verb: str, error: Exception) -> ConfigError:
    """The ConfigError for what Hydra or OmegaConf raised."""
    text = str(error)
    missing = re.search(r"Could not find '([^']+)/([^'/]*)'", text)
    if missing:
        return unknown_option(missing[1], missing[2])
    ambiguous = re.search(r"Ambiguous value for argument '([^'=]+)=([^']*)'", text)
    if ambiguous:
        values = f"`{ambiguous[1]}={ambiguous[2]}`"
        return ConfigError(f"{values} names several values; add -m to run one after the other, or quote it as text.")
    there = re.search(r"Could not append to config.*?'([^']+)'", text)
    if there:
        return ConfigError(f'"{there[1]}" is there already; type {there[1]}=… without a + before it.')
    key = re.search(r"Could not override '([^']+)'", text)
    if key:
        return unknown_key(verb, key[1])
    override = getattr(error, "override", None)
    if isinstance(override, str):
        reason = text.splitlines()[0] if text else "unknown syntax"
        return ConfigError(f'"{override}" cannot be read ({reason}); quote special characters, as in key=\'"a (b)"\'.')
    first = next((line for line in text.splitlines() if line.strip()), type(error).__name__)
    detail = re.search(r"full_key: (\S+)", text)
    return ConfigError(f"{first.strip().rstrip('.')}{f' (key `{detail[1]}`)' if detail else ''}.")
