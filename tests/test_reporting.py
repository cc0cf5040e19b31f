"""What people look at: the console at two widths, TensorBoard read back, the figures, `data show` and `eval`."""

from __future__ import annotations

import io
import json
import os
import re
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from conftest import TINY, manifest_of, mark_interrupted, rows_of, tiny_config
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from cifarbench.data.augment import Augment
from cifarbench.data.load import load_images
from cifarbench.data.random import Draws
from cifarbench.data.split import channel_statistics, split
from cifarbench.evaluation.metrics import wilson_interval
from cifarbench.reporting.console import epoch_table, stopwatch
from cifarbench.reporting.figures import filter_grid


def events_of(run: Path) -> EventAccumulator:
    events = EventAccumulator(str(run / "tensorboard"), size_guidance={"scalars": 0, "images": 0, "tensors": 0})
    events.Reload()
    return events


def test_tensorboard_holds_what_the_metrics_file_holds(finished):
    events = events_of(finished)
    tags = events.Tags()
    assert {"train/loss", "train/accuracy", "val/loss", "val/accuracy", "lr"} <= set(tags["scalars"])
    assert "throughput/images_per_second" in tags["scalars"]
    assert {"samples/augmented", "test/confusion_matrix", "filters/first_layer"} <= set(tags["images"])
    for name in ("train_loss", "val_accuracy"):
        points = [(point.step, point.value) for point in events.Scalars(name.replace("_", "/", 1))]
        rows = [(row["step"], row[name]) for row in rows_of(finished)]
        assert [step for step, _ in points] == [step for step, _ in rows]
        assert [value for _, value in points] == pytest.approx([value for _, value in rows], rel=1e-6)


def test_hyperparameters_open_no_ghost_run(finished):
    folders = {path.parent for path in finished.rglob("events.*")}
    assert folders == {finished / "tensorboard"}
    plugins = events_of(finished).summary_metadata
    assert any("hparams" in str(metadata.plugin_data.plugin_name) for metadata in plugins.values())


def test_after_a_resume_no_step_is_doubled(cli, finished):
    mark_interrupted(finished)
    best = (finished / "checkpoints" / "best.pt").read_bytes()
    (finished / "checkpoints" / "last.pt").write_bytes(best)
    assert cli("train", *TINY, "hydra.run.dir=run").code == 0
    steps = [point.step for point in events_of(finished).Scalars("train/loss")]
    assert steps == [row["step"] for row in rows_of(finished)]


def test_a_run_that_is_resumed_after_its_last_epoch_is_tested_at_its_last_step(cli, finished):
    mark_interrupted(finished)
    assert cli("train", *TINY, "hydra.run.dir=run").code == 0
    last = rows_of(finished)[-1]["step"]
    assert {point.step for point in events_of(finished).Scalars("test/accuracy")} == {last}


def test_the_samples_are_the_images_of_the_first_epoch(finished):
    config = tiny_config()
    train = split(load_images(config.data), config.split).train
    augment = Augment(config.augment, *channel_statistics(train.images))
    expected = augment.view(train.images[:64], Draws(config.seed, 0, train.indices[:64])).numpy()
    picture = Image.open(io.BytesIO(events_of(finished).Images("samples/augmented")[0].encoded_image_string))
    pixels = np.asarray(picture)[::2, ::2]
    assert np.array_equal(pixels.reshape(8, 32, 8, 32, 3).transpose(0, 2, 4, 1, 3).reshape(64, 3, 32, 32), expected)


def test_a_tensorboard_folder_that_cannot_be_written_costs_one_warning(cli, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "tensorboard").write_text("in the way")
    result = cli("train", *TINY, "hydra.run.dir=run")
    assert result.code == 0, result.err
    assert result.out.count("TensorBoard logging") == 1
    assert manifest_of(tmp_path / "run")["status"] == "completed"


def test_plain_output_is_a_line_an_epoch_and_a_panel(cli):
    result = cli("train", *TINY, "hydra.run.dir=run")
    lines = [line for line in result.out.splitlines() if line.startswith("epoch")]
    assert len(lines) == 2
    assert "test accuracy" in result.out
    assert "95 % interval" in result.out
    assert re.search(r"│ run +run +│\n│ in it +confusion_matrix\.png +│", result.out)
    assert "\x1b" not in result.out


def test_names_with_brackets_are_shown_as_they_are(cli):
    """Jobs of sweeps are named after their overrides, augmentations as one likes; to a console brackets are markup."""
    words = ["trainer.epochs=1", "trainer.test=false", "augment.name='crop [/4] :cat:'"]
    result = cli("train", *TINY, *words, "hydra.run.dir='0-plugins=[a.py]'")
    assert result.code == 0, result.err
    assert "\n0-plugins=[a.py]\n" in result.out
    assert " · crop [/4] :cat:   " in result.out


@pytest.mark.parametrize("width", [60, 80, 120])
def test_the_epoch_table_fits_the_terminal(width):
    from rich.console import Console

    row = {
        "epoch": 100, "step": 1, "lr": 0.1, "train_loss": 12.3456, "train_accuracy": 1.0, "val_loss": 12.3456,
        "val_accuracy": 1.0, "images_per_second": 12345.6, "seconds": 4000.0,
    }  # fmt: skip
    console = Console(width=width, record=True, file=open(os.devnull, "w"))  # noqa: SIM115 - ends with the test
    with console.file:
        console.print(epoch_table([(row, True)], width))
    lines = console.export_text().splitlines()
    assert all(len(line) <= width for line in lines)
    assert len(lines) == 2, "a cell wrapped"


def test_durations_read_as_clock_times():
    assert [stopwatch(seconds) for seconds in (0, 59.6, 61, 3723)] == ["0:00", "1:00", "1:01", "1:02:03"]


def test_the_panel_interval_is_wilsons():
    low, high = wilson_interval(8359, 10_000)
    assert low < 0.8359 < high
    assert high - low == pytest.approx(2 * 1.96 * (0.8359 * 0.1641 / 10_000) ** 0.5, rel=1e-2)


def test_filters_are_tiles_scaled_to_their_own_range():
    weights = np.random.default_rng(0).normal(size=(5, 3, 3, 3))
    sheet = filter_grid(weights)
    assert sheet.shape == (9 * 8, 13 * 8, 3)
    tile = sheet[8:32, 8:32]
    assert tile.min() == 0
    assert tile.max() == 255


def test_figures_need_no_display_whatever_the_backend(cli, tmp_path, monkeypatch):
    monkeypatch.setenv("MPLBACKEND", "TkAgg")
    monkeypatch.delenv("DISPLAY", raising=False)
    assert cli("train", *TINY, "hydra.run.dir=run").code == 0
    with Image.open(tmp_path / "run" / "confusion_matrix.png") as picture:
        assert picture.size[0] > 600


def test_data_show_draws_samples_before_and_after_augmentation(cli, tmp_path):
    words = ["data=synthetic", "data.size=600", "augment=cutout", "augment.name=../crop/4", "rows=2"]
    result = cli("data", "show", *words)
    assert result.code == 0, result.err
    assert len(list(tmp_path.glob("outputs/data/samples*.png"))) == 2
    before, after = (pixels_of(line) for line in result.out.splitlines() if line.endswith(".png"))
    assert before.shape[1] == after.shape[1]
    assert not np.array_equal(before, after)


def test_more_rows_than_a_class_has_images_are_refused(cli, tmp_path):
    result = cli("data", "show", "data=synthetic", "data.size=600", "rows=44")
    assert result.code == 2
    assert "`rows` is 44; it must be at most 43" in result.err
    assert not list(tmp_path.iterdir())


def pixels_of(path: str) -> np.ndarray:
    with Image.open(path) as picture:
        return np.asarray(picture)


# --- eval ------------------------------------------------------------------------------------------------------------


def test_eval_reproduces_the_recorded_accuracy_and_counts_the_opening(cli, finished):
    recorded = json.loads((finished / "test.json").read_text())
    result = cli("eval", "run=run")
    assert result.code == 0, result.err
    assert "reproduced exactly" in result.out
    again = json.loads((finished / "eval" / "best-test-none.json").read_text())
    assert again["accuracy"] == recorded["accuracy"]
    assert again["confusion_matrix"] == recorded["confusion_matrix"]
    assert manifest_of(finished)["test"]["openings"] == 2


def test_only_the_checkpoint_that_was_tested_is_held_against_the_record(cli, finished):
    assert manifest_of(finished)["tested"] == "best"
    for name, is_tested in (("best", True), ("last", False)):
        result = cli("eval", "run=run", f"which={name}")
        assert result.code == 0, result.err
        assert ("recorded test accuracy" in result.out) is is_tested


def test_eval_takes_the_views_that_a_resume_set(cli, tmp_path):
    assert cli("train", *TINY, "trainer.test=false", "hydra.run.dir=run").code == 0
    assert cli("train", "trainer.resume=run", "trainer.test=true", "trainer.tta=multicrop").code == 0
    again = cli("eval", "run=run")
    assert "reproduced exactly" in again.out, again.out
    assert (tmp_path / "run" / "eval" / "best-test-multicrop.json").is_file()


def test_eval_says_that_it_opened_the_test_part_and_where_the_run_is_not_finished(cli, finished):
    assert "openings of this run are now 2" in cli("eval", "run=run").out
    mark_interrupted(finished)
    said = " ".join(cli("eval", "run=run").out.split())
    assert "openings of this run are now 3" in said
    assert "the run is interrupted, not completed" in said
    assert "openings" not in cli("eval", "run=run", "portion=val").out


def test_the_same_accuracy_by_other_answers_is_not_called_reproduced(cli, finished):
    manifest = manifest_of(finished)
    manifest["test"]["loss"] *= 1.01
    (finished / "run.json").write_text(json.dumps(manifest))
    said = " ".join(cli("eval", "run=run").out.split())
    assert "the same by other answers: their loss is" in said
    assert "reproduced exactly" not in said


def test_eval_of_ema_weights_reproduces_too(cli, tmp_path):
    assert cli("train", *TINY, "trainer.ema=0.9", "hydra.run.dir=run").code == 0
    assert "reproduced exactly" in cli("eval", "run=run").out


@pytest.mark.parametrize(("portion", "count"), [("val", 96), ("train", 864)])
def test_other_portions_are_labelled_and_do_not_break_the_seal(cli, finished, portion, count):
    result = cli("eval", "run=run", f"portion={portion}")
    assert result.code == 0, result.err
    assert "no test result" in result.out
    assert json.loads((finished / "eval" / f"best-{portion}-none.json").read_text())["n"] == count
    assert manifest_of(finished)["test"]["openings"] == 1


def test_eval_of_the_validation_part_gives_the_recorded_validation_accuracy(cli, finished):
    cli("eval", "run=run", "portion=val")
    report = json.loads((finished / "eval" / "best-val-none.json").read_text())
    assert report["accuracy"] == manifest_of(finished)["best"]["val_accuracy"]


@pytest.mark.parametrize("tta", ["flip", "multicrop"])
def test_eval_takes_views(cli, finished, tta):
    assert cli("eval", "checkpoint=run/checkpoints/best.pt", f"tta={tta}").code == 0
    left = {path.name for path in (finished / "eval").iterdir()}
    stem = f"best-test-{tta}"
    assert left == {f"{stem}.json", f"{stem}-confusion_matrix.csv", f"{stem}-confusion_matrix.png"}


def test_eval_on_other_data_is_refused(cli, finished):
    import torch

    from cifarbench.training.checkpoint import load, save

    path = finished / "checkpoints" / "best.pt"
    state = load(path)
    state["config"]["data"]["size"] = 1800
    save(state, path)
    result = cli("eval", "run=run")
    assert result.code == 3
    assert "not be comparable" in result.err
    assert isinstance(state["rng"]["torch"], torch.Tensor)


@pytest.mark.parametrize("arguments", [[], ["run=a", "checkpoint=b"], ["run=nowhere"], ["checkpoint=nowhere.pt"]])
def test_eval_needs_exactly_one_thing_that_exists(cli, arguments):
    result = cli("eval", *arguments)
    assert result.code == 2
    assert "Traceback" not in result.err


def test_tensorboard_serves_a_run(finished):
    import subprocess
    import sys
    import time

    port = 16006 + os.getpid() % 2000
    arguments = ["--logdir", str(finished.parent), "--port", str(port), "--host", "127.0.0.1", "--load_fast=false"]
    server = subprocess.Popen([sys.executable, "-m", "tensorboard.main", *arguments], stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 60
        tags: dict = {}
        while time.monotonic() < deadline and not tags:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/data/plugin/scalars/tags", timeout=5) as answer:
                    tags = json.load(answer)
            except (OSError, json.JSONDecodeError):
                time.sleep(0.3)
    finally:
        server.terminate()
        server.wait(timeout=10)
    assert list(tags) == ["run/tensorboard"]
    assert "val/accuracy" in tags["run/tensorboard"]
