"""Paths typed as plain words: `cifarbench report DIR DIR` becomes `run=['DIR','DIR']`, whatever the names hold."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from cifarbench.config.quoting import quoted
from cifarbench.errors import ConfigError

# Hydra's flags that take the next word as their value.
TAKING = {"--cfg", "-c", "--package", "-p", "--config-path", "-cp", "--config-name", "-cn", "--config-dir", "-cd"}
_FOLDER = ("--config-dir", "-cd")
_INFO = {"all", "config", "defaults", "defaults-tree", "plugins", "searchpath"}
_KEY = re.compile(r"[+~]{0,2}[A-Za-z_][\w./@:-]*=")


def gather(arguments: Sequence[str], key: str, keys: Sequence[str]) -> list[str]:
    """Replace the plain words of a command line, and a `key=PATH` without brackets, by one list `key=[…]`.

    Args:
        arguments: what stands after the verb.
        key: the list that the words are entries of.
        keys: the verb's own keys, whose `name=…` is never taken for a path.
    """
    rest, words = _sorted_out(arguments, keys)
    single = [text for text in rest if text.startswith(f"{key}=") and not text.startswith(f"{key}=[")]
    rest = [text for text in rest if text not in single]
    words += [_unquoted(text.removeprefix(f"{key}=")) for text in single]
    return [*rest, f"{key}=[{','.join(quoted(word) for word in words)}]"] if words else rest


def gather_one(arguments: Sequence[str], key: str, keys: Sequence[str]) -> list[str]:
    """Turn the one plain word of a command line into `key=WORD`.

    Raises:
        ConfigError: there are several.
    """
    rest, words = _sorted_out(arguments, keys)
    if len(words) > 1:
        odd = [word for word in words if not _exists(word)]
        if 0 < len(odd) < len(words):
            raise ConfigError(f"{odd[0]!r} is no directory; what is set is typed as key=value, like seed=1.")
        raise ConfigError(f"{' '.join(words)!r} names {len(words)} directories; give one.")
    return [*rest, *(f"{key}={quoted(word)}" for word in words)]


def gather_first(arguments: Sequence[str], key: str, keys: Sequence[str]) -> list[str]:
    """Turn the first plain word of a command line into `key=WORD`, as its first override; the others stay words."""
    rest, words = _sorted_out(arguments, keys)
    if not words:
        return rest
    # Beside the other overrides, which Hydra wants in one piece.
    follows = zip(["", *rest], rest, strict=False)
    overrides = (place for place, (before, text) in enumerate(follows) if before not in TAKING and _KEY.match(text))
    start = next(overrides, len(rest))
    return [*rest[:start], f"{key}={words[0]}", *words[1:], *rest[start:]]


def protect(arguments: Sequence[str], *keys: str) -> list[str]:
    """Quote the value of `key=PATH` for each of `keys` where PATH is there: names of sweeps hold commas."""
    done = []
    for text in arguments:
        name, _, value = text.partition("=")
        there = name in keys and value and not value.startswith(("'", '"')) and _exists(value)
        done.append(f"{name}={quoted(value)}" if there else text)
    return done


def flags_apart(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """(Hydra's flags with their values, all other words), each in the order in which they were typed."""
    flags: list[str] = []
    rest: list[str] = []
    for before, text in zip(["", *arguments], arguments, strict=False):
        (flags if text.startswith("-") or _belongs(before, text) else rest).append(text)
    return flags, rest


def config_folder(arguments: Sequence[str]) -> str | None:
    """The folder that `--config-dir` adds to the configs; None where a command line adds none."""
    found = None
    for before, text in zip(["", *arguments], arguments, strict=False):
        name, is_whole, value = text.partition("=")
        if before in _FOLDER:
            found = text
        elif name in _FOLDER and is_whole:
            found = value
    return found


def _sorted_out(arguments: Sequence[str], keys: Sequence[str]) -> tuple[list[str], list[str]]:
    """(flags and overrides, plain words)."""
    rest: list[str] = []
    words: list[str] = []
    before = ""
    for text in arguments:
        is_word = not _belongs(before, text) and not text.startswith("-") and _is_word(text, keys)
        (words if is_word else rest).append(text)
        before = text
    return rest, words


def _belongs(before: str, text: str) -> bool:
    """Whether `text` is the value of the flag before it."""
    is_shortened = len(before) > 2 and before.startswith("--") and any(flag.startswith(before) for flag in TAKING)
    return before in TAKING or is_shortened or (before in ("--info", "-i") and text in _INFO)


def _is_word(text: str, keys: Sequence[str]) -> bool:
    name = text.partition("=")[0]
    if "=" in text and (name.lstrip("+~") in keys or name.startswith("hydra")):
        return False
    return _exists(text) or not (_KEY.match(text) or text.startswith("~"))


def _exists(text: str) -> bool:
    try:
        return Path(text).exists()
    except (OSError, ValueError):  # a name that no file can have
        return False


def _unquoted(text: str) -> str:
    return text[1:-1] if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"" else text
