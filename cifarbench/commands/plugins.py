"""Models, augmentations and optimizers of the user's own: Python files named by `plugins=`, and by nothing else.

A file registers what it adds by a decorator of that kind's registry; the arguments become keys of the group:

    from cifarbench.models.registry import register

    @register("mynet")
    class MyNet(nn.Module):
        def __init__(self, *, width: int = 64) -> None: ...

    cifarbench train plugins=[mynet.py] model=mynet model.width=96

The file's digest becomes a key too, `model.sha256`, so that an edited file is another recipe. What an augmentation and
an optimizer are given is said in `cifarbench.data.registry` and `cifarbench.optim.registry`.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.util
import inspect
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cifarbench.commands.names import classes
from cifarbench.commands.names import options as shipped_options
from cifarbench.config.augment import AugmentConfig
from cifarbench.config.keys import key
from cifarbench.config.load import CHOICES
from cifarbench.config.optim import DecayingConfig, PlainConfig
from cifarbench.config.own import is_as_loaded, is_own, own_sections
from cifarbench.errors import PLUGIN_MODULE, ConfigError, IntegrityError

Options = Mapping[str, inspect.Parameter]

_TYPES = {"int": int, "float": float, "bool": bool, "str": str}  # as `from __future__ import annotations` leaves them
_NOT_SAID = {"l1": 0.0, "decay_norm_bias": False}  # of optimizers: what their class does not say
_loaded: set[Path] = set()


def plugins_in(arguments: Sequence[str]) -> list[str]:
    """The files that `plugins=[a.py,b.py]` on a command line names, before Hydra has read it."""
    named = [argument.split("=", 1)[1] for argument in arguments if argument.startswith("plugins=")]
    return [part.strip(" '\"") for part in named[-1].strip("[]").split(",") if part.strip()] if named else []


def load_plugins(files: Sequence[str]) -> None:
    """Run each file once, and make all that it registers options of the groups `model`, `augment` and `optim`.

    Raises:
        ConfigError: `files` is no list of names, a file is missing or fails, or an argument of what it registers has
            no type or default.
    """
    if not files:
        return
    if not isinstance(files, list | tuple) or not all(isinstance(file, str) for file in files):
        raise ConfigError(f"`plugins` is {files!r}; it must be a list of Python files, like [mynet.py].")
    from cifarbench.data.registry import OWN as AUGMENTATIONS
    from cifarbench.models import registry as models
    from cifarbench.optim.registry import OWN as OPTIMIZERS

    tables: dict[str, Any] = {"model": models, "augment": AUGMENTATIONS, "optim": OPTIMIZERS}
    for file in files:
        path = Path(file).resolve()
        if path in _loaded:
            continue
        before = {group: set(table.names()) for group, table in tables.items()}
        _run_file(path)
        _loaded.add(path)
        digest = hashlib.sha256(path.read_bytes()).hexdigest()[:16]
        for group, table in tables.items():
            for name in sorted(set(table.names()) - before[group]):
                _add(group, name, table.options(name), digest)


def loaded_digest(name: str) -> str:
    """The digest of the file that registered the model `name`; empty for a shipped model, or one that is not loaded."""
    return getattr(CHOICES["model"].get(name), "loaded", "")


def added_options(group: str) -> dict[str, dict[str, Any]]:
    """What plugins added to a group: the defaults of each option by its name."""
    return {name: cls.defaults for name, cls in classes(group).items() if is_own(cls)}  # type: ignore[attr-defined]


def check_plugins(config: Any) -> None:
    """Raise IntegrityError where a plugin's section was configured from another file than the one that is loaded."""
    for group, section in own_sections(config).items():
        if not is_as_loaded(section):
            raise IntegrityError(
                f"`{group}.sha256` is {section.sha256!r}, and the file of {section.name} that is loaded has "
                f"{section.loaded!r}: it was edited since. Take the file as it was, or start a new run, which sets "
                "this key by itself."
            )


def _run_file(path: Path) -> None:
    if not path.is_file():
        raise ConfigError(f"`plugins` names {str(path)!r}, which is no file.")
    if path.suffix != ".py":
        raise ConfigError(f"`plugins` names {str(path)!r}; a Python file's name must end in .py.")
    spec = importlib.util.spec_from_file_location(f"{PLUGIN_MODULE}{path.stem}", path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    try:
        spec.loader.exec_module(module)
    except ConfigError:
        raise
    except Exception as error:
        raise ConfigError(f"the plugin {path} failed: {type(error).__name__}: {error}") from error


def _add(group: str, name: str, options: Options, digest: str) -> None:
    """Make what is registered an option of the group: its arguments are keys, with their defaults."""
    from hydra.core.config_store import ConfigStore

    if name in shipped_options(group):
        raise ConfigError(f"a plugin registers {group}={name}, which is shipped; give it another name.")
    cls: Any = _section_of(group, name, options, digest)
    known = {field.name for field in dataclasses.fields(cls)}
    said = {argument: parameter.default for argument, parameter in options.items()}
    defaults = {"name": name, "sha256": digest, **_NOT_SAID, **said}
    cls.defaults = {argument: value for argument, value in defaults.items() if argument in known}
    classes(group)[name] = cls
    # An augmentation's further keys are those of the option `none`.
    begins = {"defaults": ["none", "_self_"]} if group == "augment" else {}
    ConfigStore.instance().store(group=group, name=name, node=begins | cls.defaults)


def _section_of(group: str, name: str, options: Options, digest: str) -> type:
    """The dataclass of the option's keys: those that every option of the group has, and its own arguments."""
    base = _base(group, name, options)
    shared = {*(field.name for field in dataclasses.fields(base)), *vars(base)} if base else set()
    own = {argument: _kind(group, name, argument, parameter) for argument, parameter in options.items()}
    if group == "optim":
        own = {argument: kind for argument, kind in own.items() if argument not in ("lr", "weight_decay")}
    taken = [argument for argument in own if argument in {*shared, "name", "sha256", "loaded", "own_keys", "defaults"}]
    if taken:
        raise ConfigError(f"the plugin's {group}={name} takes {taken[0]!r}, which is taken; give it another name.")
    fields: list[Any] = [
        ("name", str, key("As a plugin registered it.", choices=[name])),
        ("sha256", str, key("Digest of the plugin's file, set by itself: a file that was edited is another recipe.")),
        *((argument, kind, key(f"Argument {argument} of {name}.")) for argument, kind in own.items()),
    ]
    more = {"loaded": digest, "own_keys": tuple(own)}
    bases = (base,) if base else ()
    return dataclasses.make_dataclass(f"{name}Config", fields, bases=bases, frozen=True, kw_only=True, namespace=more)


def _base(group: str, name: str, options: Options) -> type | None:
    """The class whose keys every option of the group has; None for models, which have none in common."""
    if group == "optim" and "lr" not in options:
        raise ConfigError(f"the plugin's optim={name} takes no `lr`, which a schedule has to set; let it take one.")
    if group == "optim":
        return DecayingConfig if "weight_decay" in options else PlainConfig
    return AugmentConfig if group == "augment" else None


def _kind(group: str, name: str, argument: str, parameter: inspect.Parameter) -> type:
    """The type of an argument that becomes a key."""
    kind = _TYPES.get(parameter.annotation, parameter.annotation)
    if kind not in (int, float, bool, str) or parameter.default is inspect.Parameter.empty:
        raise ConfigError(
            f"the plugin's {group}={name} takes {argument!r}, which needs a type (int, float, bool or str) "
            "and a default to become a key."
        )
    found: type = kind
    return found
