"""The split: which images are trained on, validated and tested, on labels made up in the shape of CIFAR-10."""

from __future__ import annotations

import dataclasses
import hashlib

import numpy as np
import pytest
import torch
from conftest import tiny_config

from cifarbench.config.schema import SplitConfig, SyntheticConfig
from cifarbench.data.batches import epoch_order, steps_per_epoch
from cifarbench.data.dataset import CLASSES, ImageSet, image_set
from cifarbench.data.load import load_images
from cifarbench.data.split import Parts, channel_statistics, split
from cifarbench.errors import ConfigError

TRAINABLE = {"last20": 48_000, "official": 50_000, "train_last20": 40_000}
TEST = {"last20": (48_000, 60_000), "official": (50_000, 60_000), "train_last20": (40_000, 50_000)}


def asked(name: str, val_fraction: float = 0.1, seed: int = 0) -> SplitConfig:
    return SplitConfig(name=name, val_fraction=val_fraction, seed=seed)


def made_up(count: int, name: str = "cifar10", labels: np.ndarray | None = None) -> ImageSet:
    """`count` images of 2×2 pixels, with labels of every class in unequal numbers."""
    draw = np.random.default_rng(7)
    images = draw.integers(0, 256, (count, 3, 2, 2), dtype=np.uint8)
    if labels is None:
        shares = np.linspace(1, 2, 10) / np.linspace(1, 2, 10).sum()
        labels = draw.choice(10, count, p=shares)
    return image_set(name, torch.from_numpy(images), torch.from_numpy(labels.astype(np.int64)), CLASSES)


@pytest.fixture(scope="module")
def data() -> ImageSet:
    return made_up(60_000)


def everything(parts: Parts) -> list[int]:
    """The indices of all parts, one after the other."""
    val = parts.val.indices.tolist() if parts.val else []
    return parts.train.indices.tolist() + val + parts.test.indices.tolist()


@pytest.mark.parametrize("name", TEST)
def test_the_test_part_is_the_published_range_in_order(data, name):
    assert split(data, asked(name)).test.indices.tolist() == list(range(*TEST[name]))


@pytest.mark.parametrize("name", TEST)
def test_training_and_validation_together_are_all_images_before_the_test_part(data, name):
    parts = split(data, asked(name))
    together = sorted(parts.train.indices.tolist() + parts.val.indices.tolist())
    assert together == list(range(TRAINABLE[name]))
    assert parts.trainable == TRAINABLE[name]


def test_last20_has_the_counts_that_are_published(data):
    parts = split(data, asked("last20"))
    assert (len(parts.train), len(parts.val), len(parts.test)) == (43_200, 4_800, 12_000)


@pytest.mark.parametrize("name", TEST)
def test_no_image_is_in_two_parts(data, name):
    indices = everything(split(data, asked(name)))
    assert len(indices) == len(set(indices))


def test_a_part_holds_the_images_and_labels_of_its_indices(data):
    parts = split(data, asked("last20"))
    for portion in (parts.train, parts.val, parts.test.open()):
        rows = portion.indices.numpy()
        assert np.array_equal(portion.images.numpy(), data.images.numpy()[rows])
        assert np.array_equal(portion.targets.numpy(), data.targets.numpy()[rows])


def test_the_official_images_of_last20_are_its_last_10_000(data):
    assert split(data, asked("last20")).test.official.tolist() == [False] * 2_000 + [True] * 10_000


def test_every_test_image_of_the_official_split_is_official(data):
    assert split(data, asked("official")).test.official.tolist() == [True] * 10_000


def test_train_last20_has_no_official_images(data):
    assert split(data, asked("train_last20")).test.official is None


@pytest.mark.parametrize("name", TEST)
def test_drawn_images_are_never_official(name):
    assert split(made_up(3_000, "synthetic"), asked(name)).test.official is None


def test_validation_takes_exactly_its_share_of_every_class_where_the_share_is_whole():
    trainable = np.random.default_rng(0).permutation(np.arange(48_000) % 10)
    labels = np.concatenate([trainable, np.zeros(12_000)])
    parts = split(made_up(60_000, labels=labels), asked("last20"))
    assert np.bincount(parts.val.targets).tolist() == [480] * 10


def test_validation_is_within_one_image_of_its_share_of_every_class(data):
    parts = split(data, asked("last20"))
    exact = np.bincount(data.targets.numpy()[:48_000]) / 10
    assert np.abs(np.bincount(parts.val.targets.numpy()) - exact).max() < 1
    assert len(parts.val) == 4_800


@pytest.mark.parametrize("fraction", [0.01, 0.07, 0.29, 1 / 3, 0.5])
def test_validation_has_the_rounded_share_of_all_trainable_images(data, fraction):
    assert len(split(data, asked("last20", fraction)).val) == round(48_000 * fraction)


def test_without_a_validation_share_everything_is_trained_on(data):
    parts = split(data, asked("last20", 0.0))
    assert parts.val is None
    assert parts.train.indices.tolist() == list(range(48_000))


def test_a_share_too_small_for_an_image_is_refused():
    with pytest.raises(ConfigError, match=r"`split\.val_fraction` is 0\.001"):
        split(made_up(60), asked("last20", 0.001))


def test_the_validation_draw_depends_on_the_seed_of_the_split(data):
    first, same, other = (split(data, asked("last20", seed=seed)).val.indices for seed in (0, 0, 1))
    assert torch.equal(first, same)
    assert not torch.equal(first, other)


def test_the_validation_draw_ignores_the_seeds_of_the_run_and_of_the_process(data):
    draws = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        np.random.seed(seed)
        draws.append(split(data, tiny_config(f"seed={seed}").split).val.indices)
    assert torch.equal(*draws)


def test_the_validation_draw_ignores_the_labels_and_pixels_of_the_test_part(data):
    targets, images = data.targets.clone(), data.images.clone()
    targets[48_000:] = targets[48_000:].flip(0)
    images[48_000:] = 0
    other = image_set("cifar10", images, targets, CLASSES)
    assert torch.equal(split(other, asked("last20")).val.indices, split(data, asked("last20")).val.indices)


def test_the_fingerprint_of_a_dataset_is_the_sha256_of_its_pixels_and_labels():
    data = made_up(60)
    expected = hashlib.sha256(data.images.numpy().tobytes() + data.targets.numpy().tobytes()).hexdigest()
    assert data.fingerprint == expected


@pytest.mark.parametrize("row", [0, 55, 59])
def test_one_changed_pixel_anywhere_changes_the_fingerprint_of_the_split(row):
    data = made_up(60)
    images = data.images.clone()
    images[row, 2, 1, 1] ^= 1
    changed = image_set("cifar10", images, data.targets, CLASSES)
    assert split(changed, asked("last20")).fingerprint != split(data, asked("last20")).fingerprint


@pytest.mark.parametrize("row", [0, 55, 59])
def test_one_changed_label_anywhere_changes_the_fingerprint_of_the_split(row):
    data = made_up(60)
    targets = data.targets.clone()
    targets[row] = (targets[row] + 1) % 10
    changed = image_set("cifar10", data.images, targets, CLASSES)
    assert split(changed, asked("last20")).fingerprint != split(data, asked("last20")).fingerprint


def test_name_share_and_seed_of_the_split_each_change_its_fingerprint():
    data = made_up(600)
    choices = [asked("last20"), asked("official"), asked("train_last20"), asked("last20", 0.2), asked("last20", seed=1)]
    assert len({split(data, choice).fingerprint for choice in choices}) == len(choices)


def test_the_fingerprint_of_a_split_is_the_same_when_it_is_made_again():
    assert split(made_up(600), asked("last20")).fingerprint == split(made_up(600), asked("last20")).fingerprint


def test_the_seal_counts_its_openings_and_nothing_else_does(data):
    test = split(data, asked("last20")).test
    assert (len(test), len(test.indices), test.openings) == (12_000, 12_000, 0)
    test.open()
    test.open()
    assert test.openings == 2


def test_a_sealed_part_shows_no_images_without_being_opened(data):
    sealed = split(data, asked("last20")).test
    shown = [value for name, value in vars(sealed).items() if not name.startswith("_")]
    assert not any(isinstance(value, torch.Tensor) and value.ndim > 1 for value in shown)
    assert not hasattr(sealed, "images")
    assert not hasattr(sealed, "targets")


def test_channel_statistics_are_those_of_float64_numpy():
    images = np.random.default_rng(3).integers(0, 200, (500, 3, 8, 8), dtype=np.uint8)
    mean, std = channel_statistics(torch.from_numpy(images))
    scaled = images.astype(np.float64) / 255
    assert mean == pytest.approx(scaled.mean((0, 2, 3)), rel=1e-12)
    assert std == pytest.approx(scaled.std((0, 2, 3)), rel=1e-12)


def test_channel_statistics_of_one_colour_have_no_spread():
    images = torch.tensor([0, 51, 255], dtype=torch.uint8).view(1, 3, 1, 1).expand(4, 3, 5, 5)
    mean, std = channel_statistics(images)
    assert mean == pytest.approx((0.0, 0.2, 1.0))
    assert std == pytest.approx((0.0, 0.0, 0.0), abs=1e-9)


def test_3_000_drawn_images_become_2_400_trainable_and_600_test_images():
    data = load_images(SyntheticConfig(name="synthetic", size=3_000))
    parts = split(data, asked("last20"))
    assert (data.name, parts.trainable, len(parts.train), len(parts.test)) == ("synthetic", 2_400, 2_160, 600)
    assert parts.test.indices.tolist() == list(range(2_400, 3_000))


def test_a_portion_moves_as_a_whole():
    portion = split(made_up(60), asked("last20")).train
    moved = portion.to(torch.device("cpu"))
    for field in dataclasses.fields(portion):
        ours, theirs = getattr(moved, field.name), getattr(portion, field.name)
        assert ours == theirs if field.name == "name" else torch.equal(ours, theirs)


@pytest.mark.parametrize("count", [1, 7, 1_000])
def test_an_epoch_visits_every_image_once(count):
    assert sorted(epoch_order(count, seed=3, epoch=2).tolist()) == list(range(count))


def test_the_order_of_an_epoch_is_a_function_of_seed_and_epoch_alone():
    before = epoch_order(1_000, seed=3, epoch=2)
    torch.manual_seed(99)
    torch.rand(10)
    assert torch.equal(epoch_order(1_000, seed=3, epoch=2), before)


def test_drawing_an_order_leaves_the_global_generator_alone():
    torch.manual_seed(5)
    before = torch.get_rng_state()
    epoch_order(1_000, seed=3, epoch=2)
    assert torch.equal(torch.get_rng_state(), before)


def test_epochs_and_seeds_have_orders_of_their_own():
    orders = [tuple(epoch_order(1_000, seed, epoch).tolist()) for seed in (0, 1) for epoch in (1, 2)]
    assert len(set(orders)) == 4


@pytest.mark.parametrize(
    ("count", "batch_size", "limit", "steps"),
    [(100, 10, 0, 10), (101, 10, 0, 11), (5, 10, 0, 1), (43_200, 500, 0, 87), (100, 10, 3, 3), (20, 10, 3, 2)],
)
def test_steps_cover_every_image_up_to_the_limit(count, batch_size, limit, steps):
    assert steps_per_epoch(count, batch_size, limit) == steps
