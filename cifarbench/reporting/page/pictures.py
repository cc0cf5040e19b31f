"""Small images as PNG data addresses, so that the page needs no other file."""

from __future__ import annotations

import base64
import io

import numpy as np
from matplotlib import colormaps
from PIL import Image
from torch import Tensor

_HEAT_SIDE = 96  # px of a Grad-CAM picture


def image_address(image: Tensor) -> str:
    """An image (3, H, W) uint8 as a data address."""
    return address(Image.fromarray(image.permute(1, 2, 0).contiguous().numpy()))


def kernel_address(kernel: Tensor) -> str:
    """A kernel (3, h, w) float32 as a data address; grey is zero, and its largest weight black or white."""
    peak = kernel.abs().max().clamp_min(1e-12)
    return image_address((127.5 + 127.5 * kernel / peak).round().clamp(0, 255).byte())


def map_address(values: Tensor) -> str:
    """An activation map (h, w) float32 as a data address: viridis from its least to its largest value."""
    low, high = values.min(), values.max()
    scaled = (values - low) / (high - low).clamp_min(1e-12)
    picture = Image.fromarray((scaled * 255).round().byte().numpy())
    picture.putpalette((colormaps["viridis"](np.arange(256))[:, :3] * 255).round().astype(np.uint8).tobytes())
    return address(picture)


def heat_address(image: Tensor, heat: Tensor) -> str:
    """An image (3, 32, 32) uint8 under a heat map (h, w) in 0..1, warm where it is high, as a data address."""
    side = (_HEAT_SIDE, _HEAT_SIDE)
    picture = Image.fromarray(image.permute(1, 2, 0).contiguous().numpy()).resize(side, Image.Resampling.NEAREST)
    scaled = Image.fromarray((heat * 255).round().byte().numpy()).resize(side, Image.Resampling.BICUBIC)
    share = np.asarray(scaled, np.float32) / 255
    colour = colormaps["inferno"](share)[..., :3] * 255
    weight = (0.25 + 0.45 * share)[..., None]
    blended = (1 - weight) * np.asarray(picture, np.float32) + weight * colour
    # 64 colours keep the file a third as large, and nobody sees it.
    return address(Image.fromarray(blended.round().astype(np.uint8)).quantize(64))


def address(picture: Image.Image) -> str:
    """The picture as a `data:` address of a PNG file."""
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
