"""The run directory: its name, its lock, its manifest run.json, and what it holds."""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import secrets
import socket
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock, Timeout

from cifarbench.config.history import complete
from cifarbench.errors import ConfigError, IntegrityError, InUseError, damaged

SCHEMA = 1
_LIMIT_BYTES = 64 << 20
_WRITES = 60.0  # seconds, longer than any of its files takes to be written


def register_resolvers() -> None:
    """Make `${run_name:…}` and `${job_label:…}`, which name run directories, known to OmegaConf."""
    from omegaconf import OmegaConf

    OmegaConf.register_new_resolver("run_name", run_name, replace=True)
    OmegaConf.register_new_resolver("job_label", job_label, replace=True)


def run_name(model: str) -> str:
    """A name that no other run has, even one started in the same second: 2026-01-31_12-00-00-vgg-3f9a1c."""
    return f"{time.strftime('%Y-%m-%d_%H-%M-%S')}-{safe_name(model)}-{secrets.token_hex(3)}"


def job_label(overrides: str) -> str:
    """What differs in a sweep's job as a folder name: "model=vgg,seed=1" stays readable, nothing leaves the folder."""
    return safe_name(overrides)[:100] or "job"


def safe_name(text: str) -> str:
    """`text` as part of a file's name: everything but letters, digits and `=,._-` replaced, and no leading dot."""
    return re.sub(r"[^\w=,.-]|\.\.", "_", text, flags=re.ASCII).lstrip(".")


def shown_path(path: Path) -> str:
    """The path as a user would type it: relative where it lies below the working directory."""
    absolute = path.resolve()
    return str(absolute.relative_to(Path.cwd())) if absolute.is_relative_to(Path.cwd()) else str(path)


def write_text(path: Path, text: str) -> None:
    """Write a file so that readers see the old or the new content, never half of it.

    What is there and is no file, such as /dev/stdout, is written to as it is, and never replaced.
    """
    if path.exists() and not path.is_file():
        path.write_text(text, encoding="utf-8", errors="backslashreplace")
        return
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")  # others may write the same file now
    try:
        # Half a surrogate pair, which stands for a byte of a file name that is no UTF-8, becomes an escape of JSON.
        with temporary.open("w", encoding="utf-8", errors="backslashreplace") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, values: Any) -> None:
    """`write_text` with readable JSON; NaN and infinity, which JSON lacks, are refused by a ValueError."""
    write_text(path, json.dumps(values, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def _clear_parts(folder: Path) -> None:
    """Remove what writers left behind that were killed; one that still writes takes no minute for it."""
    for path in folder.glob(".*.part"):
        with contextlib.suppress(OSError):
            if time.time() - path.stat().st_mtime > _WRITES:
                path.unlink()


def is_held(directory: Path) -> bool:
    """Whether a process holds a run directory just now."""
    if not (directory / ".lock").exists():
        return False
    lock = FileLock(directory / ".lock")
    try:
        with lock.acquire(timeout=0):
            return False
    except Timeout:
        return True


def remove_if_empty(directory: Path) -> None:
    """Remove a directory that a failed start left with nothing in it."""
    if directory.resolve() != Path.cwd():
        with contextlib.suppress(OSError):
            directory.rmdir()


class RunDirectory:
    """A run's directory, held by one process at a time."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.checkpoints = path / "checkpoints"
        self.manifest: dict[str, Any] = {}
        self.command: list[str] = []
        self._lock = FileLock(path / ".lock")

    def acquire(self) -> None:
        """Lock the directory and read its manifest, where it has one.

        Raises:
            InUseError: another process holds it.
            OSError: it cannot be written.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            holder = read_manifest(self.path).get("process", {})
            raise InUseError(
                f"{self.path} is in use by process {holder.get('pid', '?')} on {holder.get('host', 'this host')}; "
                "wait for it, or choose another hydra.run.dir; to score a run meanwhile takes portion=val."
            ) from None
        self.manifest = read_manifest(self.path)
        self.checkpoints.mkdir(exist_ok=True)
        _clear_parts(self.path)

    def release(self) -> None:
        """Let other processes have the directory, and leave nothing in it where no run began."""
        if not self.manifest:  # tidied while it is held: afterwards it may be another process's
            for remove in (self.checkpoints.rmdir, (self.path / ".lock").unlink):
                with contextlib.suppress(OSError):
                    remove()
        self._lock.release()

    def update(self, **entries: Any) -> None:
        """Merge `entries` into run.json."""
        self.manifest = {"schema": SCHEMA, **self.manifest, **entries}
        write_json(self.path / "run.json", self.manifest)

    def begin(self, **entries: Any) -> None:
        """Mark the run as running, by this process; of `sessions` the last one is this command's.

        Where the recipe is that of before, `command` stays the one that began the run: a resume's does not tell it.
        """
        same = all(self.manifest.get(name, entries.get(name)) == entries.get(name) for name in ("identity", "seed"))
        self.manifest.pop("reason", None)  # why it ended before
        if sessions := entries.get("sessions"):
            entries["sessions"] = [*sessions[:-1], {**sessions[-1], "command": self.command}]
        self.update(
            status="running",
            command=self.manifest.get("command", self.command) if same else self.command,
            process={"pid": os.getpid(), "host": socket.gethostname()},
            **entries,
        )

    def count_opening(self) -> None:
        """Add one to the openings of the seal; called before the test images are seen, so that none goes uncounted.

        Raises:
            IntegrityError: the manifest holds no such count.
        """
        test = self.manifest.get("test", {})
        if not isinstance(test, dict) or not isinstance(test.get("openings", 0), int):
            raise damaged(self.path / "run.json", "its `test.openings` is no whole number")
        self.update(test={**test, "openings": test.get("openings", 0) + 1})

    def write_config(self, config: Mapping[str, Any]) -> None:
        """Write the resolved config as config.yaml."""
        write_text(self.path / "config.yaml", yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True))

    def write_rows(self, rows: list[dict[str, Any]]) -> None:
        """Write metrics.jsonl from the rows that the checkpoint holds, so that none is doubled or lost."""
        write_text(self.path / "metrics.jsonl", "".join(f"{json.dumps(row, allow_nan=False)}\n" for row in rows))

    def append_row(self, row: dict[str, Any]) -> None:
        """Add one epoch to metrics.jsonl."""
        with (self.path / "metrics.jsonl").open("a", encoding="utf-8") as file:
            file.write(f"{json.dumps(row, allow_nan=False)}\n")


def read_manifest(directory: Path) -> dict[str, Any]:
    """The content of run.json, {} where there is none; IntegrityError where it cannot be read as one."""
    return read_json(directory / "run.json")


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file, {} where there is no file; IntegrityError where it cannot be read as one."""
    if not path.is_file():
        return {}
    try:
        values = _from_json(_read_small(path))
    except (ValueError, RecursionError) as error:
        raise damaged(path, error) from error
    if not isinstance(values, dict):
        raise damaged(path, "it holds no JSON object")
    return values


def read_config(directory: Path) -> dict[str, Any]:
    """The content of config.yaml, with the keys that came after it was written.

    Raises:
        ConfigError: the directory is no run.
        IntegrityError: the file is damaged.
    """
    path = directory / "config.yaml"
    if not path.is_file():
        raise ConfigError(f"{directory} is no run directory: it has no config.yaml.")
    try:
        values = yaml.safe_load(_read_small(path))
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise damaged(path, str(error).splitlines()[0]) from error
    if not isinstance(values, dict):
        raise damaged(path, "it holds no keys")
    return complete(values)


def count_opening(directory: Path) -> None:
    """Add one to the openings of the seal of the run in `directory`, before its test part is opened again.

    Raises:
        IntegrityError: the manifest holds no such count.
    """
    holder = RunDirectory(directory)
    holder.acquire()
    try:
        holder.count_opening()
    finally:
        holder.release()


def read_rows(directory: Path) -> list[dict[str, Any]]:
    """The rows of metrics.jsonl, [] where there are none; IntegrityError where a line is no JSON object."""
    path = directory / "metrics.jsonl"
    if not path.is_file():
        return []
    try:
        rows = [_from_json(line) for line in _read_small(path).splitlines() if line.strip()]
    except (ValueError, RecursionError) as error:
        raise damaged(path, error) from error
    if not all(isinstance(row, dict) for row in rows):
        raise damaged(path, "a line holds no JSON object")
    return rows


def check_distinct(directories: Sequence[Path]) -> None:
    """Raise ConfigError where one run directory is named twice."""
    seen: set[Path] = set()
    for directory in directories:
        if directory.resolve() in seen:
            raise ConfigError(f"`run` names {str(directory)!r} twice; give different runs.")
        seen.add(directory.resolve())


def check_one_test_part(directories: Sequence[Path]) -> None:
    """Raise IntegrityError unless all runs were tested on the same images: of one dataset, by a split of one name.

    Which trainable images were held out for validation may differ.
    """
    passports = [_passport(directory) for directory in directories]
    for directory, passport in zip(directories, passports, strict=True):
        for part in ("dataset", "split"):
            (name, mark), (first, first_mark) = passport[part], passports[0][part]
            if name != first or (part == "dataset" and mark != first_mark):
                raise IntegrityError(
                    f"{directories[0]} and {directory} cannot be compared: their {part}s differ, "
                    f"{first} {first_mark[:12]} and {name} {mark[:12]}. Give runs of one dataset and split."
                )


def _passport(directory: Path) -> dict[str, tuple[str, str]]:
    """Name and fingerprint of the dataset and the split that a run's manifest records."""
    manifest, found = read_manifest(directory), {}
    for part in ("dataset", "split"):
        values = manifest.get(part)
        name, mark = (values.get(key) for key in ("name", "fingerprint")) if isinstance(values, dict) else (None, None)
        if not isinstance(name, str) or not isinstance(mark, str):
            raise IntegrityError(f"{directory / 'run.json'} names no {part} fingerprint; it is no run of cifarbench.")
        found[part] = (name, mark)
    return found


def _from_json(text: str) -> Any:
    """What a JSON text says; ValueError for a number that is not finite, which JSON lacks and no record of ours has."""
    return json.loads(text, parse_constant=_finite, parse_float=_finite)


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text[:40]} is no finite number")
    return number


def _read_small(path: Path) -> str:
    if path.stat().st_size > _LIMIT_BYTES:
        raise IntegrityError(f"{path} is larger than {_LIMIT_BYTES:,} bytes; refused.")
    return path.read_text(encoding="utf-8")
