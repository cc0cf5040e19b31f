"""Files of the user's own: an optimizer and an augmentation, from the command line to the judge."""

from __future__ import annotations

import json
from types import FunctionType

import pytest
import torch
from conftest import TINY, manifest_of, mark_interrupted, rows_of, tiny_config
from processes import python

from cifarbench import runs
from cifarbench.commands.hydra_app import compose
from cifarbench.commands.plugins import load_plugins
from cifarbench.config.load import identity, load
from cifarbench.config.schema import TrainConfig
from cifarbench.data.augment import Augment
from cifarbench.data.load import load_images
from cifarbench.data.random import Draws
from cifarbench.data.split import split
from cifarbench.errors import explain
from cifarbench.training import checkpoint
from cifarbench.training.feed import Feed

OPTIMIZER = """
from __future__ import annotations
import torch
from cifarbench.optim.registry import register

@register("{name}")
class Plain(torch.optim.Optimizer):
    def __init__(self, params, lr: float = 0.1, momentum: float = 0.0, weight_decay: float = 0.0) -> None:
        super().__init__(params, dict(lr=lr, momentum=momentum, weight_decay=weight_decay))

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                velocity = self.state[weight].setdefault("velocity", torch.zeros_like(weight))
                velocity.mul_(group["momentum"]).add_(weight.grad + group["weight_decay"] * weight)
                weight.sub_(group["lr"] * velocity)
"""
AUGMENTATION = """
import torch
from cifarbench.data.registry import register

@register("{name}")
def coarse(images, draws, *, bits: int = 4, chance: float = 0.5):
    fewer = images >> (8 - bits) << (8 - bits)
    return torch.where(draws.coin("{name}", chance)[:, None, None, None], fewer, images)
"""
NO_OPTIMIZER = [*TINY[:6], *TINY[8:], "trainer.tensorboard=false", "trainer.threads=1", "trainer.precision=fp32"]
QUICK = [*TINY, "trainer.tensorboard=false", "trainer.threads=1", "trainer.precision=fp32"]


@pytest.fixture
def write(tmp_path):
    """Write a plugin's file, under a name of its own, as the registries keep what they are told."""

    def made(text: str, name: str) -> str:
        (tmp_path / f"{name}.py").write_text(text.replace("{name}", name))
        return f"plugins=[{name}.py]"

    return made


def test_an_optimizer_by_one_file_steps_as_torchs_own_does_under_the_same_schedule(cli, tmp_path, write):
    plugin = write(OPTIMIZER, "plain_one")
    words = ["optim.lr=0.05", "optim.momentum=0.8", "optim.weight_decay=0.01", "scheduler=cosine"]
    mine = cli("train", *NO_OPTIMIZER, plugin, "optim=plain_one", *words, "hydra.run.dir=mine")
    assert mine.code == 0, mine.err
    theirs = cli("train", *NO_OPTIMIZER, "optim=sgd", "optim.nesterov=false", *words, "hydra.run.dir=theirs")
    assert theirs.code == 0, theirs.err
    ours, torchs = rows_of(tmp_path / "mine"), rows_of(tmp_path / "theirs")
    assert [row["lr"] for row in ours] == [row["lr"] for row in torchs]
    for key in ("train_loss", "val_loss"):
        assert [row[key] for row in ours] == pytest.approx([row[key] for row in torchs], rel=1e-3)


def test_a_run_with_an_own_optimizer_and_augmentation_goes_on_bit_for_bit(cli, tmp_path, write, monkeypatch):
    files = [write(OPTIMIZER, "plain_three"), write(AUGMENTATION, "coarse_three")]
    plugins = "plugins=[" + ",".join(file[len("plugins=[") : -1] for file in files) + "]"
    words = ["train", *NO_OPTIMIZER, plugins, "optim=plain_three", "augment=coarse_three", "augment.flip=0.5",
             "optim.momentum=0.9", "optim.l1=0.003"]  # fmt: skip
    assert cli(*words, "hydra.run.dir=whole").code == 0
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "copy", _interrupt)  # when the first epoch is copied as the best
        assert cli(*words, "hydra.run.dir=cut").code == 130
    ended = cli("train", plugins, "trainer.resume=cut")
    assert ended.code == 0, ended.err
    assert "resumed from last.pt" in ended.out
    assert manifest_of(tmp_path / "cut")["weights"] == manifest_of(tmp_path / "whole")["weights"]
    assert rows_of(tmp_path / "cut") == rows_of(tmp_path / "whole")
    assert manifest_of(tmp_path / "cut")["model"]["zeros"] > 0


def _interrupt(*_):
    raise KeyboardInterrupt


def test_an_augmentation_by_one_file_changes_what_is_trained_on_and_joins_the_shipped_ones(cli, tmp_path, write):
    plugin = write(AUGMENTATION, "coarse_one")
    losses = {}
    for run, words in (
        ("none", ["augment=none"]),
        ("never", ["augment=coarse_one", "augment.chance=0.0"]),
        ("always", ["augment=coarse_one", "augment.chance=1.0", "augment.bits=1"]),
        ("both", ["augment=coarse_one", "augment.chance=1.0", "augment.bits=1", "augment.crop_padding=4"]),
    ):
        ended = cli("train", *QUICK, plugin, *words, f"hydra.run.dir={run}")
        assert ended.code == 0, ended.err
        losses[run] = manifest_of(tmp_path / run)["weights"]
    assert losses["never"] == losses["none"]
    assert len(set(losses.values())) == 3


def test_an_own_augmentation_is_told_apart_by_its_draws_and_sees_bytes(tmp_path, write):
    write(AUGMENTATION, "coarse_two")
    load_plugins([str(tmp_path / "coarse_two.py")])
    config = load(TrainConfig, compose("train", ["augment=coarse_two", "augment.bits=2"])).augment
    augment = Augment(config, (0.5,) * 3, (0.25,) * 3)
    images = torch.randint(256, (64, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    draws = Draws(3, 1, torch.arange(64))
    moved = augment.move(images, draws)
    chosen = draws.coin("coarse_two", 0.5)
    assert 10 < int(chosen.sum()) < 54
    assert torch.equal(moved[~chosen], images[~chosen])
    assert torch.equal(moved[chosen], (images[chosen] // 64) * 64)
    alone = augment.move(images[5:6], Draws(3, 1, torch.tensor([5])))
    assert torch.equal(alone, moved[5:6])


def test_an_own_augmentation_is_shown(cli, tmp_path, write):
    plugin = write(AUGMENTATION, "coarse_four")
    ended = cli("data", "show", "data=synthetic", "data.size=600", "augment=coarse_four", plugin)
    assert ended.code == 0, ended.err
    assert (tmp_path / "outputs" / "data" / "samples-coarse_four.png").is_file()


def test_tune_asks_for_the_space_of_an_own_optimizer_and_takes_it(cli, tmp_path, write):
    pytest.importorskip("optuna", reason="needs the extra `tune`")
    words = [*NO_OPTIMIZER, write(OPTIMIZER, "plain_tuned"), "optim=plain_tuned", "trainer.epochs=1", "tune.trials=1"]
    ended = cli("tune", *words)
    assert (ended.code, "`tune.space` is empty; name what is searched" in ended.err) == (2, True), ended.err
    assert cli("tune", *words, "tune.space=['optim.lr=log(0.01,1)']").code == 0
    (study,) = (tmp_path / "outputs" / "tune").glob("*/study.json")
    assert 0.01 <= json.loads(study.read_text())["trials"][0]["optim.lr"] <= 1


def test_help_lists_what_a_plugin_adds_with_its_keys(cli, write):
    said = cli("train", "--help", write(OPTIMIZER, "plain_four"), "optim=plain_four").out
    assert "plain_four" in said
    assert "optim.momentum=0.0\n      [plain_four] Argument momentum of plain_four." in said
    said = cli("train", "--help", write(AUGMENTATION, "coarse_five"), "augment=coarse_five").out
    assert "augment.bits=4" in said


def test_an_edited_file_is_another_recipe_and_its_place_is_none(tmp_path, write):
    found = []
    for name, text in (("coarse_six", AUGMENTATION), ("coarse_seven", AUGMENTATION.replace("8 - bits", "9 - bits"))):
        write(text, name)
        load_plugins([str(tmp_path / f"{name}.py")])
        found.append(load(TrainConfig, compose("train", [*TINY, f"augment={name}"])))
    assert len({identity(config) for config in [*found, tiny_config("augment=none")]}) == 3
    assert found[0].augment.sha256 != found[1].augment.sha256


def test_a_run_with_code_of_its_author_is_read_with_its_file_alone_and_judged_by_a_person(tmp_path, write):
    """Each command in a process of its own, which has loaded nothing before."""
    files = [write(OPTIMIZER, "plain_five"), write(AUGMENTATION, "coarse_eight")]
    plugins = "plugins=[" + ",".join(file[len("plugins=[") : -1] for file in files) + "]"

    def said(*words: str):
        return python("-m", "cifarbench", *words, cwd=tmp_path)

    chosen = ["optim=plain_five", "augment=coarse_eight"]
    assert said("train", *NO_OPTIMIZER, *chosen, plugins, "hydra.run.dir=run").code == 0
    for verb in (["eval", "run=run"], ["verify", "run"]):
        without = said(*verb)
        told = without.out + without.err
        assert (without.code, "`optim.name` is 'plain_five'" in told, "plugins=[FILE]" in told) == (3, True, True), told
    half = said("eval", "run=run", files[0])
    assert (half.code, "`augment.name` is 'coarse_eight'" in half.err) == (3, True), half.err
    assert said("leaderboard", "run").code == 0
    assert said("eval", "run=run", plugins).code == 0
    judged = said("verify", "run", plugins)
    assert judged.code == 3, judged.err  # as the images are drawn
    checks = {each["rule"]: each for each in runs.read_json(tmp_path / "run" / "verify.json")["checks"]}
    own = checks["1, 4  own model, drawn weights"]
    assert own["verdict"] == "look"
    assert "augment=coarse_eight, optim=plain_five" in own["reason"]
    mark_interrupted(tmp_path / "run")
    without = said("train", "trainer.resume=run")
    assert (without.code, "plugins=[FILE]" in without.err) == (2, True), without.err


def test_a_run_is_not_gone_on_with_by_an_edited_optimizer(cli, tmp_path, write):
    plugin = write(OPTIMIZER, "plain_six")
    assert cli("train", *NO_OPTIMIZER, plugin, "optim=plain_six", "trainer.epochs=1", "hydra.run.dir=run").code == 0
    mark_interrupted(tmp_path / "run")
    path = tmp_path / "run" / "config.yaml"
    path.write_text(path.read_text().replace("sha256: ", "sha256: f"))
    ended = cli("train", plugin, "trainer.resume=run")
    assert ended.code == 3
    assert "`optim.sha256`" in ended.err


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (OPTIMIZER.replace("lr: float = 0.1", "rate: float = 0.1").replace("lr=lr", "lr=rate"), "takes no `lr`"),
        (OPTIMIZER.replace("momentum: float = 0.0", "momentum=0.0"), "'momentum', which needs a type"),
        (
            OPTIMIZER.replace("momentum: float = 0.0", "l1: float = 0.0").replace("=momentum", "=l1"),
            "'l1', which is taken",
        ),
        (OPTIMIZER.replace('"{name}"', '"sgd"'), "optim=sgd, which is shipped"),
        (AUGMENTATION.replace("bits: int = 4", "flip: int = 4"), "'flip', which is taken"),
        (AUGMENTATION.replace("bits: int = 4", "warps: int = 4"), "'warps', which is taken"),
        (AUGMENTATION.replace('register("{name}")', 'register("cutout")'), "augment=cutout, which is shipped"),
        (AUGMENTATION.replace("images, draws, *", "images, *"), "must take 2 arguments by place"),
    ],
    ids=["no-lr", "no-type", "taken", "sgd", "flip", "warps", "cutout", "no-draws"],
)
def test_what_cannot_become_an_option_is_told_why(cli, write, text, told, request):
    name = "bad_" + request.node.callspec.id.replace("-", "_")
    ended = cli("train", write(text, name), *TINY)
    assert ended.code == 2
    assert told in ended.err
    assert len(ended.err.splitlines()) == 1


@pytest.mark.parametrize(
    ("text", "words", "told"),
    [
        (AUGMENTATION.replace("return torch", "return 1.0 * torch"), ["augment={name}"], "gave torch.float32 (128,"),
        (AUGMENTATION.replace("return torch", "images = torch"), ["augment={name}"], "gave NoneType"),
        (OPTIMIZER.replace("super()", "raise ValueError(3)  # "), ["optim={name}"], "cannot be made (ValueError: 3)"),
        (
            OPTIMIZER.replace("super()", "assert False, 4  # "),
            ["optim={name}"],
            "asserts.py failed (AssertionError",
        ),
        (OPTIMIZER.replace("weight.sub_", "weight.sup_"), ["optim={name}"], "steps.py failed (AttributeError: "),
        (AUGMENTATION.replace(">> (8 - bits) <<", "@"), ["augment={name}"], "pixels.py failed (TypeError: "),
    ],
    ids=["floats", "nothing", "raises", "asserts", "steps", "pixels"],
)
def test_what_a_plugin_does_wrong_is_one_line(cli, write, text, words, told, request):
    name = "wrong_" + request.node.callspec.id
    common = NO_OPTIMIZER if words[0].startswith("optim") else QUICK
    ended = cli("train", *common, write(text, name), *(word.replace("{name}", name) for word in words))
    assert ended.code == 2, ended.err
    assert told in ended.err
    assert len(ended.err.splitlines()) == 1


RICH = """
import torch
from cifarbench.optim.registry import register

@register("{name}")
class Rich(torch.optim.Optimizer):
    def __init__(self, params, lr: float = 0.05) -> None:
        super().__init__(params, dict(lr=lr))

    @torch.no_grad()
    def step(self, closure=None):
        shared = self.state["all"]
        shared["steps"] = shared.get("steps", 0) + 1
        for group in self.param_groups:
            group["steps"] = group.get("steps", 0) + 1
            for weight in group["params"]:
                if weight.grad is not None:
                    state = self.state[weight]
                    if not state:
                        state["slow"] = weight.double().clone()
                        state["count"] = torch.zeros(1, dtype=torch.int64)
                        state["since"] = 0
                        state["mode"], state["all"] = "warm", {"losses": [weight.double().sum()], "n": (1, None)}
                    state["count"] += 1
                    state["since"] += 1
                    state["slow"] += 1e-3 * (weight.double() - state["slow"]) / state["count"]
                    state["all"]["losses"].append(weight.double().sum() / 3)
                    assert state["mode"] == "warm"
                    weight.sub_(group["lr"] * weight.grad + (1e-3 * (weight - state["slow"])).float())
                    weight.sub_(1e-9 * sum(state["all"]["losses"]))
                    weight.mul_(1 - 1e-5 * group["steps"] - 1e-5 * shared["steps"])
"""


def test_plain_state_of_an_optimizer_outlives_a_stop_and_untimed_steps(cli, tmp_path, write, monkeypatch):
    words = ["train", *NO_OPTIMIZER, write(RICH, "rich_one"), "optim=rich_one"]
    assert cli(*words, "hydra.run.dir=whole").code == 0
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "copy", _interrupt)
        assert cli(*words, "hydra.run.dir=cut").code == 130
    assert cli(*words, "trainer.untimed_steps=2", "hydra.run.dir=cut").code == 0
    assert cli(*words, "trainer.untimed_steps=2", "hydra.run.dir=rehearsed").code == 0
    kept = checkpoint.load(tmp_path / "cut/checkpoints/last.pt")["optimizer"]["state"][0]
    assert (kept["slow"].dtype, kept["count"].dtype, int(kept["count"])) == (torch.float64, torch.int64, kept["since"])
    assert [loss.dtype for loss in kept["all"]["losses"]] == [torch.float64] * (kept["since"] + 1)
    weights = {run: manifest_of(tmp_path / run)["weights"] for run in ("whole", "cut", "rehearsed")}
    assert len(set(weights.values())) == 1


@pytest.mark.parametrize(
    ("value", "named"),
    [
        ("{1}", "a set"),
        ("torch.Size([1])", "a Size"),
        ("torch.nn.Parameter(torch.ones(1))", "a torch.float32 Parameter"),
        ("torch.ones(1, dtype=torch.complex64)", "a torch.complex64 Tensor"),
        ("torch.eye(2).to_sparse()", "a torch.float32 Tensor"),
        ("[{(1, 2): {3}}]", "a set"),
    ],
    ids=["set", "size", "parameter", "complex", "sparse", "nested"],
)
def test_state_that_no_checkpoint_may_hold_is_refused_at_the_first_save(cli, write, value, named, request):
    name = f"rich_{request.node.callspec.id}"
    text = RICH.replace('shared["steps"] = ', f'shared["kept"] = {value}; shared["steps"] = ')
    ended = cli("train", *NO_OPTIMIZER, write(text, name), f"optim={name}")
    assert ended.code == 2, ended.err
    assert "optimizer Rich keeps `" in ended.err
    assert named in ended.err


IN_PLACE = AUGMENTATION.replace("return torch.where(", "images.copy_(torch.where(").replace(
    "fewer, images)", "fewer, images))\n    return images"
)


def test_an_augmentation_that_works_in_place_leaves_the_stored_images(tmp_path, write):
    write(IN_PLACE, "coarse_nine")
    load_plugins([str(tmp_path / "coarse_nine.py")])
    config = load(TrainConfig, compose("train", ["augment=coarse_nine", "data=synthetic", "data.size=600"]))
    augment = Augment(config.augment, (0.5,) * 3, (0.25,) * 3)
    train = split(load_images(config.data), config.split).train
    before = train.images.clone()
    for ahead in (False, True):
        feed = Feed(augment, 3, ahead)
        first = [feed(train, torch.arange(50), epoch, 32)[0] for epoch in (0, 1, 0)]
        assert torch.equal(first[0], first[2])
        assert not torch.equal(first[0], first[1])
        assert torch.equal(train.images, before)
    augment.view(train.images[:20], Draws(0, 0, train.indices[:20]))
    assert torch.equal(train.images, before)


@pytest.mark.parametrize("value", ["[a]", "{a: 1}", "null"])
def test_a_name_of_an_augmentation_that_is_no_text_is_refused(cli, value):
    ended = cli("train", *TINY, f"augment.name={value}")
    assert ended.code == 2, ended.err
    assert "`augment.name` is" in ended.err


def test_a_misspelt_name_or_key_of_a_plugin_finds_the_plugins_own(cli, write):
    plugin = write(AUGMENTATION, "coarse_ten")
    ended = cli("train", *TINY, plugin, "augment=coarse_ten", "augment.bist=3")
    assert (ended.code, 'Did you mean "augment.bits"' in ended.err) == (2, True), ended.err
    ended = cli("train", *TINY, plugin, "augment=coarse_tem")
    assert (ended.code, 'Did you mean "coarse_ten"' in ended.err) == (2, True), ended.err


def test_an_error_in_code_of_no_module_is_told_in_one_line():
    """As torch makes such code."""
    nameless = FunctionType(compile("1 / 0", "made", "eval"), {})
    with pytest.raises(ZeroDivisionError) as raised:
        nameless()
    sentence, code = explain(raised.value)
    assert (code, sentence[:24]) == (1, "a bug: ZeroDivisionError")
