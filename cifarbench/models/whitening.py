"""A first layer that decorrelates pixels, computed from training images instead of trained.

Page, "How to train your ResNet" (2019), part 8, and Jordan, "94% on CIFAR-10 in 3.29 Seconds on a Single GPU" (2024),
section 3.2: the eigenvectors of the covariance of small patches, each scaled to unit variance, and their negatives.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cifarbench.models.layers import activation, pieces

PATCH = 2  # px, both sides
CHANNELS = 2 * 3 * PATCH * PATCH
SAMPLE = 5_000  # images whose patches are measured
_EPS = 5e-4
_PIECE = 500  # images whose patches are in memory at once: 46 MB, and 461 MB for all of them


class Whitening(nn.Module):
    """2x2 convolution without padding whose weights are frozen and whose bias is trained, activation.

    `(N, 3, H, W)` to `(N, 24, H-1, W-1)`, with maxout 12 channels: a filter and its negative give the absolute value.
    Until `fit` the weights are those of white noise: the patch's own pixels.
    """

    def __init__(self, act: str) -> None:
        super().__init__()
        self.weight = nn.Parameter(_filters(torch.eye(CHANNELS // 2)), requires_grad=False)
        self.bias = nn.Parameter(torch.zeros(CHANNELS))
        self.activation = activation(act)

    def forward(self, images: Tensor) -> Tensor:
        """Whitened 2x2 patches of each image, through the activation."""
        return self.activation(F.conv2d(images, self.weight, self.bias))

    @torch.no_grad()
    def fit(self, images: Tensor) -> None:
        """Set the weights from normalised training images `(n, 3, H, W)` float32, of which 5,000 are enough."""
        images = images.cpu() if images.device.type == "mps" else images  # which has no float64
        self.weight.copy_(_filters(patch_covariance(images).cpu()))


def patch_covariance(images: Tensor) -> Tensor:
    """Second moments (12, 12) float64 of all 2x2 patches of `images` `(n, 3, H, W)`, in a filter's order of weights."""
    total = images.new_zeros(CHANNELS // 2, CHANNELS // 2, dtype=torch.float64)
    count = 0
    height, width = (side - PATCH + 1 for side in images.shape[2:])
    for piece in images.split(_PIECE):
        pixels = piece.double().transpose(0, 1)
        corners = [pixels[..., y : y + height, x : x + width] for y in range(PATCH) for x in range(PATCH)]
        patches = torch.stack(corners, dim=1).reshape(CHANNELS // 2, -1)
        total += patches @ patches.T
        count += patches.shape[1]
    return total / count


def _filters(covariance: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(covariance)
    scaled = (vectors / torch.sqrt(values + _EPS)).T.reshape(-1, 3, PATCH, PATCH)
    return torch.cat((scaled, -scaled)).float()


def stem(whitening: bool, act: str) -> tuple[nn.Module, int]:
    """The layer before a network's first convolution, and its channels: whitening, or the image itself."""
    return (Whitening(act), CHANNELS // pieces(act)) if whitening else (nn.Identity(), 3)


def fit_stems(model: nn.Module, images: Tensor) -> None:
    """Fit every whitening layer of `model` to normalised training images `(n, 3, H, W)` float32."""
    for module in model.modules():
        if isinstance(module, Whitening):
            module.fit(images)
