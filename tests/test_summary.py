"""The layer table against a published table, torch's counter, and receptive fields measured by gradients."""

from __future__ import annotations

import copy
import csv
import json
import resource
import time

import pytest
import torch
from processes import python, shell
from test_models import FAMILIES, SMALL, build
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from cifarbench.models import layers
from cifarbench.models.layer_table import layer_table, padding_share, peaks, stages, warnings
from cifarbench.models.receptive import Window
from cifarbench.models.summary import summarise
from cifarbench.reporting.layers import print_summary


def count(model):
    return sum(parameter.numel() for parameter in model.parameters())


def original_alexnet():
    """AlexNet on one device (Krizhevsky 2014): 227x227 images, 11x11 stem of stride 4, overlapping pooling."""
    return nn.Sequential(
        *(nn.Conv2d(3, 64, 11, 4, 2), nn.ReLU(), nn.MaxPool2d(3, 2)),
        *(nn.Conv2d(64, 192, 5, 1, 2), nn.ReLU(), nn.MaxPool2d(3, 2)),
        *(nn.Conv2d(192, 384, 3, 1, 1), nn.ReLU()),
        *(nn.Conv2d(384, 256, 3, 1, 1), nn.ReLU()),
        *(nn.Conv2d(256, 256, 3, 1, 1), nn.ReLU(), nn.MaxPool2d(3, 2)),
        *(nn.Flatten(), nn.Linear(9216, 4096), nn.ReLU(), nn.Linear(4096, 4096), nn.ReLU(), nn.Linear(4096, 1000)),
    )


# Output, KB, parameters, millions of multiply-adds: as lectures print them, but for the biases, which they leave out.
ALEXNET = [
    ("Conv2d", (64, 56, 56), 784, 23_296, 73),
    ("MaxPool2d", (64, 27, 27), 182, 0, 0),
    ("Conv2d", (192, 27, 27), 547, 307_392, 224),
    ("MaxPool2d", (192, 13, 13), 127, 0, 0),
    ("Conv2d", (384, 13, 13), 254, 663_936, 112),
    ("Conv2d", (256, 13, 13), 169, 884_992, 150),
    ("Conv2d", (256, 13, 13), 169, 590_080, 100),
    ("MaxPool2d", (256, 6, 6), 36, 0, 0),
    ("Flatten", (9216,), 36, 0, 0),
    ("Linear", (4096,), 16, 37_752_832, 38),
    ("Linear", (4096,), 16, 16_781_312, 17),
    ("Linear", (1000,), 4, 4_097_000, 4),
]


@pytest.fixture(scope="module")
def alexnet():
    with torch.device("meta"):
        model = original_alexnet()
    return model.to_empty(device="cpu"), layer_table(model.to_empty(device="cpu"), 227)


def test_the_published_alexnet_table(alexnet):
    rows = [row for row in alexnet[1] if row.kind != "ReLU"]
    assert [(row.kind, row.shape, row.parameters) for row in rows] == [(k, s, p) for k, s, _, p, _ in ALEXNET]
    for row, (_, _, kb, _, millions) in zip(rows, ALEXNET, strict=True):
        assert row.memory_kb == pytest.approx(kb, abs=0.8)
        assert row.flops / 2e6 == pytest.approx(millions, abs=0.6)


def test_where_alexnet_is_largest(alexnet):
    most = {cost: (row.kind, row.shape) for cost, row in peaks(alexnet[1]).items()}
    assert most == {
        "memory_kb": ("Conv2d", (64, 56, 56)),
        "flops": ("Conv2d", (192, 27, 27)),
        "parameters": ("Linear", (4096,)),
    }
    share = stages(alexnet[1])
    assert share["vector"]["parameters"] == 58_631_144  # fully connected: 96 % of all 61,100,840
    assert sum(stage["parameters"] for stage in share.values()) == count(alexnet[0]) == 61_100_840


def test_alexnets_fields_by_the_known_recursion(alexnet):
    fields = {row.layer: (row.field, row.jump) for row in alexnet[1]}
    known = {"0": (11, 4), "2": (19, 8), "3": (51, 8), "5": (67, 16), "6": (99, 16), "8": (131, 16), "10": (163, 16)}
    assert {name: fields[name] for name in known} == known
    assert fields["12"] == (195, 32)
    assert fields["14"][0] == 195 + 5 * 32


def test_alexnet_does_not_suit_small_images():
    model = nn.Sequential(*original_alexnet()[:5], layers.GlobalAverage(), nn.Linear(192, 10))
    text = " ".join(warnings(layer_table(model), model))
    assert "The first window, 11×11 in 0" in text
    assert "stem leaves a 3×3 map of a 32 px image" in text


@pytest.mark.parametrize("name", FAMILIES)
def test_totals_are_those_of_torchs_counter(name):
    model = build(name)
    rows = layer_table(model)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model.eval()(torch.zeros(1, 3, 32, 32))
    assert sum(row.flops for row in rows) == counter.get_total_flops()
    by_module = {name: sum(of.values()) for name, of in counter.get_flop_counts().items()}
    prefix = type(model).__name__
    for row in rows:
        if row.kind in ("Conv2d", "Linear"):
            assert row.flops == by_module[f"{prefix}.{row.layer}"]
    assert sum(row.parameters for row in rows) == count(model)
    shapes = {}
    for layer, module in model.named_modules():
        module.register_forward_hook(lambda m, i, o, layer=layer: shapes.update({layer: tuple(o.shape[1:])}))
    model(torch.zeros(1, 3, 32, 32))
    assert all(row.shape == shapes[row.layer] for row in rows if row.kind in ("Conv2d", "Linear", "Flatten", "add"))


def linearised(model):
    """A copy in float64 whose windows are the same and whose gradients are positive wherever there is a path."""
    twin = copy.deepcopy(model).double().eval()
    acts = tuple(type(layers.activation(name)) for name in layers.ACTIVATIONS if name != "maxout")
    for name, module in list(twin.named_modules()):
        parent = twin.get_submodule(name.rpartition(".")[0]) if name else twin
        if isinstance(module, acts):
            setattr(parent, name.rpartition(".")[2], nn.Identity())
        if isinstance(module, nn.MaxPool2d):
            pool = nn.AvgPool2d(module.kernel_size, module.stride, module.padding, ceil_mode=module.ceil_mode)
            setattr(parent, name.rpartition(".")[2], pool)
    for parameter in twin.parameters():
        parameter.data = parameter.data.abs() + 0.1
    return twin


def measured(model, names, size):
    """The window of the image with a gradient from the middle of each named module's map, the larger side in px."""
    outputs = {}
    for name in names:
        module = model.get_submodule(name)
        module.register_forward_hook(lambda m, i, o, name=name: outputs.update({name: o}))
    image = torch.rand(1, 3, size, size, dtype=torch.float64, requires_grad=True)
    model(image)
    found = {}
    for name, output in outputs.items():
        middle = output[0, :, output.shape[2] // 2, output.shape[3] // 2].sum()
        (gradient,) = torch.autograd.grad(middle, image, retain_graph=True)
        rows, columns = gradient[0].abs().sum(0).nonzero().unbind(1)
        found[name] = max(int(rows.max() - rows.min()), int(columns.max() - columns.min())) + 1
    return found


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("simple_cnn", {}),
        ("simple_cnn", {"pooling": "stride", "activation": "maxout"}),
        ("vgg", {}),
        ("resnet", {"blocks": (1, 1, 1), "widths": (8, 8, 8)}),
        ("resnet", {"preactivation": True, "shortcut": "pad", "pooling": "average"}),
        ("resnet", {"block": "bottleneck", "whitening": True}),
        ("resnet", {"shortcut": "none"}),
        ("efficientnet_lite", {}),
        ("speednet", {"residual": True}),
        ("alexnet", {"head": "global_average", "hidden": ()}),
        ("googlenet", {}),
    ],
)
def test_receptive_fields_are_those_that_gradients_show(name, options):
    model = build(name, **{**SMALL[name], **options})
    rows = {row.layer: row for row in layer_table(model) if len(row.shape) == 3}
    widest = max(row.field for row in rows.values())
    kinds = ("Conv2d", "MaxPool2d", "AvgPool2d", "add", "cat", "convolution")
    chosen = [layer for layer, row in rows.items() if row.kind in kinds and row.field > 1]
    chosen = chosen[:: max(1, len(chosen) // 12)] + chosen[-1:]
    size = -(-(widest + 40) // 32) * 32
    found = measured(linearised(model), chosen, size)
    assert found == {layer: rows[layer].field for layer in chosen}


def test_lenets_features_by_gradients():
    model = nn.Sequential(build("lenet").features)
    rows = {row.layer: row.field for row in layer_table(model)}
    assert measured(linearised(model), list(rows), 64) == rows


def test_global_layers_see_the_whole_image():
    assert layer_table(build("linear"))[-1].field == 32
    # features.0 to 5 leave 5x5 places, 4 px apart, each with a window of 16 px
    assert layer_table(build("lenet"))[-1].field == 16 + 4 * 4 == 32
    gated = layer_table(build("efficientnet_lite", width=0.25, squeeze_excite=True))
    products = [row for row in gated if "mul" in row.kind]
    assert products
    assert all(row.field >= 32 for row in products)


class Functional(nn.Module):
    """A model written with calls, not layers, one of which cannot be followed."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3, stride=2)
        self.idle = nn.Linear(7, 3)
        self.last = nn.Linear(4 * 7 * 7, 10)

    def forward(self, x):
        x = nn.functional.max_pool2d(self.first(x).relu(), 3, 2)
        return self.last((x + x.flip(3)).flatten(1))


class Standardised(nn.Module):
    def __init__(self):
        super().__init__()
        self.last = nn.Linear(3072, 10)

    def forward(self, x):
        return self.last(((x - x.mean()) / (x.std() + 1)).flatten(1))


def test_what_calls_do_stands_in_the_table_and_what_cannot_be_followed_is_none():
    model = Functional()
    rows = layer_table(model)
    assert [(row.layer, row.kind) for row in rows][:3] == [
        ("first", "Conv2d"),
        ("(model)", "relu…view"),
        ("last", "Linear"),
    ]
    assert rows[1].field == 3 + 2 * 2  # 3x3 pooling on a map whose places lie 2 px apart
    assert rows[1].shape == (4 * 7 * 7,)
    assert any("24 parameters belong to layers that the forward pass does not run" in w for w in warnings(rows, model))
    assert [row.layer for row in layer_table(Standardised())] == ["(model)", "last"]  # a mean of all pixels has no rows
    attention = nn.Sequential(nn.Conv2d(3, 8, 4, 4), nn.Flatten(2), nn.Linear(64, 10))
    assert layer_table(attention)[-1].field is None


@pytest.mark.parametrize(
    ("window", "share"),
    [
        (Window((3, 3), (1, 1), (1, 1), (1, 1), (2, 2), False), 1 - (4 / 6) ** 2),
        (Window((3, 3), (1, 1), (1, 1), (1, 1), (1, 1), False), 8 / 9),
        (Window((3, 3), (2, 2), (1, 1), (1, 1), (4, 4), False), 1 - (5 / 6) ** 2),
        (Window((5, 5), (1, 1), (0, 0), (1, 1), (14, 14), False), 0),
        (Window((3, 3), (1, 1), (2, 2), (2, 2), (4, 4), False), 1 - (8 / 12) ** 2),
    ],
)
def test_padding_share_by_hand(window, share):
    assert padding_share(window) == pytest.approx(share)


def test_warnings_for_narrow_fields_and_tiny_maps():
    narrow = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), layers.GlobalAverage(), nn.Linear(8, 10))
    assert any("sees 3 of 32 px" in text for text in warnings(layer_table(narrow), narrow))
    vgg = build("vgg", depth=13, stages=5)
    assert any("56% of the 3×3 window of features.4.0" in text for text in warnings(layer_table(vgg), vgg))
    for name in ("resnet", "vgg", "simple_cnn", "lenet", "alexnet", "linear", "mlp", "speednet"):
        assert warnings(layer_table(build(name)), build(name)) == []


def test_the_model_is_left_as_it_was():
    model = build("simple_cnn", **SMALL["simple_cnn"]).train()
    before = copy.deepcopy(model.state_dict())
    layer_table(model)
    assert model.training
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


@pytest.mark.parametrize("name", FAMILIES)
def test_every_shipped_model_is_summarised_in_time(name):
    started = time.process_time()
    summary = summarise(name, build(name))
    assert time.process_time() - started < 1.5
    assert sum(stage["parameters"] for stage in summary["stages"]) == summary["parameters"] + summary["frozen"]
    for cost in ("parameters", "memory_kb", "flops"):
        assert sum(stage[f"{cost}_share"] for stage in summary["stages"]) == pytest.approx(1)


def test_the_command_prints_and_writes_one_truth(cli, tmp_path):
    result = cli("summary", "model=alexnet", "model.width=1.0", "model.hidden=[4096,4096]", "out=table")
    assert result.code == 0, result.err
    summary = json.loads((tmp_path / "table" / "alexnet.json").read_text())
    assert f"{summary['parameters']:,} parameters" in result.out
    assert summary["peaks"]["parameters"] == {"layer": "head.2", "parameters": 4096 * 4097}
    assert f"parameters in head.2 ({4096 * 4097:,})" in " ".join(result.out.split())
    with (tmp_path / "table" / "alexnet.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["layer"] for row in rows] == [layer["layer"] for layer in summary["layers"]]
    assert sum(int(row["parameters"]) for row in rows) == summary["parameters"]
    assert rows[0]["shape"] == "64x32x32"
    assert not list(tmp_path.glob("outputs/*"))


@pytest.mark.parametrize("width", [80, 120])
def test_lines_fit_the_terminal(capsys, width):
    for name in ("efficientnet_lite", "googlenet"):
        print_summary(summarise(name, build(name)), width)
        assert max(map(len, capsys.readouterr().out.splitlines())) <= width


@pytest.mark.timed
def test_the_command_answers_in_three_seconds_or_twice_what_importing_torch_takes(tmp_path):
    def cost_of(run):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)  # what others do on the machine does not count
        assert run().code == 0
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    torch_alone = cost_of(lambda: python("-c", "import torch", cwd=tmp_path))
    spent = cost_of(lambda: shell("summary", "model=googlenet", cwd=tmp_path, OMP_NUM_THREADS="1"))
    assert spent < max(3, 2 * torch_alone)


def test_a_misspelt_key_is_told_the_nearest(cli):
    result = cli("summary", "model=vgg", "model.dept=11")
    assert result.code == 2
    assert "model.depth" in result.err
