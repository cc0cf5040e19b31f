"""Counter-based randomness: each number is a hash of (seed, epoch, image, stream, position) and of nothing else.

So an image is augmented the same way in any batch, order, process or device, after a resume as before it, and no
global generator is read or moved. The hash is SplitMix64's (Steele, Lea & Flood 2014, "Fast splittable pseudorandom
number generators", figure 17) on int64 tensors, whose products wrap around as the unsigned ones do.
"""

from __future__ import annotations

import functools
import hashlib
import math

import torch
from torch import Tensor

_MASK = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15
_ROUNDS = ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB))
_LAST_SHIFT = 31


class Draws:
    """Random numbers for a batch of images, one row per image.

    Uniform and integer draws are the same bits on every device; `normal` and `beta` go through logarithms and
    cosines, which may differ between devices in the last bit.

    Args:
        seed: the run's seed, 0 to 2**63 - 1.
        epoch: which pass over the data, at least 0.
        images: (B,) int64, each image's number in the dataset; draws are made on its device.

    Raises:
        ValueError: if the seed or the epoch is out of range, or `images` is not (B,) int64.
    """

    def __init__(self, seed: int, epoch: int, images: Tensor) -> None:
        if not 0 <= seed < 1 << 63:
            raise ValueError(f"seed is {seed}; it must be from 0 to 2**63 - 1.")
        if epoch < 0:
            raise ValueError(f"epoch is {epoch}; it must be at least 0.")
        if images.dtype != torch.int64 or images.ndim != 1:
            raise ValueError(f"images is {images.dtype} {tuple(images.shape)}; it must be int64 (B,).")
        self.seed, self.epoch, self.images = seed, epoch, images

    @functools.cached_property
    def _state(self) -> Tensor:
        """Where each image's streams start, (B,) int64: computed when the first number is asked for."""
        key = _mix(_mix(self.seed + _GOLDEN) + self.epoch)
        return _mix_(self.images * _signed(_GOLDEN) + _signed(key))

    def of_epoch(self, epoch: int) -> Draws:
        """The draws of the same images in another epoch."""
        return Draws(self.seed, epoch, self.images)

    def uniform(self, stream: str, *shape: int) -> Tensor:
        """Multiples of 2**-24 in [0, 1): (B, *shape) float32."""
        return _unit(self._bits(stream, *shape), 40)

    def integers(self, stream: str, high: int, *shape: int) -> Tensor:
        """Whole numbers from 0 to `high` - 1, for `high` up to 2**31: (B, *shape) int64.

        The upper 32 bits are scaled to the range (Lemire 2019), so a value's probability is off by at most 2**-32.
        """
        return _shifted(self._bits(stream, *shape), 32).mul_(high).bitwise_right_shift_(32)

    def normal(self, stream: str, *shape: int) -> Tensor:
        """Standard normal numbers: (B, *shape) float32, by Box & Muller (1958), two from each hash."""
        count = math.prod(shape)
        bits = self._bits(stream, -(-count // 2))
        radius = _unit(bits, 40).neg_().log1p_().mul_(-2.0).sqrt_()  # log(1 - u) is finite: u stays below 1
        angle = bits.bitwise_and_(0xFFFFFF).to(torch.float32).mul_(2.0 * math.pi / (1 << 24))
        pairs = torch.cat((angle.cos().mul_(radius), angle.sin_().mul_(radius)), dim=1)
        return pairs[:, :count].reshape(-1, *shape)

    def beta(self, stream: str, alpha: float) -> Tensor:
        """Numbers from Beta(alpha, alpha), alpha above 0: (B,) float32.

        Bailey (1994) makes a Student t of 2·alpha degrees of freedom from two uniforms; t / (2·√(2·alpha + t²)) + ½
        is then Beta(alpha, alpha) (Devroye 1996, "Random variate generation in one line of code").
        """
        uniform = self.uniform(stream, 2)
        square = torch.expm1(torch.log1p(-uniform[:, 0]) / -alpha)  # t² / (2·alpha) before the cosine
        cosine = torch.cos(2.0 * math.pi * uniform[:, 1])
        away = torch.rsqrt(1.0 + 1.0 / (square * cosine.square()))
        return 0.5 + 0.5 * away * cosine.sign()

    def coin(self, stream: str, p: float) -> Tensor:
        """True with probability `p`: (B,) bool."""
        return self.uniform(stream) < p

    def _bits(self, stream: str, *shape: int) -> Tensor:
        """64 hashed bits for each place: (B, *shape) int64, the caller's to change."""
        start = self._state + _stream_key(stream)
        count = math.prod(shape)
        if count == 1:
            return _mix_(start).view(-1, *shape)
        steps = torch.arange(count, device=start.device) * _signed(_GOLDEN)
        return _mix_(start[:, None] + steps).view(-1, *shape)


@functools.lru_cache
def _stream_key(stream: str) -> int:
    """A signed 64-bit number for a stream's name, the same in every process."""
    digest = hashlib.blake2b(stream.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)


def _signed(word: int) -> int:
    """The int64 with the same 64 bits."""
    word &= _MASK
    return word - (1 << 64) if word >> 63 else word


def _mix(word: int) -> int:
    """SplitMix64's finaliser on a Python integer."""
    word &= _MASK
    for shift, factor in _ROUNDS:
        word = (word ^ (word >> shift)) * factor & _MASK
    return word ^ (word >> _LAST_SHIFT)


def _mix_(words: Tensor) -> Tensor:
    """SplitMix64's finaliser in place on int64."""
    for shift, factor in _ROUNDS:
        words.bitwise_xor_(_shifted(words, shift)).mul_(_signed(factor))
    return words.bitwise_xor_(_shifted(words, _LAST_SHIFT))


def _shifted(words: Tensor, by: int) -> Tensor:
    """Logical shift to the right: int64 shifts carry the sign, which the mask takes off."""
    return (words >> by).bitwise_and_((1 << (64 - by)) - 1)


def _unit(bits: Tensor, drop: int) -> Tensor:
    """The 24 bits above the lowest `drop`, as float32 in [0, 1)."""
    return _shifted(bits, drop).to(torch.float32).mul_(2.0**-24)
