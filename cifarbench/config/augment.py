"""Augmentation settings: the keys of `conf/augment/`, their units, ranges and cross-checks."""

from __future__ import annotations

import dataclasses

from cifarbench.config.keys import key
from cifarbench.config.own import is_own
from cifarbench.errors import ConfigError


@dataclasses.dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """What happens to trainable images on their way to the model, each image by draws of its own.

    A key that says how a step is done, such as `crop_fill` or `flip_alternates`, does nothing where the step is off:
    so `crop_padding` or `flip` may be 0 beside the options that set both, as in a sweep.

    Raises:
        ConfigError: if the scale range is reversed, or RandAugment has no operations.
    """

    name: str = key("A label for tables and figures; it changes nothing else.", neutral=True)
    flip: float = key("Probability of mirroring an image left to right.", ge=0, le=1)
    flip_alternates: bool = key("Mirror by lot in the first epoch, then turn every image round from epoch to epoch.")
    vertical_flip: float = key("Probability of mirroring an image top to bottom.", ge=0, le=1)
    crop_padding: int = key(
        "Border put around an image before a crop of the first size at a random place; 0 is off.",
        unit="px",
        ge=0,
        le=16,
    )
    crop_fill: str = key("What the crop's border shows: black, or the image reflected.", choices=("black", "reflect"))
    rotation: float = key("Largest turn to either side; 0 is off.", unit="degrees", ge=0, le=180)
    scale: tuple[float, float] = key("Smallest and largest zoom factor; [1,1] is off.", ge=0.1, le=10)
    translation: float = key("Largest move along each axis, as a fraction of the side; 0 is off.", ge=0, le=1)
    shear: float = key("Largest shear along the x axis, to either side; 0 is off.", unit="degrees", ge=0, lt=90)
    brightness: float = key("Brightness is multiplied by a factor of 1 ± this, at least 0; 0 is off.", ge=0, le=5)
    contrast: float = key("Contrast is multiplied by a factor of 1 ± this, at least 0; 0 is off.", ge=0, le=5)
    saturation: float = key("Saturation is multiplied by a factor of 1 ± this, at least 0; 0 is off.", ge=0, le=5)
    hue: float = key("Largest turn of the hue to either side, as a fraction of the circle; 0 is off.", ge=0, le=0.5)
    gaussian_noise: float = key("Standard deviation of noise on pixels that run from 0 to 1; 0 is off.", ge=0, le=1)
    salt_pepper: float = key("Fraction of pixels set to black or white, evenly; 0 is off.", ge=0, le=1)
    policy: str = key(
        "A published policy of random operations: none, RandAugment or TrivialAugment (Wide).",
        choices=("none", "randaugment", "trivialaugment"),
    )
    policy_ops: int = key("Operations per image by RandAugment; TrivialAugment always takes 1.", ge=0, le=14)
    policy_magnitude: int = key("Strength of RandAugment's operations, from 0 to 30.", ge=0, le=30)
    cutout: int = key("Side of the square that is set to the mean colour; 0 is off.", unit="px", ge=0, le=64)
    mixup: float = key("Alpha of mixup's Beta(alpha, alpha) weights; 0 is off.", ge=0, le=10)
    cutmix: float = key("Alpha of CutMix's Beta(alpha, alpha) areas; 0 is off.", ge=0, le=10)

    def __post_init__(self) -> None:
        low, high = self.scale
        if low > high:
            raise ConfigError(f"`augment.scale` is [{low:g},{high:g}]; its first number must not exceed its second.")
        if self.policy == "randaugment" and self.policy_ops == 0:
            raise ConfigError(
                "`augment.policy_ops` is 0 while `augment.policy` is randaugment; it must be at least 1, or set "
                "`augment.policy=none`."
            )

    @property
    def warps(self) -> bool:
        """Whether any part of the affine resampling is on."""
        return self.scale != (1.0, 1.0) or max(self.rotation, self.translation, self.shear) > 0

    @property
    def mixes(self) -> bool:
        """Whether images are mixed in pairs, which makes the targets soft."""
        return max(self.mixup, self.cutmix) > 0

    @property
    def only_moves(self) -> bool:
        """Whether mirroring, cropping and cutout are all that is on."""
        colours = self.brightness, self.contrast, self.saturation, self.hue, self.gaussian_noise, self.salt_pepper
        return not (self.warps or self.mixes or self.policy != "none" or any(colours) or is_own(self))


AUGMENTS: dict[str, type] = {}  # of plugins, each with keys of its own besides; all others are an AugmentConfig
