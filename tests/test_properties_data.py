"""Properties of the split and of augmentation, for any data, seed and settings."""

from __future__ import annotations

import dataclasses
import itertools
import typing
from typing import Any

import numpy as np
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from test_augment import MEAN, OFF, STD, unnormalised

from cifarbench.config.augment import AugmentConfig
from cifarbench.config.keys import build
from cifarbench.config.schema import SplitConfig
from cifarbench.data.augment import Augment, normalise
from cifarbench.data.dataset import CLASSES, ImageSet, image_set
from cifarbench.data.random import Draws
from cifarbench.data.split import split
from cifarbench.errors import ConfigError

checked = settings(derandomize=True, deadline=None, database=None)
SEEDS = st.integers(0, 2**63 - 1)
NAMES = ("last20", "official", "train_last20")


@st.composite
def labelled(draw: Any) -> ImageSet:
    """Images of one pixel with labels of any distribution, missing classes included."""
    count = draw(st.integers(60, 900))
    source = np.random.default_rng(draw(SEEDS))
    weights = np.array(draw(st.lists(st.sampled_from([0, 1, 1, 3, 50]), min_size=10, max_size=10)), float)
    assume(weights.sum() > 0)
    labels = torch.from_numpy(source.choice(10, count, p=weights / weights.sum()))
    return image_set("synthetic", torch.zeros(count, 3, 1, 1, dtype=torch.uint8), labels, CLASSES)


SPLITS = st.builds(SplitConfig, name=st.sampled_from(NAMES), val_fraction=st.floats(0, 0.5), seed=SEEDS)


def parts_or_refusal(data: ImageSet, config: SplitConfig) -> Any:
    refusal = ""
    try:
        return split(data, config)
    except ConfigError as refused:
        refusal = str(refused)
    assert "`split.val_fraction`" in refusal
    return None


@settings(checked, max_examples=120)
@given(data=labelled(), config=SPLITS)
def test_the_parts_of_any_split_are_disjoint_and_what_is_trainable_is_trained_or_validated_on(data, config):
    parts = parts_or_refusal(data, config)
    if parts is None:
        return
    val = parts.val.indices.tolist() if parts.val else []
    train, test = parts.train.indices.tolist(), parts.test.indices.tolist()
    bounds = {"last20": (0.8, 0.8, 1), "official": (5 / 6, 5 / 6, 1), "train_last20": (2 / 3, 2 / 3, 5 / 6)}
    trainable, start, end = (int(len(data.targets) * bound + 1e-9) for bound in bounds[config.name])
    assert sorted(train + val) == list(range(trainable))
    assert test == list(range(start, end))
    assert parts.test.openings == 0


@settings(checked, max_examples=120)
@given(data=labelled(), config=SPLITS)
def test_validation_has_its_share_of_every_class_to_within_one_image(data, config):
    parts = parts_or_refusal(data, config)
    if parts is None or parts.val is None:
        return
    labels = data.targets[: parts.trainable].numpy()
    exact = np.bincount(labels, minlength=10) * config.val_fraction
    assert np.abs(np.bincount(parts.val.targets.numpy(), minlength=10) - exact).max() <= 1
    assert abs(len(parts.val) - len(labels) * config.val_fraction) <= 0.5 + 1e-6


@settings(checked, max_examples=60)
@given(data=labelled(), config=SPLITS, run_seed=SEEDS, noise=SEEDS)
def test_a_split_is_a_function_of_its_seed_and_the_trainable_labels_alone(data, config, run_seed, noise):
    torch.manual_seed(run_seed)
    first = parts_or_refusal(data, config)
    targets = data.targets.clone()
    start = len(targets) * {"last20": 48, "official": 50, "train_last20": 40}[config.name] // 60
    targets[start:] = torch.from_numpy(np.random.default_rng(noise).integers(0, 10, len(targets) - start))
    torch.manual_seed(run_seed // 2 + 1)
    second = parts_or_refusal(image_set("synthetic", data.images, targets, CLASSES), config)
    assert (first is None) == (second is None)
    if first is not None:
        assert torch.equal(first.train.indices, second.train.indices)


# --- augmentation ----------------------------------------------------------------------------------------------------


def settings_of(hint: Any, rule: Any) -> st.SearchStrategy:
    """Values from the whole documented range of a key."""
    if rule.choices:
        return st.sampled_from(rule.choices)
    if typing.get_origin(hint) is tuple:
        return st.lists(st.floats(rule.ge, rule.le), min_size=2, max_size=2).map(sorted)
    if hint is bool:
        return st.booleans()
    if hint is int:
        return st.integers(int(rule.ge), int(rule.le))
    return st.floats(rule.ge, rule.le if rule.le is not None else rule.lt, exclude_max=rule.le is None)


FIELDS = {field.name: field for field in dataclasses.fields(AugmentConfig) if field.name != "name"}
HINTS = typing.get_type_hints(AugmentConfig)


@st.composite
def augmentations(draw: Any) -> AugmentConfig:
    """Up to five steps switched on, each with any strength that its range allows."""
    chosen = draw(st.lists(st.sampled_from(sorted(FIELDS)), min_size=1, max_size=5, unique=True))
    values = {name: draw(settings_of(HINTS[name], FIELDS[name].metadata["rule"])) for name in chosen}
    if values.get("policy_ops") == 0:
        values["policy_ops"] = 1
    return build(AugmentConfig, {**OFF, **values}, "augment")


def pictures(seed: int, count: int) -> torch.Tensor:
    """Images of noise, one of them black and one white."""
    source = np.random.default_rng(seed)
    images = source.integers(0, 256, (count, 3, 32, 32), dtype=np.uint8)
    images[0], images[-1] = 0, 255
    return torch.from_numpy(images)


@settings(checked, max_examples=150)
@given(
    config=augmentations(), seed=SEEDS, epoch=st.integers(0, 10**6), picked=st.permutations(range(6)), shown=st.data()
)
def test_an_augmented_image_depends_on_seed_epoch_and_itself_alone(config, seed, epoch, picked, shown):
    images = pictures(seed % 1000, 6)
    numbers = torch.tensor(shown.draw(st.lists(st.integers(0, 59_999), min_size=6, max_size=6)))
    augment = Augment(config, MEAN, STD)
    whole = augment(images, Draws(seed, epoch, numbers))
    chosen = torch.tensor(picked[: shown.draw(st.integers(1, 6))])
    part = augment(images[chosen], Draws(seed, epoch, numbers[chosen]))
    assert torch.equal(part, whole[chosen])


@settings(checked, max_examples=150)
@given(
    config=augmentations(), seed=SEEDS, epoch=st.integers(0, 10**6), side=st.sampled_from([(32, 32), (24, 20), (8, 9)])
)
def test_augmentation_keeps_shape_and_gives_float32_pixels_between_black_and_white(config, seed, epoch, side):
    images = pictures(seed % 1000, 4)[..., : side[0], : side[1]].contiguous()
    seen = Augment(config, MEAN, STD)(images, Draws(seed, epoch, torch.arange(4)))
    assert (seen.shape, seen.dtype) == (images.shape, torch.float32)
    pixels = unnormalised(seen)
    assert pixels.min() >= -0.01
    assert pixels.max() <= 255.01


NEUTRAL = st.fixed_dictionaries(
    {
        "flip_alternates": st.booleans(),
        "crop_fill": st.sampled_from(["black", "reflect"]),
        "policy_ops": st.integers(1, 14),
        "policy_magnitude": st.integers(0, 30),
    }
)


@settings(checked, max_examples=40)
@given(neutral=NEUTRAL, seed=SEEDS, epoch=st.integers(0, 10**6))
def test_at_zero_strength_an_image_is_only_normalised_whatever_the_rest_says(neutral, seed, epoch):
    images = pictures(seed % 1000, 3)
    config = build(AugmentConfig, {**OFF, **neutral}, "augment")
    seen = Augment(config, MEAN, STD)(images, Draws(seed, epoch, torch.arange(3)))
    assert torch.equal(seen, normalise(images, MEAN, STD))


@settings(checked, max_examples=120)
@given(mixup=st.floats(0, 10), cutmix=st.floats(0, 10), seed=SEEDS, epoch=st.integers(0, 1000), count=st.integers(1, 9))
def test_mixed_targets_are_shares_of_two_labels_and_images_lie_between_their_two(mixup, cutmix, seed, epoch, count):
    config = build(AugmentConfig, {**OFF, "mixup": mixup, "cutmix": cutmix}, "augment")
    assume(config.mixes)
    images = torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(seed % 1000))
    targets = torch.arange(count) % 10
    mixed, soft = Augment(config, MEAN, STD).mix(images, targets, Draws(seed, epoch, torch.arange(count)))
    assert torch.allclose(soft.sum(1), torch.ones(count), atol=1e-6)
    assert (soft >= 0).all()
    before = images.roll(1, 0)
    low, high = torch.minimum(images, before), torch.maximum(images, before)
    assert ((mixed >= low - 1e-5) & (mixed <= high + 1e-5)).all()
    for row, (own, other) in enumerate(zip(targets.tolist(), targets.roll(1).tolist(), strict=True)):
        assert set(soft[row].nonzero().flatten().tolist()) <= {own, other}


@settings(checked, max_examples=60)
@given(seed=SEEDS, epochs=st.lists(st.integers(0, 2**40), min_size=2, max_size=4, unique=True))
def test_every_epoch_has_draws_of_its_own(seed, epochs):
    draws = [Draws(seed, epoch, torch.arange(8)).uniform("crop", 4) for epoch in epochs]
    assert not any(torch.equal(*pair) for pair in itertools.combinations(draws, 2))
