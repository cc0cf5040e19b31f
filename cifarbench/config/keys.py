"""Config keys: a frozen dataclass field with its sentence, unit and range, and the check of a value against it."""

from __future__ import annotations

import dataclasses
import difflib
import math
import types
import typing
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

from cifarbench.errors import ConfigError

T = TypeVar("T")
_ALSO_CALLED = {"gpu": "cuda", "dataset": "data", "optimizer": "optim", "augmentation": "augment"}


@dataclasses.dataclass(frozen=True)
class Rule:
    """What a key means and which values it takes; bounds are inclusive for ge/le, exclusive for gt/lt."""

    sentence: str
    unit: str = ""
    ge: float | None = None
    gt: float | None = None
    le: float | None = None
    lt: float | None = None
    choices: tuple[str, ...] = ()
    neutral: bool = False

    @property
    def range(self) -> str:
        """The rule in words, for messages and help, e.g. "at least 0 and below 1"; empty if there is none."""
        if self.choices:
            return "one of " + ", ".join(self.choices)
        bounds = (
            ("at least", self.ge),
            ("above", self.gt),
            ("at most", self.le),
            ("below", self.lt),
        )
        return " and ".join(f"{word} {bound:g}" for word, bound in bounds if bound is not None)

    def allows(self, value: float) -> bool:
        """Whether the number is finite and inside every bound."""
        return (
            math.isfinite(value)
            and (self.ge is None or value >= self.ge)
            and (self.gt is None or value > self.gt)
            and (self.le is None or value <= self.le)
            and (self.lt is None or value < self.lt)
        )


def key(
    sentence: str,
    *,
    unit: str = "",
    ge: float | None = None,
    gt: float | None = None,
    le: float | None = None,
    lt: float | None = None,
    choices: Iterable[str] = (),
    neutral: bool = False,
) -> Any:
    """Declare one config key as a dataclass field without a default: defaults live in `conf/` alone.

    Args:
        sentence: what the key does, as `--help` shows it.
        unit: the unit of its number, e.g. "epochs", "px", "degrees".
        ge, gt, le, lt: bounds of a number, or of each number in a list.
        choices: the strings that are allowed.
        neutral: True where the value does not decide what is trained, so a resumed run may differ in it; another
            device or number of threads still changes the weights' last bits.
    """
    rule = Rule(sentence, unit, ge, gt, le, lt, tuple(choices), neutral)
    return dataclasses.field(metadata={"rule": rule})


def rule_of(field: dataclasses.Field) -> Rule:
    """The rule that `key` attached to a field."""
    return field.metadata["rule"]


def nearest(name: str, known: Iterable[str]) -> str:
    """A hint ` Did you mean "vgg"?` for the closest known name, or an empty string where none is close."""
    names = list(known)
    called = [each for each in names if each == _ALSO_CALLED.get(name)]
    same = [each for each in names if each.lower() == name.lower()]
    close = called or same or difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    return f' Did you mean "{close[0]}"?' if close else ""


def unknown(kind: str, name: str, known: Iterable[str]) -> ConfigError:
    """The error for a name that is not there: it lists the valid ones and the nearest."""
    names = sorted(known)
    return ConfigError(f'unknown {kind} "{name}".{nearest(name, names)} Valid: {", ".join(names)}.')


def build(cls: type[T], values: Any, path: str = "", sections: Mapping[str, type] | None = None) -> T:
    """Make the frozen dataclass `cls` from plain values, checking every key, type and range.

    Args:
        cls: a frozen, keyword-only dataclass whose fields come from `key` or are such dataclasses.
        values: a mapping of plain Python values (no DictConfig), one per field.
        path: the dotted path of this section, for messages.
        sections: dataclasses for the fields whose class depends on what was chosen.

    Raises:
        ConfigError: for an unknown or missing key, a wrong type, or a value outside its range.
    """
    if not isinstance(values, Mapping):
        raise ConfigError(f"`{path}` is {values!r}; it must be a section with keys.")
    hints = typing.get_type_hints(cls) | dict(sections or {})
    fields = {field.name: field for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    for name in values:
        if name not in fields:
            raise unknown("key", _join(path, str(name)), (_join(path, known) for known in fields))
    missing = [name for name in fields if name not in values]
    if missing:
        raise ConfigError(f"`{_join(path, missing[0])}` is missing; `conf/` gives its default.")
    return cls(**{name: _value(field, hints[name], values[name], _join(path, name)) for name, field in fields.items()})


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _value(field: dataclasses.Field, hint: Any, value: Any, path: str) -> Any:
    if dataclasses.is_dataclass(hint):
        return build(typing.cast(type, hint), value, path)
    return check(rule_of(field), hint, value, path)


def check(rule: Rule, hint: Any, value: Any, path: str) -> Any:
    """Return `value` as the type `hint`, or raise ConfigError naming the key, the value and the rule."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        if value is None:
            return None
        hint = next(part for part in typing.get_args(hint) if part is not type(None))
    if typing.get_origin(hint) is tuple:
        return _check_list(rule, hint, value, path)
    wrong = ConfigError(f"`{path}` is {value!r}; {_rule_text(rule, hint)}.")
    if hint is float and type(value) is int:
        value = float(value)
    if hint is str and (type(value) is int or (type(value) is float and rule.unit)):
        value = str(value)  # YAML takes digits for a number; what has a unit is told the rule for it
    if type(value) is not hint:
        raise wrong
    if hint in (int, float) and not rule.allows(value):
        raise wrong
    if rule.choices and value not in rule.choices:
        raise ConfigError(f"{wrong}{nearest(str(value), rule.choices)}")
    return value


def _check_list(rule: Rule, hint: Any, value: Any, path: str) -> tuple:
    inner = typing.get_args(hint)
    if not isinstance(value, list | tuple):
        raise ConfigError(f"`{path}` is {value!r}; it must be a list like [1,2].")
    if inner[-1] is not Ellipsis and len(inner) != len(value):
        raise ConfigError(f"`{path}` is {value!r}; it must have {len(inner)} entries.")
    kinds = inner if inner[-1] is not Ellipsis else (inner[0],) * len(value)
    return tuple(
        check(rule, kind, item, f"{path}[{index}]") for index, (kind, item) in enumerate(zip(kinds, value, strict=True))
    )


_WORDS = {int: "a whole number", float: "a finite number", bool: "true or false", str: "text"}


def _rule_text(rule: Rule, hint: Any) -> str:
    if rule.choices:
        return f"it must be {rule.range}"
    unit = f" of {rule.unit}" if rule.unit and hint in (int, float) else ""
    return f"it must be {_WORDS.get(hint, str(hint))}{unit}{' ' + rule.range if rule.range else ''}"
