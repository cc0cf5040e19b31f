"""Predicting on image files: the right answers, every kind of file, hostile files and hostile names."""

from __future__ import annotations

import csv
import json
import os
import random
import struct
import sys
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from test_metrics import OnMps

from cifarbench.commands.hydra_app import compose
from cifarbench.commands.words import gather, gather_first, gather_one, protect
from cifarbench.config.quoting import quoted
from cifarbench.data.image_files import ImageError, find, read
from cifarbench.data.synthetic import draw
from cifarbench.errors import ConfigError
from cifarbench.evaluation import predict as prediction
from cifarbench.evaluation.predict import predict


def stored(run: Path) -> tuple[np.ndarray, np.ndarray]:
    """(indices, probabilities) that the run's test left."""
    with np.load(run / "predictions.npz") as arrays:
        logits = arrays["logits"].astype(np.float64)
        powers = np.exp(logits - logits.max(1, keepdims=True))
        return arrays["indices"], powers / powers.sum(1, keepdims=True)


@pytest.fixture
def pictures(two_runs, tmp_path) -> Path:
    """The first twelve test images of the runs as PNG files, named by their numbers."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    images, _ = draw(1200)
    for index in stored(two_runs[0])[0][:12]:
        Image.fromarray(images[index].transpose(1, 2, 0)).save(folder / f"{index}.png")
    return folder


# --- the command -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("source", ["run", "checkpoint"])
def test_the_probabilities_are_those_that_the_test_stored(cli, two_runs, pictures, source):
    path = two_runs[0] if source == "run" else two_runs[0] / "checkpoints" / "best.pt"
    result = cli("predict", f"{source}={path}", str(pictures), "top=10", "format=json")
    assert result.code == 0, result.err
    answer = json.loads(result.out)
    indices, probabilities = stored(two_runs[0])
    assert answer["images"] == 12
    assert answer["failed"] == 0
    for row in answer["predictions"]:
        expected = probabilities[list(indices).index(int(Path(row["file"]).stem))]
        shares = {entry["class"]: entry["probability"] for entry in row["top"]}
        assert [shares[name] for name in answer["classes"]] == pytest.approx(expected.tolist(), rel=1e-4)
        ordered = [entry["probability"] for entry in row["top"]]
        assert ordered == sorted(ordered, reverse=True)
        assert row["prediction"] == answer["classes"][int(expected.argmax())]


def test_csv_and_table_give_the_same_answers(cli, two_runs, pictures, tmp_path):
    arguments = [f"run={two_runs[0]}", str(pictures), "top=2"]
    assert cli("predict", *arguments, "out=answers.csv").code == 0
    with (tmp_path / "answers.csv").open() as file:
        rows = list(csv.DictReader(file))
    result = cli("predict", *arguments)
    lines = result.out.splitlines()[1:]
    assert len(rows) == len(lines) == 12
    for row, line in zip(rows, lines, strict=True):
        name, answer, share, second, _ = line.split()
        assert (name, answer, second) == (row["file"], row["class_1"], row["class_2"])
        assert float(share.rstrip("%")) == pytest.approx(100 * float(row["probability_1"]), abs=0.06)


def test_a_device_without_float64_answers_too(cli, two_runs, pictures, monkeypatch):
    monkeypatch.setattr(prediction, "predict", lambda *arguments: predict(*arguments).as_subclass(OnMps))
    result = cli("predict", f"run={two_runs[0]}", str(pictures))
    assert result.code == 0, result.err


@pytest.fixture
def terminal(capsys, monkeypatch) -> None:
    """Captured output says that it is a terminal, of 80 columns and without colours."""
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERM", "dumb")
    monkeypatch.setattr(type(sys.stdout), "isatty", lambda stream: True)


@pytest.mark.usefixtures("terminal")
@pytest.mark.parametrize("arguments", [["out=answers.txt"], []])
def test_a_narrow_terminal_costs_no_name_and_no_share(cli, two_runs, pictures, tmp_path, arguments):
    result = cli("predict", f"run={two_runs[0]}", "pictures", "top=10", *arguments)
    assert result.code == 0, result.err
    text = (tmp_path / "answers.txt").read_text() if arguments else result.out
    rows = [line.split() for line in text.splitlines()[1:]]
    assert {row[0] for row in rows} == {f"pictures/{path.name}" for path in pictures.iterdir()}
    assert all(len(row) == 21 for row in rows)
    assert all(sum(float(share.rstrip("%")) for share in row[2::2]) == pytest.approx(100, abs=0.6) for row in rows)


def test_a_file_holds_no_colours_of_the_terminal(cli, two_runs, pictures, tmp_path, monkeypatch, terminal):
    monkeypatch.setenv("TERM", "xterm")
    assert "\x1b" in cli("predict", f"run={two_runs[0]}", "pictures").out
    assert cli("predict", f"run={two_runs[0]}", "pictures", "out=answers.txt").code == 0
    assert "\x1b" not in (tmp_path / "answers.txt").read_text()


@pytest.mark.usefixtures("terminal")
def test_long_names_are_folded_on_a_terminal_and_whole_in_a_file(cli, two_runs, pictures, tmp_path):
    name = f"{'long' * 30}.png"
    next(pictures.iterdir()).rename(tmp_path / name)
    shown = cli("predict", f"run={two_runs[0]}", name, "top=1").out.splitlines()
    assert max(map(len, shown)) <= 80
    assert "".join(line.split()[0] for line in shown[1:]) == name
    assert cli("predict", f"run={two_runs[0]}", name, "top=1", "out=answers.txt").code == 0
    assert name in (tmp_path / "answers.txt").read_text()


def test_a_bad_file_is_named_and_the_others_are_answered(cli, two_runs, pictures):
    (pictures / "text.png").write_text("no image")
    result = cli("predict", f"run={two_runs[0]}", str(pictures), "missing.png", "none*.png", "format=json")
    assert result.code == 2
    rows = json.loads(result.out)["predictions"]
    assert sum("top" in row for row in rows) == 12
    assert {Path(row["file"]).name for row in rows if "error" in row} == {"text.png", "missing.png", "none*.png"}
    assert "text.png: no PNG, JPEG, WebP or BMP image" in result.err
    assert "3 of 15 files" in result.err


@pytest.mark.timed
def test_many_files_take_seconds(cli, two_runs, tmp_path):
    (tmp_path / "many").mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    for index in range(1000):
        Image.fromarray(np.roll(pixels, index)).save(tmp_path / "many" / f"{index}.png")
    started = time.perf_counter()
    result = cli("predict", f"run={two_runs[0]}", "many", "format=json")
    assert time.perf_counter() - started < 20
    assert json.loads(result.out)["images"] == 1000


@pytest.mark.parametrize(
    "arguments",
    [[], ["run=nowhere", "a.png"], ["a.png"], ["run={run}"], ["run={run}", "a.png", "top=11"],
     ["run={run}", "a.png", "out=answers.xlsx"], ["run={run}", "checkpoint=x", "a.png"]],
)  # fmt: skip
def test_what_cannot_be_asked_is_refused(cli, two_runs, arguments):
    result = cli("predict", *(argument.format(run=two_runs[0]) for argument in arguments))
    assert result.code == 2
    assert "Traceback" not in result.err


HOSTILE_NAMES = [
    "a,b=[c].png",
    "${oc.env:HOME}.png",
    "it's.png",
    "end\\.png",
    "$(touch x);.png",
    "é ü\n.png",
    "\x1b[31m.png",
]


@pytest.mark.parametrize("name", HOSTILE_NAMES)
def test_any_name_is_taken_as_it_is(cli, two_runs, pictures, tmp_path, name):
    next(pictures.glob("*.png")).rename(tmp_path / name)
    result = cli("predict", f"run={two_runs[0]}", name, "format=json")
    assert result.code == 0, result.err
    assert json.loads(result.out)["predictions"][0]["file"] == name
    shown = cli("predict", f"run={two_runs[0]}", name)
    assert "\x1b" not in shown.out
    assert not (tmp_path / "x").exists()


def test_quoted_words_come_back_from_hydra_unchanged():
    rng = random.Random(0)
    letters = "ab'\"\\,=[]{}$: #%.é\n"
    words = ["".join(rng.choice(letters) for _ in range(rng.randrange(1, 9))) for _ in range(150)]
    words += ["${x}", "\\${x}", "null", "true", "12", "a\\", "\\\\'", "???"]
    composed = compose("predict", [f"images=[{','.join(map(quoted, words))}]"])
    assert composed["images"] == words


def test_words_overrides_and_flags_are_told_apart(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "0-seed=1").mkdir()
    (tmp_path / "run=x").mkdir()
    typed = ["a", "top=2", "--cfg", "job", "0-seed=1", "run=x", "hydra.verbose=true", "-m", "images=b.png"]
    rest = ["top=2", "--cfg", "job", "run=x", "hydra.verbose=true", "-m"]
    assert gather(typed, "images", ("run", "top", "images")) == [*rest, "images=['a','0-seed=1','b.png']"]
    assert gather(["images=[a,b]"], "images", ("images",)) == ["images=[a,b]"]
    assert gather_one(["--config-dir", "d", "0-seed=1"], "run", ("run",)) == ["--config-dir", "d", "run='0-seed=1'"]
    assert gather_first(["show", "-m", "seed=1,2"], "action", ("seed",)) == ["-m", "action=show", "seed=1,2"]
    assert gather_first(["a=1", "--cfg", "job", "show"], "action", ("a",)) == ["action=show", "a=1", "--cfg", "job"]
    assert gather_first(["--cfg", "job"], "action", ()) == ["--cfg", "job"]
    assert protect(["run=0-seed=1", "run=nowhere"], "run") == ["run='0-seed=1'", "run=nowhere"]
    with pytest.raises(ConfigError, match="give one"):
        gather_one(["a", "b"], "run", ("run",))


# --- files -----------------------------------------------------------------------------------------------------------


def saved(folder: Path, image: Image.Image, name: str, **options) -> str:
    image.save(folder / name, **options)
    return str(folder / name)


def colour(name: str) -> tuple[int, ...]:
    """The mean colour of the image that `read` gives."""
    return tuple(round(value) for value in read(name).float().mean((1, 2)).tolist())


@pytest.mark.parametrize("name", ["x.png", "x.bmp", "x.webp"])
def test_a_32_px_image_comes_through_unchanged(tmp_path, name):
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    options = {"lossless": True} if name.endswith("webp") else {}
    path = saved(tmp_path, Image.fromarray(pixels), name, **options)
    assert np.array_equal(read(path).numpy().transpose(1, 2, 0), pixels)


def test_every_mode_becomes_rgb(tmp_path):
    size = (32, 32)
    palette = Image.new("P", size, 1)
    palette.putpalette([0, 0, 0, 10, 20, 30])
    cases = {
        "L": (Image.new("L", size, 77), (77, 77, 77)),
        "1": (Image.new("1", size, 1), (255, 255, 255)),
        "P": (palette, (10, 20, 30)),
        "LA": (Image.new("LA", size, (0, 0)), (255, 255, 255)),
        "RGBA": (Image.new("RGBA", size, (200, 100, 0, 128)), (227, 177, 127)),
        "I;16": (Image.fromarray(np.full(size, 0x4D00, np.uint16)), (77, 77, 77)),
    }
    for mode, (image, expected) in cases.items():
        found = colour(saved(tmp_path, image, f"{mode.replace(';', '')}.png"))
        assert found == pytest.approx(expected, abs=1), mode
    assert colour(saved(tmp_path, palette, "see-through.png", transparency=1)) == (255, 255, 255)
    cmyk = saved(tmp_path, Image.new("CMYK", size, (0, 255, 255, 0)), "cmyk.jpg", quality=95)
    assert colour(cmyk) == pytest.approx((255, 0, 0), abs=8)


def test_large_and_long_images_are_shrunk_and_cut_to_their_middle(tmp_path):
    image = Image.new("RGB", (320, 160), "red")
    image.paste("blue", (80, 0, 240, 160))
    assert colour(saved(tmp_path, image, "long.png")) == pytest.approx((0, 0, 255), abs=6)
    checker = np.indices((256, 256)).sum(0) % 2 * 255
    grey = colour(saved(tmp_path, Image.fromarray(checker.astype(np.uint8)), "fine.png"))
    assert grey == pytest.approx((128, 128, 128), abs=2)
    assert read(saved(tmp_path, Image.new("RGB", (7, 5)), "small.png")).shape == (3, 32, 32)
    photo = Image.linear_gradient("L").resize((2048, 1536)).convert("RGB")
    values = read(saved(tmp_path, photo, "photo.jpg")).float()[0].mean(1)
    assert np.allclose(values, np.linspace(4, 251, 32), atol=6)


def test_the_exif_orientation_is_honoured(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6  # shown turned by a quarter, clockwise
    turned = read(saved(tmp_path, Image.fromarray(pixels), "turned.png", exif=exif))
    assert np.array_equal(turned.numpy().transpose(1, 2, 0), np.rot90(pixels, -1))


def png_header(width: int, height: int) -> bytes:
    """A PNG file that says how large it is and holds nothing."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    size = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", size) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.parametrize("side", [8_100, 12_000, 20_000, 2**30])
def test_a_huge_header_is_refused_before_decoding(tmp_path, side):
    path = tmp_path / "huge.png"
    path.write_bytes(png_header(side, side))
    started = time.perf_counter()
    with pytest.raises(ImageError, match="64,000,000"):
        read(str(path))
    assert time.perf_counter() - started < 1


def test_damaged_and_other_files_are_refused_in_words(tmp_path):
    photo = Path(saved(tmp_path, Image.effect_noise((200, 200), 50), "photo.jpg"))
    photo.write_bytes(photo.read_bytes()[:2000])
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "script.png").write_text("%!PS-Adobe")
    saved(tmp_path, Image.new("P", (32, 32)), "moving.gif")
    saved(tmp_path, Image.new("RGB", (32, 32)), "scan.tif")
    saved(tmp_path, Image.new("RGB", (4, 3000)), "thread.png")
    (tmp_path / "none").mkdir()
    expected = {
        "photo.jpg": "truncated", "empty.png": "no PNG", "script.png": "no PNG", "moving.gif": "no PNG",
        "scan.tif": "no PNG", "thread.png": "too narrow", "none": "folder", "absent.png": "not there",
        "\0": "no valid name",
    }  # fmt: skip
    for name, reason in expected.items():
        with pytest.raises(ImageError, match=reason):
            read(str(tmp_path / name))


def test_a_pipe_does_not_hang(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(ImageError, match="no ordinary file"):
        read(str(tmp_path / "pipe.png"))


def test_a_folder_with_far_too_many_files_is_refused_by_name(cli, finished, tmp_path, monkeypatch):
    monkeypatch.setattr("cifarbench.data.image_files._MOST_FILES", 3)
    (tmp_path / "deep" / "er").mkdir(parents=True)
    for name in ("a.png", "b.txt"):
        (tmp_path / "deep" / "er" / name).write_bytes(b"")
    assert list(find(["deep/er"])) == ["deep/er/a.png"]
    ended = cli("predict", f"run={finished}", "deep")
    assert (ended.code, "'deep', below which lie more than 3 files" in ended.err) == (2, True), ended.err


def test_folders_and_patterns_are_searched_and_each_file_comes_once(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a" / "deep").mkdir(parents=True)
    for name in ("a/1.png", "a/2.JPG", "a/deep/3.webp", "a/notes.txt", "b[1].png"):
        (tmp_path / name).write_bytes(b"")
    assert list(find(["a"])) == ["a/1.png", "a/2.JPG", "a/deep/3.webp"]
    assert list(find(["a/*.png", "a/1.png", "a"])) == ["a/1.png", "a/2.JPG", "a/deep/3.webp"]
    assert list(find(["**/*.webp", "b[1].png", "no*.png"])) == ["a/deep/3.webp", "b[1].png", "no*.png"]
