"""Augmentation of a batch on its own device: bytes in, normalised floats out, every image by its own draws.

The order is fixed, and a step whose settings are off costs nothing:

1. on bytes: mirror, crop, affine resampling (bilinear, outside black), policy, and a plugin's own augmentation;
2. on pixels in [0, 1]: brightness, contrast, saturation, hue, Gaussian noise, salt and pepper;
3. normalised: cutout, whose zeros are the mean colour;
4. `Augment.mix`, on what step 3 gave: mixup or CutMix with the image before it in the batch.
"""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F
from torch import Tensor

from cifarbench.config.augment import AugmentConfig
from cifarbench.config.own import arguments, is_own
from cifarbench.data import image_ops, policies
from cifarbench.data.random import Draws
from cifarbench.data.registry import OWN
from cifarbench.data.split import Triple
from cifarbench.errors import ConfigError


class Augment:
    """Augment and normalise batches by one config.

    Args:
        config: the settings.
        mean, std: of the trainable images' channels, on the scale [0, 1].
        channels_last: give floats in channels_last memory, for convolutions that like it.
    """

    def __init__(self, config: AugmentConfig, mean: Triple, std: Triple, channels_last: bool = False) -> None:
        self.config = config
        self.mean = mean
        self.std = std
        self.channels_last = channels_last
        self.own = functools.partial(OWN.find(config.name), **arguments(config)) if is_own(config) else None

    def __call__(self, images: Tensor, draws: Draws) -> Tensor:
        """Steps 1 to 3: (B, 3, H, W) uint8 to normalised (B, 3, H, W) float32.

        Args:
            images: one image for each of `draws.images`, on their device.
            draws: the batch's random numbers.

        Raises:
            ValueError: if `images` is not uint8 (B, 3, H, W) with the B of `draws`.
        """
        if images.dtype != torch.uint8 or images.shape[:2] != (len(draws.images), 3) or images.ndim != 4:
            raise ValueError(
                f"images is {images.dtype} {tuple(images.shape)}; it must be uint8 ({len(draws.images)}, 3, H, W)."
            )
        return self.finish(self.move(images, draws), draws)

    def move(self, images: Tensor, draws: Draws) -> Tensor:
        """Step 1: bytes to bytes of the same shape, or `images` itself where it is off."""
        moved = self._policy(self._affine(self._crop(self._mirror(images, draws), draws), draws), draws)
        return self._changed(moved, draws) if self.own else moved

    def finish(self, moved: Tensor, draws: Draws) -> Tensor:
        """Steps 2 and 3, from the bytes of step 1: (B, 3, H, W) uint8 to normalised float32."""
        normal = normalise(self._noise(self._colour(moved, draws), draws), self.mean, self.std)
        normal = self._cutout(normal, draws)
        return normal.contiguous(memory_format=torch.channels_last) if self.channels_last else normal

    def moves(self, draws: Draws, side: int) -> Tensor:
        """Mirroring, cropping and cutout of images of `side` px, where the config `only_moves`: (B, 6) int32.

        Of each image: whether it is mirrored, and upside down (0 or 1); then, in that image, the row and column at
        which the crop begins; then, in the crop, those at which the hole begins. Both may begin outside.
        """
        config, none = self.config, draws.images.new_zeros(len(draws.images), 2)
        mirrored = self._mirrored(draws) if config.flip else none[:, 0]
        upturned = draws.coin("vertical_flip", config.vertical_flip) if config.vertical_flip else none[:, 0]
        crop = self._corner(draws) - config.crop_padding if config.crop_padding else none
        hole = _centres("cutout", side, side, draws) - config.cutout // 2 if config.cutout else none
        return torch.cat((mirrored[:, None], upturned[:, None], crop, hole), dim=1).to(torch.int32)

    def scale_and_shift(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """What normalises a byte of each channel, byte · scale - shift: two of (1, 3, 1, 1) float32."""
        return _scale_and_shift(self.mean, self.std, 255.0, device)

    def view(self, images: Tensor, draws: Draws) -> Tensor:
        """All four steps, put back on the scale of bytes, for people: (B, 3, H, W) uint8 to the same."""
        shown, _ = self.mix(self(images, draws), torch.zeros_like(draws.images), draws)  # a picture shows no target
        mean, std = _channels(self.mean, shown.device), _channels(self.std, shown.device)
        return ((shown * std + mean) * 255).round_().clamp_(0, 255).to(torch.uint8).contiguous()

    def mix(self, images: Tensor, targets: Tensor, draws: Draws, num_classes: int = 10) -> tuple[Tensor, Tensor]:
        """Mix each image with the one before it in the batch (the first with the last), by mixup or CutMix.

        With both on, each image takes one of the two with equal chance.

        Args:
            images: (B, 3, H, W) float32, from `__call__`.
            targets: (B,) int64.
            draws: the batch's random numbers.
            num_classes: the width of the soft targets.

        Returns:
            Images like `images`, and targets (B, num_classes) float32 whose rows sum to 1; both arguments unchanged
            if neither is on.
        """
        if not self.config.mixes:
            return images, targets
        share = self._share(images, draws)  # of the image itself in every pixel, 1 where it is alone
        mixed = torch.lerp(images.roll(1, 0), images, share)
        weight = share.mean(dim=(1, 2, 3))[:, None]
        one_hot = F.one_hot(targets, num_classes).to(weight.dtype)
        return mixed, torch.lerp(one_hot.roll(1, 0), one_hot, weight)

    def _share(self, images: Tensor, draws: Draws) -> Tensor:
        """Each pixel's weight of its own image: (B, 1, H, W) float32."""
        config = self.config
        if not config.cutmix:
            return _mixup_share(images, draws, config.mixup)
        if not config.mixup:
            return _cutmix_share(images, draws, config.cutmix)
        blended, pasted = _mixup_share(images, draws, config.mixup), _cutmix_share(images, draws, config.cutmix)
        return torch.where(image_ops.per_image(draws.coin("mix.kind", 0.5)), blended, pasted)

    def _mirror(self, images: Tensor, draws: Draws) -> Tensor:
        if self.config.flip:
            images = image_ops.mirror(images, self._mirrored(draws), -1)
        if self.config.vertical_flip:
            images = image_ops.mirror(images, draws.coin("vertical_flip", self.config.vertical_flip), -2)
        return images

    def _mirrored(self, draws: Draws) -> Tensor:
        """Which images are mirrored, (B,) bool; alternating flip (Jordan 2024) shows each side every other epoch."""
        if not self.config.flip_alternates:
            return draws.coin("flip", self.config.flip)
        return draws.of_epoch(0).coin("flip", self.config.flip) ^ bool(draws.epoch % 2)

    def _crop(self, images: Tensor, draws: Draws) -> Tensor:
        padding = self.config.crop_padding
        if not padding:
            return images
        top, left = self._corner(draws).unbind(1)
        return image_ops.crop(images, top, left, padding, self.config.crop_fill)

    def _corner(self, draws: Draws) -> Tensor:
        """Row and column of each crop's first pixel in the image with its border, (B, 2) int64."""
        return draws.integers("crop", 2 * self.config.crop_padding + 1, 2)

    def _affine(self, images: Tensor, draws: Draws) -> Tensor:
        config = self.config
        if not config.warps:
            return images
        low, high = config.scale
        angle, zoom, right, down, slant = draws.uniform("affine", 5).unbind(1)
        height, width = images.shape[2:]
        shift = torch.stack((width * (2 * right - 1), height * (2 * down - 1)), dim=1)
        sources = image_ops.affine(
            angle=config.rotation * (2 * angle - 1),
            scale=low + (high - low) * zoom,
            shift=config.translation * shift,
            shear=config.shear * (2 * slant - 1),
        )
        return image_ops.warp(images, sources, "bilinear")

    def _policy(self, images: Tensor, draws: Draws) -> Tensor:
        config = self.config
        if config.policy == "randaugment":
            return policies.randaugment(images, draws, config.policy_ops, config.policy_magnitude)
        if config.policy == "trivialaugment":
            return policies.trivialaugment(images, draws)
        return images

    def _changed(self, images: Tensor, draws: Draws) -> Tensor:
        """What a plugin makes of bytes; ConfigError where it does not give as many of the same kind."""
        assert self.own is not None
        changed, wanted = self.own(images.clone(), draws), _kind(images)  # it may work in place
        if _kind(changed) != wanted:
            raise ConfigError(f"augment={self.config.name} gave {_kind(changed)}; it must give {wanted}, as it got.")
        return changed

    def _colour(self, images: Tensor, draws: Draws) -> Tensor:
        """The ranges are those of torchvision's ColorJitter; its order is random, ours is not."""
        config = self.config
        for name, width, change in (
            ("brightness", config.brightness, image_ops.brightness),
            ("contrast", config.contrast, image_ops.contrast),
            ("saturation", config.saturation, image_ops.saturation),
        ):
            if width:
                low = max(0.0, 1.0 - width)
                images = change(as_pixels(images), low + (1.0 + width - low) * draws.uniform(name))
        if config.hue:
            images = image_ops.hue(as_pixels(images), config.hue * (2 * draws.uniform("hue") - 1))
        return images

    def _noise(self, images: Tensor, draws: Draws) -> Tensor:
        config = self.config
        if config.gaussian_noise:
            noise = draws.normal("gaussian_noise", *images.shape[1:])
            images = (as_pixels(images) + config.gaussian_noise * noise).clamp_(0, 1)
        if config.salt_pepper:
            uniform = draws.uniform("salt_pepper", 1, *images.shape[2:])
            images = image_ops.salt_pepper(as_pixels(images), uniform, config.salt_pepper)
        return images

    def _cutout(self, images: Tensor, draws: Draws) -> Tensor:
        """Cutout (DeVries & Taylor 2017): a square about any pixel, so that part of it may lie outside."""
        if not self.config.cutout:
            return images
        height, width = images.shape[2:]
        centre = _centres("cutout", height, width, draws)
        hole = image_ops.box(centre, torch.full_like(centre, self.config.cutout), height, width)
        return images.masked_fill_(hole, 0.0)


def _kind(images: object) -> str:
    return f"{images.dtype} {tuple(images.shape)}" if isinstance(images, Tensor) else type(images).__name__


def as_pixels(images: Tensor) -> Tensor:
    """Bytes as float32 in [0, 1]; floats unchanged."""
    return images if images.is_floating_point() else images.to(torch.float32).div_(255)


def normalise(images: Tensor, mean: Triple, std: Triple) -> Tensor:
    """Subtract the mean and divide by the std of each channel: evaluation's whole preprocessing.

    Args:
        images: (B, 3, H, W), uint8 or float32 in [0, 1].
        mean, std: of the channels, on the scale [0, 1].

    Returns:
        (B, 3, H, W) float32, never `images` itself.
    """
    scale, shift = _scale_and_shift(mean, std, 1.0 if images.is_floating_point() else 255.0, images.device)
    return (images * scale).sub_(shift)


def _scale_and_shift(mean: Triple, std: Triple, peak: float, device: torch.device) -> tuple[Tensor, Tensor]:
    scale = _channels(tuple(1.0 / (peak * value) for value in std), device)
    return scale, _channels(tuple(m / s for m, s in zip(mean, std, strict=True)), device)


@functools.cache
def _channels(values: tuple[float, ...], device: torch.device) -> Tensor:
    """One float32 per channel to meet images, (1, 3, 1, 1), kept: each copy to a GPU would wait for it."""
    return torch.tensor(values, device=device).view(1, -1, 1, 1)


def _centres(stream: str, height: int, width: int, draws: Draws) -> Tensor:
    """A row and a column of each image: (B, 2) int64."""
    return torch.stack((draws.integers(f"{stream}.row", height), draws.integers(f"{stream}.column", width)), dim=1)


def _mixup_share(images: Tensor, draws: Draws, alpha: float) -> Tensor:
    """Mixup (Zhang et al. 2018): one Beta(alpha, alpha) weight for all pixels, (B, 1, H, W) float32."""
    return image_ops.per_image(draws.beta("mixup", alpha)).expand(-1, 1, *images.shape[2:])


def _cutmix_share(images: Tensor, draws: Draws, alpha: float) -> Tensor:
    """CutMix (Yun et al. 2019): 0 in a box of a Beta(alpha, alpha) part of the area, 1 elsewhere, (B, 1, H, W)."""
    side = (1.0 - draws.beta("cutmix", alpha)).clamp(0, 1).sqrt()
    height, width = images.shape[2:]
    size = torch.stack((side * height, side * width), dim=1).to(torch.int64)
    return 1.0 - image_ops.box(_centres("cutmix", height, width, draws), size, height, width).to(images.dtype)
