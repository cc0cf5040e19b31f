"""The names that a command line may hold (groups, their options, keys), and what is said of one that is unknown."""

from __future__ import annotations

import dataclasses
import re
import typing
from collections.abc import Iterator, Sequence
from pathlib import Path

from cifarbench.commands.words import TAKING, flags_apart
from cifarbench.config.augment import AUGMENTS
from cifarbench.config.keys import nearest, unknown
from cifarbench.config.load import CHOICES, VERBS
from cifarbench.errors import ConfigError

GLOBAL_GROUPS = ("experiment", "hardware", "debug")  # groups whose options set keys of other groups
_PLAIN = re.compile(r"([A-Za-z_]\w*)(\.[\w.]*)?=(.*)", re.DOTALL)
_CONFIG_FLAGS = ("--config-", "-cd", "-cp", "-cn")
_FLAGS = {
    *(flag for flag in TAKING if flag.startswith("--")),
    *("--help", "--hydra-help", "--version", "--resolve", "--run", "--multirun", "--info", "--shell-completion"),
}
_SHORT = re.compile(r"-([hrmpi]|sc|c[pnd]?|c(job|hydra|all))")
_ADDS_NAMES = ("plugins=", "--shell-completion", "-sc")  # models of the user's own, or what may come next is asked for


def conf_dir() -> Path:
    """The folder of YAML defaults: `conf/` beside the package in a checkout, inside the package in a wheel."""
    package = Path(__file__).resolve().parent.parent
    inside = package / "conf"
    return inside if inside.is_dir() else package.parent / "conf"


def groups() -> list[str]:
    """The names of all config groups."""
    return sorted(path.name for path in conf_dir().iterdir() if path.is_dir())


def options(group: str) -> list[str]:
    """The names of a group's options; `group` may be nested, as `hydra/launcher`."""
    return sorted(path.stem for path in (conf_dir() / group).glob("*.yaml"))


def classes(group: str) -> dict[str, type]:
    """The dataclasses of a group's options by name, with those of plugins; of augmentations, the plugins' alone."""
    return AUGMENTS if group == "augment" else CHOICES.get(group, {})


def brings_configs(arguments: Sequence[str]) -> bool:
    """Whether a command line adds configs of the user's own, which Hydra alone reads."""
    return any(word.startswith(_CONFIG_FLAGS) or "hydra.searchpath" in word for word in arguments)


def check_names(verb: str, arguments: Sequence[str]) -> None:
    """Refuse a misspelt section or option at once: composing, which would refuse it too, takes Hydra half a second.

    Raises:
        ConfigError: `optm=adamw` or `optm.lr=1` (no such section), or `model=vgh` (no such option).
    """
    _check_flags(verb, arguments)
    if brings_configs(arguments) or any(argument.startswith(_ADDS_NAMES) for argument in arguments):
        return
    sections, known_groups = {*_sections(verb), "hydra", "sweep"}, set(groups()) - {"hydra"}
    _, words = flags_apart(arguments)
    for argument in words:
        plain = _PLAIN.fullmatch(argument)
        if not plain:
            _check_word(verb, argument)
            continue
        section, key, values = plain.groups()
        if section not in sections:
            raise unknown_key(verb, section + (key or ""))
        if section in known_groups and key is None:
            for value in values.split(","):
                if value.isidentifier() and value not in (*options(section), "null"):
                    raise unknown_option(section, value)


def _check_flags(verb: str, arguments: Sequence[str]) -> None:
    """Refuse a flag that Hydra does not have: `--epochs 3` for `trainer.epochs=3`."""
    for argument in arguments:
        flag = argument.partition("=")[0]
        is_known = any(known.startswith(flag) for known in _FLAGS) if flag.startswith("--") else _SHORT.fullmatch(flag)
        if flag.startswith("-") and not is_known:
            name = flag.lstrip("-").replace("-", "_")
            alike = [key for key in sorted({*_keys(verb), *_sections(verb)}) if key.split(".")[-1] == name]
            hint = f" Did you mean {alike[0]}=…?" if alike else ""
            raise ConfigError(f'unknown flag "{flag}".{hint} Keys are typed without dashes, as key=value.')


def _check_word(verb: str, word: str) -> None:
    """Refuse what is no override: `lenet` for `model=lenet`, `~model`, which would leave a run without one."""
    if word.startswith("~") and re.split(r"[.=@]", word[1:])[0] in _sections(verb) - set(GLOBAL_GROUPS):
        raise ConfigError(f'"{word}" takes away what a run needs; give the key another value instead.')
    if "=" in word or word.startswith(("~", "+")):
        return
    sections = _sections(verb)
    found = [f"{group}={word}" for group in groups() if group in sections and word in options(group)]
    hint = f" Did you mean {found[0]}?" if found else ""
    raise ConfigError(f'"{word}" is no setting.{hint} What is set is typed as key=value, like seed=1.')


def unknown_option(group: str, name: str) -> ConfigError:
    """The error for an option that a group does not have."""
    return unknown(f"option for `{group.removeprefix('hydra/')}`:", name, {*options(group), *classes(group)})


def unknown_key(verb: str, name: str) -> ConfigError:
    """The error for a key that the verb's config does not have: unknown, or of an option that is not chosen."""
    known = sorted({*_keys(verb), *_sections(verb)})
    section = name.split(".")[0]
    same = [key for key in known if key.startswith(f"{section}.")] if "." in name else []
    if section == "sweep" and verb == "train":
        return ConfigError(f'"{name}" is a key of sweeps: add -m, and values to sweep over.')
    if section == "hydra":
        return ConfigError(f'unknown key "{name}". `cifarbench {verb} --cfg hydra` lists Hydra\'s keys.')
    if name in known:
        return ConfigError(
            f'"{name}" is a key of {_owners(name)}, which is not chosen; choose it, or leave the key out.'
        )
    valid = same or [key for key in known if "." not in key]
    alike = [key for key in known if "." in key and key.split(".")[-1] == name.split(".")[-1]]
    hint = f' Did you mean "{alike[0]}"?' if alike else nearest(name, same or known)
    return ConfigError(f'unknown key "{name}".{hint} Valid: {", ".join(valid)}.')


def _owners(name: str) -> str:
    """The options of a group that have the key `name`: "optim=sgd or optim=rmsprop"."""
    section, _, key = name.partition(".")
    keys = {option: {field.name for field in dataclasses.fields(cls)} for option, cls in classes(section).items()}
    names = [option for option, known in keys.items() if key in known]
    return " or ".join(f"{section}={option}" for option in names) or f"another {section}"


def _sections(verb: str) -> set[str]:
    """What may stand before the first dot: the fields of the verb's config, and the groups that set several."""
    fields = {field.name for field in dataclasses.fields(VERBS[verb])}
    return fields | set(GLOBAL_GROUPS if "trainer" in fields else ())


def _keys(verb: str) -> Iterator[str]:
    """Every dotted key that the verb knows, whichever options are chosen."""
    hints = typing.get_type_hints(VERBS[verb])
    for field in dataclasses.fields(VERBS[verb]):
        shipped = [] if field.name in CHOICES else [hints[field.name]]
        for section in [*shipped, *classes(field.name).values()]:
            if dataclasses.is_dataclass(section):
                yield from (f"{field.name}.{inner.name}" for inner in dataclasses.fields(section))
            else:
                yield field.name
