"""What every model must do: shapes, gradients, first loss, options, and agreement of YAML, config and constructor."""

import dataclasses
import inspect
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import yaml
from torch import nn

from cifarbench.config import keys
from cifarbench.config import models as config
from cifarbench.errors import ConfigError
from cifarbench.models import layers, registry, resnet, simple_cnn, vgg
from cifarbench.tables import Table

CONF = Path(__file__).parents[1] / "conf" / "model"
CLASSICS = ("alexnet", "googlenet", "lenet", "linear", "mlp")
FAMILIES = (*CLASSICS, "efficientnet_lite", "resnet", "simple_cnn", "speednet", "vgg")
RULES = {cls: {f.name: keys.rule_of(f) for f in dataclasses.fields(cls)} for cls in config.MODELS.values()}


def defaults(name):
    """The shipped YAML, checked: the name and the constructor's arguments."""
    checked = keys.build(config.MODELS[name], yaml.safe_load((CONF / f"{name}.yaml").read_text()), "model")
    return dataclasses.asdict(checked)


def build(name, seed=0, **options):
    torch.manual_seed(seed)
    return registry.build(**{**defaults(name), **options})


def images(n=4, seed=1, dtype=torch.float32):
    return torch.randn(n, 3, 32, 32, generator=torch.Generator().manual_seed(seed), dtype=dtype)


SMALL = {
    "simple_cnn": {"first_widths": (8, 8), "second_widths": (8, 16), "spatial_dropout": (0.1, 0.1)},
    "vgg": {"depth": 11, "width": 0.125},
    "resnet": {"blocks": (1, 2), "widths": (8, 16)},
    "efficientnet_lite": {"width": 0.25},
    "speednet": {"widths": (8, 16)},
    "linear": {},
    "mlp": {"hidden": (24, 16)},
    "lenet": {},
    "alexnet": {"width": 0.125, "hidden": (16, 16), "dropout": 0.0},
    "googlenet": {"width": 0.125},
}


@pytest.mark.parametrize("name", FAMILIES)
def test_yaml_dataclass_and_constructor_agree(name):
    fields = [field.name for field in dataclasses.fields(config.MODELS[name])]
    assert fields[0] == "name"
    assert fields == list(yaml.safe_load((CONF / f"{name}.yaml").read_text()))
    assert fields[1:] == list(registry.options(name))
    for parameter in registry.options(name).values():
        assert parameter.kind is inspect.Parameter.KEYWORD_ONLY
        assert parameter.default is inspect.Parameter.empty


def test_every_family_has_yaml_config_and_class():
    assert sorted(path.stem for path in CONF.glob("*.yaml")) == sorted(config.MODELS) == sorted(FAMILIES)
    assert set(FAMILIES) <= set(registry.names())


def test_config_choices_are_the_tables():
    assert tuple(layers.ACTIVATIONS) == config.ACTIVATIONS
    assert tuple(layers.POOLINGS) == config.POOLINGS
    assert tuple(layers.HEADS) == config.HEADS
    assert tuple(vgg.CONVOLUTIONS) == config.VGG_DEPTHS
    assert config.IMAGE_SIZE == layers.IMAGE_SIZE
    choices = {(cls, name): rule.choices for cls, rules in RULES.items() for name, rule in rules.items()}
    assert choices[config.SimpleCNNConfig, "norm"] == tuple(simple_cnn.NORMS)
    assert choices[config.ResNetConfig, "block"] == tuple(resnet.EXPANSIONS)
    for block in (resnet.Block, resnet.PreactivationBlock):
        assert choices[config.ResNetConfig, "shortcut"] == tuple(block.shortcuts)


@pytest.mark.parametrize("name", FAMILIES)
def test_first_loss_is_near_ln_10(name):
    logits = build(name)(images(64))
    assert logits.shape == (64, 10)
    targets = torch.arange(64) % 10
    assert F.cross_entropy(logits, targets).item() == pytest.approx(math.log(10), abs=0.1)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        *((name, {}) for name in FAMILIES),
        ("simple_cnn", {"norm": "none", "head": "flatten", "hidden": (16, 16), "pooling": "stride"}),
        ("resnet", {"preactivation": True}),
        ("resnet", {"block": "bottleneck", "shortcut": "pad"}),
        ("efficientnet_lite", {"squeeze_excite": True}),
        ("resnet", {"shortcut": "none"}),
        ("resnet", {"shortcut": "none", "preactivation": True}),
        ("mlp", {"batch_norm": False, "activation": "maxout"}),
        ("alexnet", {"batch_norm": False, "head": "global_average", "hidden": ()}),
        ("googlenet", {"activation": "maxout", "pooling": "stride"}),
    ],
)
def test_every_parameter_gets_a_gradient(name, options):
    model = build(name, **{**SMALL[name], **options})
    F.cross_entropy(model(images(16)), torch.arange(16) % 10).backward()
    trained = [(key, weight) for key, weight in model.named_parameters() if weight.requires_grad]
    without = [key for key, weight in trained if weight.grad is None or not weight.grad.any()]
    assert without == []


@pytest.mark.parametrize("name", FAMILIES)
def test_eval_treats_each_image_alone(name):
    model = build(name, **SMALL[name]).eval()
    batch, order = images(6), torch.tensor([3, 0, 5, 1, 4, 2])
    with torch.no_grad():
        torch.testing.assert_close(model(batch[order]), model(batch)[order])
        torch.testing.assert_close(model(batch[:1]), model(batch)[:1])


@pytest.mark.parametrize("name", FAMILIES)
def test_bf16_channels_last_is_close_to_fp32(name):
    model = build(name).eval()
    batch = images(8)
    with torch.no_grad():
        exact = model(batch)
        model = model.to(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16):
            rough = model(batch.contiguous(memory_format=torch.channels_last)).float()
    assert (rough - exact).norm() < 0.05 * exact.norm()  # bf16 keeps 8 bits: 0.4 % a rounding


@pytest.mark.parametrize(
    ("name", "activation"),
    [(name, act) for name in FAMILIES if name != "linear" for act in RULES[config.MODELS[name]]["activation"].choices],
)
def test_every_activation_trains(name, activation):
    _runs(name, activation=activation)


def test_maxout_is_offered_wherever_the_layer_before_it_can_be_widened():
    offered = {n for n in FAMILIES if n != "linear" and "maxout" in RULES[config.MODELS[n]]["activation"].choices}
    assert offered == {"alexnet", "googlenet", "lenet", "mlp", "simple_cnn", "vgg"}
    values = yaml.safe_load((CONF / "resnet.yaml").read_text())
    with pytest.raises(ConfigError, match=r"`model.activation` is 'maxout'; it must be one of relu"):
        keys.build(config.MODELS["resnet"], {**values, "activation": "maxout"}, "model")


@pytest.mark.parametrize("name", ["simple_cnn", "vgg", "alexnet", "lenet"])
@pytest.mark.parametrize("pooling", layers.POOLINGS)
def test_maxout_trains_with_every_pooling(name, pooling):
    _runs(name, activation="maxout", pooling=pooling, **({"whitening": True} if name in ("simple_cnn", "vgg") else {}))


def test_maxout_by_hand():
    x = torch.tensor([[1.0, -2.0, 0.5, 3.0], [0.0, 4.0, -1.0, -4.0]])
    assert layers.activation("maxout")(x).tolist() == [[1.0, 3.0], [0.0, 4.0]]
    with_whitening = build("vgg", **SMALL["vgg"], whitening=True, activation="maxout")
    halves = F.conv2d(images(), with_whitening.stem.weight[:12])
    torch.testing.assert_close(with_whitening.stem(images()), halves.abs())  # filters come with their negatives


@pytest.mark.parametrize("name", ["simple_cnn", "vgg", "alexnet"])
@pytest.mark.parametrize("pooling", layers.POOLINGS)
@pytest.mark.parametrize(
    ("head", "hidden"), [("global_average", ()), ("global_max", ()), ("flatten", ()), ("flatten", (24, 16))]
)
def test_every_pooling_and_head_trains(name, pooling, head, hidden):
    _runs(name, pooling=pooling, head=head, hidden=hidden)


@pytest.mark.parametrize("block", resnet.EXPANSIONS)
@pytest.mark.parametrize("preactivation", [False, True])
@pytest.mark.parametrize("shortcut", resnet.Block.shortcuts)
def test_every_residual_block_trains(block, preactivation, shortcut):
    _runs("resnet", block=block, preactivation=preactivation, shortcut=shortcut, zero_init_residual=True)


@pytest.mark.parametrize("pooling", ["stride", "max", "average"])
@pytest.mark.parametrize("head", config.GLOBAL_HEADS)
@pytest.mark.parametrize("whitening", [False, True])
def test_every_resnet_pooling_head_and_stem_trains(pooling, head, whitening):
    _runs("resnet", pooling=pooling, head=head, whitening=whitening, dirac=True)


@pytest.mark.parametrize("pooling", layers.POOLINGS)
@pytest.mark.parametrize(("depth", "residual"), [(1, False), (2, True), (3, True)])
def test_every_speednet_option_trains(pooling, depth, residual):
    _runs("speednet", pooling=pooling, depth=depth, residual=residual, head="global_average", norm_scale=True)


def test_every_efficientnet_option_trains():
    _runs("efficientnet_lite", depth=2.0, squeeze_excite=True, stochastic_depth=0.5, dropout=0.5)


def _runs(name, **options):
    model = build(name, **{**SMALL[name], **options})
    loss = model(images(4)).square().sum()
    loss.backward()
    assert loss.isfinite()
    assert all(weight.grad.isfinite().all() for weight in model.parameters() if weight.requires_grad)


def test_stochastic_depth_drops_whole_images_and_keeps_the_mean():
    from cifarbench.models.efficientnet_lite import StochasticDepth

    torch.manual_seed(0)
    x = torch.ones(20_000, 2, 1, 1)
    y = StochasticDepth(0.25).train()(x)
    assert y.unique().tolist() == pytest.approx([0, 4 / 3])
    assert torch.equal(y[:, 0], y[:, 1])
    assert y.mean().item() == pytest.approx(1, abs=0.02)  # 5 standard errors of sqrt(1/3 / 20,000)
    assert torch.equal(StochasticDepth(0.25).eval()(x), x)


def test_width_is_rounded_to_multiples_of_8():
    assert [layers.scaled(64, width) for width in (0.01, 0.5, 0.7, 1, 1.1)] == [8, 32, 48, 64, 72]


@pytest.mark.parametrize(
    ("name", "changes", "words"),
    [
        ("vgg", {"depth": 12}, ["`model.depth` is 12", "11, 13, 16, 19"]),
        ("vgg", {"hidden": [512]}, ["`model.hidden` is [512]", "head=flatten"]),
        ("vgg", {"activation": "rlu"}, ["`model.activation` is 'rlu'", 'mean "relu"']),
        ("vgg", {"dropout": 1.0}, ["`model.dropout` is 1.0", "below 1"]),
        ("simple_cnn", {"second_widths": [8]}, ["`model.second_widths` is [8]", "same length"]),
        ("simple_cnn", {"spatial_dropout": [0.1]}, ["`model.spatial_dropout` is [0.1]", "per block"]),
        (
            "simple_cnn",
            {"first_widths": [8] * 6, "second_widths": [8] * 6, "spatial_dropout": [0.0] * 6},
            ["`model.first_widths`", "1 to 5"],
        ),
        ("resnet", {"blocks": [1, 1]}, ["`model.widths` is [64, 128, 256, 512]", "`model.blocks` is [1, 1]"]),
        ("resnet", {"blocks": [], "widths": []}, ["`model.blocks` is []", "1 to 6"]),
        ("resnet", {"blocks": [0, 1, 0, 1]}, ["`model.blocks` is [0, 1, 0, 1]", "only the first of several stages"]),
        ("resnet", {"blocks": [0], "widths": [8]}, ["`model.blocks` is [0]", "only the first of several stages"]),
        ("resnet", {"shortcut": "pad", "widths": [64, 64, 32, 64]}, ["`model.shortcut` is pad", "projection"]),
        ("efficientnet_lite", {"width": 0}, ["`model.width` is 0", "above 0"]),
        ("resnet", {"shortcut": "none", "zero_init_residual": True}, ["zero_init_residual", "shortcut` none"]),
        ("speednet", {"widths": [8] * 5}, ["`model.widths`", "1 to 4"]),
        ("alexnet", {"head": "global_max"}, ["`model.hidden` is [512, 512]", "head=flatten"]),
        ("lenet", {"widths": [6]}, ["`model.widths` is [6]", "2 entries"]),
        ("mlp", {"hidden": [0]}, ["`model.hidden[0]` is 0", "at least 1"]),
        ("speednet", {"depth": 1, "residual": True}, ["`model.residual` is true", "depth of 2"]),
    ],
)
def test_a_broken_rule_names_key_value_and_remedy(name, changes, words):
    values = yaml.safe_load((CONF / f"{name}.yaml").read_text())
    with pytest.raises(ConfigError) as error:
        keys.build(config.MODELS[name], {**values, **changes}, "model")
    assert [word for word in words if word not in str(error.value)] == []


def test_registry_refuses_unknown_names_and_options():
    with pytest.raises(ConfigError, match=r'unknown model "vg".*mean "vgg".*Valid: alexnet, efficientnet_lite'):
        registry.build("vg")
    with pytest.raises(ConfigError, match=r'"widht".*mean "width"'):
        registry.build("vgg", widht=1.0)
    with pytest.raises(ConfigError, match=r"`model.depth` is missing"):
        registry.build("vgg")
    with pytest.raises(ConfigError, match=r'unknown vgg depth "12".*Valid: 11, 13, 16, 19'):
        build("vgg", depth=12)


def test_a_user_model_is_registered_once(monkeypatch):
    monkeypatch.setattr(registry, "_TABLE", Table("model", 0, {name: registry._find(name) for name in FAMILIES}))

    @registry.register("mine")
    class Mine(nn.Sequential):
        def __init__(self, *, bias: bool = True) -> None:
            super().__init__(nn.Flatten(), nn.Linear(3072, 10, bias=bias))

    assert sum(weight.numel() for weight in registry.build("mine", bias=False).parameters()) == 30_720
    assert registry.options("mine")["bias"].default is True
    for taken in ("mine", "vgg"):
        with pytest.raises(ConfigError, match="registered twice"):
            registry.register(taken)(Mine)


def test_imports_point_one_way():
    code = "import sys, cifarbench.models.registry as r; r.names(); print(*sys.modules)"
    assert not [module for module in _modules(code) if module.startswith("cifarbench.config")]
    assert "torch" not in _modules(
        "import sys, cifarbench.config.models, cifarbench.models.registry; print(*sys.modules)"
    )


def _modules(code):
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split()
