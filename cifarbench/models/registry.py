"""The table of models: a name and the class that builds it.

To add a model of your own, write one file and name it under `plugins=` on the command line:

    from torch import nn
    from cifarbench.models.registry import register

    @register("mine")
    class Mine(nn.Sequential):
        def __init__(self, *, bias: bool = True) -> None:
            super().__init__(nn.Flatten(), nn.Linear(3 * 32 * 32, 10, bias=bias))

A model takes images `(N, 3, 32, 32)` float and returns logits `(N, 10)`; its options are keyword arguments.
"""

from __future__ import annotations

import difflib
import functools
import importlib
import inspect
import pkgutil
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, TypeVar

import cifarbench.models
from cifarbench.errors import ConfigError
from cifarbench.tables import Table

if TYPE_CHECKING:
    from torch import nn

Class = TypeVar("Class", bound="type[nn.Module]")

_TABLE = Table("model", given=0)


def register(name: str) -> Callable[[Class], Class]:
    """Enter the decorated class in the table under `name`.

    Raises:
        ConfigError: if the name is taken, by a shipped model or by an earlier plugin.
    """

    def enter(cls: Class) -> Class:
        if not cls.__module__.startswith(f"{cifarbench.models.__name__}."):
            _load_shipped()
        return _TABLE.register(name)(cls)

    return enter


def build(name: str, **options: object) -> nn.Module:
    """Make the model `name` with its keyword options, in fp32 on the default device.

    `sha256`, which the config of a plugin's model has beside them, says of which file it is and is none of them.

    Raises:
        ConfigError: for an unknown name, an option that the class does not take, or one that it misses.
    """
    cls = _find(name)
    options.pop("sha256", None)
    _check_options(name, options)
    return cls(**options)


def names() -> tuple[str, ...]:
    """Every registered name, sorted."""
    _load_shipped()
    return _TABLE.names()


def options(name: str) -> dict[str, inspect.Parameter]:
    """The keyword arguments of the class's `__init__`, in order: name, annotation and default.

    Raises:
        ConfigError: for an unknown name.
    """
    _find(name)
    return _TABLE.options(name)


def unknown(kind: str, name: object, known: Iterable[object]) -> ConfigError:
    """The error for a name that is in no table: it lists the valid ones and the nearest."""
    valid = [str(item) for item in known]
    close = difflib.get_close_matches(str(name), valid, n=1, cutoff=0.5)
    hint = f' Did you mean "{close[0]}"?' if close else ""
    return ConfigError(f'unknown {kind} "{name}".{hint} Valid: {", ".join(valid)}.')


def _find(name: str) -> type[nn.Module]:
    if name not in names():
        raise unknown("model", name, names())
    found: type[nn.Module] = _TABLE.find(name)
    return found


def _check_options(name: str, given: dict[str, object]) -> None:
    known = options(name)
    if any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in known.values()):
        return
    for option in given:
        if option not in known:
            raise unknown(f"option of model {name}", option, known)
    for option, parameter in known.items():
        needed = parameter.default is parameter.empty and parameter.kind is not parameter.VAR_POSITIONAL
        if needed and option not in given:
            raise ConfigError(f"`model.{option}` is missing; model {name} has no default for it, so give it a value.")


@functools.cache
def _load_shipped() -> None:
    """Import each module of this package, so that its decorators run; done on first use, not on import."""
    for module in pkgutil.iter_modules(cifarbench.models.__path__):
        importlib.import_module(f"{cifarbench.models.__name__}.{module.name}")
