"""Configs that older versions wrote, completed so that they say what was done before a key existed.

Who adds a key adds it here too, with the value that does what was done without it, and raises the checkpoint's schema
in `cifarbench/training/migrations.py`. What is stored always wins over what stands here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cifarbench.config.models import SHIPPED

_LATER_KEYS: dict[str, dict[str, Any]] = {
    "augment": {"flip_alternates": False},
    "trainer": {
        "checkpoint_epochs": 1,
        "compile_mode": "default",
        "cuda_graphs": False,
        "drop_last": False,
        "ema_start": "0%",
        "fork": None,
        "kernels": "torch",
        "loss": "cross_entropy",
        "report": True,
        "size_until": [],
        "sizes": [],
        "stem_bias_until": "100%",
        "sync_norm": False,
        "tta": "none",
        "untimed_steps": 0,
    },
}
_LATER_MODEL_KEYS: dict[str, dict[str, Any]] = {
    "simple_cnn": {"whitening": False, "dirac": False, "init": "he"},
    "vgg": {"whitening": False, "dirac": False, "stages": 5},
    "resnet": {"whitening": False, "dirac": False, "pooling": "stride", "head": "global_average"},
}
_LATER_OPTIM_KEYS = {"l1": 0.0}  # but of Muon
_LATER_PLUGIN_KEYS = {"sha256": ""}


def complete(config: Mapping[str, Any]) -> dict[str, Any]:
    """A stored training config with the keys that came after it was written; other values are left as they are."""
    later = _later(config)
    sections = {
        name: {**keys, **section} for name, keys in later.items() if isinstance(section := config.get(name), Mapping)
    }
    return {**config, **sections}


def shorten(config: Mapping[str, Any]) -> dict[str, Any]:
    """A config without the later keys that change nothing: so it reads as an older version would have written it."""
    later = _later(config)

    def told(name: str, section: Any) -> Any:
        keys = later.get(name, {})
        if not isinstance(section, Mapping):
            return section
        return {key: value for key, value in section.items() if key not in keys or value != keys[key]}

    return {name: told(name, section) for name, section in config.items()}


def _later(config: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    model, optimizer = (_name(config.get(section)) for section in ("model", "optim"))
    return {
        **_LATER_KEYS,
        "model": _LATER_MODEL_KEYS.get(model, {} if model in SHIPPED else _LATER_PLUGIN_KEYS),
        "optim": {} if optimizer == "muon" else _LATER_OPTIM_KEYS,
    }


def _name(section: Any) -> str:
    return str(section.get("name")) if isinstance(section, Mapping) else ""
