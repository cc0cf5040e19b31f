"""RandAugment (Cubuk et al. 2020) and TrivialAugment Wide (Müller & Hutter 2021), batched on bytes.

Both choose among the same fourteen operations and 31 strengths. The spaces of strengths are torchvision's, as are
the results (resampling is nearest, outside is black), but every image draws its own operation, strength and sign.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from cifarbench.data.image_ops import affine, blend, grey, per_image, warp
from cifarbench.data.random import Draws

LEVELS = 31
PEAK = 255.0


def randaugment(images: Tensor, draws: Draws, ops: int, magnitude: int) -> Tensor:
    """Apply `ops` random operations in turn, all of strength `magnitude` (0 to 30): (B, 3, H, W) uint8 to the same."""
    levels = torch.full_like(draws.images, magnitude)
    for step in range(ops):
        images = _step(images, draws, f"policy.{step}", RANDAUGMENT, levels)
    return images


def trivialaugment(images: Tensor, draws: Draws) -> Tensor:
    """Apply one random operation of a random strength: (B, 3, H, W) uint8 to the same."""
    return _step(images, draws, "policy.0", TRIVIALAUGMENT, draws.integers("policy.0.level", LEVELS))


def _step(images: Tensor, draws: Draws, stream: str, space: Space, levels: Tensor) -> Tensor:
    """Draw each image's operation and sign, then run every operation once, on the images that drew it."""
    chosen = draws.integers(f"{stream}.operation", len(space))
    signs = torch.where(draws.coin(f"{stream}.sign", 0.5), -1.0, 1.0)
    table, signed = _tables(space, images.device)
    strengths = table[chosen, levels] * torch.where(signed[chosen], signs, 1.0)
    order = chosen.argsort(stable=True)
    kinds = torch.arange(len(space), device=chosen.device)
    counts = (chosen[:, None] == kinds).sum(0).tolist()  # the step's one wait for a GPU
    parts = zip(space, images[order].split(counts), strengths[order].split(counts), strict=True)
    done = [OPERATIONS[entry.name](part, strength) if len(part) else part for entry, part, strength in parts]
    return torch.cat(done)[order.argsort()]


def shear_x(images: Tensor, strength: Tensor) -> Tensor:
    """Move each row right by strength · its distance from the top edge."""
    zero, one = torch.zeros_like(strength), torch.ones_like(strength)
    return warp(images, _matrix(one, strength, strength * (images.shape[-2] / 2), zero, one, zero), "nearest")


def shear_y(images: Tensor, strength: Tensor) -> Tensor:
    """Move each column down by strength · its distance from the left edge."""
    zero, one = torch.zeros_like(strength), torch.ones_like(strength)
    return warp(images, _matrix(one, zero, zero, strength, one, strength * (images.shape[-1] / 2)), "nearest")


def translate_x(images: Tensor, strength: Tensor) -> Tensor:
    """Move right by the whole part of strength px."""
    zero, one = torch.zeros_like(strength), torch.ones_like(strength)
    return warp(images, _matrix(one, zero, -strength.trunc(), zero, one, zero), "nearest")


def translate_y(images: Tensor, strength: Tensor) -> Tensor:
    """Move down by the whole part of strength px."""
    zero, one = torch.zeros_like(strength), torch.ones_like(strength)
    return warp(images, _matrix(one, zero, zero, zero, one, -strength.trunc()), "nearest")


def rotate(images: Tensor, strength: Tensor) -> Tensor:
    """Turn anticlockwise about the centre by strength degrees."""
    zero = torch.zeros_like(strength)
    return warp(images, affine(-strength, zero + 1, torch.stack((zero, zero), 1), zero), "nearest")


def brightness(images: Tensor, strength: Tensor) -> Tensor:
    """Multiply by 1 + strength."""
    return _bytes((images.float() * per_image(1 + strength)).clamp_(0, PEAK))


def colour(images: Tensor, strength: Tensor) -> Tensor:
    """Spread about each pixel's luma by 1 + strength."""
    pixels = images.float()
    return _bytes(blend(pixels, grey(pixels).floor_(), 1 + strength, PEAK))


def contrast(images: Tensor, strength: Tensor) -> Tensor:
    """Spread about the image's mean luma by 1 + strength."""
    pixels = images.float()
    return _bytes(blend(pixels, grey(pixels).floor_().mean(dim=(1, 2, 3), keepdim=True), 1 + strength, PEAK))


def sharpness(images: Tensor, strength: Tensor) -> Tensor:
    """Spread about a 3×3 blur by 1 + strength; the outermost pixels stay."""
    pixels = images.float()
    inner = pixels[..., 1:-1, 1:-1]
    blur = ((F.avg_pool2d(pixels, 3, stride=1) * 9 + inner * 4) / 13).round_()  # weights 1, and 5 in the middle
    result = pixels.clone()
    result[..., 1:-1, 1:-1] = inner - (blur - inner) * per_image(strength)
    return _bytes(result.clamp_(0, PEAK))


def posterize(images: Tensor, strength: Tensor) -> Tensor:
    """Keep the highest `strength` of 8 bits."""
    return images & per_image(256 - torch.exp2(8 - strength)).to(torch.uint8)


def solarize(images: Tensor, strength: Tensor) -> Tensor:
    """Invert the values of at least `strength`."""
    return torch.where(images >= per_image(strength), ~images, images)


def autocontrast(images: Tensor, strength: Tensor) -> Tensor:
    """Stretch each channel's range to 0 to 255; a flat channel stays. The strength is not used."""
    pixels = images.float()
    low, high = pixels.amin((2, 3), keepdim=True), pixels.amax((2, 3), keepdim=True)
    stretched = _bytes(((pixels - low) * (PEAK / (high - low).clamp(min=1))).clamp_(0, PEAK))
    return torch.where(high > low, stretched, images)


def equalize(images: Tensor, strength: Tensor) -> Tensor:
    """Spread each channel's values evenly, by PIL's integer rule. The strength is not used.

    A value becomes (s // 2 + number of lower pixels) // s, where s is a 255th of the pixels below the channel's
    highest value; a channel with s = 0 stays.
    """
    values = images.flatten(2)
    ordered = values.sort(dim=2).values
    every = torch.arange(256, dtype=torch.uint8, device=images.device).expand(*values.shape[:2], 256)
    lower = torch.searchsorted(ordered, every.contiguous())  # pixels below each value; no atomic sum, no wait
    share = lower.gather(2, ordered[..., -1:].long()) // 255
    table = ((lower + share // 2) // share.clamp(min=1)).clamp_(max=255)
    spread = table.gather(2, values.long()).to(torch.uint8).view_as(images)
    return torch.where(share[..., None] > 0, spread, images)


def _identity(images: Tensor, strength: Tensor) -> Tensor:
    return images


def _bytes(images: Tensor) -> Tensor:
    return images.to(torch.uint8)


def _matrix(*entries: Tensor) -> Tensor:
    """Six (B,) entries, row by row, as (B, 2, 3)."""
    return torch.stack(entries, dim=1).view(-1, 2, 3)


OPERATIONS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "identity": _identity,
    "shear_x": shear_x,
    "shear_y": shear_y,
    "translate_x": translate_x,
    "translate_y": translate_y,
    "rotate": rotate,
    "brightness": brightness,
    "colour": colour,
    "contrast": contrast,
    "sharpness": sharpness,
    "posterize": posterize,
    "solarize": solarize,
    "autocontrast": autocontrast,
    "equalize": equalize,
}


@dataclasses.dataclass(frozen=True)
class Entry:
    """An operation with its strengths, evenly from `start` to `stop`, rounded if whole, of either sign if signed."""

    name: str
    start: float = 0.0
    stop: float = 0.0
    signed: bool = False
    whole: bool = False

    def strengths(self) -> list[float]:
        """The 31 strengths, weakest first."""
        steps = torch.linspace(self.start, self.stop, LEVELS).tolist()
        return [float(round(value)) for value in steps] if self.whole else steps


Space = tuple[Entry, ...]


def _space(shear: float, translate: float, angle: float, enhance: float, bits: int) -> Space:
    """The fourteen operations up to the given strengths."""
    signed = {
        **dict.fromkeys(("shear_x", "shear_y"), shear),
        **dict.fromkeys(("translate_x", "translate_y"), translate),
        "rotate": angle,
        **dict.fromkeys(("brightness", "colour", "contrast", "sharpness"), enhance),
    }
    return (
        Entry("identity"),
        *(Entry(name, stop=stop, signed=True) for name, stop in signed.items()),
        Entry("posterize", 8, bits, whole=True),
        Entry("solarize", 255, 0),
        Entry("autocontrast"),
        Entry("equalize"),
    )


RANDAUGMENT = _space(shear=0.3, translate=32 * 150 / 331, angle=30, enhance=0.9, bits=4)
TRIVIALAUGMENT = _space(shear=0.99, translate=32, angle=135, enhance=0.99, bits=2)


@functools.cache
def _tables(space: Space, device: torch.device) -> tuple[Tensor, Tensor]:
    """Strengths (14, 31) float32 and whether each operation is signed (14,) bool."""
    strengths = torch.tensor([entry.strengths() for entry in space], device=device)
    return strengths, torch.tensor([entry.signed for entry in space], device=device)
