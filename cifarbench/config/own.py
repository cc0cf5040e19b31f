"""Sections of a config that files of the user's own registered: their models, augmentations and optimizers.

Their classes are made when the file is loaded (`cifarbench/commands/plugins.py`), with three attributes more: `loaded`,
the digest of that file, beside the key `sha256`, that of the file that the config was written for; `own_keys`, the keys
that are arguments of what was registered; and `defaults`, the values that the option begins with.
"""

from __future__ import annotations

from typing import Any

GROUPS = ("model", "augment", "optim")


def is_own(section: Any) -> bool:
    """Whether a section, or its class, is of a plugin, and not shipped."""
    return hasattr(section, "loaded")


def own_sections(config: Any) -> dict[str, Any]:
    """The sections of a training config that are of plugins, by group."""
    return {group: section for group in GROUPS if is_own(section := getattr(config, group))}


def arguments(section: Any) -> dict[str, Any]:
    """The values that a plugin's section holds for the arguments of what was registered."""
    return {name: getattr(section, name) for name in section.own_keys}


def is_as_loaded(section: Any) -> bool | None:
    """Whether a plugin's section, perhaps a stored one, is of the file that is loaded now.

    None where that is not known: for a shipped one, and where an earlier version wrote the config.
    """
    recorded = getattr(section, "sha256", "")
    return recorded == section.loaded if recorded else None
