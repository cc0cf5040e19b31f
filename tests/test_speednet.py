"""The whitened network: its whitening, its identity filters, and the published networks written out by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from test_models import build
from torch import nn

from cifarbench.models.layers import dirac_
from cifarbench.models.whitening import Whitening, fit_stems, patch_covariance


def correlated(count=64, seed=0):
    """Smooth coloured noise (n, 3, 32, 32), whose neighbouring pixels and channels go together."""
    noise = torch.randn(count, 3, 34, 34, generator=torch.Generator().manual_seed(seed))
    smooth = F.avg_pool2d(noise, 3, 1)
    return smooth + smooth.mean(1, keepdim=True)


def test_whitened_patches_have_the_identity_as_their_second_moments():
    images = correlated()
    stem = Whitening("relu")
    stem.fit(images)
    response = F.conv2d(images.double(), stem.weight[:12].double())
    rows = response.transpose(0, 1).flatten(1)
    moments = rows @ rows.T / rows.shape[1]
    # The constant under the root keeps the weakest directions a little below 1.
    off = moments - torch.diag(moments.diagonal())
    assert off.abs().max() < 1e-4
    assert 0.9 < moments.diagonal().min() <= moments.diagonal().max() < 1.0001


def test_patches_are_summed_up_piece_by_piece_as_all_at_once():
    images = torch.randn(723, 3, 9, 7, generator=torch.Generator().manual_seed(2))
    windows = np.lib.stride_tricks.sliding_window_view(images.double().numpy(), (2, 2), axis=(2, 3))
    rows = windows.transpose(1, 4, 5, 0, 2, 3).reshape(12, -1)  # a filter's order: channel, row, column
    expected = torch.from_numpy(rows @ rows.T / rows.shape[1])
    torch.testing.assert_close(patch_covariance(images), expected, rtol=1e-12, atol=1e-12)


def test_the_second_half_of_the_filters_is_the_negative_of_the_first():
    stem = Whitening("gelu")
    stem.fit(correlated())
    assert torch.equal(stem.weight[12:], -stem.weight[:12])
    assert not stem.weight.requires_grad
    assert stem.bias.requires_grad


def test_only_the_images_given_are_looked_at():
    first, second = nn.Sequential(Whitening("relu")), nn.Sequential(Whitening("relu"))
    fit_stems(first, correlated(seed=0))
    fit_stems(second, correlated(seed=1))
    assert not torch.equal(first[0].weight, second[0].weight)


@pytest.mark.parametrize(("inputs", "outputs", "size"), [(3, 8, 3), (8, 3, 3), (4, 4, 1), (6, 7, 5)])
def test_dirac_is_that_of_torch_on_the_first_filters(inputs, outputs, size):
    convolution = nn.Conv2d(inputs, outputs, size)
    expected = convolution.weight.detach().clone()
    nn.init.dirac_(expected[:inputs])
    dirac_(convolution)
    assert torch.equal(convolution.weight, expected)


def test_even_windows_have_no_centre_and_stay():
    convolution = nn.Conv2d(3, 8, 2)
    before = convolution.weight.detach().clone()
    dirac_(convolution)
    assert torch.equal(convolution.weight, before)


class ByHand(nn.Module):
    """The published network, layer after layer, on the weights of ours."""

    def __init__(self, ours, depth, residual):
        super().__init__()
        self.ours, self.depth, self.residual = ours, depth, residual

    def norm(self, x, layer):
        mean, variance = x.mean((0, 2, 3), keepdim=True), x.var((0, 2, 3), keepdim=True, unbiased=False)
        return (x - mean) / (variance + 1e-12).sqrt() + layer.bias[None, :, None, None]

    def forward(self, x):
        state = dict(self.ours.named_modules())
        x = F.gelu(F.conv2d(x, self.ours.stem.weight, self.ours.stem.bias))
        for group in range(3):
            convolution, norm = state[f"groups.{group}.enter.0"], state[f"groups.{group}.enter.2"]
            x = F.max_pool2d(F.conv2d(x, convolution.weight, padding=1), 2)
            x = entered = F.gelu(self.norm(x, norm))
            for index in range(self.depth - 1):
                at = 3 * index
                convolution, norm = state[f"groups.{group}.rest.{at}"], state[f"groups.{group}.rest.{at + 1}"]
                x = self.norm(F.conv2d(x, convolution.weight, padding=1), norm)
                if index < self.depth - 2:
                    x = F.gelu(x)
            x = F.gelu(x + entered if self.residual else x)
        return x.flatten(2).max(2).values @ self.ours.head[1].weight.T


@pytest.mark.parametrize(("depth", "residual"), [(2, False), (3, True)])
def test_the_network_is_the_published_one(depth, residual):
    model = build("speednet", widths=(8, 12, 16), depth=depth, residual=residual).double()
    model.head[1].weight.data.normal_()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.bias.normal_()
    images = correlated(8).double()
    torch.testing.assert_close(model.train()(images), ByHand(model, depth, residual)(images))


@pytest.mark.parametrize(
    ("options", "parameters"),
    [
        # 24·64 + 64·64 + 64·256 + 256·256 + 2·256·256 filters of 9, shifts of 2·(64+256+256), bias 24, head 2,560
        ({}, 1_971_352),
        # the widths of the 95 % network, in the same way
        ({"widths": (128, 384, 384)}, 9 * (24 * 128 + 128**2 + 128 * 384 + 3 * 384**2) + 2 * 896 + 24 + 3_840),
    ],
)
def test_parameter_counts_by_hand(options, parameters):
    model = build("speednet", **options)
    assert sum(weight.numel() for weight in model.parameters() if weight.requires_grad) == parameters


@pytest.mark.parametrize("name", ["speednet", "vgg", "resnet", "simple_cnn"])
@pytest.mark.parametrize("size", [20, 24, 28, 31])
def test_whitened_networks_take_smaller_images(name, size):
    model = build(name, whitening=True, dirac=True)
    assert model(torch.zeros(2, 3, size, size)).shape == (2, 10)


def test_the_first_logits_are_near_zero():
    logits = build("speednet")(correlated(16))
    assert F.cross_entropy(logits, torch.arange(16) % 10).item() == pytest.approx(2.3026, abs=0.01)
