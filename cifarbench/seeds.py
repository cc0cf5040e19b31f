"""Seeds for everything that is drawn: each purpose has its own stream of the run's seed."""

from __future__ import annotations

import hashlib


def derive(seed: int, *purpose: str | int) -> int:
    """A 63-bit seed for `purpose`, e.g. `derive(0, "order", epoch)`; SHA-256, so streams are unrelated."""
    text = "/".join(str(part) for part in (seed, *purpose))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1
