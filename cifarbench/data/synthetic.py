"""A ten-class set of 32×32 colour images drawn by arithmetic: a stand-in for demos and tests, needing no network.

Each image shows one shape of random place, size, angle and colour on a textured gradient, among loose bars, partly
covered by another bar, in noise. Image i depends on i alone, so a smaller set is the beginning of a larger one.

Only additions, products, quotients, square roots and comparisons are used: IEEE 754 rounds these one way, so every
machine draws the same bytes (sines and exponentials differ in the last bit between CPUs).
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np

Array = np.ndarray

CLASSES = ("disc", "ring", "crescent", "triangle", "square", "cross", "star", "heart", "stripes", "checker")

SIDE = 32
BLOCK = 500  # images drawn together: the arrays of one block stay in cache
SEED = 0xC1FA  # fixed for good: another seed would be another dataset
RADIUS = (7.5, 12.5)  # of the shape, px
SHIFT = 4.0  # of the shape's centre from the image's, px
CONTRAST = (0.14, 0.86)  # distance of shape from background in every channel, on the circle of length 1
NOISE = (0.02, 0.32)  # half-width of the triangular pixel noise
BARS = 3  # loose bars behind the shape

_Y, _X = np.mgrid[0:SIDE, 0:SIDE].astype(np.float32) - np.float32((SIDE - 1) / 2)
_COS_36, _SIN_36, _COS_72, _SIN_72 = 0.80901699, 0.58778525, 0.30901699, 0.95105652


def draw(size: int) -> tuple[Array, Array]:
    """Draw the first `size` images and their classes, balanced to within one image at every length.

    Args:
        size: how many, at least 1.

    Returns:
        images (size, 3, 32, 32) uint8, and targets (size,) int64, indices into `CLASSES`.

    Raises:
        ValueError: if `size` is below 1.
    """
    if size < 1:
        raise ValueError(f"size is {size}; a dataset needs at least 1 image.")
    blocks = range(-(-size // BLOCK))
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        images, targets = zip(*pool.map(_block, blocks), strict=True)
    return np.concatenate(images)[:size], np.concatenate(targets)[:size]


def _block(number: int) -> tuple[Array, Array]:
    """Background, bars, shape, covering bar, noise: images (BLOCK, 3, 32, 32) uint8 and targets (BLOCK,) int64."""
    source = _Source(number)
    targets = _targets(source)
    canvas, base = _background(source)
    for _ in range(BARS):
        _paint(canvas, _bar(source, thickness=(0.6, 1.6)), source.uniform(0, 1, 3))
    _paint(canvas, _shapes(source, targets), _contrasting(source, base))
    _paint(canvas, _bar(source, thickness=(0.5, 1.4)), source.uniform(0, 1, 3))
    canvas += source.uniform(*NOISE)[:, None] * (source.pixels() - source.pixels())
    return (np.clip(canvas, 0, 1) * np.float32(255) + np.float32(0.5)).astype(np.uint8), targets


class _Source:
    """Uniform float32 numbers for one block, from Philox (Salmon et al. 2011) keyed by the block's number."""

    def __init__(self, block: int) -> None:
        self._generator = np.random.Generator(np.random.Philox(key=[SEED, block]))

    def uniform(self, low: float, high: float, width: int = 1) -> Array:
        """Numbers in [low, high), (BLOCK, width, 1) so that they broadcast over rows and columns."""
        values = self._generator.random((BLOCK, width, 1), dtype=np.float32)
        return np.float32(low) + np.float32(high - low) * values

    def pixels(self) -> Array:
        """Numbers in [0, 1), one for each value of each image: (BLOCK, 3, 32, 32)."""
        return self._generator.random((BLOCK, 3, SIDE, SIDE), dtype=np.float32)

    def turn(self) -> tuple[Array, Array]:
        """Cosine and sine of a random angle, each (BLOCK, 1, 1), by the rational points of the circle."""
        t = self.uniform(-1, 1)
        sign = np.where(self.uniform(-1, 1) < 0, np.float32(-1), np.float32(1))
        return sign * (1 - t * t) / (1 + t * t), sign * 2 * t / (1 + t * t)


def _targets(source: _Source) -> Array:
    """Every ten images hold the ten classes in an order of their own: (BLOCK,) int64."""
    keys = source.uniform(0, 1).reshape(-1, len(CLASSES))
    return np.argsort(keys, axis=1, kind="stable").reshape(-1).astype(np.int64)


def _frame(source: _Source, reach: float) -> tuple[Array, Array]:
    """Coordinates of every pixel in a randomly placed and turned frame, in px: two arrays (BLOCK, 32, 32)."""
    cos, sin = source.turn()
    x = _X - source.uniform(-reach, reach)
    y = _Y - source.uniform(-reach, reach)
    return cos * x + sin * y, cos * y - sin * x


def _background(source: _Source) -> tuple[Array, Array]:
    """A gradient between two colours with two waves over it: canvas (BLOCK, 3, 32, 32), mean colour (BLOCK, 3, 1)."""
    base = source.uniform(0, 1, 3)
    slope = source.uniform(-0.35, 0.35, 3)
    u, v = _frame(source, reach=4)
    ramp = np.clip(u / np.float32(SIDE / 2), -1, 1)
    wave = _wave(v / source.uniform(4, 16)) + _wave(u / source.uniform(3, 9)) * _wave(v / source.uniform(3, 9))
    texture = source.uniform(-0.15, 0.15, 3)
    return (base + slope * _flat(ramp) + texture * _flat(wave)).reshape(-1, 3, SIDE, SIDE), base


def _contrasting(source: _Source, base: Array) -> Array:
    """A colour that differs from `base` (BLOCK, 3, 1) in every channel, going round from white to black."""
    moved = base + source.uniform(*CONTRAST)
    return (moved + source.uniform(-0.1, 0.1, 3)) % np.float32(1)


def _paint(canvas: Array, distance: Array, colour: Array) -> None:
    """Lay a colour (BLOCK, 3, 1) where the signed distance in px (BLOCK, 32, 32) is below 0, edges smoothed."""
    cover = np.clip(np.float32(0.5) - distance, 0, 1)[:, None]
    canvas += cover * (colour[..., None] - canvas)


def _bar(source: _Source, thickness: tuple[float, float]) -> Array:
    """Signed distance in px (BLOCK, 32, 32) to a bar 4 to 18 px long, anywhere in the image."""
    u, v = _frame(source, reach=15)
    return np.maximum(np.abs(u) - source.uniform(2, 9), np.abs(v) - source.uniform(*thickness))


def _shapes(source: _Source, targets: Array) -> Array:
    """Signed distance in px (BLOCK, 32, 32) to the shape of each image's class, slightly stretched."""
    u, v = _frame(source, reach=SHIFT)
    radius = source.uniform(*RADIUS)
    u, v = u / radius, v / (radius * source.uniform(0.8, 1.0))
    distance = np.empty_like(u)
    for label, shape in enumerate(SHAPES):
        chosen = targets == label
        distance[chosen] = shape(u[chosen], v[chosen])
    return distance * radius


def _flat(image: Array) -> Array:
    return image.reshape(len(image), 1, -1)


def _wave(x: Array) -> Array:
    """A triangle wave of period 1 between -1 and 1."""
    return np.abs((x - np.floor(x)) * np.float32(4) - np.float32(2)) - np.float32(1)


def _length(u: Array, v: Array) -> Array:
    return np.sqrt(u * u + v * v)


def _disc(u: Array, v: Array) -> Array:
    return _length(u, v) - np.float32(0.9)


def _ring(u: Array, v: Array) -> Array:
    return np.abs(_length(u, v) - np.float32(0.75)) - np.float32(0.22)


def _crescent(u: Array, v: Array) -> Array:
    return np.maximum(_length(u, v) - np.float32(1), np.float32(0.8) - _length(u - np.float32(0.5), v))


def _triangle(u: Array, v: Array) -> Array:
    return np.maximum(np.abs(u) * np.float32(0.8660254) + v * np.float32(0.5), -v) - np.float32(0.52)


def _square(u: Array, v: Array) -> Array:
    return np.maximum(np.abs(u), np.abs(v)) - np.float32(0.8)


def _cross(u: Array, v: Array) -> Array:
    long, thin = np.float32(1), np.float32(0.3)
    u, v = np.abs(u), np.abs(v)
    return np.minimum(np.maximum(u - long, v - thin), np.maximum(v - long, u - thin))


def _star(u: Array, v: Array) -> Array:
    """A pentagram: the points that at most one of the five sides of the inner pentagon shuts out."""
    sides = ((0, -1), (_SIN_72, -_COS_72), (_SIN_36, _COS_36), (-_SIN_36, _COS_36), (-_SIN_72, -_COS_72))
    first = second = np.full_like(u, -np.inf)
    for x, y in sides:
        side = np.float32(x) * u + np.float32(y) * v
        second = np.maximum(second, np.minimum(first, side))
        first = np.maximum(first, side)
    return second - np.float32(0.38)


def _heart(u: Array, v: Array) -> Array:
    """A square standing on a corner, with a disc on each of its upper sides."""
    half = np.float32(0.58)
    lift = half * np.float32(0.70710678)
    v = v + np.float32(0.1)
    diamond = (np.abs(u) + np.abs(v)) * np.float32(0.70710678) - half
    return np.minimum(diamond, _length(np.abs(u) - lift, v + lift) - half)


def _stripes(u: Array, v: Array) -> Array:
    return np.maximum(_length(u, v) - np.float32(1), _wave(u / np.float32(0.62)) * np.float32(0.155))


def _checker(u: Array, v: Array) -> Array:
    period = np.float32(0.95)
    squares = _wave(u / period) * _wave(v / period) * np.float32(0.24)
    return np.maximum(_length(u, v) - np.float32(1), squares)


SHAPES: tuple[Callable[[Array, Array], Array], ...] = (
    _disc,
    _ring,
    _crescent,
    _triangle,
    _square,
    _cross,
    _star,
    _heart,
    _stripes,
    _checker,
)
