"""The rooms: which may import which, and that importing does no work."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import cifarbench

PACKAGE = Path(cifarbench.__file__).parent
# Each room may import those to its right; `config`, `errors`, `seeds` are for all.
ALLOWED = {
    "config": set(),
    "models": set(),
    "data": set(),
    "optim": set(),
    "kernels": {"models"},
    "compute": {"kernels"},
    "runs": set(),
    "sweeps": {"runs"},
    "evaluation": {"data", "models", "compute"},
    "training": {"data", "models", "optim", "kernels", "evaluation", "compute", "runs"},
    "benchmark": {"data", "models", "optim", "training", "compute", "runs"},
    "export": {"data", "training"},
    "tuning": {"data", "training", "runs"},
    "leaderboard": {"data", "models", "evaluation", "training", "runs"},
    "reporting": {"tuning", "leaderboard", "compute", "data", "evaluation", "training", "runs", "sweeps"},
    "notebook": {"commands", "compute", "data", "evaluation", "runs", "training"},
    "commands": {
        "tuning",
        "leaderboard",
        "export",
        "benchmark",
        "sweeps",
        "data",
        "models",
        "optim",
        "evaluation",
        "training",
        "reporting",
        "compute",
        "runs",
    },
}
COMMON = {"config", "errors", "seeds", "tables", "__version__"}


def imports(path: Path) -> set[str]:
    """The rooms that a file imports, at its top or inside a function."""
    rooms = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "cifarbench":
            parts = (node.module or "").split(".")
            rooms |= {parts[1]} if len(parts) > 1 else {alias.name for alias in node.names}
        if isinstance(node, ast.Import):
            rooms |= {alias.name.split(".")[1] for alias in node.names if alias.name.startswith("cifarbench.")}
    return rooms


@pytest.mark.parametrize("room", sorted(ALLOWED))
def test_imports_point_one_way(room):
    files = list((PACKAGE / room).rglob("*.py")) or [PACKAGE / f"{room}.py"]
    common = COMMON - {"config"} if room == "models" else COMMON
    for path in files:
        forbidden = imports(path) - ALLOWED[room] - common - {room}
        assert not forbidden, f"{path.name} imports {forbidden}"


def test_every_room_is_in_the_list():
    rooms = {p.name.removesuffix(".py") for p in PACKAGE.iterdir() if p.suffix == ".py" or (p / "__init__.py").exists()}
    assert rooms - {"__init__", "__main__", "cli", "errors", "output", "seeds", "tables"} == set(ALLOWED)


def test_importing_the_package_imports_no_torch():
    code = "import sys, cifarbench, cifarbench.config.load; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_no_file_is_longer_than_a_reader_can_hold():
    lengths = {path.name: len(path.read_text().splitlines()) for path in PACKAGE.rglob("*.py")}
    assert max(lengths.values()) <= 400, sorted(lengths.items(), key=lambda item: -item[1])[:3]


def test_every_test_that_the_table_of_promises_names_exists():
    folder = Path(__file__).parent
    named = set(re.findall(r"`(test_\w+)`", (folder / "README.md").read_text()))
    held = {
        name for path in folder.glob("test_*.py") for name in re.findall(r"^def (test_\w+)", path.read_text(), re.M)
    }
    assert len(named) > 60
    assert named - held == set()
