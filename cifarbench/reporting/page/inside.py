"""What the network looks at: first kernels or templates, activation maps and Grad-CAM, as pictures.

The maps are of validation images (training images where none were held out), so that no model runs on a test image
here, unless an image is asked for by its number.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from cifarbench.compute import Compute
from cifarbench.data.augment import normalise
from cifarbench.data.dataset import ImageSet
from cifarbench.data.split import Parts
from cifarbench.errors import ConfigError
from cifarbench.evaluation.explain import (
    ACTIVATIONS,
    CONVOLUTIONS,
    activation_maps,
    first_kernels,
    grad_cam,
    grad_cam_layer,
    map_layers,
)
from cifarbench.evaluation.predict import predict
from cifarbench.reporting.page.pictures import heat_address, image_address, kernel_address, map_address
from cifarbench.training.restore import Trained

_CANDIDATES = 500
_KERNELS, _CHANNELS, _MAPPED = 64, 16, 2


def inside(
    trained: Trained, data: ImageSet | None, parts: Parts | None, numbers: Sequence[int], opened: bool
) -> dict[str, Any]:
    """Pictures of a model's inside as plain values; maps only where the images are here.

    Args:
        trained: the model.
        data, parts: its images and their split, or None.
        numbers: images to draw maps of, in published order; none chooses four right and four wrong ones.
        opened: whether the run's test part was opened, so that its answers there are known.

    Raises:
        ConfigError: a number is beyond the dataset, or of a test image behind its seal.
    """
    found: dict[str, Any] = {"kernels": _kernels(trained), "cam": None, "maps": None}
    if data is None or parts is None:
        return found
    if any(number >= len(data.targets) for number in numbers):
        raise ConfigError(f"`images` names {max(numbers)}; the dataset's images are 0 to {len(data.targets) - 1}.")
    sealed = [number for number in numbers if not opened and number in parts.test.indices]
    if sealed:
        raise ConfigError(
            f"`images` names {sealed[0]}, a test image, and the test part of this run was never opened; "
            "name trainable images, or score the run first: cifarbench eval."
        )
    probe = normalise(data.images[:1], *trained.statistics)
    # Rectified maps, as the paper takes them, where a module rectifies; of a residual block, its sum.
    layers = map_layers(trained.model, probe, CONVOLUTIONS + ACTIVATIONS)
    name = grad_cam_layer(layers)
    if name is None:
        return found
    indices, logits = _chosen(trained, data, parts, numbers)
    names = _names_of_parts(parts, indices)
    found["cam"] = _cam(trained, data, indices, logits, name, dict(layers)[name], names)
    active = map_layers(trained.model, probe, ACTIVATIONS) or layers
    found["maps"] = _maps(trained, data, indices, _spread(active))
    return found


def _kernels(trained: Trained) -> dict[str, Any] | None:
    kernels = first_kernels(trained.model)
    if kernels is None:
        return None
    names = trained.classes if kernels.of_classes else [f"{index}" for index in range(len(kernels.weights))]
    side = tuple(kernels.weights.shape[2:])
    tiles = [
        {"src": kernel_address(weight), "name": name}
        for weight, name in zip(kernels.weights[:_KERNELS], names, strict=False)
    ]
    return {
        "layer": kernels.layer,
        "tiles": tiles,
        "total": len(kernels.weights),
        "size": f"{side[0]}×{side[1]}",
        "templates": kernels.of_classes or side[0] == 32,
    }


def _chosen(trained: Trained, data: ImageSet, parts: Parts, numbers: Sequence[int]) -> tuple[Tensor, Tensor]:
    """(indices, logits) of the images to explain."""
    compute = Compute(torch.device("cpu"), "fp32")
    if numbers:
        indices = torch.tensor(list(numbers))
        return indices, predict(trained.model, data.images[indices], trained.statistics, compute)
    portion = parts.val or parts.train
    candidates = portion.indices[:_CANDIDATES]
    logits = predict(trained.model, data.images[candidates], trained.statistics, compute)
    confidence, answers = logits.softmax(1).max(1)
    right = answers == data.targets[candidates]
    order = confidence.argsort(descending=True, stable=True).tolist()
    picked: list[int] = []
    for wanted in (True, False):
        seen: set[int] = set()
        for position in order:
            label = int(data.targets[candidates[position]])
            if bool(right[position]) == wanted and label not in seen and len(seen) < 4:
                seen.add(label)
                picked.append(position)
    chosen = torch.tensor(picked)
    return candidates[chosen], logits[chosen]


def _names_of_parts(parts: Parts, indices: Tensor) -> list[str]:
    test = set(parts.test.indices.tolist())
    val = set(parts.val.indices.tolist()) if parts.val else set()
    train = set(parts.train.indices.tolist())
    table = (("test", test), ("validation", val), ("training", train))
    return [next((name for name, there in table if index in there), "unused") for index in indices.tolist()]


def _cam(
    trained: Trained, data: ImageSet, indices: Tensor, logits: Tensor, layer: str, side: int, names: list[str]
) -> dict[str, Any]:
    images = normalise(data.images[indices], *trained.statistics)
    answers, targets = logits.argmax(1), data.targets[indices]
    for_answer = grad_cam(trained.model, images, answers, layer)
    for_target = grad_cam(trained.model, images, targets, layer)
    probabilities = logits.double().softmax(1)
    rows = []
    for position, index in enumerate(indices.tolist()):
        answer, target = int(answers[position]), int(targets[position])
        heats = [("answer", answer, for_answer[position])]
        heats += [("true", target, for_target[position])] if answer != target else []
        row = {"index": index, "part": names[position], "right": answer == target}
        row |= {"src": image_address(data.images[index]), "true": data.classes[target], "answer": data.classes[answer]}
        row["views"] = [
            {
                "src": heat_address(data.images[index], heat),
                "of": data.classes[label],
                "kind": kind,
                "probability": probabilities[position, label].item(),
            }
            for kind, label, heat in heats
        ]
        rows.append(row)
    return {"layer": layer, "side": side, "rows": rows}


def _spread(layers: list[tuple[str, int]]) -> dict[str, int]:
    """The first layer, the one half-way, and the last one with a map of 4 px or more."""
    last = [name for name, _ in layers].index(grad_cam_layer(layers) or "")
    return dict(layers[place] for place in sorted({0, last // 2, last}))


def _maps(trained: Trained, data: ImageSet, indices: Tensor, layers: dict[str, int]) -> list[dict[str, Any]]:
    chosen = indices[:_MAPPED]
    found = activation_maps(trained.model, normalise(data.images[chosen], *trained.statistics), list(layers))
    rows = []
    for position, index in enumerate(chosen.tolist()):
        stages = []
        for layer, side in layers.items():
            maps = found[layer][position]
            spread = maps.flatten(1).std(1, correction=0)
            strongest = spread.argsort(descending=True, stable=True)[:_CHANNELS].tolist()
            tiles = [{"src": map_address(maps[channel]), "name": f"channel {channel}"} for channel in strongest]
            stages.append({"layer": layer, "side": side, "channels": len(maps), "tiles": tiles})
        name = data.classes[int(data.targets[index])]
        rows.append({"src": image_address(data.images[index]), "index": index, "true": name, "stages": stages})
    return rows
