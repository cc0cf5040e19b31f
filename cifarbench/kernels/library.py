"""The C files of this folder as a library of this machine.

It is compiled once, with the machine's own C compiler, kept in the cache, and loaded by ctypes.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import shlex
import shutil
import stat
import subprocess
import tempfile
from pathlib import Path

_SOURCES = tuple(Path(__file__).with_name(name) for name in ("fused.c", "pool.c", "weights.c", "winograd.c"))
_HEADERS = tuple(Path(__file__).with_name(name) for name in ("numbers.h", "winograd.h"))
# No flag changes what a sum is: -ffast-math would, and it would also take numbers that are none for finite ones.
_FLAGS = ("-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math", "-fopenmp", "-fPIC", "-shared")
_WIDE = "-mprefer-vector-width=512"
_SECONDS = 60  # for the compiler, which takes about one

_POINTER, _LONG, _INT, _FLOAT = ctypes.c_void_p, ctypes.c_long, ctypes.c_int, ctypes.c_float
_SIGNATURES = {
    "norm_forward": [_POINTER] * 9 + [_LONG, _LONG, _FLOAT, _INT, _INT],
    "norm_backward": [_POINTER] * 11 + [_LONG, _LONG, _INT, _INT],
    "affine_forward": [_POINTER] * 5 + [_LONG, _LONG, _INT, _INT],
    "activation_forward": [_POINTER] * 3 + [_LONG, _INT, _INT],
    "pool_forward": [_POINTER] * 3 + [_LONG] * 4 + [_INT] * 2,
    "pool_backward": [_POINTER] * 3 + [_LONG] * 4 + [_INT] * 2,
    "weight_gradient": [_POINTER] * 3 + [_LONG] * 5 + [_INT],
    "has_tiles": [],
    "winograd": [_POINTER] * 4 + [_LONG] * 5 + [_INT] * 2,
    "winograd_gradient": [_POINTER] * 3 + [_LONG] * 5 + [_INT],
    "has_winograd": [],
}


@functools.cache
def load(bf16: bool) -> ctypes.CDLL | None:
    """The library for bfloat16 or float32 numbers, or None where it cannot be had: no Linux, no compiler, no OpenMP."""
    if platform.system() != "Linux":
        return None
    try:
        path = _built(_compiler(), ("-DBF16",) if bf16 else ())
        if not (_is_ours(path.parent) and _is_ours(path)):
            return None
        library = ctypes.CDLL(str(path))
    except (OSError, RuntimeError, ValueError, subprocess.SubprocessError):
        return None
    for name, arguments in _SIGNATURES.items():
        getattr(library, name).argtypes = arguments
    return library


def _is_ours(path: Path) -> bool:
    """Whether nobody else can have put there what is at `path`: it is not run otherwise."""
    found = path.stat()
    return found.st_uid == os.getuid() and not found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


def _compiler() -> list[str]:
    """The command in $CC, else cc, gcc or clang; OSError where there is none, ValueError where $CC cannot be read."""
    named = shlex.split(os.environ.get("CC", ""))
    commands = [named] if named else [["cc"], ["gcc"], ["clang"]]
    found = next((command for command in commands if shutil.which(command[0])), None)
    if found is None:
        raise FileNotFoundError("there is no C compiler.")
    return found


def _built(compiler: list[str], defines: tuple[str, ...]) -> Path:
    """The path of the compiled library, compiled now where this source was not yet, for this CPU, by this compiler."""
    wide = (_WIDE,) if platform.machine() == "x86_64" else ()
    command = [*compiler, *_FLAGS, *wide, *defines]
    texts = [source.read_text(encoding="utf-8") for source in (*_SOURCES, *_HEADERS)]
    key = hashlib.sha256("\n".join([*command, _cpu(), *texts]).encode()).hexdigest()
    path = _folder() / f"kernels-{key[:16]}.so"
    if not path.is_file():
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            made = Path(folder, path.name)
            subprocess.run(
                [*command, *map(str, _SOURCES), "-o", str(made), "-lm"],
                check=True,
                capture_output=True,
                timeout=_SECONDS,
            )
            made.chmod(0o700)
            made.replace(path)  # at once, as other processes may be doing the same
    return path


def _folder() -> Path:
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache, "cifarbench", "kernels")


def _cpu() -> str:
    """What the CPU can do: a home folder may be shared by machines that differ."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line for line in lines if line.startswith(("flags", "Features"))), platform.machine())
