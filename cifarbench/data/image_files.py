"""Image files from anywhere as the 32x32 images that a model knows, read without trusting them.

PNG, JPEG, WebP and BMP only. An image is turned as its EXIF data says, brought to 8-bit RGB (16-bit grey keeps its
upper 8 bits; transparent pixels show white), shrunk or grown until its shorter side is 32 px (bilinear, averaging
over all pixels that fall into one), and cut to its central 32x32 px. A 32x32 RGB image comes through unchanged.
"""

from __future__ import annotations

import glob
import os
import stat
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from cifarbench.errors import ConfigError

SIDE = 32
_FORMATS = ("PNG", "JPEG", "WEBP", "BMP")
_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp"}
_LARGEST_PIXELS = 64_000_000
_LARGEST_BYTES = 256 << 20
_MOST_FILES = 200_000  # below one folder


class ImageError(ValueError):
    """Why one file gives no image, in a few words."""


def find(words: Iterable[str]) -> Iterator[str]:
    """The files that words name: a file itself, all images below a folder, all that match a pattern, each once.

    A word that names nothing comes through as it is, for `read` to say so.

    Raises:
        ConfigError: more than 200,000 files lie below a folder.
    """
    seen: set[str] = set()
    for word in words:
        for name in _expand(word):
            if name not in seen:
                seen.add(name)
                yield name


def _expand(word: str) -> list[str]:
    if os.path.isdir(word):
        return sorted(_below(word)) or [word]
    if not os.path.lexists(word) and glob.has_magic(word):
        matches = sorted(name for name in glob.glob(word, recursive=True) if not os.path.isdir(name))
        return matches or [word]
    return [word]


def _below(folder: str) -> Iterator[str]:
    """The images below a folder; ConfigError where so many files lie there that it can hardly be meant."""
    count = 0
    for place, _, names in os.walk(folder):
        count += len(names) + 1
        if count > _MOST_FILES:
            raise ConfigError(
                f"`images` names {folder!r}, below which lie more than {_MOST_FILES:,} files; "
                "name a folder nearer to the images."
            )
        yield from (os.path.join(place, name) for name in names if Path(name).suffix.lower() in _SUFFIXES)


def read(name: str) -> Tensor:
    """The image in a file, (3, 32, 32) uint8.

    Raises:
        ImageError: the file is not there, is none of the formats, is damaged, or has more than 64 million pixels.
    """
    _check_file(name)
    try:
        # Pillow warns of a size, which is checked here, and of odd metadata, which does not matter.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(name, formats=_FORMATS) as opened:
                width, height = opened.size
                if width * height > _LARGEST_PIXELS:
                    raise ImageError(f"{width}×{height} pixels, more than {_LARGEST_PIXELS:,}")
                opened.draft(None, (SIDE * 8, SIDE * 8))  # a large JPEG is decoded at a fraction of its size
                return _to_tensor(_as_rgb(ImageOps.exif_transpose(opened)))
    except ImageError:
        raise
    except Image.DecompressionBombError as error:
        raise ImageError(f"more than {_LARGEST_PIXELS:,} pixels") from error
    except Image.UnidentifiedImageError as error:
        raise ImageError("no PNG, JPEG, WebP or BMP image") from error
    except Exception as error:  # decoders of damaged files raise whatever they stumble over
        raise ImageError(f"damaged: {str(error).splitlines()[0] if str(error) else type(error).__name__}") from error


def _check_file(name: str) -> None:
    """Refuse what is no ordinary file: opening a FIFO or a device could wait for ever."""
    try:
        found = os.stat(name)
    except FileNotFoundError:
        raise ImageError("no file matches" if glob.has_magic(name) else "not there") from None
    except (OSError, ValueError) as error:
        raise ImageError(getattr(error, "strerror", None) or "no valid name") from None
    if stat.S_ISDIR(found.st_mode):
        raise ImageError("a folder without images")
    if not stat.S_ISREG(found.st_mode):
        raise ImageError("no ordinary file")
    if found.st_size > _LARGEST_BYTES:
        raise ImageError(f"{found.st_size:,} bytes, more than {_LARGEST_BYTES:,}")


def _as_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16-bit grey, which Pillow would cut off at 255
        values = np.asarray(image).astype(np.int64)
        return Image.fromarray((values.clip(0, 65535) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode in ("LA", "La", "RGBA", "RGBa", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        ground = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(ground, image).convert("RGB")
    return image.convert("RGB")


def _to_tensor(image: Image.Image) -> Tensor:
    width, height = image.size
    scale = SIDE / min(width, height)
    size = (max(SIDE, round(width * scale)), max(SIDE, round(height * scale)))
    if max(size) > 64 * SIDE:
        raise ImageError(f"{width}×{height} pixels, too narrow to show anything at {SIDE} px")
    if image.size != size:
        image = image.resize(size, Image.Resampling.BILINEAR)
    left, top = (size[0] - SIDE) // 2, (size[1] - SIDE) // 2
    pixels = np.array(image.crop((left, top, left + SIDE, top + SIDE)))
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()
