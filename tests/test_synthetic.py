"""The drawn dataset: determined by the image's number, balanced, varied, and not to be told by colour alone."""

import numpy as np
import pytest
import torch

from cifarbench.data import synthetic

SIZE = 2_500


@pytest.fixture(scope="module")
def drawn():
    return synthetic.draw(SIZE)


def test_shapes_and_types(drawn):
    images, targets = drawn
    assert images.shape == (SIZE, 3, 32, 32)
    assert images.dtype == np.uint8
    assert targets.shape == (SIZE,)
    assert targets.dtype == np.int64
    assert len(synthetic.CLASSES) == len(set(synthetic.CLASSES)) == len(synthetic.SHAPES) == 10


@pytest.mark.parametrize("size", [1, 7, 499, 500, 501, 1300])
def test_smaller_set_is_the_beginning(drawn, size):
    images, targets = synthetic.draw(size)
    assert np.array_equal(images, drawn[0][:size])
    assert np.array_equal(targets, drawn[1][:size])


@pytest.mark.parametrize("size", [10, 123, 1000, SIZE])
def test_classes_are_balanced_at_every_length(drawn, size):
    counts = np.bincount(drawn[1][:size], minlength=10)
    assert counts.max() - counts.min() <= 1


def test_order_of_classes_is_irregular(drawn):
    tens = drawn[1].reshape(-1, 10)
    assert len(np.unique(tens, axis=0)) > 0.99 * len(tens)
    for place in range(10):
        counts = np.bincount(tens[:, place], minlength=10)
        expected = len(tens) / 10
        assert ((counts - expected) ** 2 / expected).sum() < 27.9  # chi-square, 9 degrees of freedom, 99.9 %


def test_no_two_images_are_alike(drawn):
    assert len(np.unique(drawn[0].reshape(SIZE, -1), axis=0)) == SIZE


def test_global_generator_does_not_matter(drawn):
    np.random.seed(3)
    torch.manual_seed(3)
    assert np.array_equal(synthetic.draw(20)[0], drawn[0][:20])


def test_images_use_the_whole_range(drawn):
    images = drawn[0]
    assert images.min() == 0
    assert images.max() == 255
    assert 100 < images.mean() < 155
    assert images.reshape(SIZE, -1).std(axis=1).min() > 3


def test_colour_tells_little_of_the_class(drawn):
    """Least squares on the channels' means and deviations stays near chance: shape is what there is to learn."""
    images, targets = drawn
    flat = images.reshape(SIZE, 3, -1).astype(np.float64) / 255
    features = np.concatenate((flat.mean(2), flat.std(2), np.ones((SIZE, 1))), axis=1)
    known, asked = slice(0, 2000), slice(2000, SIZE)
    weights = np.linalg.lstsq(features[known], np.eye(10)[targets[known]], rcond=None)[0]
    assert ((features[asked] @ weights).argmax(1) == targets[asked]).mean() < 0.25


@pytest.mark.parametrize("shape", synthetic.SHAPES, ids=synthetic.CLASSES)
def test_shape_is_bounded_and_fills_part_of_its_frame(shape):
    v, u = np.mgrid[-1.5:1.5:301j, -1.5:1.5:301j].astype(np.float32)
    inside = shape(u, v) < 0
    assert 0.05 < inside.mean() < 0.5
    assert not (inside & (np.hypot(u, v) > 1.25)).any()


def test_star_has_five_arms():
    angles = np.linspace(0, 2 * np.pi, 2000, endpoint=False)
    for radius, crossings in ((0.8, 10), (0.3, 0), (1.4, 0)):
        inside = synthetic._star(*(radius * wave(angles).astype(np.float32) for wave in (np.cos, np.sin))) < 0
        assert (inside != np.roll(inside, 1)).sum() == crossings


def test_no_image_is_refused():
    with pytest.raises(ValueError, match="at least 1"):
        synthetic.draw(0)
