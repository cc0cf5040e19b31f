"""The list of rows, read from YAML and checked: what is run, with how many seeds, on which profile."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from cifarbench.config.keys import unknown
from cifarbench.errors import ConfigError

LIST = Path(__file__).with_name("rows.yaml")
PROFILES = {"quick": "synthetic", "cpu": "cifar10", "gpu": "cifar10"}  # and the one dataset that each may hold
VERBS = ("train", "baseline", "peek")
_ROW_KEYS = {"name", "command", "published", "of_each", *PROFILES}
_PLAN_KEYS = {"seeds", "minutes", "add"}


@dataclass(frozen=True)
class Plan:
    """How a row is run on a profile: its seeds, a rough estimate in minutes a run, and words added to the command."""

    seeds: tuple[int, ...]
    minutes: float
    add: tuple[str, ...] = ()


@dataclass(frozen=True)
class Row:
    """One row: the verb and its overrides, a figure published elsewhere, and a plan for each profile that holds it.

    `group` is the name that rows made by one `of_each` share; elsewhere it is the row's own.
    """

    name: str
    group: str
    section: str
    verb: str
    words: tuple[str, ...]
    published: str
    plans: dict[str, Plan]


@dataclass(frozen=True)
class Section:
    """A heading of the page, the text below it, and its rows."""

    title: str
    text: str
    rows: tuple[Row, ...]


@dataclass(frozen=True)
class Job:
    """One run of a row: a profile and a seed; a `fresh` one is compared with what is published."""

    row: Row
    profile: str
    seed: int
    fresh: bool = False

    @property
    def plan(self) -> Plan:
        """The row's plan for this profile."""
        return self.row.plans[self.profile]

    @property
    def label(self) -> str:
        """The command as a user types it, but for the seed and the directory."""
        script = "python scripts/peek.py" if self.row.verb == "peek" else f"cifarbench {self.row.verb}"
        return " ".join([script, *map(shlex.quote, (*self.row.words, *self.plan.add))])

    @property
    def words(self) -> tuple[str, ...]:
        """Every override, the seed included where the verb knows one."""
        seed = () if self.row.verb == "baseline" else (f"seed={self.seed}",)
        return (*self.row.words, *self.plan.add, *seed)

    @property
    def directory(self) -> Path:
        """The run directory, below the working directory."""
        home = "fresh" if self.fresh else "reproduce"
        return Path("outputs", home, self.profile, self.row.name, f"seed{self.seed}")

    @property
    def record(self) -> str:
        """The record's path below the folder of records."""
        return f"{self.profile}/{self.row.name}-seed{self.seed}.json"


def read_rows(path: Path = LIST) -> list[Section]:
    """The sections of the list at `path`.

    Raises:
        ConfigError: it cannot be read, a row lacks a key or has an unknown one, or two rows share a name.
    """
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise ConfigError(f"{path} cannot be read as the list of rows: {' '.join(str(error).split())}.") from error
    if not isinstance(values, dict) or not isinstance(values.get("sections"), list):
        raise ConfigError(f"{path} holds no list `sections`.")
    added = values.get("add") or {}
    sections = [_section(section, added, path) for section in values["sections"]]
    names = [row.name for row in rows_of(sections)]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice:
        raise ConfigError(f"{path} names the row `{twice}` twice; give each its own name.")
    return sections


def rows_of(sections: Sequence[Section]) -> list[Row]:
    """The rows of all sections in order."""
    return [row for section in sections for row in section.rows]


def choose(rows: Sequence[Row], profile: str, only: Sequence[str]) -> list[Row]:
    """The rows of a profile, or those of them that `only` names, by their own name or their group's.

    Raises:
        ConfigError: `only` names a row that the profile does not hold.
    """
    held = [row for row in rows if profile in row.plans]
    for name in only:
        if name not in {known for row in held for known in (row.name, row.group)}:
            raise unknown(f"row of the profile {profile}:", name, {row.name for row in held})
    return [row for row in held if not only or {row.name, row.group} & set(only)]


def jobs_of(rows: Sequence[Row], profile: str, fresh: bool = False) -> list[Job]:
    """The runs of these rows, seed by seed, so that stopping early leaves every row with some of its runs.

    The `fresh` ones are as many, with the seeds that come after those of the list.
    """
    numbered = [
        (place, Job(row, profile, seed + fresh * len(row.plans[profile].seeds), fresh))
        for row in rows
        for place, seed in enumerate(row.plans[profile].seeds)
    ]
    return [job for _, job in sorted(numbered, key=lambda pair: pair[0])]


# --- one row ---------------------------------------------------------------------------------------------------------


def _section(values: Any, added: dict[str, Any], path: Path) -> Section:
    if not isinstance(values, dict) or not isinstance(values.get("title"), str):
        raise ConfigError(f"{path}: a section needs a `title`; this one is {str(values)[:60]!r}.")
    title = values["title"]
    rows = [row for entry in values.get("rows") or [] for row in _rows(entry, title, added, path)]
    return Section(title, str(values.get("text") or "").strip(), tuple(rows))


def _rows(values: Any, section: str, added: dict[str, Any], path: Path) -> Iterator[Row]:
    """The row that an entry describes, or one for each value of its `of_each`."""
    name = values.get("name") if isinstance(values, dict) else None
    if not isinstance(name, str) or not name.replace("-", "").isalnum() or not name.isascii():
        raise ConfigError(f"{path}: a row's `name` is {name!r}; it must be letters, digits and hyphens.")
    for key in values:
        if key not in _ROW_KEYS:
            raise unknown(f"key of the row `{name}`:", str(key), _ROW_KEYS)
    verb, *words = shlex.split(str(values.get("command") or "")) or [""]
    if verb not in VERBS:
        raise ConfigError(f"{path}: the `command` of the row `{name}` begins with {verb!r}; take {', '.join(VERBS)}.")
    plans = {profile: _plan(values[profile], name, added, profile, verb) for profile in PROFILES if profile in values}
    published = str(values.get("published") or "")
    if "of_each" not in values:
        yield Row(name, name, section, verb, tuple(words), published, plans)
        return
    (key, options), *more = values["of_each"].items()
    if more:
        raise ConfigError(f"{path}: `of_each` of the row `{name}` varies several keys; vary one.")
    for option in options:
        yield Row(f"{name}-{option}", name, section, verb, (*words, f"{key}={option}"), published, plans)


def _plan(values: Any, name: str, added: dict[str, Any], profile: str, verb: str) -> Plan:
    if not isinstance(values, dict) or not {"seeds", "minutes"} <= values.keys() <= _PLAN_KEYS:
        raise ConfigError(
            f"the row `{name}`: `{profile}` is {values!r}; it needs `seeds` and `minutes`, and may `add`."
        )
    seeds, minutes = values["seeds"], values["minutes"]
    if type(seeds) is not int or seeds < 1 or type(minutes) not in (int, float) or minutes <= 0:
        raise ConfigError(f"the row `{name}`: `{profile}` is {values!r}; seeds and minutes must be numbers above 0.")
    words = [*shlex.split(str((added.get(profile) or {}).get(verb) or "")), *shlex.split(str(values.get("add") or ""))]
    return Plan(tuple(range(seeds)), float(minutes), tuple(words))
