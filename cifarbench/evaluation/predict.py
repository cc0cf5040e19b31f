"""Logits of a model for many images, with the views of test-time augmentation averaged."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cifarbench.compute import Compute
from cifarbench.data.augment import normalise
from cifarbench.data.split import Triple

EVAL_BATCH, _GPU_BATCH, _LARGE_GPU_BATCH = 500, 2_500, 10_000
_PLENTY = 60e9  # free bytes: the largest network here takes 34 GB for 10,000 images in fp32
Statistics = tuple[Triple, Triple]
View = Callable[[Tensor], Tensor]


def batch_on(device: torch.device) -> int:
    """Images that go through a model at once; a GPU is quicker with more, where memory suffices."""
    if device.type != "cuda":
        return EVAL_BATCH
    free, _ = torch.cuda.mem_get_info(device)
    free += torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return _LARGE_GPU_BATCH if free > _PLENTY else _GPU_BATCH


def _shifted(images: Tensor, down: int, right: int) -> Tensor:
    """`images` (B, 3, H, W) moved by whole pixels, the border repeated by reflection."""
    padded = F.pad(images, (1, 1, 1, 1), mode="reflect")
    height, width = images.shape[-2:]
    return padded[..., 1 - down : 1 - down + height, 1 - right : 1 - right + width]


def _views(tta: str) -> list[tuple[View, float]]:
    """(view, weight) pairs; the weights add up to 1."""

    def mirrored(view: View) -> View:
        return lambda images: view(images).flip(-1)

    def plain(images: Tensor) -> Tensor:
        return images

    if tta == "none":
        return [(plain, 1.0)]
    if tta == "flip":
        return [(plain, 0.5), (mirrored(plain), 0.5)]
    shifts: list[View] = [lambda images: _shifted(images, -1, -1), lambda images: _shifted(images, 1, 1)]
    unshifted = [(plain, 0.25), (mirrored(plain), 0.25)]
    return unshifted + [(form, 0.125) for shift in shifts for form in (shift, mirrored(shift))]


@torch.no_grad()
def predict(
    model: nn.Module,
    images: Tensor,
    statistics: Statistics,
    compute: Compute,
    tta: str = "none",
    channels_last: bool = True,
) -> Tensor:
    """Logits (N, 10) float32 for `images` (N, 3, 32, 32) uint8, in evaluation mode; leaves the mode as it was.

    Args:
        model: maps normalised images (B, 3, 32, 32) to logits (B, 10).
        images: on the model's device.
        statistics: per-channel mean and standard deviation of the training images, in 0..1.
        compute: device and precision.
        tta: "none", "flip" (the image and its mirror) or "multicrop" (both, also shifted by 1 px on a diagonal).
        channels_last: the memory layout of the batches.
    """
    was_training = model.training
    model.eval()
    layout = torch.channels_last if channels_last else torch.contiguous_format
    batches = [
        _mean_logits(model, normalise(batch, *statistics).contiguous(memory_format=layout), compute, tta)
        for batch in images.split(batch_on(images.device))
    ]
    model.train(was_training)
    return torch.cat(batches) if batches else images.new_zeros(0, 10, dtype=torch.float32)


def _mean_logits(model: nn.Module, images: Tensor, compute: Compute, tta: str) -> Tensor:
    with compute.autocast():
        weighted = [model(view(images)).float() * weight for view, weight in _views(tta)]
    return torch.stack(weighted).sum(0)
