"""What a run is called where it is shown, on the console and on its page."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_SECTIONS = ("model", "optim", "scheduler", "augment")


def heading(config: Mapping[str, Any]) -> str:
    """Model, optimizer, schedule and augmentation, and the loss where it is another than cross-entropy.

    `config` may be of any version or damaged: what it does not say is left out, so the heading may be empty.
    """
    sections = [config.get(name) for name in _SECTIONS]
    names = [section.get("name") for section in sections if isinstance(section, dict)]
    loss = minimised(config)
    names += [] if loss == "cross_entropy" else [f"{loss} loss"]
    return " · ".join(str(name) for name in names if name is not None)


def minimised(config: Mapping[str, Any]) -> str:
    """The name of the loss that training minimised: cross_entropy, before there was a choice."""
    trainer = config.get("trainer")
    return str((isinstance(trainer, dict) and trainer.get("loss")) or "cross_entropy")
