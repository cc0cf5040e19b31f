"""The wheel: built, installed into a clean environment, and run from another folder."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    done = subprocess.run(build, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return next(folder.glob("*.whl"))


def test_the_wheel_holds_every_config_and_no_test(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    for path in (ROOT / "conf").rglob("*.yaml"):
        assert f"cifarbench/conf/{path.relative_to(ROOT / 'conf').as_posix()}" in names
    for path in (ROOT / "cifarbench").rglob("*.c"):
        assert path.relative_to(ROOT).as_posix() in names
    assert not [name for name in names if name.startswith(("tests/", "scripts/"))]


def test_the_installed_wheel_trains_from_another_folder(wheel, tmp_path):
    home = tmp_path / "env"
    venv.create(home, with_pip=False)
    python = home / "bin" / "python"
    target = subprocess.run(
        [python, "-c", "import sysconfig; print(sysconfig.get_paths()['purelib'])"],
        capture_output=True, text=True, check=True,
    ).stdout.strip()  # fmt: skip
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", target, wheel]
    subprocess.run(install, check=True, capture_output=True)
    # torch and the other dependencies are borrowed; the project's own files are not.
    borrowed = Path(sysconfig.get_paths()["purelib"])
    (Path(target) / "borrowed.pth").write_text(f"{borrowed}\n")
    (tmp_path / "elsewhere").mkdir()
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    where = subprocess.run(
        [python, "-c", "import cifarbench; print(cifarbench.__file__)"],
        cwd=tmp_path / "elsewhere", env=environment, capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    assert str(home) in where
    arguments = ["train", "data=synthetic", "trainer=quick", "data.size=600", "model=simple_cnn"]
    done = subprocess.run(
        [python, "-m", "cifarbench", *arguments],
        cwd=tmp_path / "elsewhere", env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert list((tmp_path / "elsewhere" / "outputs" / "train").glob("*-simple_cnn-*/test.json"))
