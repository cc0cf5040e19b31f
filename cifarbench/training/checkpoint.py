"""Checkpoints: written so that a crash never loses the last good one, and read without trusting their bytes.

A checkpoint is the zip archive that torch.save writes, with the SHA-256 of all its bytes as the archive's
comment, so that `torch.load(path, weights_only=True)` reads it and a single flipped bit is noticed.
"""

from __future__ import annotations

import hashlib
import io
import math
import os
import pickletools
import re
import shutil
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cifarbench.errors import IntegrityError
from cifarbench.training.migrations import SCHEMA, migrate

PARTS = ("model", "optimizer", "scheduler", "ema", "rng", "progress", "config", "passport")
_LIMIT_BYTES = 8 << 30
_MARK = b"cifarbench-sha256:"
_COMMENT_BYTES = len(_MARK) + 64
_NAMES = re.compile(
    r"collections OrderedDict|torch\._utils _rebuild_tensor_v2"
    r"|torch (Float|Double|Half|BFloat16|Byte|Char|Short|Int|Long|Bool)Storage"
)


def save(state: Mapping[str, Any], path: Path) -> None:
    """Write `state` to `path`: a temporary file beside it, flushed to the disk, then renamed over it.

    Raises:
        OSError: the disk is full or not writable; the file that was at `path` is untouched.
    """
    _replace(path, sealed_bytes({"schema": SCHEMA, **state}))


def copy(source: Path, target: Path) -> None:
    """Copy a checkpoint with the same care as `save`."""
    _replace(target, source.read_bytes())


def sealed_bytes(state: Mapping[str, Any]) -> bytes:
    """The archive of `state` with its SHA-256 as the zip comment."""
    buffer = io.BytesIO()
    torch.save(dict(state), buffer)
    body = buffer.getvalue()[:-2]  # the last two bytes give the comment's length: none so far
    body += _COMMENT_BYTES.to_bytes(2, "little")
    return body + _MARK + hashlib.sha256(body).hexdigest().encode()


def _replace(path: Path, content: bytes) -> None:
    temporary = path.with_name(f".{path.name}.part")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        error.filename = str(path)
        error.strerror = f"{error.strerror} (a checkpoint of {len(content):,} bytes)"
        raise
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    """Flush the folder's entries, so that a rename survives a power cut; Windows opens no folder and is left alone."""
    if os.name != "posix":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def load(path: Path) -> dict[str, Any]:
    """The state in a checkpoint, tensors on the CPU; one of an older schema as the newest has it.

    Raises:
        IntegrityError: the file is damaged, no checkpoint of ours, of a newer schema, or holds anything but
            tensors and plain values; nothing in it is executed.
        FileNotFoundError: there is no such file.
    """
    size = path.stat().st_size
    if not path.is_file() or size > _LIMIT_BYTES:
        raise IntegrityError(f"{path} is no checkpoint: {size:,} bytes, at most {_LIMIT_BYTES:,} are read.")
    content = path.read_bytes()
    _check_sum(path, content)
    state = _unpickle(path, _checked_archive(path, content))
    values = state if isinstance(state, dict) else {}
    schema = values.get("schema")
    if isinstance(schema, int) and not 1 <= schema <= SCHEMA:
        raise IntegrityError(
            f"{path} has checkpoint schema {schema}; this version reads up to {SCHEMA}. Update cifarbench."
        )
    missing = [part for part in PARTS if not isinstance(values.get(part), dict)]
    if missing or not isinstance(schema, int):
        raise IntegrityError(f"{path} is no checkpoint of cifarbench: it lacks {', '.join(missing or ['its schema'])}.")
    try:
        return migrate(values)
    except (KeyError, TypeError, AttributeError) as error:
        raise IntegrityError(f"{path} is no checkpoint of schema {schema}: it lacks {error}.") from error


def passport_of(path: Path, state: Mapping[str, Any]) -> dict[str, Any]:
    """The passport in a loaded state; IntegrityError where it does not say what the weights were trained on."""
    passport = state["passport"]
    named = all(
        isinstance(passport.get(part), dict) and isinstance(passport[part].get(name), str)
        for part in ("dataset", "split")
        for name in ("name", "fingerprint")
    )
    channels = [passport.get(name) for name in ("mean", "std")]
    numbered = all(isinstance(c, list) and len(c) == 3 and all(isinstance(x, float) for x in c) for c in channels)
    numbered = numbered and all(map(math.isfinite, [*channels[0], *channels[1]])) and min(passport["std"]) > 0
    environment = passport.get("environment")
    known = isinstance(environment, dict) and all(
        type(environment.get(name)) is kind for name, kind in (("precision", str), ("threads", int), ("device", str))
    )
    known = known and environment["precision"] in ("fp32", "bf16", "fp16") and environment["threads"] > 0
    if not (named and numbered and known):
        raise IntegrityError(f"{path} is no checkpoint of cifarbench: its passport is incomplete.")
    return passport


def _check_sum(path: Path, content: bytes) -> None:
    body, comment = content[:-_COMMENT_BYTES], content[-_COMMENT_BYTES:]
    if not re.fullmatch(re.escape(_MARK) + rb"[0-9a-f]{64}", comment):
        raise IntegrityError(
            f"{path} is damaged or no checkpoint of cifarbench: it ends without its checksum ({len(content):,} bytes)."
        )
    if hashlib.sha256(body).hexdigest().encode() != comment[len(_MARK) :]:
        raise IntegrityError(f"{path} is damaged: its bytes do not match its checksum. Take another checkpoint.")


def _checked_archive(path: Path, content: bytes) -> bytes:
    """The archive without its comment, written anew from checked entries: torch reads nothing else than was checked.

    Zip readers differ in where they look for the table of contents, so a crafted file can show each another one.
    """
    checked = io.BytesIO()
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive, zipfile.ZipFile(checked, "w") as rewritten:
            entries = archive.infolist()
            if len({entry.filename.lower() for entry in entries}) < len(entries):
                raise IntegrityError(f"{path} is no checkpoint: it holds two entries of one name.")
            compressed = any(entry.compress_type != zipfile.ZIP_STORED for entry in entries)
            if compressed or sum(entry.file_size for entry in entries) > len(content):
                raise IntegrityError(f"{path} would unpack to more than its {len(content):,} bytes; refused.")
            for entry in entries:
                data = archive.read(entry)
                if entry.filename.lower().endswith(".pkl"):
                    _check_names(path, data)
                rewritten.writestr(entry.filename, data)
    except (zipfile.BadZipFile, ValueError, RuntimeError, EOFError) as error:
        raise IntegrityError(f"{path} is no checkpoint: {error}.") from error
    return checked.getvalue()


def _check_names(path: Path, pickled: bytes) -> None:
    """Refuse a pickle that names more than tensors: torch also lets `bytearray(10**10)` through, which takes 10 GB."""
    for opcode, name, _ in pickletools.genops(pickled):
        if opcode.name == "GLOBAL" and not _NAMES.fullmatch(str(name)):
            raise IntegrityError(
                f"{path} holds something else than tensors and plain values: it names {name!r}; refused."
            )


def _unpickle(path: Path, content: bytes) -> Any:
    # This variable makes torch ignore weights_only; whoever sets it cannot mean files from strangers.
    forced = os.environ.pop("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", None)
    try:
        return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise IntegrityError(
            f"{path} holds something else than tensors and plain values; nothing of it was run ({reason[:120]})."
        ) from error
    finally:
        if forced is not None:
            os.environ["TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"] = forced


def tested_weights(state: dict[str, Any]) -> dict[str, Any]:
    """The weights in a loaded state that are scored: the averaged ones where there are any."""
    if not state["ema"]:
        return state["model"]
    return {name.removeprefix("module."): value for name, value in state["ema"].items() if name != "n_averaged"}


def load_weights(module: nn.Module, weights: Any, path: Path | str) -> None:
    """Copy `weights` into `module` after comparing every name, shape and value.

    Raises:
        IntegrityError: listing the first mismatches, or naming a tensor that is not finite.
    """
    if not isinstance(weights, dict) or not all(isinstance(value, Tensor) for value in weights.values()):
        raise IntegrityError(f"{path} holds no weights where they should be.")
    expected = module.state_dict()
    wrong = [f"{name} is missing" for name in expected if name not in weights]
    wrong += [f"{name} is not in the model" for name in weights if name not in expected]
    wrong += [
        f"{name} is {tuple(weights[name].shape)} {weights[name].dtype}, the model has "
        f"{tuple(value.shape)} {value.dtype}"
        for name, value in expected.items()
        if name in weights and (weights[name].shape != value.shape or weights[name].dtype != value.dtype)
    ]
    if wrong:
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise IntegrityError(f"{path} does not fit the model: {'; '.join(wrong[:3])}{more}.")
    bad = first_non_finite(weights)
    if bad:
        raise IntegrityError(f"{path} is refused: its weight {bad} is not finite.")
    module.load_state_dict(weights)


def first_non_finite(tensors: Mapping[str, Tensor]) -> str | None:
    """The name of the first floating-point tensor with a value that is not finite, or None."""
    floating = {name: tensor for name, tensor in tensors.items() if tensor.is_floating_point()}
    if not floating:
        return None
    finite = torch.stack([tensor.isfinite().all() for tensor in floating.values()]).tolist()  # one wait for the device
    return next((name for name, is_finite in zip(floating, finite, strict=True) if not is_finite), None)


def tensor_hash(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over sorted tensor names, dtypes, shapes and bytes: equal hashes mean identical weights."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        # A copy: of one element, `contiguous` keeps an odd stride, which no view as bytes takes.
        tensor = tensors[name].detach().cpu().clone(memory_format=torch.contiguous_format)
        digest.update(f"{name}/{tensor.dtype}/{tuple(tensor.shape)}/".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b"")
    return digest.hexdigest()


def newest_valid(folder: Path) -> tuple[Path, dict[str, Any], list[str]] | None:
    """The checkpoint to resume from: `last.pt`, else `best.pt`; with a warning for each that could not be read."""
    warnings: list[str] = []
    for path in (folder / "last.pt", folder / "best.pt"):
        if not path.exists():
            continue
        try:
            return path, load(path), warnings
        except IntegrityError as error:
            warnings.append(f"{error} Falling back to an older one.")
    if warnings:
        raise IntegrityError(f"no readable checkpoint in {folder}: {warnings[0]}")
    return None


def clear_parts(folder: Path) -> None:
    """Remove what a killed process left half-written."""
    for path in folder.glob(".*.part"):
        path.unlink() if path.is_file() else shutil.rmtree(path)
