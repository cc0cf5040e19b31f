"""Write RESULTS.md, its tables and its figures from the records in `scripts/results/`, and from nothing else.

    python scripts/results.py [--check]

A record is what `python scripts/reproduce.py` keeps of a finished run. `--check` writes nothing, and exits with 1
where the page, a table or a figure is not what the records say.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from table import page
from table.rows import LIST, read_rows

from cifarbench.errors import CifarbenchError


def main() -> int:
    """Write, or check; returns the exit code."""
    places = page.Places()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if something is not up to date")
    parser.add_argument("--rows", type=Path, default=LIST, metavar="FILE", help="another list of rows")
    parser.add_argument("--records", type=Path, default=places.records, metavar="DIR", help="other records")
    parser.add_argument("--page", type=Path, default=places.page, metavar="FILE", help="another page")
    given = parser.parse_args()
    places = page.Places(given.records.resolve(), given.page.resolve())
    try:
        sections = read_rows(given.rows)
        if not given.check:
            print(page.write(sections, places, "cifar10"))
            return 0
        wrong = page.check(sections, places, "cifar10")
    except CifarbenchError as error:
        print(f"results: {error}", file=sys.stderr)
        return error.exit_code
    print("\n".join([*wrong, "run python scripts/results.py"]) if wrong else f"{places.page.name} is up to date")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
