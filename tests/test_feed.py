"""What a step gets of the training images, moved batch by batch or a whole epoch ahead."""

from __future__ import annotations

import pytest
import torch
from conftest import tiny_config
from test_augment import EVERYTHING, MEAN, OFF, STD
from test_training import fit, weights_of

from cifarbench.config.augment import AugmentConfig
from cifarbench.config.keys import build
from cifarbench.data.augment import Augment
from cifarbench.data.split import Portion
from cifarbench.training import feed as feeding
from cifarbench.training import steps
from cifarbench.training.feed import Feed

MIXED = {**EVERYTHING, "mixup": 0.4, "cutmix": 1.0}
RANDAUGMENT = {**EVERYTHING, "policy": "randaugment", "crop_fill": "reflect"}
ALTERNATING = {"flip": 0.5, "flip_alternates": True, "crop_padding": 2}


def portion(count: int = 60) -> Portion:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (count, 3, 32, 32), dtype=torch.uint8, generator=generator)
    return Portion("train", images, torch.arange(count) % 10, torch.arange(count) + 500)


def feed(ahead: bool, **changes) -> Feed:
    config = build(AugmentConfig, {**OFF, **changes, "name": "changed"})
    return Feed(Augment(config, MEAN, STD), seed=3, ahead=ahead)


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch):
    for name in ("_PIECE", "_WARPED_PIECE"):
        monkeypatch.setattr(feeding, name, 13)


@pytest.mark.parametrize("changes", [{}, ALTERNATING, EVERYTHING, RANDAUGMENT, MIXED])
def test_images_moved_ahead_are_those_that_a_step_would_move(changes):
    train, ahead, step_by_step = portion(), feed(True, **changes), feed(False, **changes)
    generator = torch.Generator().manual_seed(1)
    for epoch in (0, 1, 0):
        for positions in torch.randperm(len(train), generator=generator).split(25):
            for size in (24, 32):
                ours, theirs = (each(train, positions, epoch, size) for each in (ahead, step_by_step))
                assert torch.equal(ours[0], theirs[0])
                assert torch.equal(ours[1], theirs[1])
                assert ours[0].shape == (len(positions), 3, size, size)


def test_an_epoch_is_moved_once_and_anew_for_other_images_or_when_told(monkeypatch):
    moved, move = [], Augment.move
    monkeypatch.setattr(Augment, "move", lambda self, images, draws: moved.append(1) or move(self, images, draws))
    train, ahead, pieces = portion(), feed(True, **ALTERNATING), 5

    def after(train, epoch):
        ahead(train, torch.arange(10), epoch, 32)
        return len(moved)

    assert [after(train, 0), after(train, 0), after(train, 1)] == [pieces, pieces, 2 * pieces]
    assert after(portion(), 1) == 3 * pieces, "other images, though alike"
    assert after(train, 1) == 4 * pieces
    ahead.forget()
    assert after(train, 1) == 5 * pieces


def test_a_run_that_moves_ahead_ends_as_one_that_does_not(tmp_path, monkeypatch):
    words = ["augment=strong", "trainer.sizes=[24]", "trainer.size_until=[1epochs]", "trainer.untimed_steps=1"]
    fit(tiny_config(*words), tmp_path / "by step")
    monkeypatch.setattr(steps, "Feed", lambda augment, seed, ahead, kernels: Feed(augment, seed, True, kernels))
    fit(tiny_config(*words), tmp_path / "ahead")
    assert weights_of(tmp_path / "ahead") == weights_of(tmp_path / "by step")
