"""The report page: what it says, that it stands alone, that nothing in a run can harm its reader, and Chromium."""

from __future__ import annotations

import base64
import html
import io
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from conftest import TINY, manifest_of
from PIL import Image
from scipy.stats import binomtest
from torch import nn

from cifarbench.data.synthetic import draw
from cifarbench.evaluation import explain
from cifarbench.evaluation.comparison import compare, difference_interval, holm, mcnemar, mean_gain
from cifarbench.evaluation.inspection import reliability
from cifarbench.evaluation.metrics import calibration_error
from cifarbench.evaluation.predictions import Predictions
from cifarbench.reporting.page.charts import axis

HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(2)>"


class Page(HTMLParser):
    """A page's elements with their attributes, and its visible text."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.inside: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        self.inside.append(tag)

    def handle_endtag(self, tag):
        while self.inside and self.inside.pop() != tag:
            pass

    def handle_data(self, data):
        if "style" not in self.inside:
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def pictures(self) -> list[str]:
        return [attributes["src"] or "" for tag, attributes in self.elements if tag == "img"]


def copied(run: Path, target: Path) -> Path:
    shutil.copytree(run, target)
    return target


def write_arrays(run: Path, **changes) -> None:
    with np.load(run / "predictions.npz") as old:
        arrays = {name: old[name] for name in old.files}
    np.savez(run / "predictions.npz", **{**arrays, **changes})


@pytest.fixture
def run(two_runs, tmp_path) -> Path:
    return copied(two_runs[0], tmp_path / "run")


@pytest.fixture
def page(cli, run) -> Page:
    result = cli("report", "run")
    assert result.code == 0, result.err
    assert result.out.strip() == "run/report.html"
    return Page(run / "report.html")


# --- the page of one run ---------------------------------------------------------------------------------------------


def test_training_writes_the_page_unless_told_not_to_and_ends_with_the_same_weights(cli, tmp_path, two_runs):
    words = [word for word in TINY if not word.startswith("trainer.report")]
    result = cli("train", *words, "trainer.precision=fp32", "trainer.threads=1", "hydra.run.dir=with")
    assert result.code == 0, result.err
    assert "report: with/report.html" in result.out
    assert (tmp_path / "with" / "report.html").is_file()
    assert not (two_runs[0] / "report.html").exists()
    assert manifest_of(tmp_path / "with")["weights"] == manifest_of(two_runs[0])["weights"]


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt(), KeyError("[/oops]")])
def test_a_page_that_fails_costs_one_line(cli, tmp_path, monkeypatch, error):
    def broken(*arguments, **options):
        raise error

    monkeypatch.setattr("cifarbench.reporting.page.build.write_run_page", broken)
    result = cli("train", *TINY, "trainer.epochs=1", "trainer.report=true", "hydra.run.dir=run")
    assert result.code == 0, result.err
    assert result.out.count("report.html was not written") == 1
    assert manifest_of(tmp_path / "run")["status"] == "completed"


def test_the_page_stands_alone(page, run):
    assert (run / "report.html").stat().st_size < 3_000_000
    assert not [tag for tag, _ in page.elements if tag in ("script", "iframe", "object", "embed", "form", "base")]
    for tag, attributes in page.elements:
        assert not [name for name in attributes if name.startswith("on")], tag
        for name in ("src", "href"):
            address = attributes.get(name)
            assert address is None or address.startswith(("data:", "#")), (tag, address)
    policy = next(attributes["content"] for tag, attributes in page.elements if attributes.get("http-equiv"))
    assert policy.startswith("default-src 'none'")
    sheet = (run / "report.html").read_text().split("<style>")[1].split("</style>")[0]
    assert "url(" not in sheet
    assert "prefers-color-scheme: dark" in sheet


def test_links_within_the_page_lead_somewhere(page):
    targets = {attributes.get("id") for _, attributes in page.elements}
    links = {(attributes["href"] or "")[1:] for tag, attributes in page.elements if tag == "a"}
    assert {"protocol", "curves", "confusion", "pairs", "losses", "confidence", "calibration", "inside"} <= links
    assert links <= targets


def test_the_page_gives_the_recorded_numbers(page, run):
    report, manifest = json.loads((run / "test.json").read_text()), manifest_of(run)
    low, high = report["accuracy_interval"]
    assert f"{report['accuracy']:.2%}".replace("%", " %") in page.text
    assert f"{100 * low:.2f} % to {100 * high:.2f} %" in page.text
    assert "Drawn stand-in images" in page.text
    assert manifest["split"]["fingerprint"][:16] in page.text
    assert "trainer.epochs=2" in page.text
    cells = [attributes["title"] or "" for tag, attributes in page.elements if tag == "td" and attributes.get("title")]
    counts = [int(re.search(r": (\d+) \(", title)[1]) for title in cells]
    assert counts == [count for row in report["confusion_matrix"] for count in row] * 2


def test_the_page_opens_no_seal(page, run, two_runs):
    assert manifest_of(run)["test"]["openings"] == manifest_of(two_runs[0])["test"]["openings"] == 1
    assert "making this page opened nothing" in page.text


def test_the_galleries_show_the_images_that_the_predictions_name(page, run):
    numbers = json.loads((run / "report.json").read_text())
    with np.load(run / "predictions.npz") as stored:
        logits, targets, indices = (stored[name] for name in ("logits", "targets", "indices"))
    shifted = logits.astype(np.float64) - logits.max(1, keepdims=True)
    losses = np.log(np.exp(shifted).sum(1)) - shifted[np.arange(len(targets)), targets]
    order = np.argsort(-losses, kind="stable")[:22]
    shown = numbers["galleries"]["losses"]
    assert [item["loss"] for item in shown] == pytest.approx(losses[order].tolist())
    assert {item["index"] for item in shown} == set(indices[order].tolist())
    images, _ = draw(1200)
    named = {
        attributes["alt"].split(":")[0].removeprefix("image "): attributes["src"]
        for tag, attributes in page.elements
        if tag == "img" and attributes["alt"].startswith("image ") and "answered" in attributes["alt"]
    }
    for item in shown:
        picture = Image.open(io.BytesIO(base64.b64decode(named[str(item["index"])].split(",")[1])))
        assert np.array_equal(np.asarray(picture).transpose(2, 0, 1), images[item["index"]])


def test_confused_pairs_and_extremes_hold_what_they_say(page, run):
    found = json.loads((run / "report.json").read_text())["galleries"]
    for pair in found["confused"]:
        assert pair["images"]
        assert all((i["true"], i["answer"]) == (pair["true"], pair["predicted"]) for i in pair["images"])
    for group in found["extremes"]:
        most, least = ([item["probability"] for item in group[side]] for side in ("most", "least"))
        assert all(item["true"] == group["name"] for item in group["most"] + group["least"])
        assert most == sorted(most, reverse=True)
        assert least == sorted(least)
        assert min(most) >= max(least)


def test_filters_maps_and_grad_cam_are_there_and_of_no_test_image(page, run):
    assert page.text.count("First-layer filters") == 1
    kernels = [a for tag, a in page.elements if tag == "img" and (a["alt"] or "").startswith("weights")]
    assert len(kernels) == 8
    explained = [a["alt"] for tag, a in page.elements if tag == "img" and (a["alt"] or "").startswith("evidence")]
    assert 4 <= len(explained) <= 12
    assert not [a for tag, a in page.elements if tag == "img" and (a["alt"] or "").startswith("test image")]
    assert all(Image.open(io.BytesIO(base64.b64decode(address.split(",")[1]))).size for address in page.pictures())


def test_images_asked_for_are_the_ones_explained(cli, run):
    assert cli("report", "run", "images=[7,1199]").code == 0
    alts = [attributes["alt"] for tag, attributes in Page(run / "report.html").elements if tag == "img"]
    assert any(alt.startswith(("training image 7:", "validation image 7:")) for alt in alts)
    assert any(alt.startswith("test image 1199:") for alt in alts)
    assert cli("report", "run", "images=[1200]").code == 2


def test_a_test_image_behind_its_seal_is_not_explained(cli, run):
    manifest = manifest_of(run)
    manifest["test"]["openings"] = 0
    (run / "run.json").write_text(json.dumps(manifest))
    assert cli("report", "run", "images=[7]").code == 0
    ended = cli("report", "run", "images=[7,1199]")
    assert (ended.code, "names 1199, a test image" in ended.err) == (2, True), ended.err


def test_the_accuracy_without_near_duplicates_is_shown_where_they_are_known(cli, run, monkeypatch):
    assert cli("report", "run").code == 0
    assert "near-duplicates" not in (run / "report.html").read_text()
    monkeypatch.setattr("cifarbench.data.duplicates.known_groups", lambda fingerprint: [[0, 1199], [961, 962], [5, 6]])
    assert cli("report", "run").code == 0
    page = (run / "report.html").read_text()
    assert "unseen 239" in page
    assert "1 of the test images resemble a trainable one" in page
    score = json.loads((run / "report.json").read_text())["score"]
    arrays = np.load(run / "predictions.npz")
    right = (arrays["logits"].argmax(1) == arrays["targets"])[arrays["indices"] != 1199]
    assert score["accuracy_without_duplicates"] == pytest.approx(right.mean())


def test_without_checkpoint_or_test_the_page_says_so(cli, run):
    shutil.rmtree(run / "checkpoints")
    (run / "predictions.npz").unlink()
    assert cli("report", "run").code == 0
    text = Page(run / "report.html").text
    assert "not tested" in text
    assert "holds no checkpoint" in text
    assert "Learning curves" in text


def test_a_changed_record_is_told(cli, run):
    manifest = manifest_of(run)
    manifest["test"]["accuracy"] = 0.99
    (run / "run.json").write_text(json.dumps(manifest))
    assert cli("report", "run").code == 0
    assert "run.json records 99.000 %" in Page(run / "report.html").text


# --- hostile and damaged runs ----------------------------------------------------------------------------------------


def test_nothing_in_a_run_becomes_markup(cli, run, tmp_path):
    report, manifest = json.loads((run / "test.json").read_text()), manifest_of(run)
    report["per_class"] = {f"{HOSTILE}{index}": {} for index in range(10)}
    (run / "test.json").write_text(json.dumps(report))
    manifest |= {"status": HOSTILE, "reason": HOSTILE, "command": ["cifarbench", HOSTILE], "seed": HOSTILE}
    manifest["environment"] = dict.fromkeys(manifest["environment"], HOSTILE)
    manifest["timing"] = HOSTILE
    manifest["dataset"]["name"] = manifest["split"]["name"] = HOSTILE
    (run / "run.json").write_text(json.dumps(manifest))
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["augment"]["name"] = HOSTILE
    config[HOSTILE] = {HOSTILE: HOSTILE}
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    hostile = run.rename(tmp_path / "run<img src=x onerror=alert(3)>")
    result = cli("report", hostile.name)
    assert result.code == 0, result.err
    page = Page(hostile / "report.html")
    assert "script" not in {tag for tag, _ in page.elements}
    assert not [a for _, a in page.elements if {"onerror", "onload"} & a.keys()]
    assert all(address.startswith("data:image/png") for address in page.pictures())
    assert page.text.count("<script>alert(1)</script>") > 20


@pytest.mark.parametrize(
    "values",
    [
        *({"timing": []}, {"test": "x"}, {"best": 3}, {"dataset": None}, {"split": [1]}, {"command": [1, {}]}),
        *({"command": ["a", "b", "\ud800"]}, {"test": {"openings": "3"}}),
    ],
)
def test_odd_types_in_run_json_end_in_a_page_or_a_refusal(cli, run, values):
    (run / "run.json").write_text(json.dumps({**manifest_of(run), **values}))
    for arguments in (["report", "run"], ["eval", "run=run"], ["leaderboard", "."]):
        result = cli(*arguments)
        assert result.code in (0, 3), result.err
        assert "a bug" not in result.err


class Bomb:
    def __reduce__(self):
        return (Path.touch, (Path("exploded"),))


@pytest.mark.parametrize(
    "damage",
    [
        lambda run: (run / "predictions.npz").write_bytes((run / "predictions.npz").read_bytes()[:-40]),
        lambda run: (run / "predictions.npz").write_bytes((run / "predictions.npz").read_bytes()[4:]),
        lambda run: write_arrays(run, logits=np.full((240, 10), np.nan, np.float32)),
        lambda run: write_arrays(run, logits=np.full((240, 10), 1e300)),
        lambda run: write_arrays(run, logits=np.zeros((240, 9), np.float32)),
        lambda run: write_arrays(run, targets=np.full(240, 10)),
        lambda run: write_arrays(run, indices=np.zeros(240, np.int64)),
        lambda run: write_arrays(run, targets=np.zeros(240, np.int64)),
        lambda run: write_arrays(run, logits=np.array([Bomb()], dtype=object)),
        lambda run: (run / "metrics.jsonl").write_text("{"),
        lambda run: (run / "run.json").write_text("[]"),
        lambda run: (run / "run.json").write_text('{"status": NaN}'),
        lambda run: (run / "metrics.jsonl").write_text('{"lr": 1e999}'),
        lambda run: (run / "checkpoints" / "best.pt").write_bytes(b"PK"),
    ],
)
def test_damage_is_refused_and_nothing_is_unpickled(cli, run, tmp_path, damage):
    damage(run)
    result = cli("report", "run")
    assert result.code == 3, result.err
    assert "Traceback" not in result.err
    assert not (tmp_path / "exploded").exists()
    assert not (run / "report.html").exists()


@pytest.mark.parametrize("name", ["run.json", "config.yaml", "metrics.jsonl", "predictions.npz"])
def test_the_refusal_of_a_damaged_file_says_what_can_be_done(cli, run, name):
    (run / name).write_text("[")
    result = cli("report", "run")
    assert result.code == 3
    assert f"{name} is damaged: " in result.err
    assert "Put a copy in its place, or train again" in result.err


@pytest.mark.parametrize("arguments", [[], ["nowhere"], ["run=[]"], ["run", "run"], ["run", "out=page.txt"]])
def test_what_is_no_run_is_refused(cli, run, arguments):
    result = cli("report", *arguments)
    assert result.code == 2
    assert "Traceback" not in result.err


def test_names_of_sweeps_are_taken_as_typed(cli, run, tmp_path):
    odd = run.rename(tmp_path / "0-model=vgg,seed=1 ${oc.env:HOME} it's")
    for arguments in ([odd.name], [f"run={odd.name}"], [str(odd)]):
        (odd / "report.html").unlink(missing_ok=True)
        result = cli("report", *arguments)
        assert result.code == 0, result.err
        assert (odd / "report.html").is_file()


@pytest.mark.parametrize("stem", ["run", "test", "verify"])
def test_the_numbers_of_a_page_replace_no_file_of_the_run(cli, run, stem):
    path = run / f"{stem}.json"
    path.write_text(path.read_text() if path.exists() else "{}")
    before = path.read_bytes()
    result = cli("report", "run", f"out=run/{stem}.html")
    assert result.code == 0, result.err
    assert path.read_bytes() == before
    assert json.loads((run / f"{stem}.report.json").read_text())["run"] == "run"


# --- several runs ----------------------------------------------------------------------------------------------------


def test_a_comparison_gives_intervals_and_the_paired_test(cli, two_runs, tmp_path):
    result = cli("report", *map(str, two_runs), "out=compared.html")
    assert result.code == 0, result.err
    page, numbers = Page(tmp_path / "compared.html"), json.loads((tmp_path / "compared.report.json").read_text())
    rights = {}
    for home in two_runs:
        with np.load(home / "predictions.npz") as stored:
            rights[home.name] = stored["logits"].argmax(1) == stored["targets"]
    names = {row["mark"]: row["name"] for row in numbers["rows"]}
    assert sorted(names.values()) == ["run0", "run1"]
    (pair,) = numbers["pairs"]
    first, second = rights[names[pair["first"]]], rights[names[pair["second"]]]
    only_first, only_second = int((first & ~second).sum()), int((~first & second).sum())
    assert (pair["only_first"], pair["only_second"]) == (only_first, only_second)
    assert pair["difference"] == pytest.approx(first.mean() - second.mean())
    assert pair["p"] == pytest.approx(binomtest(only_first, only_first + only_second).pvalue)
    assert pair["interval"][0] <= pair["difference"] <= pair["interval"][1]
    assert [row["key"] for row in numbers["differing"]] == ["seed"]
    assert "McNemar" in page.text
    assert sum(tag == "svg" for tag, _ in page.elements) == 5


def test_runs_of_other_data_are_not_compared(cli, two_runs, run):
    manifest = manifest_of(run)
    manifest["dataset"]["fingerprint"] = "0" * 64
    (run / "run.json").write_text(json.dumps(manifest))
    result = cli("report", "run", str(two_runs[1]))
    assert result.code == 3
    assert "datasets differ" in result.err


def test_an_untested_run_is_not_compared(cli, two_runs, run):
    (run / "predictions.npz").unlink()
    assert cli("report", "run", str(two_runs[1])).code == 2


# --- statistics ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("b", "c"), [(0, 0), (0, 5), (5, 5), (3, 12), (120, 80), (1402, 529), (6000, 6100)])
def test_mcnemar_is_the_exact_binomial_test(b, c):
    expected = binomtest(b, b + c).pvalue if b + c else 1.0
    assert mcnemar(b, c) == pytest.approx(expected, rel=1e-6)
    assert mcnemar(c, b) == mcnemar(b, c)


def test_the_interval_of_a_paired_difference_covers_as_often_as_it_says():
    rng = np.random.default_rng(0)
    true, hits = 0.06 - 0.04, 0
    for _ in range(2000):
        only_first, only_second, _ = rng.multinomial(500, [0.04, 0.06, 0.9])
        low, high = difference_interval(int(only_first), int(only_second), 500)
        hits += low <= true <= high
    assert 0.935 < hits / 2000 < 0.97
    assert difference_interval(0, 0, 100)[0] < 0 < difference_interval(0, 0, 100)[1]


def test_compare_counts_images():
    first, second = torch.tensor([1, 1, 0, 0, 1]).bool(), torch.tensor([1, 0, 1, 1, 1]).bool()
    result = compare(first, second)
    assert (result.only_first, result.only_second, result.n) == (1, 2, 5)
    assert result.difference == pytest.approx(0.2)


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.6]) == pytest.approx([1.0, 1.0])
    assert holm([]) == []


def test_the_gain_over_the_mean_is_the_mean_of_per_image_gains():
    rng = np.random.default_rng(1)
    ensemble, members = rng.random(400) < 0.8, rng.random((3, 400)) < 0.7
    gain, (low, high) = mean_gain(torch.tensor(ensemble), torch.tensor(members))
    each = ensemble - members.mean(0)
    assert gain == pytest.approx(each.mean())
    assert high - low == pytest.approx(2 * 1.959964 * each.std(ddof=1) / 20)


def test_the_bins_give_the_calibration_error():
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(500, 10, generator=generator)
    targets = torch.randint(10, (500,), generator=generator)
    predictions = Predictions(torch.arange(500), targets, logits)
    rows = reliability(predictions)
    gaps = [row["count"] / 500 * abs(row["confidence"] - row["accuracy"]) for row in rows if row["count"]]
    assert sum(row["count"] for row in rows) == 500
    assert sum(gaps) == pytest.approx(calibration_error(predictions.probabilities, predictions.right))


@pytest.mark.parametrize(
    "values",
    [
        [0.0, 1.0],
        [0.123, 0.987],
        [1e-6, 3e-6],
        [5.0],
        [-3.0, 7e4],
        [0.0, 0.0],
        [2.303, 2.3037],
        [0.07288, 0.07293],
        [9000.0, 9000 + 1.9e-12],
        [1e17, 1e17 + 16],
    ],
)
def test_axes_span_their_values_with_a_few_round_ticks(values):
    scale = axis("", values)
    assert scale.low <= min(values)
    assert max(values) <= scale.high
    assert 2 <= len(scale.ticks) <= 8
    assert len({scale.text(tick) for tick in scale.ticks}) == len(scale.ticks)
    assert all(scale.low - 1e-9 <= tick <= scale.high * (1 + 1e-9) + 1e-9 for tick in scale.ticks)


# --- inside ----------------------------------------------------------------------------------------------------------


class Tiny(nn.Module):
    """Two convolutions, global average, linear: the network for which Grad-CAM is CAM."""

    def __init__(self, inplace: bool) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.first, self.second = nn.Conv2d(3, 5, 3, padding=1), nn.Conv2d(5, 7, 3, stride=2, padding=1)
        self.relu, self.last = nn.ReLU(inplace=inplace), nn.Linear(7, 10)

    def forward(self, images):
        return self.last(self.relu(self.second(self.relu(self.first(images)))).mean((2, 3)))


@pytest.mark.parametrize("layer", ["second", "relu"])
def test_grad_cam_of_a_global_average_network_is_cam(layer):
    # Zhou et al. (2016): the class's weights of the last layer, applied to the last maps.
    model, images, targets = Tiny(inplace=True).eval(), torch.randn(4, 3, 32, 32), torch.tensor([0, 3, 3, 9])
    heat = explain.grad_cam(model, images, targets, layer)
    with torch.no_grad():
        maps = torch.relu(model.second(torch.relu(model.first(images))))
        expected = torch.relu((model.last.weight[targets][:, :, None, None] * maps).sum(1))
    expected = expected / expected.amax((1, 2), keepdim=True).clamp_min(1e-30)
    assert heat.shape == (4, 16, 16)
    torch.testing.assert_close(heat, expected, rtol=1e-4, atol=1e-5)


def test_activation_maps_are_the_layers_outputs_and_hooks_come_off():
    model, images = Tiny(inplace=True).eval(), torch.randn(2, 3, 32, 32)
    found = explain.activation_maps(model, images, ["first"])["first"]
    with torch.no_grad():
        torch.testing.assert_close(found, model.first(images))
    assert explain.map_layers(model, images[:1]) == [("first", 32), ("second", 16)]
    assert explain.map_layers(model, images[:1], explain.ACTIVATIONS) == [("relu", 32), ("relu", 16)]
    assert explain.grad_cam_layer([("a", 16), ("b", 4), ("c", 2)]) == "b"
    assert not [module for module in model.modules() if module._forward_hooks]


def test_first_kernels_of_a_linear_model_are_class_templates():
    linear = nn.Sequential(nn.Flatten(), nn.Linear(3072, 10))
    kernels = explain.first_kernels(linear)
    assert kernels is not None
    assert kernels.of_classes
    assert torch.equal(kernels.weights[4].flatten(), linear[1].weight[4])
    assert explain.grad_cam_layer(explain.map_layers(linear, torch.zeros(1, 3, 32, 32))) is None
    hidden = explain.first_kernels(nn.Sequential(nn.Flatten(), nn.Linear(3072, 20), nn.ReLU(), nn.Linear(20, 10)))
    assert hidden is not None
    assert not hidden.of_classes


# --- Chromium --------------------------------------------------------------------------------------------------------


def browse(page: Path, folder: Path, width: int, dark: bool, picture: Path) -> str:
    """Open a page in a headless browser and return what it logged."""
    browser = next(
        (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), ""
    )
    if not browser:
        pytest.skip("needs a chromium binary")
    frame = folder / "frame.html"  # a window cannot be as narrow as a phone, a frame can
    source = html.escape(page.as_uri())
    frame.write_text(f'<body style="margin:0"><iframe src="{source}" style="border:0;width:{width}px;height:3000px">')
    scheme = f"--blink-settings=preferredColorScheme={0 if dark else 1}"
    flags = "headless no-sandbox disable-gpu disable-quic no-first-run disable-background-networking"
    flags += " disable-component-update disable-sync hide-scrollbars enable-logging=stderr"
    arguments = [
        browser,
        *(f"--{flag}" for flag in flags.split()),
        scheme,
        f"--user-data-dir={folder / 'profile'}",
        f"--window-size={width},3000",
    ]
    done = subprocess.run(
        [*arguments, f"--screenshot={picture}", frame.as_uri()], capture_output=True, text=True, timeout=90, check=False
    )
    assert picture.is_file(), done.stderr
    return done.stderr


@pytest.mark.parametrize(("width", "dark"), [(1280, False), (390, True)])
def test_chromium_shows_the_page_without_complaint(page, run, two_runs, cli, tmp_path, width, dark):
    assert cli("report", *map(str, two_runs), "out=compared.html").code == 0
    for name in (run / "report.html", tmp_path / "compared.html"):
        log = browse(name, tmp_path, width, dark, tmp_path / "picture.png")
        assert "CONSOLE" not in log
        with Image.open(tmp_path / "picture.png") as picture:
            pixels = np.asarray(picture.convert("L"))[:, : width - 4]
        assert (np.median(pixels) < 90) == dark
        assert pixels.std() > 10


def test_chromium_finds_nothing_wider_than_a_phone(page, run, two_runs, cli, tmp_path):
    assert cli("report", *map(str, two_runs), "out=compared.html").code == 0
    probe = (
        "<script>addEventListener('load', () => console.log('WIDTH', document.documentElement.scrollWidth))</script>"
    )
    for name in (run / "report.html", tmp_path / "compared.html"):
        text = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", name.read_text(), count=1)
        (tmp_path / "probed.html").write_text(text.replace("</body>", f"{probe}</body>"))
        log = browse(tmp_path / "probed.html", tmp_path, 390, False, tmp_path / "picture.png")
        assert re.search(r"WIDTH (\d+)", log)[1] == "390"
