"""`cifarbench VERB --help`: every group with its options, every key with its sentence, unit and default."""

from __future__ import annotations

import dataclasses
import re
import shutil
import textwrap
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from cifarbench.commands.hydra_app import compose_with_choices
from cifarbench.commands.names import GLOBAL_GROUPS, conf_dir, groups
from cifarbench.commands.plugins import added_options
from cifarbench.commands.words import config_folder, flags_apart
from cifarbench.config.keys import Rule, rule_of
from cifarbench.config.load import CHOICES, VERBS, augment_class
from cifarbench.errors import ConfigError

# What a verb takes as plain words.
_WORDS = {
    "baseline": "knn ",
    "data": "fetch|check|show|duplicates ",
    "ensemble": "DIR DIR… ",
    "eval": "DIR ",
    "export": "DIR ",
    "leaderboard": "[DIR…] ",
    "predict": "run=DIR IMAGE… ",
    "report": "DIR [DIR…] ",
    "verify": "DIR… ",
}
_FLAGS = """flags:
  -m, --multirun     run every combination of comma-separated values
  --cfg job          show the composed config instead of running
  --info [WHAT]      show how Hydra found and composed it
  --config-dir DIR   add a folder of your own options
  --hydra-help       Hydra's other flags
  --debug            show a traceback on failure
"""


def show_help(verb: str, arguments: list[str]) -> int:
    """Print the verb's help; of a group whose option is named in `arguments`, the keys of that option alone."""
    flags, overrides = flags_apart(arguments)
    if {"-m", "--multirun"} & set(flags):  # of what is swept nothing is chosen
        overrides = [word for word in overrides if not re.search(r"=.*(,|\w\()", word)]
    own = config_folder(arguments)
    composed, chosen = compose_with_choices(verb, overrides, own)
    folders = [conf_dir(), *([Path(own)] if own else [])]
    width = min(shutil.get_terminal_size((100, 24)).columns, 110)
    words = _WORDS.get(verb, "")
    print(f"usage: cifarbench {verb} {words}[key=value] …")
    found = _groups(composed)
    if found:
        print("\ngroups, as group=option (*: chosen):")
    for group in found:
        print(f"  {group}=")
        options = list(_options(group, folders))
        column = max(18, *(len(option) for option, _ in options))
        for option, sentence in options:
            mark = "*" if option == chosen.get(group) else " "
            print(_wrapped(f"    {mark} {option:<{column}} ", sentence, width))
    typed = {text.partition("=")[0] for text in overrides}
    print("\nkeys (default):")
    for path, rule, kind, default in _keys(VERBS[verb], composed, typed):
        value = f"{path}={_show(default)}"
        print(_wrapped("      ", _sentence(rule, kind), width, f"  {value}"))
    print(f"\n{_FLAGS}", end="")
    return 0


def _groups(composed: dict[str, Any]) -> list[str]:
    globals_ = [name for name in groups() if name in GLOBAL_GROUPS and "trainer" in composed]
    return [name for name in groups() if isinstance(composed.get(name), dict)] + globals_


def _options(group: str, folders: list[Path]) -> Iterator[tuple[str, str]]:
    """Each option of a group with the comment that its file opens with; the file's name where it has none."""
    for path in (path for folder in folders for path in sorted((folder / group).glob("*.yaml"))):
        comments = [line[1:].strip() for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("#")]
        yield path.stem, next((line for line in comments if not line.startswith("@")), f"In {path}.")
    yield from ((name, "Of a plugin.") for name in added_options(group))


def _keys(cls: type, composed: dict[str, Any], typed: set[str]) -> Iterator[tuple[str, Rule, Any, Any]]:
    """(dotted key, rule, type, default) for the verb's own keys, then section by section.

    Of each group every option's, but for a group in `typed` those of its chosen one.
    """
    hints = typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):
        if field.name in typed and field.name in CHOICES:
            name = composed[field.name]["name"]
            yield from _section(field.name, CHOICES[field.name][name], composed[field.name], f"[{name}] ")
        elif field.name in CHOICES:
            for option, section in _choices(field.name):
                yield from _section(field.name, section, option, f"[{option['name']}] ")
        elif dataclasses.is_dataclass(hints[field.name]):
            values, section = composed[field.name], typing.cast(type, hints[field.name])
            section = augment_class(values) if field.name == "augment" else section
            yield from _section(field.name, section, values, "")
        else:
            yield field.name, rule_of(field), hints[field.name], composed[field.name]


def _choices(group: str) -> Iterator[tuple[dict[str, Any], type]]:
    for path in sorted((conf_dir() / group).glob("*.yaml")):
        values = _load(path)
        if values.get("name") in CHOICES[group]:
            yield values, CHOICES[group][values["name"]]
    yield from ((values, CHOICES[group][name]) for name, values in added_options(group).items())


def _load(path: Path) -> dict[str, Any]:
    values = yaml.safe_load(path.read_text(encoding="utf-8"))
    if not isinstance(values, dict):
        raise ConfigError(f"{path} must hold keys with values.")
    return values


def _section(name: str, cls: type, values: dict[str, Any], label: str) -> Iterator[tuple[str, Rule, Any, Any]]:
    hints = typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):
        if field.name != "name" or not label:
            rule = rule_of(field)
            shown = dataclasses.replace(rule, sentence=label + rule.sentence)
            yield f"{name}.{field.name}", shown, hints[field.name], values.get(field.name)


def _sentence(rule: Rule, kind: Any) -> str:
    facts = [rule.unit, rule.range if kind is not bool else "true or false"]
    extra = "; ".join(fact for fact in facts if fact)
    return f"{rule.sentence}{f' ({extra})' if extra else ''}"


def _show(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return "[" + ",".join(_show(item) for item in value) + "]"
    return str(value)


def _wrapped(indent: str, text: str, width: int, heading: str = "") -> str:
    lines = textwrap.fill(
        text, width, initial_indent=indent, subsequent_indent=" " * len(indent), break_on_hyphens=False
    )
    return f"{heading}\n{lines}" if heading else lines
