"""Batched augmentation against direct slicing, torchvision on single images, closed forms, and itself elsewhere."""

import dataclasses
import math

import pytest
import torch
import torch.nn.functional as F
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as tv

from cifarbench.config.augment import AugmentConfig
from cifarbench.config.keys import build
from cifarbench.data import image_ops
from cifarbench.data.augment import Augment, normalise
from cifarbench.data.random import Draws
from cifarbench.errors import ConfigError

MEAN, STD = (0.49, 0.48, 0.45), (0.25, 0.24, 0.26)
OFF = {
    "name": "none",
    "flip": 0.0,
    "flip_alternates": False,
    "vertical_flip": 0.0,
    "crop_padding": 0,
    "crop_fill": "black",
    "rotation": 0.0,
    "scale": [1.0, 1.0],
    "translation": 0.0,
    "shear": 0.0,
    "brightness": 0.0,
    "contrast": 0.0,
    "saturation": 0.0,
    "hue": 0.0,
    "gaussian_noise": 0.0,
    "salt_pepper": 0.0,
    "policy": "none",
    "policy_ops": 2,
    "policy_magnitude": 14,
    "cutout": 0,
    "mixup": 0.0,
    "cutmix": 0.0,
}
EVERYTHING = {
    "flip": 0.5,
    "vertical_flip": 0.5,
    "crop_padding": 4,
    "rotation": 15.0,
    "scale": [0.8, 1.2],
    "translation": 0.1,
    "shear": 10.0,
    "brightness": 0.3,
    "contrast": 0.3,
    "saturation": 0.3,
    "hue": 0.1,
    "gaussian_noise": 0.05,
    "salt_pepper": 0.02,
    "policy": "trivialaugment",
    "cutout": 8,
}
BATCH = 64


def augment(channels_last=False, **changes):
    return Augment(build(AugmentConfig, {**OFF, **changes}, "augment"), MEAN, STD, channels_last)


def sample(count=BATCH):
    return torch.randint(0, 256, (count, 3, 32, 32), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)


def draws(count=BATCH, seed=7, epoch=2):
    return Draws(seed, epoch, torch.arange(count))


def unnormalised(images):
    """Back on the scale of bytes, in float64 by the definition."""
    mean, std = (torch.tensor(values, dtype=torch.float64).view(1, 3, 1, 1) for values in (MEAN, STD))
    return (images.double() * std + mean) * 255


def test_off_is_normalisation():
    images = sample()
    assert torch.allclose(unnormalised(augment()(images, draws())), images.double(), atol=1e-3)


def test_normalise_takes_bytes_and_pixels_alike():
    images = sample()
    by_bytes = normalise(images, MEAN, STD)
    assert by_bytes.dtype == torch.float32
    assert torch.allclose(by_bytes, normalise(images.float() / 255, MEAN, STD), atol=1e-5)
    assert torch.allclose(by_bytes, tv.normalize(images.float() / 255, list(MEAN), list(STD)), atol=1e-5)


@pytest.mark.parametrize(("key", "dim"), [("flip", -1), ("vertical_flip", -2)])
def test_mirrors_about_half_of_the_images(key, dim):
    images = sample(400)
    seen = augment(**{key: 0.5}).view(images, draws(400))
    mirrored = (seen == images.flip(dim)).flatten(1).all(1)
    assert (mirrored | (seen == images).flatten(1).all(1)).all()
    assert abs(mirrored.double().mean().item() - 0.5) < 4 * math.sqrt(0.25 / 400)


def test_mirror_always():
    images = sample()
    assert torch.equal(augment(flip=1.0, vertical_flip=1.0).view(images, draws()), images.flip(-1, -2))


def test_alternating_flip_shows_each_side_every_other_epoch():
    images = sample(400)
    alternating = augment(flip=0.5, flip_alternates=True)
    epochs = [alternating.view(images, draws(400, epoch=epoch)) for epoch in range(4)]
    mirrored = (epochs[0] == images.flip(-1)).flatten(1).all(1)
    assert abs(mirrored.double().mean().item() - 0.5) < 4 * math.sqrt(0.25 / 400)
    assert torch.equal(epochs[1], epochs[0].flip(-1))
    assert torch.equal(epochs[2], epochs[0])
    assert torch.equal(epochs[3], epochs[1])


@pytest.mark.parametrize(("fill", "mode"), [("black", "constant"), ("reflect", "reflect")])
def test_crop_equals_slicing_of_the_padded_image(fill, mode):
    images, some = sample(200), draws(200)
    seen = augment(flip=0.5, crop_padding=4, crop_fill=fill).view(images, some)
    turned = some.coin("flip", 0.5).tolist()
    for number, (top, left) in enumerate(some.integers("crop", 9, 2).tolist()):
        image = images[number].flip(-1) if turned[number] else images[number]
        padded = F.pad(image[None].float(), (4, 4, 4, 4), mode=mode)[0].to(torch.uint8)
        assert torch.equal(seen[number], padded[:, top : top + 32, left : left + 32])


def test_crop_reaches_every_place():
    offsets = draws(4000).integers("crop", 9, 2)
    assert len(torch.unique(offsets, dim=0)) == 81


def test_affine_equals_torchvision_on_each_image():
    images = tv.gaussian_blur(sample(), [5, 5])
    some = draws()
    seen = augment(rotation=30.0, scale=[0.7, 1.4], translation=0.2, shear=20.0).view(images, some)
    parameters = some.uniform("affine", 5).double()
    for number, (angle, zoom, right, down, slant) in enumerate(parameters.tolist()):
        theirs = tv.affine(
            images[number],
            angle=30 * (2 * angle - 1),
            translate=[6.4 * (2 * right - 1), 6.4 * (2 * down - 1)],
            scale=0.7 + 0.7 * zoom,
            shear=[20 * (2 * slant - 1), 0.0],
            interpolation=InterpolationMode.BILINEAR,
        )
        assert (seen[number].int() - theirs.int()).abs().max() <= 1


@pytest.mark.parametrize(
    ("key", "operation", "width", "tolerance"),
    [
        ("brightness", tv.adjust_brightness, 0.6, 1e-5),
        ("contrast", tv.adjust_contrast, 0.6, 1e-5),
        ("saturation", tv.adjust_saturation, 1.5, 1e-5),
        ("hue", tv.adjust_hue, 0.4, 1e-4),
    ],
)
def test_colour_equals_torchvision_on_each_image(key, operation, width, tolerance):
    images, some = sample(), draws()
    images[0] = 128
    seen = augment(**{key: width})(images, some)
    low = -width if key == "hue" else max(0.0, 1 - width)
    high = width if key == "hue" else 1 + width
    for number, uniform in enumerate(some.uniform(key).double().tolist()):
        theirs = operation(images[number].float() / 255, low + (high - low) * uniform)
        expected = tv.normalize(theirs, list(MEAN), list(STD))
        assert torch.allclose(seen[number], expected, atol=tolerance * 5)


def test_gaussian_noise_has_its_deviation():
    images = torch.full((40, 3, 32, 32), 128, dtype=torch.uint8)
    noise = unnormalised(augment(gaussian_noise=0.05)(images, draws(40))) / 255 - 128 / 255
    assert noise.std().item() == pytest.approx(0.05, rel=0.01)
    assert noise.mean().abs() < 4 * 0.05 / math.sqrt(noise.numel())
    assert unnormalised(augment(gaussian_noise=1.0)(images, draws(40))).max() < 255.01


def test_salt_and_pepper_take_their_fraction_evenly():
    images = torch.full((40, 3, 32, 32), 128, dtype=torch.uint8)
    seen = augment(salt_pepper=0.1).view(images, draws(40))
    assert torch.equal(seen[:, 0], seen[:, 1])
    assert torch.equal(seen[:, 0], seen[:, 2])
    count = 40 * 1024
    for value in (0, 255):
        share = (seen[:, 0] == value).double().mean().item()
        assert share == pytest.approx(0.05, abs=4 * math.sqrt(0.05 / count))
    assert set(seen.unique().tolist()) == {0, 128, 255}


def test_cutout_is_a_clipped_square_of_the_mean_colour():
    images, some = torch.zeros(500, 3, 32, 32, dtype=torch.uint8), draws(500)
    seen = augment(cutout=16)(images, some)
    holes = (seen == 0).all(1)
    rows, columns = some.integers("cutout.row", 32), some.integers("cutout.column", 32)
    for number in range(500):
        row, column = rows[number].item(), columns[number].item()
        expected = torch.zeros(32, 32, dtype=torch.bool)
        expected[max(row - 8, 0) : row + 8, max(column - 8, 0) : column + 8] = True
        assert torch.equal(holes[number], expected)
    assert holes.flatten(1).sum(1).max() == 256
    assert rows.min() == 0
    assert columns.max() == 31


def test_policies_reach_the_result():
    images = sample()
    plain = augment().view(images, draws())
    for changes in ({"policy": "randaugment"}, {"policy": "trivialaugment"}):
        assert (augment(**changes).view(images, draws()) != plain).flatten(1).any(1).double().mean() > 0.5


@pytest.mark.parametrize("changes", [EVERYTHING, {**EVERYTHING, "policy": "randaugment", "crop_fill": "reflect"}])
def test_an_image_is_augmented_alike_in_any_batch(changes):
    images, chosen = sample(), torch.tensor([40, 2, 63, 2])
    operation = augment(**changes)
    whole = operation(images, draws())
    others = torch.cat((images[chosen], sample(5)))
    numbers = torch.cat((chosen, torch.arange(1000, 1005)))
    part = operation(others, Draws(7, 2, numbers))[:4]
    assert torch.equal(part, whole[chosen])


def test_augmentation_varies_by_image_and_epoch_and_seed():
    one = sample(1).expand(BATCH, -1, -1, -1)
    operation = augment(crop_padding=4, brightness=0.5, hue=0.2)
    first = operation(one, draws())
    assert len(torch.unique(first.flatten(1), dim=0)) == BATCH
    for other in (draws(epoch=3), draws(seed=8)):
        assert (operation(one, other) != first).flatten(1).any(1).all()


def test_repeats_exactly_and_leaves_generator_and_argument_alone():
    images = sample()
    before, state = images.clone(), torch.get_rng_state()
    operation = augment(**EVERYTHING, mixup=0.2, cutmix=1.0)
    runs = [operation.mix(operation(images, draws()), torch.arange(BATCH) % 10, draws()) for _ in range(2)]
    assert torch.equal(runs[0][0], runs[1][0])
    assert torch.equal(runs[0][1], runs[1][1])
    assert torch.equal(images, before)
    assert torch.equal(torch.get_rng_state(), state)


def test_channels_last_changes_the_memory_alone():
    images = sample()
    targets = torch.arange(BATCH) % 10
    plain, last = augment(**EVERYTHING, mixup=1.0), augment(True, **EVERYTHING, mixup=1.0)
    result = last(images, draws())
    assert result.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(result, plain(images, draws()))
    mixed = last.mix(result, targets, draws())[0]
    assert mixed.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(last(images.contiguous(memory_format=torch.channels_last), draws()), result)


@pytest.mark.parametrize("bad", [sample().float(), sample()[:, :1], sample()[:5], sample()[0]])
def test_wrong_images_are_refused(bad):
    with pytest.raises(ValueError, match="uint8"):
        augment()(bad, draws())


def test_mix_off_changes_nothing():
    images, targets = torch.randn(BATCH, 3, 32, 32), torch.arange(BATCH) % 10
    mixed, soft = augment().mix(images, targets, draws())
    assert mixed is images
    assert soft is targets


def one_hot(targets):
    return torch.eye(10, dtype=torch.float64)[targets]


def test_mixup_is_the_stated_combination():
    images, targets, some = torch.randn(BATCH, 3, 32, 32), torch.arange(BATCH) * 3 % 10, draws()
    mixed, soft = augment(mixup=0.4).mix(images, targets, some)
    weights = some.beta("mixup", 0.4).double().tolist()
    for number, weight in enumerate(weights):
        partner = number - 1  # -1 is the last image of the batch
        expected = weight * images[number].double() + (1 - weight) * images[partner].double()
        assert torch.allclose(mixed[number].double(), expected, atol=1e-5)
        target = weight * one_hot(targets[number]) + (1 - weight) * one_hot(targets[partner])
        assert torch.allclose(soft[number].double(), target, atol=1e-5)


def test_cutmix_pastes_a_box_and_weighs_targets_by_its_area():
    images, targets, some = torch.randn(200, 3, 32, 32), torch.arange(200) % 10, draws(200)
    mixed, soft = augment(cutmix=1.0).mix(images, targets, some)
    own = (mixed == images).all(1)
    other = (mixed == images.roll(1, 0)).all(1)
    assert (own ^ other).all()
    area = other.double().mean((1, 2))
    expected = (1 - area)[:, None] * one_hot(targets) + area[:, None] * one_hot(targets.roll(1))
    assert torch.allclose(soft.double(), expected, atol=1e-6)
    rows, columns = other.any(2).sum(1), other.any(1).sum(1)
    assert torch.equal(rows * columns, other.sum((1, 2)))  # filled rectangles
    assert (area <= 1 - some.beta("cutmix", 1.0) + 1e-6).all()
    assert area.max() > 0.5


def test_pictures_show_what_is_mixed_into_an_image():
    images, some = sample(200), draws(200)
    own, other = images.double(), images.roll(1, 0).double()
    weights = some.beta("mixup", 1.0).double().view(-1, 1, 1, 1)
    blended = augment(mixup=1.0).view(images, some).double()
    assert (blended - (weights * own + (1 - weights) * other)).abs().max() < 0.51
    pasted = augment(cutmix=1.0).view(images, some)
    is_other = (pasted != images).any(1)
    assert torch.equal(torch.where(is_other[:, None], images.roll(1, 0), images), pasted)
    assert is_other.double().mean() > 0.25  # half of an image on average, less what lies outside


def test_mixup_and_cutmix_share_the_batch():
    images, targets, some = torch.randn(400, 3, 32, 32), torch.arange(400) % 10, draws(400)
    mixed, soft = augment(mixup=1.0, cutmix=1.0).mix(images, targets, some)
    kinds = {"mixup": augment(mixup=1.0), "cutmix": augment(cutmix=1.0)}
    chosen = {name: kind.mix(images, targets, some) for name, kind in kinds.items()}
    is_mixup = (mixed == chosen["mixup"][0]).flatten(1).all(1)
    is_cutmix = (mixed == chosen["cutmix"][0]).flatten(1).all(1)
    assert (is_mixup ^ is_cutmix).all()
    assert abs(is_mixup.double().mean().item() - 0.5) < 4 * math.sqrt(0.25 / 400)
    assert torch.allclose(soft[is_mixup], chosen["mixup"][1][is_mixup], atol=1e-6)


@pytest.mark.parametrize("changes", [{"mixup": 0.05}, {"cutmix": 0.3}, {"mixup": 5.0, "cutmix": 1.0}])
def test_soft_targets_sum_to_one(changes):
    soft = augment(**changes).mix(torch.zeros(300, 3, 32, 32), torch.arange(300) % 10, draws(300))[1]
    assert soft.dtype == torch.float32
    assert soft.shape == (300, 10)
    assert soft.min() >= 0
    assert torch.allclose(soft.sum(1), torch.ones(300), atol=1e-6)


def test_number_of_classes_widens_the_targets():
    soft = augment(mixup=1.0).mix(torch.zeros(8, 3, 32, 32), torch.arange(8), draws(8), num_classes=100)[1]
    assert soft.shape == (8, 100)


def test_other_sizes_work():
    images = torch.randint(0, 256, (6, 3, 24, 20), dtype=torch.uint8)
    assert augment(**EVERYTHING, mixup=1.0)(images, draws(6)).shape == (6, 3, 24, 20)


def test_box_is_clipped_at_the_border():
    centre = torch.tensor([[0, 31], [16, 16]])
    area = image_ops.box(centre, torch.tensor([[8, 8], [3, 5]]), 32, 32).flatten(1).sum(1)
    assert area.tolist() == [4 * 5, 15]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"scale": [1.2, 0.8]}, "augment.scale"),
        ({"policy": "randaugment", "policy_ops": 0}, "augment.policy_ops"),
        ({"flip": 1.5}, "augment.flip"),
        ({"crop_fill": "blakc"}, 'Did you mean "black"'),
        ({"policy_magnitude": 31}, "augment.policy_magnitude"),
        ({"hue": 0.6}, "augment.hue"),
        ({"mixup": -1.0}, "augment.mixup"),
        ({"scale": [0.0, 1.0]}, "augment.scale"),
    ],
)
def test_bad_settings_are_refused_by_name(changes, words):
    with pytest.raises(ConfigError, match=words):
        build(AugmentConfig, {**OFF, **changes}, "augment")


def test_every_key_has_an_off_value_here():
    assert [field.name for field in dataclasses.fields(AugmentConfig)] == list(OFF)
