"""Parameters, FLOPs and forward passes against papers, torchvision and networks written out by hand."""

import math

import pytest
import torch
import torch.nn.functional as F
import torchvision
from test_models import CONF, FAMILIES, build, images
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models import efficientnet as tv_efficientnet
from torchvision.models import vgg as tv_vgg

from cifarbench.models import efficientnet_lite, layers, resnet
from cifarbench.models.whitening import Whitening

TUTORIAL = {
    "first_widths": (32, 128, 256),
    "second_widths": (64, 128, 256),
    "norm": "first",
    "bias": True,
    "spatial_dropout": (0.0, 0.05, 0.0),
    "head": "flatten",
    "hidden": (1024, 512),
    "dropout": 0.1,
    "init": "torch",
}
AS_PUBLISHED = {
    "preactivation": False, "whitening": False, "pooling": "stride", "activation": "relu", "dirac": False
}  # fmt: skip
RESNET20 = {"blocks": (3, 3, 3), "widths": (16, 32, 64), "shortcut": "pad", **AS_PUBLISHED}
RESNET56 = {**RESNET20, "blocks": (9, 9, 9)}
WRN2810 = {**AS_PUBLISHED, "blocks": (4, 4, 4), "widths": (160, 320, 640), "stem_width": 16, "preactivation": True}
RESNET18 = {"blocks": (2, 2, 2, 2), "widths": (64, 128, 256, 512), **AS_PUBLISHED}
RESNET50 = {"block": "bottleneck", "blocks": (3, 4, 6, 3), "widths": (64, 128, 256, 512), **AS_PUBLISHED}


def count(module):
    """Trained parameters."""
    return sum(weight.numel() for weight in module.parameters() if weight.requires_grad)


def meta(name, **options):
    with torch.device("meta"):
        return build(name, **options)


def multiply_adds(model):
    """Millions of multiply-adds an image: torch counts a multiply-add as two operations."""
    with FlopCounterMode(display=False) as counter:
        model.eval()(torch.empty(1, 3, 32, 32, device="meta"))
    return counter.get_total_flops() / 2e6


def conv_bn(inputs, outputs, size=3):
    """Weights of a convolution without bias and its batch norm, by hand."""
    return inputs * outputs * size * size + 2 * outputs


@pytest.mark.parametrize(
    ("options", "parameters"),
    [
        (RESNET20, 269_722),  # 0.27 M: He et al. 2016, table 6
        (RESNET56, 853_018),  # 0.85 M: the same table
        (WRN2810, 36_479_194),  # 36.5 M: Zagoruyko and Komodakis 2016
    ],
)
def test_published_residual_networks(options, parameters):
    assert count(meta("resnet", **options)) == parameters


@pytest.mark.parametrize(
    ("options", "published"),
    [
        (RESNET56, 125.49),  # Lin et al., "HRank: Filter Pruning using High-Rank Feature Map" (2020)
        ({**RESNET20, "blocks": (18, 18, 18)}, 252.89),  # ResNet-110, the same paper
    ],
)
def test_published_multiply_adds(options, published):
    assert multiply_adds(meta("resnet", **options)) == pytest.approx(published, abs=0.01)


@pytest.mark.parametrize(
    ("options", "reference"),
    [(RESNET18, torchvision.models.resnet18), (RESNET50, torchvision.models.resnet50)],
)
def test_torchvision_resnet_but_stem_and_classifier(options, reference):
    with torch.device("meta"):
        theirs = reference()
    stem = 64 * 3 * 7 * 7 - 64 * 3 * 3 * 3
    classifier = (1000 - 10) * (theirs.fc.in_features + 1)
    assert count(meta("resnet", **options)) == count(theirs) - stem - classifier


@pytest.mark.parametrize(("depth", "letter"), [(11, "A"), (13, "B"), (16, "D"), (19, "E")])
def test_torchvision_vgg_but_convolution_biases(depth, letter):
    with torch.device("meta"):
        theirs = tv_vgg.make_layers(tv_vgg.cfgs[letter], batch_norm=True)
    biases = sum(layer.bias.numel() for layer in theirs if isinstance(layer, nn.Conv2d))
    assert count(meta("vgg", depth=depth, stages=5, whitening=False).features) == count(theirs) - biases


@pytest.mark.parametrize("head", ["global_average", "flatten"])
def test_vgg_of_fewer_stages_is_the_front_of_the_whole(head):
    whole, front = (build("vgg", depth=11, width=0.125, stages=stages, head=head) for stages in (5, 3))
    assert [name for name, _ in front.features.named_modules()] == [
        name for name, _ in whole.features[:3].named_modules()
    ]
    maps = front.features(front.stem(images(2)))
    assert maps.shape == (2, 32, 4, 4)
    assert front(images(2)).shape == (2, 10)
    assert front.head[-1].in_features == (32 * 4 * 4 if head == "flatten" else 32)


@pytest.mark.parametrize(("expansion", "outputs", "stride"), [(1, 24, 1), (4, 24, 1), (6, 40, 2)])
@pytest.mark.parametrize("fused", [False, True])
def test_torchvision_inverted_bottlenecks(expansion, outputs, stride, fused):
    ours = (
        efficientnet_lite.fused_mbconv(24, outputs, expansion, stride, "silu")
        if fused
        else efficientnet_lite.mbconv(24, outputs, expansion, stride, "silu", squeeze_excite=True)
    ).eval()
    shape = (expansion, 3, stride, 24, outputs, 1)
    theirs = (
        tv_efficientnet.FusedMBConv(tv_efficientnet.FusedMBConvConfig(*shape), 0.0, nn.BatchNorm2d)
        if fused
        else tv_efficientnet.MBConv(tv_efficientnet.MBConvConfig(*shape), 0.0, nn.BatchNorm2d)
    ).eval()
    copy_in_order(theirs, ours)
    x = torch.randn(2, 24, 8, 8)
    expected = theirs(x)
    block = efficientnet_lite.Block(ours, residual=stride == 1 and outputs == 24, drop=0.0)
    torch.testing.assert_close(block(x), expected)


def copy_in_order(source, target):
    """Give `target` the weights and statistics of `source`, whose layers come in the same order."""
    values = source.state_dict().values()
    target.load_state_dict(dict(zip(target.state_dict(), values, strict=True)))


@pytest.mark.parametrize("training", [False, True])
def test_tutorial_network_written_out(training):
    def pair(inputs, first, second):
        return [
            *(nn.Conv2d(inputs, first, 3, padding=1), nn.BatchNorm2d(first), nn.ReLU()),
            *(nn.Conv2d(first, second, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2, 2)),
        ]

    theirs = nn.Sequential(
        *(*pair(3, 32, 64), *pair(64, 128, 128), nn.Dropout2d(0.05), *pair(128, 256, 256)),
        *(nn.Flatten(), nn.Dropout(0.1), nn.Linear(4096, 1024), nn.ReLU()),
        *(nn.Linear(1024, 512), nn.ReLU(), nn.Dropout(0.1), nn.Linear(512, 10)),
    ).train(training)
    ours = build("simple_cnn", **TUTORIAL).train(training)
    copy_in_order(theirs, ours)
    assert count(ours) == 5_852_170
    logits = []
    for model in (ours, theirs):
        torch.manual_seed(7)  # the same masks, if dropout stands in the same places
        logits.append(model(images(8)))
    torch.testing.assert_close(*logits)


def test_default_sizes_by_hand():
    blocks = [(3, 32), (32, 64), (64, 128)]
    assert count(meta("simple_cnn")) == sum(conv_bn(a, b) + conv_bn(b, b) for a, b in blocks) + 1290 == 288_746
    convolutions = [(24, 64), (64, 128), (128, 256), (256, 256), (256, 512), (512, 512)]
    whitening = 24  # its bias; its filters are not trained
    assert count(meta("vgg")) == whitening + sum(conv_bn(a, b) for a, b in convolutions) + 5130 == 4_519_842
    # A block's norms stand before its convolutions, and its shortcut has none.
    residual = sum(2 * a + conv_bn(a, b) + 9 * b * b + a * b for a, b in [(64, 128), (128, 256), (256, 512)])
    ends = 2 * 512 + 5130
    assert count(meta("resnet")) == whitening + 9 * 24 * 64 + residual + ends == 4_839_586
    published = {**AS_PUBLISHED, "preactivation": True}
    assert count(meta("resnet", **published)) == 9 * 3 * 64 + residual + ends == 4_827_466


def test_default_efficientnet_by_hand():
    fused = [(32, 128, 64), (64, 128, 64), (64, 256, 96), (96, 384, 160)]
    inverted = [(96, 384), (96, 384), (160, 640), (160, 640)]
    expected = conv_bn(3, 16) + conv_bn(16, 32) + conv_bn(160, 512, 1) + 5130
    expected += sum(conv_bn(a, inner) + conv_bn(inner, b, 1) for a, inner, b in fused)
    expected += sum(conv_bn(a, inner, 1) + conv_bn(1, inner) + conv_bn(inner, a, 1) for a, inner in inverted)
    assert count(meta("efficientnet_lite")) == expected == 1_372_698


@pytest.mark.parametrize("name", FAMILIES)
def test_yaml_states_its_parameters(name):
    comment = (CONF / f"{name}.yaml").read_text().splitlines()[0]
    assert comment.startswith("# ")
    assert f" {count(meta(name)):,} parameters." in comment


@pytest.mark.parametrize(
    ("name", "millions"), [("simple_cnn", 38.6), ("vgg", 145.7), ("resnet", 189.7), ("efficientnet_lite", 72.9)]
)
def test_multiply_adds_from_the_shapes_of_the_layers(name, millions):
    model = meta(name).eval()
    total = 0

    def add(layer, inputs, output):
        nonlocal total
        total += output.numel() * layer.weight[0].numel()

    for layer in model.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear | Whitening):
            layer.register_forward_hook(add)
    assert multiply_adds(model) == pytest.approx(total / 1e6)
    assert total / 1e6 == pytest.approx(millions, abs=0.05)


def normalise(x, bn):
    mean, var = x.mean((0, 2, 3), keepdim=True), x.var((0, 2, 3), keepdim=True, unbiased=False)
    scale, shift = bn.weight.view(1, -1, 1, 1), bn.bias.view(1, -1, 1, 1)
    return (x - mean) / (var + bn.eps).sqrt() * scale + shift


def spread_batch_norms(module):
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.normal_(layer.weight, 1, 0.3)
            nn.init.normal_(layer.bias, 0, 0.3)


def test_basic_block_by_hand_in_float64():
    torch.manual_seed(0)
    block = resnet.Block("basic", 6, 10, 2, "relu", "projection").double()
    spread_batch_norms(block)
    x = torch.randn(5, 6, 8, 8, dtype=torch.float64)
    first, first_bn, _, second, second_bn = block.branch
    inner = normalise(F.conv2d(x, first.weight, stride=2, padding=1), first_bn).clamp(min=0)
    branch = normalise(F.conv2d(inner, second.weight, padding=1), second_bn)
    shortcut = normalise(F.conv2d(x, block.shortcut[0].weight, stride=2), block.shortcut[1])
    torch.testing.assert_close(block(x.clone()), (branch + shortcut).clamp(min=0))


@pytest.mark.parametrize(("inputs", "stride"), [(6, 2), (10, 1)])
def test_preactivation_block_by_hand_in_float64(inputs, stride):
    torch.manual_seed(0)
    block = resnet.PreactivationBlock("basic", inputs, 10, stride, "relu", "projection").double()
    spread_batch_norms(block)
    x = torch.randn(5, inputs, 8, 8, dtype=torch.float64)
    first, second_bn, _, second = block.branch
    active = normalise(x, block.preactivation[0]).clamp(min=0)
    inner = normalise(F.conv2d(active, first.weight, stride=stride, padding=1), second_bn).clamp(min=0)
    shortcut = x if stride == 1 else F.conv2d(active, block.shortcut.weight, stride=2)
    torch.testing.assert_close(block(x.clone()), F.conv2d(inner, second.weight, padding=1) + shortcut)


def test_pad_shortcut_keeps_every_second_pixel_and_adds_zeros():
    x = torch.randn(2, 3, 4, 4)
    y = resnet.PadShortcut(3, 5, 2)(x)
    assert y.shape == (2, 5, 2, 2)
    for row in range(2):
        for column in range(2):
            assert torch.equal(y[:, :3, row, column], x[:, :, 2 * row, 2 * column])
    assert not y[:, 3:].any()


@pytest.mark.parametrize("preactivation", [False, True])
def test_zero_init_residual_starts_as_the_shortcut(preactivation):
    options = {
        "blocks": (2,),
        "widths": (8,),
        "preactivation": preactivation,
        "zero_init_residual": True,
        "activation": "relu",
    }
    model = build("resnet", **options)
    x = torch.rand(2, 8, 8, 8)  # positive, so the last ReLU of a block changes nothing
    for block in model.stages[0]:
        torch.testing.assert_close(block(x), x)


def test_first_weights_have_the_stated_spread():
    torch.manual_seed(0)
    model = nn.Sequential(
        layers.conv(64, 128), layers.conv(256, 256, groups=256), nn.Linear(300, 400), nn.Linear(400, 10)
    )
    layers.init_weights(model)
    for layer, std in zip(model, (math.sqrt(2 / (128 * 9)), math.sqrt(2 / 9), math.sqrt(2 / 300), 0.01), strict=True):
        assert layer.weight.std().item() == pytest.approx(std, rel=0.06)
        assert layer.bias is None or not layer.bias.any()


def test_the_tutorials_first_weights_are_those_that_torchs_layers_draw():
    """Weights and biases uniform in ±1/√fan-in (He et al. 2015 with a = √5), which ours exceed; our biases are 0."""
    for init, is_torchs in (("torch", True), ("he", False)):
        torch.manual_seed(0)
        model = build("simple_cnn", **{**TUTORIAL, "init": init})
        layers_ = [module for module in model.modules() if isinstance(module, nn.Conv2d | nn.Linear)]
        within = [bool(module.weight.abs().max() <= module.weight[0].numel() ** -0.5) for module in layers_]
        assert all(within) == is_torchs
        assert all(bool(module.bias.any()) == is_torchs for module in layers_)
