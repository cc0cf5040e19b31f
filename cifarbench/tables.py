"""Tables of what is known by a name: the class or function behind it, entered by a decorator."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from cifarbench.errors import ConfigError

_BY_PLACE = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
Entry = TypeVar("Entry", bound=Callable[..., Any])


class Table:
    """Names, each with what makes the thing.

    Args:
        kind: what is in the table, for messages: "optimizer".
        given: how many arguments of an entry are given by us; those after them become config keys.
        entries: that are there from the start.
    """

    def __init__(self, kind: str, given: int, entries: Mapping[str, Callable[..., Any]] | None = None) -> None:
        self.kind, self.given, self._entries = kind, given, dict(entries or {})

    def register(self, name: str) -> Callable[[Entry], Entry]:
        """Enter the decorated class or function under `name`.

        Raises:
            ConfigError: if the name is taken, or the entry does not take what it is given.
        """

        def enter(entry: Entry) -> Entry:
            kinds = [parameter.kind for parameter in inspect.signature(entry).parameters.values()]
            if [kind in _BY_PLACE for kind in kinds[: self.given]] != [True] * self.given:
                raise ConfigError(
                    f"{self.kind} {name} ({_place(entry)}) must take {self.given} arguments by place before its own."
                )
            if name in self._entries:
                raise ConfigError(
                    f'{self.kind} name "{name}" is registered twice: {_place(self._entries[name])} has it, so '
                    f"{_place(entry)} needs another name."
                )
            self._entries[name] = entry
            return entry

        return enter

    def names(self) -> tuple[str, ...]:
        """Every registered name, sorted."""
        return tuple(sorted(self._entries))

    def find(self, name: str) -> Any:
        """What is registered under `name`; KeyError where nothing is."""
        return self._entries[name]

    def options(self, name: str) -> dict[str, inspect.Parameter]:
        """The arguments that become config keys, in order: name, annotation and default."""
        parameters = inspect.signature(self.find(name)).parameters
        return dict(list(parameters.items())[self.given :])


def _place(entry: Callable[..., Any]) -> str:
    return f"{entry.__module__}.{entry.__qualname__}"
