"""CIFAR-10 on disk: found, checked before it is unpickled, and read in published order."""

from __future__ import annotations

import hashlib
import pickle
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision

from cifarbench.config.schema import Cifar10Config, SyntheticConfig
from cifarbench.data import cifar10
from cifarbench.data.load import load_images
from cifarbench.errors import IntegrityError, ResourceError

COUNT = 40  # images in a made-up batch file


# --- batch files as Python 2 wrote them ------------------------------------------------------------------------------


def _text(value: bytes) -> bytes:
    """A Python 2 str: SHORT_BINSTRING or BINSTRING."""
    return (b"U" + bytes([len(value)]) if len(value) < 256 else b"T" + struct.pack("<i", len(value))) + value


def _dtype() -> bytes:
    """numpy.dtype("u1", 0, 1) with the state (3, "|", None, None, None, -1, -1, 0)."""
    minus_one = b"J\xff\xff\xff\xff"
    return (
        b"cnumpy\ndtype\n" + _text(b"u1") + b"K\x00K\x01\x87R(K\x03" + _text(b"|") + b"NNN" + minus_one * 2 + b"K\x00tb"
    )


def _array(values: np.ndarray, factory: bytes = b"cnumpy.core.multiarray\n_reconstruct\n") -> bytes:
    """An array (rows, 3072) uint8 the way NumPy 1.x pickled it."""
    shape = b"M" + struct.pack("<H", values.shape[0]) + b"M" + struct.pack("<H", values.shape[1]) + b"\x86"
    made = factory + b"cnumpy\nndarray\n" + b"K\x00\x85" + _text(b"b") + b"\x87R"
    return made + b"(K\x01" + shape + _dtype() + b"\x89" + _text(values.tobytes()) + b"tb"


def batch_bytes(images: np.ndarray, labels: list[int], **array_options: bytes) -> bytes:
    """A batch file as published: protocol 2, str keys, an array of rows (n, 3072) and a list of labels."""
    listed = b"](" + b"".join(b"K" + bytes([label]) for label in labels) + b"e"
    rows = _array(images.reshape(len(images), -1), **array_options)
    return b"\x80\x02}(" + _text(b"labels") + listed + _text(b"data") + rows + b"u."


def made_up_files() -> tuple[dict[str, bytes], np.ndarray, np.ndarray]:
    """The seven files by name, with their images (240, 3, 32, 32) uint8 and labels (240,) in published order."""
    draw = np.random.default_rng(20)
    images = draw.integers(0, 256, (6 * COUNT, 3, 32, 32), dtype=np.uint8)
    labels = draw.integers(0, 10, 6 * COUNT)
    names = [*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"]
    files = {"batches.meta": b"\x80\x02}."}
    for number, name in enumerate(names):
        rows = slice(number * COUNT, (number + 1) * COUNT)
        files[name] = batch_bytes(images[rows], labels[rows].tolist())
    return files, images, labels


def publish(files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    """Let `files` be the published ones."""
    sums = {name: hashlib.md5(content).hexdigest() for name, content in files.items()}
    monkeypatch.setattr(cifar10, "META", {"batches.meta": sums.pop("batches.meta")})
    monkeypatch.setattr(cifar10, "BATCHES", {name: sums[name] for name in cifar10.BATCHES})


def write(files: dict[str, bytes], root: Path) -> Path:
    """Lay `files` under `root` and return the folder they are in."""
    folder = root / cifar10.FOLDER
    folder.mkdir(parents=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


@pytest.fixture
def files(monkeypatch) -> dict[str, bytes]:
    """Made-up published files, by name."""
    content = made_up_files()[0]
    publish(content, monkeypatch)
    return content


class Canary:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


# --- reading ---------------------------------------------------------------------------------------------------------


def test_images_and_labels_come_in_published_order(files, tmp_path):
    write(files, tmp_path)
    _, images, labels = made_up_files()
    data = cifar10.load(str(tmp_path), download=False)
    assert (data.name, data.images.dtype, data.targets.dtype) == ("cifar10", torch.uint8, torch.int64)
    assert np.array_equal(data.images.numpy(), images)
    assert np.array_equal(data.targets.numpy(), labels)


def test_the_real_images_and_labels_are_those_of_torchvision(cifar10_root):
    data = cifar10.load(cifar10_root, download=False)
    theirs = [torchvision.datasets.CIFAR10(cifar10_root, train=train, download=False) for train in (True, False)]
    images = np.concatenate([part.data for part in theirs]).transpose(0, 3, 1, 2)
    assert images.shape == (60_000, 3, 32, 32)
    assert np.array_equal(data.images.numpy(), images)
    assert data.targets.tolist() == [*theirs[0].targets, *theirs[1].targets]
    assert data.classes == tuple(theirs[0].classes)


def test_the_md5_sums_are_those_of_torchvision():
    theirs = torchvision.datasets.CIFAR10
    assert list(cifar10.BATCHES.items()) == [tuple(row) for row in theirs.train_list + theirs.test_list]
    assert {theirs.meta["filename"]: theirs.meta["md5"]} == cifar10.META
    assert theirs.tgz_md5 == cifar10.ARCHIVE_MD5


def test_reading_needs_a_folder_that_may_only_be_read(files, tmp_path):
    folder = write(files, tmp_path)
    before = sorted(path.name for path in tmp_path.rglob("*"))
    folder.chmod(0o555)
    tmp_path.chmod(0o555)
    try:
        cifar10.load(str(tmp_path), download=True)
    finally:
        tmp_path.chmod(0o755)
        folder.chmod(0o755)
    assert sorted(path.name for path in tmp_path.rglob("*")) == before


def test_runs_of_one_process_share_what_was_read_until_a_file_is_written_or_gone(files, tmp_path):
    folder = write(files, tmp_path)
    config = Cifar10Config(name="cifar10", root=str(tmp_path), download=False, mirrors=())
    first = load_images(config)
    assert load_images(config) is first
    assert load_images(SyntheticConfig(name="synthetic", size=300)) is not first
    (folder / "data_batch_2").touch()
    again = load_images(config)
    assert again is not first
    assert again.fingerprint == first.fingerprint
    (folder / "data_batch_2").write_bytes(files["data_batch_2"][:-1] + b"!")
    with pytest.raises(IntegrityError, match="data_batch_2 has MD5"):
        load_images(config)
    (folder / "batches.meta").unlink()
    with pytest.raises(ResourceError, match=r"batches\.meta"):
        load_images(config)


# --- damage and hostility --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["data_batch_1", "data_batch_5", "test_batch"])
def test_a_truncated_batch_file_is_refused_by_name(files, tmp_path, name):
    path = write(files, tmp_path) / name
    path.write_bytes(files[name][:-100])
    with pytest.raises(IntegrityError, match=f"{name} has MD5 [0-9a-f]+, not {cifar10.BATCHES[name]}.*delete it"):
        cifar10.load(str(tmp_path), download=False)


@pytest.mark.parametrize("place", [0, 1_000, -1])
def test_one_altered_byte_is_refused(files, tmp_path, place):
    path = write(files, tmp_path) / "data_batch_3"
    content = bytearray(files["data_batch_3"])
    content[place] ^= 1
    path.write_bytes(content)
    with pytest.raises(IntegrityError, match="data_batch_3 has MD5"):
        cifar10.load(str(tmp_path), download=False)


def test_a_batch_file_with_another_md5_is_never_unpickled(files, tmp_path):
    canary = tmp_path / "canary"
    (write(files, tmp_path) / "data_batch_1").write_bytes(pickle.dumps(Canary(canary), protocol=2))
    with pytest.raises(IntegrityError, match="data_batch_1 has MD5"):
        cifar10.load(str(tmp_path), download=False)
    assert not canary.exists()


def test_a_payload_runs_nothing_even_with_the_published_md5(files, tmp_path, monkeypatch):
    canary = tmp_path / "canary"
    files["data_batch_1"] = pickle.dumps(Canary(canary), protocol=2)
    publish(files, monkeypatch)
    write(files, tmp_path)
    with pytest.raises(IntegrityError, match=r"a batch file names .*; it holds something else than images"):
        cifar10.load(str(tmp_path), download=False)
    assert not canary.exists()


@pytest.mark.parametrize(
    "factory", [b"cnumpy.core.multiarray\nscalar\n", b"cnumpy\nload\n", b"cbuiltins\neval\n", b"cos\nsystem\n"]
)
def test_the_unpickler_knows_three_names_and_refuses_others(files, tmp_path, monkeypatch, factory):
    images = np.zeros((COUNT, 3, 32, 32), np.uint8)
    files["data_batch_2"] = batch_bytes(images, [0] * COUNT, factory=factory)
    publish(files, monkeypatch)
    write(files, tmp_path)
    module, name = factory[1:].decode().split()
    with pytest.raises(IntegrityError, match=f"names {module}.{name}"):
        cifar10.load(str(tmp_path), download=False)


def test_training_on_an_altered_file_exits_3_and_names_it(files, tmp_path, cli):
    folder = write(files, tmp_path / "data")
    (folder / "test_batch").write_bytes(b"altered")
    result = cli(
        "train", "data=cifar10", f"data.root={tmp_path / 'data'}", "trainer.progress=none", "hydra.run.dir=run"
    )
    assert result.code == 3
    assert str(folder / "test_batch") in result.err


# --- nothing there ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["data_batch_4", "test_batch", "batches.meta"])
def test_a_missing_file_that_may_not_be_fetched_is_named_with_what_to_do_by_hand(files, tmp_path, name):
    folder = write(files, tmp_path)
    (folder / name).unlink()
    with pytest.raises(ResourceError) as refused:
        cifar10.load(str(tmp_path), download=False)
    sentence = str(refused.value)
    assert sentence.startswith(f"{folder} lacks {name}, and data.download is false. By hand: ")
    for part in ("cifar-10-python.tar.gz", cifar10.ARCHIVE_MD5, str(folder / "data_batch_1"), "data=synthetic"):
        assert part in sentence


def test_training_without_data_or_download_exits_5(files, tmp_path, cli):
    result = cli("train", "data.root=nowhere", "data.download=false", "trainer.progress=none", "hydra.run.dir=run")
    assert result.code == 5
    assert "By hand: " in result.err
    assert not (tmp_path / "nowhere").exists()


# --- cifarbench data check -------------------------------------------------------------------------------------------


def test_check_lists_seven_files_that_are_as_published(files, tmp_path, cli):
    folder = write(files, tmp_path / "data")
    result = cli("data", "check", "data.root=data")
    assert (result.code, result.err) == (0, "")
    lines = result.out.splitlines()
    assert [line.split() for line in lines[:-1]] == [
        ["ok", str(Path("data") / folder.name / name)] for name in (*cifar10.BATCHES, "batches.meta")
    ]
    assert lines[-1] == "All 7 files are as published."


def test_check_names_altered_and_missing_files_and_exits_3(files, tmp_path, cli):
    folder = write(files, tmp_path / "data")
    (folder / "data_batch_2").write_bytes(b"altered")
    (folder / "batches.meta").unlink()
    result = cli("data", "check", "data.root=data")
    assert result.code == 3
    states = {Path(line.split()[1]).name: line.split()[0] for line in result.out.splitlines()}
    assert states == {**dict.fromkeys(files, "ok"), "data_batch_2": "altered", "batches.meta": "missing"}
    assert "2 of 7 files are not as published" in result.err
    assert "cifarbench data fetch" in result.err


def test_check_leaves_the_disk_as_it_was(files, tmp_path, cli):
    assert cli("data", "check", "data.root=nowhere").code == 3
    assert list(tmp_path.iterdir()) == []


# --- where it lies ---------------------------------------------------------------------------------------------------


def test_the_root_of_the_config_comes_before_the_environment_and_the_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("CIFARBENCH_DATA", str(tmp_path / "environment"))
    assert cifar10.root_folder(str(tmp_path / "config")) == tmp_path / "config"
    assert cifar10.root_folder(None) == tmp_path / "environment"
    monkeypatch.delenv("CIFARBENCH_DATA")
    assert cifar10.root_folder(None) == tmp_path / "cache" / "cifarbench"


def test_without_any_setting_the_root_is_in_the_home_folder(monkeypatch, tmp_path):
    monkeypatch.delenv("CIFARBENCH_DATA", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cifar10.root_folder(None) == tmp_path / ".cache" / "cifarbench"


def test_an_empty_variable_counts_as_unset(monkeypatch, tmp_path):
    monkeypatch.setenv("CIFARBENCH_DATA", "")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cifar10.root_folder(None) == tmp_path / "cifarbench"


def test_a_tilde_in_the_root_is_the_home_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cifar10.root_folder("~/images") == tmp_path / "images"


def test_check_uses_the_environment_where_the_config_names_no_root(files, tmp_path, cli, monkeypatch):
    write(files, tmp_path / "data")
    monkeypatch.setenv("CIFARBENCH_DATA", str(tmp_path / "data"))
    assert cli("data", "check").code == 0


def test_a_root_that_is_a_file_is_refused_in_one_sentence(files, tmp_path, cli):
    (tmp_path / "data").write_text("")
    result = cli("data", "fetch", "data.root=data", "data.mirrors=[]")
    assert result.code == 5
    assert result.err.startswith("cifarbench: data: a file is there, where a folder is needed")
