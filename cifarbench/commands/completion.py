"""Shell completion: the verbs here, everything after the verb by Hydra."""

from __future__ import annotations

import os
from collections.abc import Iterable


def complete(arguments: list[str], verbs: Iterable[str]) -> int:
    """Answer `cifarbench -sc install=bash` (a script) and the query that the shell sends while typing."""
    from cifarbench.commands.hydra_app import run_verb

    line = os.environ.get("COMP_LINE", "")
    words = line.split()
    if not any(argument.startswith("query=") for argument in arguments):
        return run_verb("train", ["--shell-completion", *arguments])
    if len(words) > 1 and words[1] in verbs and line.rstrip() != " ".join(words[:2]):
        os.environ["COMP_LINE"] = line.replace(f"{words[1]} ", "", 1)
        os.environ["COMP_POINT"] = str(max(int(os.environ.get("COMP_POINT", len(line))) - len(words[1]) - 1, 0))
        return run_verb(words[1], ["--shell-completion", *arguments])
    print("\t".join(verbs))
    return 0
