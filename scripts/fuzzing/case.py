"""A case of the fuzzer: a command line and the files that it finds; written to a file and back."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Case:
    """One command to try.

    `kind` says what is spoilt, `needs` are the records of the corpus that it finds in its folder, and `planted` the
    files that take the place of theirs: path to content, None for an empty folder.
    """

    verb: str
    kind: str
    argv: tuple[str, ...]
    needs: tuple[str, ...] = ()
    planted: Mapping[str, bytes | None] = field(default_factory=dict)

    def plant(self, folder: Path) -> None:
        """Put the spoilt files into `folder`."""
        for name, content in self.planted.items():
            path = folder / name
            path.unlink(missing_ok=True)
            if content is None:
                path.mkdir(parents=True)
            else:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)

    def to_json(self, **more: Any) -> str:
        """The case as text, with what else is worth knowing of it."""
        planted = {
            name: None if content is None else base64.b64encode(content).decode()
            for name, content in self.planted.items()
        }
        values = {"verb": self.verb, "kind": self.kind, "argv": self.argv, "needs": self.needs, "planted": planted}
        return json.dumps({**values, **more}, indent=1) + "\n"


def from_json(text: str) -> Case:
    """The case that `to_json` wrote."""
    values = json.loads(text)
    planted = {
        name: None if content is None else base64.b64decode(content) for name, content in values["planted"].items()
    }
    return Case(values["verb"], values["kind"], tuple(values["argv"]), tuple(values["needs"]), planted)
