"""Any text as one value in Hydra's grammar."""

from __future__ import annotations

import re


def quoted(text: str) -> str:
    """`text` as one quoted value that Hydra and OmegaConf give back unchanged."""
    # OmegaConf reads ${…} even inside quotes; Hydra unescapes backslashes only before a quote.
    text = re.sub(r"(\\*)\$\{", lambda found: found[1] * 2 + "\\${", text)
    text = re.sub(r"(\\*)'", lambda found: found[1] * 2 + "\\'", text)
    text = re.sub(r"(\\+)\Z", lambda found: found[1] * 2, text)
    return f"'{text}'"
