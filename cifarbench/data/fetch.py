"""Fetching an archive: from the first mirror that answers, resumed, locked, verified, and unpacked safely."""

from __future__ import annotations

import errno
import hashlib
import http.client
import os
import shutil
import tarfile
import time
import urllib.error
import urllib.request
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

from filelock import FileLock

from cifarbench.errors import IntegrityError, ResourceError

_CHUNK = 1 << 18
_TIMEOUT_SECONDS = 30
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def fetch_archive(
    folder: Path,
    mirrors: Sequence[str],
    md5: str,
    size: int,
    say: Callable[[str], None],
    is_there: Callable[[], bool],
    by_hand: str,
    unpack_into: Callable[[Path, Path], None],
) -> None:
    """Download to `folder/archive.part`, check the MD5, rename, and unpack; a second process waits and reuses.

    Args:
        folder: where the unpacked files go; made where missing.
        mirrors: addresses, tried in order; a broken transfer goes on where it stopped.
        md5, size: of the whole archive, size in bytes.
        say: takes a line of progress for the user.
        is_there: tells whether another process has meanwhile done it.
        by_hand: what the user can do if every mirror fails.
        unpack_into: unpacks (archive, folder).

    Raises:
        ResourceError: no mirror gave the archive; the message says what each answered.
        OSError: the disk is full, or `folder` cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    archive, part = folder / "archive.tar.gz", folder / "archive.tar.gz.part"
    with FileLock(folder / ".fetch.lock"):
        if is_there():
            return
        if _md5(archive) != md5:
            archive.unlink(missing_ok=True)
            answers = _ask(mirrors, part, archive, md5, size, say)
            if not archive.is_file():
                raise ResourceError(f"no mirror gave the dataset ({'; '.join(answers) or 'none is named'}). {by_hand}")
        unpack_into(archive, folder)
        archive.unlink()


def _ask(
    mirrors: Sequence[str], part: Path, archive: Path, md5: str, size: int, say: Callable[[str], None]
) -> list[str]:
    """Download `archive` from the first mirror that gives it; returns what the others answered."""
    answers = []
    for mirror in mirrors:
        try:
            _download_verified(mirror, part, md5, size, say)
        except (OSError, http.client.HTTPException, ValueError) as error:
            if _is_local(error):
                raise
            answers.append(f"{mirror}: {error}")
            say(answers[-1])
        else:
            os.replace(part, archive)
            break
    return answers


def _is_local(error: Exception) -> bool:
    """Whether it is this machine's disk that failed: an HTTPError names a file too, its address."""
    return isinstance(error, OSError) and not isinstance(error, urllib.error.URLError) and error.filename is not None


def _download_verified(address: str, part: Path, md5: str, size: int, say: Callable[[str], None]) -> None:
    """Complete `part` from `address`; where that gives another file, start over, as its beginning may be another's."""
    begun = part.exists()
    _download(address, part, size, say)
    if begun and _md5(part) != md5:
        part.unlink()
        _download(address, part, size, say)
    if _md5(part) != md5:
        part.unlink()
        raise ValueError("its file has another MD5 than the published one")


def _md5(path: Path) -> str:
    """The MD5 of a file, or an empty string where there is none."""
    if not path.is_file():
        return ""
    digest = hashlib.md5()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def _download(address: str, part: Path, size: int, say: Callable[[str], None]) -> None:
    """Append to `part` what is missing of `address`; starts over where the server cannot resume."""
    have = part.stat().st_size if part.exists() else 0
    if have == size:
        return
    headers = {"Range": f"bytes={have}-"} if 0 < have < size else {}
    request = urllib.request.Request(address, headers={"User-Agent": "cifarbench", **headers})
    with urllib.request.urlopen(request, timeout=_TIMEOUT_SECONDS) as answer:
        if answer.headers.get_content_type() == "text/html":
            raise ValueError("it answered with a web page instead of the archive")
        resumed = answer.status == 206
        say(f"fetching {address}{f', from byte {have:,}' if resumed else ''}")
        try:
            with part.open("ab" if resumed else "wb") as file:
                _copy(answer, file, have if resumed else 0, size, say)
        except OSError as error:
            if error.errno in _FULL:  # a failed write does not say to which file
                error.filename = str(part)
            raise
    if part.stat().st_size < size:
        raise ValueError(f"the transfer ended after {part.stat().st_size:,} of {size:,} bytes")


def _copy(source: http.client.HTTPResponse, target, done: int, size: int, say: Callable[[str], None]) -> None:
    shown = time.monotonic()
    while chunk := source.read(_CHUNK):
        target.write(chunk)
        done += len(chunk)
        if done > size:
            raise ValueError(f"it sent more than the {size:,} bytes of the published archive")
        if time.monotonic() - shown > 5:
            shown = time.monotonic()
            say(f"  {done / 1e6:.0f} of {size / 1e6:.0f} MB")


def unpack(archive: Path, folder: Path, inside: str, names: set[str]) -> None:
    """Unpack the files `inside/<name>` of a tar archive into `folder/inside`, and refuse anything else in it.

    Raises:
        IntegrityError: a member is a link, a device, or lies elsewhere; nothing of it is written.
    """
    allowed = {f"{inside}/{name}" for name in names}
    fresh = folder / f".{inside}.part"
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir()
    try:
        with tarfile.open(archive, "r:gz") as tar:
            for member in tar:
                _unpack_member(tar, member, allowed, inside, fresh)
    except (tarfile.TarError, EOFError, zlib.error) as error:
        raise IntegrityError(f"{archive} is no whole tar archive ({error}); delete it and fetch again.") from error
    finally:
        if fresh.exists() and not any(fresh.iterdir()):
            fresh.rmdir()
    (folder / inside).mkdir(exist_ok=True)
    for path in fresh.iterdir():
        os.replace(path, folder / inside / path.name)
    fresh.rmdir()


def _unpack_member(tar: tarfile.TarFile, member: tarfile.TarInfo, allowed: set[str], inside: str, fresh: Path) -> None:
    if member.isdir() and member.name.rstrip("/") == inside:
        return
    content = tar.extractfile(member) if member.isreg() and member.name in allowed else None
    if content is None:
        shutil.rmtree(fresh)
        raise IntegrityError(f"the archive holds {member.name!r}, which is no file of the dataset; refused.")
    with content, (fresh / Path(member.name).name).open("wb") as file:
        shutil.copyfileobj(content, file)
