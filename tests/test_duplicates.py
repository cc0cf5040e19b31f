"""Near-duplicates: images altered on purpose are found, others are not, and groups and leaks are counted by hand."""

from __future__ import annotations

import json

import pytest
import torch

from cifarbench.data.dataset import image_set
from cifarbench.data.duplicates import Pair, find_pairs, groups, known_groups, leaked

FIRST, COPY = 3, 40


def textured(count=60, seed=0):
    """Images (n, 3, 32, 32) uint8 of smooth random texture, each like no other."""
    noise = torch.randn(count, 3, 50, 50, generator=torch.Generator().manual_seed(seed))
    fine, broad = (torch.nn.functional.avg_pool2d(noise, size, 1)[:, :, :32, :32] for size in (5, 15))
    return (128 + 100 * fine + 700 * broad).clamp(0, 255).to(torch.uint8)


def data_with(copy):
    images = textured()
    images[COPY] = copy(images[FIRST])
    return image_set("cifar10", images, torch.zeros(len(images), dtype=torch.int64), tuple("abcdefghij"))


def shifted(image):
    return image.roll((1, -1), (1, 2))


ALTERED = {
    "copied": lambda image: image,
    "mirrored": lambda image: image.flip(-1),
    "shifted": shifted,
    "shifted and mirrored": lambda image: shifted(image).flip(-1),
    "darker": lambda image: (image.float() * 0.6).to(torch.uint8),
    "less contrast": lambda image: (100 + image.float() * 0.3).to(torch.uint8),
    "noisy": lambda image: (image + torch.randint(-8, 9, image.shape)).clamp(0, 255).to(torch.uint8),
}


@pytest.mark.parametrize("how", ALTERED)
def test_an_altered_copy_is_the_one_pair_found(how):
    torch.manual_seed(0)
    (pair,) = find_pairs(data_with(ALTERED[how]), 0.8)
    assert (pair.first, pair.second) == (FIRST, COPY)


def test_one_sky_over_different_things_is_no_pair():
    images = torch.zeros(2, 3, 32, 32, dtype=torch.uint8)
    images[:, 2] = 200  # the same blue
    images[0, :, 8:12, 6:20] = 30
    images[1, :, 20:26, 14:18] = 30
    assert not find_pairs(image_set("cifar10", images, torch.zeros(2, dtype=torch.int64), tuple("abcdefghij")), 0.8)


def test_images_of_one_colour_are_no_trouble():
    images = torch.full((3, 3, 32, 32), 7, dtype=torch.uint8)
    assert not find_pairs(image_set("cifar10", images, torch.zeros(3, dtype=torch.int64), tuple("abcdefghij")), 0.8)


def test_groups_join_through_others():
    pairs = [Pair(1, 2, 1.0), Pair(2, 9, 1.0), Pair(4, 5, 1.0), Pair(5, 9, 1.0), Pair(7, 8, 1.0)]
    assert groups(pairs) == [[1, 2, 4, 5, 9], [7, 8]]


def test_a_test_image_leaks_where_its_group_reaches_into_training():
    found = [[0, 10], [11, 12], [1, 2], [3, 13, 14]]
    mask = leaked(torch.arange(10, 16), torch.arange(10), found)
    assert mask.tolist() == [True, False, False, True, True, False]


def test_another_dataset_has_no_stored_groups():
    assert known_groups("0" * 64) is None


def test_the_command_writes_groups_and_a_picture(cli, tmp_path):
    ended = cli("data", "duplicates", "data=synthetic", "data.size=600", "threshold=0.6")
    assert ended.code == 0, ended.err
    found = json.loads((tmp_path / "outputs" / "data" / "duplicates.json").read_text())
    assert sorted(image for group in found["groups"] for image in group) == sorted(
        {image for first, second, _ in found["pairs"] for image in (first, second)}
    )


def test_cifar10_has_stored_groups_and_reports_without_them(cli, cifar10_root, tmp_path):
    from conftest import TINY

    tiny = [argument for argument in TINY if not argument.startswith(("data=synthetic", "data.size"))]
    arguments = [*tiny, f"data.root={cifar10_root}", "trainer.epochs=1", "trainer.limit_batches=2"]
    assert cli("train", *arguments, "hydra.run.dir=run", "trainer.tensorboard=false").code == 0
    report = json.loads((tmp_path / "run" / "test.json").read_text())
    assert 100 < report["n_duplicates"] < 1_000  # about 3 % of 12,000 by the ciFAIR study, by eye
    kept = report["n"] - report["n_duplicates"]
    hits = round(report["accuracy_without_duplicates"] * kept)
    assert hits / kept == pytest.approx(report["accuracy_without_duplicates"], abs=1e-12)
    assert 0 <= report["accuracy"] * report["n"] - hits <= report["n_duplicates"] + 1e-6
