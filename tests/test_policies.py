"""RandAugment's and TrivialAugment's operations, against torchvision on single images."""

import pytest
import torch
from torchvision.transforms import InterpolationMode, RandAugment, TrivialAugmentWide
from torchvision.transforms.autoaugment import _apply_op

from cifarbench.data.policies import (
    LEVELS,
    OPERATIONS,
    RANDAUGMENT,
    TRIVIALAUGMENT,
    randaugment,
    trivialaugment,
)
from cifarbench.data.random import Draws

THEIR_NAMES = {
    "identity": "Identity",
    "shear_x": "ShearX",
    "shear_y": "ShearY",
    "translate_x": "TranslateX",
    "translate_y": "TranslateY",
    "rotate": "Rotate",
    "brightness": "Brightness",
    "colour": "Color",
    "contrast": "Contrast",
    "sharpness": "Sharpness",
    "posterize": "Posterize",
    "solarize": "Solarize",
    "autocontrast": "AutoContrast",
    "equalize": "Equalize",
}
EXACT = {"identity", "translate_x", "translate_y", "brightness", "posterize", "solarize", "autocontrast", "equalize"}
NEAREST = {"shear_x", "shear_y", "rotate"}  # a pixel half-way between two may fall to either


def sample_images():
    """Noise, smooth ramps, faint images, one flat and one nearly flat: (16, 3, 32, 32) uint8."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randint(0, 256, (6, 3, 32, 32), generator=generator, dtype=torch.uint8)
    slope = torch.rand(6, 3, 1, 1, generator=generator)
    ramp = (torch.arange(32) * 6)[:, None] * slope + (torch.arange(32) * 2) + 3 * torch.rand(6, 3, 32, 32)
    faint = noise[:2] // 8 + 90
    flat = torch.full((1, 3, 32, 32), 77, dtype=torch.uint8)
    nearly = flat.clone()
    nearly[0, 1, 5, 5] = 78
    return torch.cat((noise, ramp.clamp(0, 255).to(torch.uint8), faint, flat, nearly))


def torchvision_op(image, name, strength):
    return _apply_op(image, THEIR_NAMES[name], strength, InterpolationMode.NEAREST, None)


@pytest.mark.parametrize("space", [RANDAUGMENT, TRIVIALAUGMENT], ids=["randaugment", "trivialaugment"])
@pytest.mark.parametrize("name", list(OPERATIONS))
def test_operation_equals_torchvision(name, space):
    images = sample_images()
    entry = next(entry for entry in space if entry.name == name)
    levels = torch.arange(len(images)) * 2 % LEVELS
    strengths = torch.tensor(entry.strengths())[levels]
    if entry.signed:
        strengths = strengths * torch.where(torch.arange(len(images)) % 2 == 0, 1.0, -1.0)
    ours = OPERATIONS[name](images, strengths)
    theirs = torch.stack([torchvision_op(i, name, s) for i, s in zip(images, strengths.tolist(), strict=True)])
    assert ours.dtype == torch.uint8
    difference = (ours.int() - theirs.int()).abs()
    if name in EXACT:
        assert difference.max() == 0
    elif name in NEAREST:
        assert (difference > 0).double().mean() < 0.005
    else:
        assert difference.max() <= 1


@pytest.mark.parametrize("name", [name for name in OPERATIONS if name not in ("identity", "autocontrast", "equalize")])
def test_strongest_operation_changes_noise(name):
    entry = next(entry for entry in TRIVIALAUGMENT if entry.name == name)
    images = sample_images()[:6]
    assert not torch.equal(OPERATIONS[name](images, torch.full((6,), entry.strengths()[-1])), images)


@pytest.mark.parametrize(
    ("space", "theirs"),
    [
        (RANDAUGMENT, RandAugment()._augmentation_space(LEVELS, (32, 32))),
        (TRIVIALAUGMENT, TrivialAugmentWide()._augmentation_space(LEVELS)),
    ],
    ids=["randaugment", "trivialaugment"],
)
def test_spaces_equal_torchvisions(space, theirs):
    assert [THEIR_NAMES[entry.name] for entry in space] == list(theirs)
    for entry in space:
        strengths, signed = theirs[THEIR_NAMES[entry.name]]
        assert entry.signed == signed
        expected = strengths.tolist() if strengths.ndim else [0.0] * LEVELS
        assert entry.strengths() == pytest.approx(expected, rel=1e-6, abs=1e-5)


def replay(image, number, space, draws, step, level):
    """One policy step on one image by torchvision, from the numbers that the batch drew."""
    entry = space[draws.integers(f"policy.{step}.operation", len(space))[number].item()]
    strength = entry.strengths()[level]
    if entry.signed and draws.coin(f"policy.{step}.sign", 0.5)[number]:
        strength = -strength
    return torchvision_op(image, entry.name, strength)


def assert_nearly_equal(ours, theirs):
    """Different in at most one level, but for pixels half-way between two sources."""
    difference = (ours.int() - theirs.int()).abs()
    assert (difference > 1).double().mean() < 0.005


def test_trivialaugment_takes_one_operation_of_its_own_per_image():
    images = sample_images().repeat(8, 1, 1, 1)
    draws = Draws(3, 1, torch.arange(len(images)))
    ours = trivialaugment(images, draws)
    levels = draws.integers("policy.0.level", LEVELS).tolist()
    theirs = [replay(image, n, TRIVIALAUGMENT, draws, 0, levels[n]) for n, image in enumerate(images)]
    assert_nearly_equal(ours, torch.stack(theirs))
    assert len(set(draws.integers("policy.0.operation", len(TRIVIALAUGMENT)).tolist())) == len(TRIVIALAUGMENT)


def test_randaugment_takes_its_operations_in_turn():
    images = sample_images().repeat(4, 1, 1, 1)
    draws = Draws(3, 1, torch.arange(len(images)))
    theirs = images
    for step in range(2):
        theirs = torch.stack([replay(image, n, RANDAUGMENT, draws, step, 9) for n, image in enumerate(theirs)])
    ours = randaugment(images, draws, ops=2, magnitude=9)
    # A second operation can magnify one level's difference, so a few pixels more are let off.
    assert ((ours.int() - theirs.int()).abs() > 2).double().mean() < 0.01


def test_weakest_randaugment_moves_nothing():
    images = sample_images()
    draws = Draws(0, 0, torch.arange(len(images)))
    chosen = draws.integers("policy.0.operation", len(RANDAUGMENT))
    still = torch.tensor([RANDAUGMENT[index].signed for index in chosen.tolist()])
    assert still.any()
    assert torch.equal(randaugment(images, draws, ops=1, magnitude=0)[still], images[still])


def test_policy_leaves_its_argument_alone():
    images = sample_images()
    before = images.clone()
    randaugment(images, Draws(0, 0, torch.arange(len(images))), ops=3, magnitude=30)
    assert torch.equal(images, before)
