"""Checkpoints: whole or refused, and never a way to run code, to fill the memory or to lose the last good one."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import os
import pickle
import random
import resource
import stat
import struct
import subprocess
import sys
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import tiny_config
from torch import nn

from cifarbench.config.load import to_plain
from cifarbench.data.load import load_images
from cifarbench.data.split import channel_statistics, split
from cifarbench.errors import IntegrityError
from cifarbench.training import checkpoint
from cifarbench.training.checkpoint import load, load_weights, newest_valid, save, tensor_hash
from cifarbench.training.migrations import SCHEMA
from cifarbench.training.optimizer_state import load as load_optimizer
from cifarbench.training.session import build_model

MARK = b"cifarbench-sha256:"


def sealed(archive: bytes) -> bytes:
    """A zip archive without a comment, given the checksum that a checkpoint ends with: anyone can compute it."""
    body = archive[:-2] + struct.pack("<H", len(MARK) + 64)
    return body + MARK + hashlib.sha256(body).hexdigest().encode()


def saved(value: Any) -> bytes:
    """What torch.save writes."""
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def zipped(pickled: bytes, *records: bytes, compression: int = zipfile.ZIP_STORED) -> bytes:
    """An archive of torch's layout around any pickle."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        archive.writestr("archive/data.pkl", pickled)
        archive.writestr("archive/version", "3\n")
        archive.writestr("archive/byteorder", "little")
        for number, record in enumerate(records):
            archive.writestr(f"archive/data/{number}", record)
    return buffer.getvalue()


def rezipped(value: Any) -> bytes:
    """What torch.save writes, in an archive that Python's zipfile wrote."""
    archive = zipfile.ZipFile(io.BytesIO(saved(value)))
    count = sum(name.startswith("archive/data/") for name in archive.namelist())
    records = [archive.read(f"archive/data/{number}") for number in range(count)]
    return zipped(archive.read("archive/data.pkl"), *records)


def model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 10))


def stepped(kind: type[torch.optim.Optimizer], module: nn.Module, **options: Any) -> torch.optim.Optimizer:
    """An optimizer after one step, so that it has state."""
    optimizer = kind(module.parameters(), lr=0.01, **options)
    module(torch.ones(2, 3, 4, 4)).sum().backward()
    optimizer.step()
    return optimizer


def named(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    return {"name": type(optimizer).__name__, **optimizer.state_dict()}


def state(**parts: Any) -> dict[str, Any]:
    """A small state with every part."""
    module = model()
    whole = {
        "model": module.state_dict(),
        "optimizer": named(stepped(torch.optim.AdamW, module)),
        "scheduler": {"name": "cosine"},
        "ema": {},
        "rng": {"torch": torch.get_rng_state()},
        "progress": {"step": 7, "rows": [{"loss": 0.1, "val": None}]},
        "config": {"seed": 3, "name": "café", "widths": [8, 8]},
        "passport": {"split": {"fingerprint": "ab"}},
    }
    return {**whole, **parts}


@pytest.fixture
def path(tmp_path) -> Path:
    return tmp_path / "last.pt"


@pytest.fixture
def good(path) -> bytes:
    """The bytes of a checkpoint, which is also at `path`."""
    save(state(), path)
    return path.read_bytes()


def assert_refused(path: Path, content: bytes, match: str = ".") -> None:
    path.write_bytes(content)
    with pytest.raises(IntegrityError, match=match) as refused:
        load(path)
    assert str(path) in str(refused.value)


# --- round trip ------------------------------------------------------------------------------------------------------


def test_what_was_saved_is_loaded(path):
    before = state()
    save(before, path)
    after = load(path)
    assert after["schema"] == SCHEMA
    assert tensor_hash(after["model"]) == tensor_hash(before["model"])
    assert torch.equal(after["rng"]["torch"], before["rng"]["torch"])
    for part in ("scheduler", "ema", "progress", "config", "passport"):
        assert after[part] == before[part]
    assert after["optimizer"]["param_groups"] == before["optimizer"]["param_groups"]
    for index, slots in before["optimizer"]["state"].items():
        assert all(torch.equal(after["optimizer"]["state"][index][name], value) for name, value in slots.items())


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.int64, torch.uint8, torch.bool]
)
def test_tensors_of_every_kind_survive(path, dtype):
    tensors = {
        "full": torch.arange(6).to(dtype),
        "scalar": torch.tensor(1).to(dtype),
        "empty": torch.zeros(0, 3).to(dtype),
    }
    save(state(model=tensors), path)
    assert tensor_hash(load(path)["model"]) == tensor_hash(tensors)


def test_torch_itself_reads_a_checkpoint_with_weights_only(good, path):
    theirs = torch.load(path, weights_only=True)
    assert set(theirs) == {"schema", *state()}
    assert tensor_hash(theirs["model"]) == tensor_hash(load(path)["model"])


def test_a_checkpoint_is_a_zip_archive_whose_comment_is_the_sha256_of_what_is_before_it(good, path):
    comment = zipfile.ZipFile(path).comment
    assert comment == MARK + hashlib.sha256(good[: -len(comment)]).hexdigest().encode()


def test_a_copy_has_the_same_bytes(good, path):
    checkpoint.copy(path, path.with_name("best.pt"))
    assert path.with_name("best.pt").read_bytes() == good


def test_saving_leaves_one_file_in_the_folder(good, path):
    assert [entry.name for entry in path.parent.iterdir()] == ["last.pt"]


def test_loaded_tensors_lie_on_the_cpu_wherever_they_were_saved(path):
    content = rezipped({"schema": SCHEMA, **state()})
    archive = zipfile.ZipFile(io.BytesIO(content))
    elsewhere = archive.read("archive/data.pkl").replace(b"cpu", b"mps")
    assert elsewhere != archive.read("archive/data.pkl")
    records = [archive.read(name) for name in archive.namelist() if name.startswith("archive/data/")]
    path.write_bytes(sealed(zipped(elsewhere, *records)))
    assert {value.device.type for value in load(path)["model"].values()} == {"cpu"}


# --- damage ----------------------------------------------------------------------------------------------------------


def test_any_flipped_bit_is_detected(good, path):
    draw = random.Random(1)
    ends = [*range(8 * 30), *range(8 * (len(good) - 120), 8 * len(good))]
    for bit in draw.sample(range(8 * len(good)), 200) + draw.sample(ends, 150):
        flipped = bytearray(good)
        flipped[bit // 8] ^= 1 << (bit % 8)
        assert_refused(path, bytes(flipped), "damaged")


def test_any_truncation_is_detected(good, path):
    lengths = [*random.Random(2).sample(range(len(good)), 40), *range(len(good) - 10, len(good)), 1, 82]
    for length in lengths:
        assert_refused(path, good[:length], "damaged")


@pytest.mark.parametrize(
    "damage", ["empty", "zeros at the end", "zeros in the middle", "doubled", "a byte more", "text"]
)
def test_a_file_that_was_not_written_whole_is_refused(good, path, damage):
    half = len(good) // 2
    content = {
        "empty": b"",
        "zeros at the end": good[:half] + bytes(len(good) - half),
        "zeros in the middle": good[:half] + bytes(64) + good[half + 64 :],
        "doubled": good + good,
        "a byte more": good + b"\0",
        "text": b"no checkpoint\n" * 100,
    }[damage]
    assert_refused(path, content, "damaged")


def test_what_torch_saves_without_a_checksum_is_refused(path):
    assert_refused(path, saved({"schema": SCHEMA, **state()}), "ends without its checksum")


def test_damage_that_carries_a_valid_checksum_is_refused_or_harmless(good, path):
    draw, body = random.Random(3), good[: -len(MARK) - 64]
    for _ in range(150):
        bit = draw.randrange(8 * len(body))
        flipped = bytearray(body)
        flipped[bit // 8] ^= 1 << (bit % 8)
        path.write_bytes(bytes(flipped) + MARK + hashlib.sha256(flipped).hexdigest().encode())
        with contextlib.suppress(IntegrityError):
            assert set(load(path)) >= set(checkpoint.PARTS)


def test_a_folder_or_a_fifo_is_refused_without_waiting(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    for name in (tmp_path, tmp_path / "fifo"):
        with pytest.raises(IntegrityError, match="is no checkpoint"):
            load(name)


def test_a_missing_file_is_not_called_damaged(path):
    with pytest.raises(FileNotFoundError):
        load(path)


# --- hostile files ---------------------------------------------------------------------------------------------------


class Payload:
    """Makes a file when it is unpickled."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self):
        return Path.touch, (self.canary,)


@pytest.fixture
def canary(tmp_path) -> Path:
    return tmp_path / "canary"


def hostile(kind: str, canary: Path) -> bytes:
    """A file whose unpickling by Python's own pickle makes the canary."""
    whole = {"schema": SCHEMA, **state(), "extra": Payload(canary)}
    legacy = io.BytesIO()
    torch.save(whole, legacy, _use_new_zipfile_serialization=False)
    return {
        "zip": saved(whole),
        "bare pickle in a zip": zipped(pickle.dumps(Payload(canary), protocol=2)),
        "newer pickle in a zip": zipped(pickle.dumps(Payload(canary), protocol=4)),
        "legacy": legacy.getvalue(),
        "bare pickle": pickle.dumps(Payload(canary)),
    }[kind]


KINDS = ["zip", "bare pickle in a zip", "newer pickle in a zip", "legacy", "bare pickle"]


@pytest.mark.parametrize("kind", ["bare pickle in a zip", "newer pickle in a zip", "bare pickle"])
def test_the_payload_works_where_nothing_protects_against_it(kind, canary):
    content = hostile(kind, canary)
    pickled = content if kind == "bare pickle" else zipfile.ZipFile(io.BytesIO(content)).read("archive/data.pkl")
    pickle.loads(pickled)
    assert canary.exists()


@pytest.mark.parametrize("forced", [False, True])
@pytest.mark.parametrize("with_checksum", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_a_pickle_payload_is_refused_and_not_run(path, canary, monkeypatch, kind, with_checksum, forced):
    if forced:
        monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    content = hostile(kind, canary)
    assert_refused(path, sealed(content) if with_checksum else content)
    assert not canary.exists()
    assert os.environ.get("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD") == ("1" if forced else None)


@pytest.mark.parametrize("kind", KINDS)
def test_eval_of_a_pickle_payload_exits_3_and_runs_nothing(cli, path, canary, monkeypatch, kind):
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    path.write_bytes(sealed(hostile(kind, canary)))
    result = cli("eval", f"checkpoint={path}")
    assert result.code == 3
    assert str(path) in result.err
    assert not canary.exists()


def test_the_variable_that_forces_pickle_does_not_spoil_a_good_checkpoint(good, path, monkeypatch):
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    assert load(path)["progress"]["step"] == 7


@pytest.mark.parametrize(
    "value",
    [Path("x"), np.float64(1), np.zeros(2), nn.Linear(2, 2), torch.zeros(2, 3, device="meta"), {1, 2}, bytearray(2)],
    ids=lambda value: type(value).__name__,
)
def test_anything_but_tensors_and_plain_values_is_refused(path, value):
    assert_refused(
        path, sealed(saved({"schema": SCHEMA, **state(config={"value": value})})), "something else than tensors"
    )


def test_torch_reads_the_entries_that_were_checked_where_zip_readers_disagree(path):
    # Python's zipfile finds the table of contents from the end of the file, torch's reader from its beginning.
    first, second = (rezipped({"schema": SCHEMA, **state(progress={"step": step})}) for step in (66, 7))
    content = sealed(first + second)
    assert torch.load(io.BytesIO(content), weights_only=True)["progress"]["step"] == 66
    path.write_bytes(content)
    assert load(path)["progress"]["step"] == 7


def test_two_entries_of_one_name_are_refused(path):
    content = io.BytesIO(saved({"schema": SCHEMA, **state()}))
    with zipfile.ZipFile(content, "a") as archive:
        archive.writestr("archive/DATA.pkl", b"\x80\x02}.")
    assert_refused(path, sealed(content.getvalue()), "two entries of one name")


BOMBS = """
import sys, zipfile
from pathlib import Path
from cifarbench.errors import IntegrityError
from cifarbench.training.checkpoint import load

def peak():
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024

good, *bombs = sys.argv[1:]
load(Path(good))
for bomb in bombs:
    before = peak()
    try:
        load(Path(bomb))
        print("loaded")
    except IntegrityError:
        print(peak() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak memory from /proc")
def test_bombs_are_refused_without_unpacking_them(good, path, tmp_path):
    size = 128 << 20
    number = b"J" + struct.pack("<i", size) + b"\x85R."
    bombs = {
        "compressed": zipped(pickle.dumps({}, protocol=2), bytes(size), compression=zipfile.ZIP_DEFLATED),
        "bytearray": zipped(b"\x80\x02cbuiltins\nbytearray\n" + number),
        "storage": zipped(b"\x80\x02ctorch.storage\nUntypedStorage\n" + number),
    }
    for name, content in bombs.items():
        (tmp_path / name).write_bytes(sealed(content))
        assert (tmp_path / name).stat().st_size < 1 << 20
    done = subprocess.run(
        [sys.executable, "-c", BOMBS, path, *(tmp_path / name for name in bombs)],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parent.parent,
    )
    growth = [float(line) for line in done.stdout.split()]
    assert len(growth) == len(bombs), done.stderr
    assert max(growth) < 64


# --- files of another version or kind --------------------------------------------------------------------------------


def test_a_newer_schema_is_refused_by_its_number_even_where_its_parts_have_other_names(path):
    assert_refused(path, sealed(saved({"schema": SCHEMA + 1, "weights": {}})), "this version reads up to")


@pytest.mark.parametrize("part", checkpoint.PARTS)
def test_a_missing_part_is_named(path, part):
    whole = {"schema": SCHEMA, **state()}
    del whole[part]
    assert_refused(path, sealed(saved(whole)), f"lacks {part}")


@pytest.mark.parametrize("value", [[1, 2], None, torch.zeros(2), {}, {"model": {}}])
def test_values_that_are_no_checkpoint_are_refused(path, value):
    assert_refused(path, sealed(saved(value)), "is no checkpoint of cifarbench")


@pytest.mark.parametrize("schema", [None, "1", torch.zeros(3)])
def test_a_schema_that_is_no_number_is_refused(path, schema):
    assert_refused(path, sealed(saved({**state(), "schema": schema})), "lacks its schema")


# --- weights ---------------------------------------------------------------------------------------------------------


def test_weights_are_copied_bit_for_bit():
    module, other = model(), model()
    with torch.no_grad():
        other[0].weight.add_(1)
    load_weights(module, other.state_dict(), "file")
    assert tensor_hash(module.state_dict()) == tensor_hash(other.state_dict())


def test_the_first_three_mismatches_are_listed_and_the_others_counted():
    weights = model().state_dict()
    del weights["0.bias"], weights["1.weight"]
    weights["3.weight"] = torch.zeros(10, 17)
    weights["head"] = torch.zeros(1)
    with pytest.raises(IntegrityError) as refused:
        load_weights(model(), weights, "file")
    assert str(refused.value) == (
        "file does not fit the model: 0.bias is missing; 1.weight is missing; head is not in the model and 1 more."
    )


def test_another_shape_is_named_with_both_shapes():
    weights = {**model().state_dict(), "3.weight": torch.zeros(10, 17)}
    with pytest.raises(IntegrityError, match=r"3\.weight is \(10, 17\) torch\.float32, the model has \(10, 16\)"):
        load_weights(model(), weights, "file")


def test_another_dtype_is_refused():
    weights = {**model().state_dict(), "3.bias": torch.zeros(10, dtype=torch.float64)}
    with pytest.raises(IntegrityError, match=r"3\.bias is \(10,\) torch\.float64"):
        load_weights(model(), weights, "file")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("name", ["0.weight", "1.running_var"])
def test_weights_that_are_not_finite_are_refused_by_name(name, value):
    weights = {name: tensor.clone() for name, tensor in model().state_dict().items()}
    weights[name].view(-1)[-1] = value
    with pytest.raises(IntegrityError, match=f"its weight {name} is not finite"):
        load_weights(model(), weights, "file")


@pytest.mark.parametrize("weights", [None, [], {"0.weight": 1}, torch.zeros(2)])
def test_values_that_are_no_weights_are_refused(weights):
    with pytest.raises(IntegrityError, match="file holds no weights where they should be"):
        load_weights(model(), weights, "file")


def test_refused_weights_leave_the_model_as_it_was():
    module = model()
    before = tensor_hash(module.state_dict())
    weights = {name: torch.full_like(tensor, 5) for name, tensor in module.state_dict().items()}
    weights["3.bias"] = weights["3.bias"] * float("nan")
    with pytest.raises(IntegrityError):
        load_weights(module, weights, "file")
    assert tensor_hash(module.state_dict()) == before


# --- optimizer state -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW, torch.optim.RMSprop])
def test_an_optimizer_goes_on_as_if_it_had_never_stopped(path, kind):
    options = {"momentum": 0.9} if kind in (torch.optim.SGD, torch.optim.RMSprop) else {}
    first, second = model(), model()
    ours = stepped(kind, first, **options)
    save(state(model=first.state_dict(), optimizer=named(ours)), path)
    stored = load(path)
    load_weights(second, stored["model"], path)
    theirs = kind(second.parameters(), lr=0.01, **options)
    load_optimizer(theirs, stored["optimizer"], path)
    for module, optimizer in ((first, ours), (second, theirs)):
        optimizer.zero_grad()
        module(torch.ones(2, 3, 4, 4)).square().sum().backward()
        optimizer.step()
    assert tensor_hash(first.state_dict()) == tensor_hash(second.state_dict())


@pytest.mark.parametrize(
    ("saved_by", "loaded_by"),
    [
        (torch.optim.AdamW, torch.optim.SGD),
        (torch.optim.SGD, torch.optim.AdamW),
        (torch.optim.Adam, torch.optim.AdamW),
        (torch.optim.RMSprop, torch.optim.SGD),
    ],
)
def test_the_state_of_another_optimizer_is_refused(saved_by, loaded_by):
    stored = named(stepped(saved_by, model()))
    with pytest.raises(IntegrityError, match=f"another optimizer or model than {loaded_by.__name__}"):
        load_optimizer(loaded_by(model().parameters(), lr=0.01), stored, "file")


def test_the_state_of_another_optimizer_under_a_false_name_is_refused():
    stored = {**named(stepped(torch.optim.AdamW, model())), "name": "SGD"}
    with pytest.raises(IntegrityError, match="another optimizer or model than SGD"):
        load_optimizer(torch.optim.SGD(model().parameters(), lr=0.01), stored, "file")


def test_optimizer_state_of_wrong_shapes_is_refused():
    stored = named(stepped(torch.optim.AdamW, model()))
    stored["state"][0]["exp_avg"] = torch.zeros(1, 2)
    with pytest.raises(IntegrityError, match="another optimizer or model than AdamW"):
        load_optimizer(torch.optim.AdamW(model().parameters(), lr=0.01), stored, "file")


def test_optimizer_state_for_more_parameters_is_refused():
    stored = named(stepped(torch.optim.AdamW, model()))
    stored["state"][99] = stored["state"][0]
    with pytest.raises(IntegrityError):
        load_optimizer(torch.optim.AdamW(model().parameters(), lr=0.01), stored, "file")


@pytest.mark.parametrize("stored", [None, {}, [], {"param_groups": 3}, {"param_groups": [], "state": []}])
def test_values_that_are_no_optimizer_state_are_refused(stored):
    with pytest.raises(IntegrityError, match="file holds "):
        load_optimizer(torch.optim.SGD(model().parameters(), lr=0.01), stored, "file")


# --- writing ---------------------------------------------------------------------------------------------------------


def assert_old_one_survived(path: Path, before: bytes) -> None:
    assert path.read_bytes() == before
    assert load(path)["progress"]["step"] == 7
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


def failing_sync(handle: int) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def failing_rename(source: Path, target: Path) -> None:
    raise OSError(errno.EIO, "Input/output error")


@pytest.mark.parametrize(("function", "failure"), [("fsync", failing_sync), ("replace", failing_rename)])
def test_a_failed_write_names_the_file_and_its_size_and_leaves_the_old_one(good, path, monkeypatch, function, failure):
    monkeypatch.setattr(os, function, failure)
    with pytest.raises(OSError, match=rf"a checkpoint of [\d,]+ bytes.*{path.name}") as failed:
        save(state(progress={"step": 8}), path)
    monkeypatch.undo()
    assert failed.value.filename == str(path)
    assert_old_one_survived(path, good)


@pytest.mark.parametrize("operation", ["save", "copy"])
def test_a_disk_that_fills_up_while_writing_leaves_the_old_one(good, path, tmp_path_factory, operation):
    big = state(progress={"step": 8}, ema={"weight": torch.zeros(100_000)})
    source = tmp_path_factory.mktemp("other") / "last.pt"
    save(big, source)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(OSError, match="a checkpoint of 4") as failed:
            save(big, path) if operation == "save" else checkpoint.copy(source, path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert (failed.value.errno, failed.value.filename) == (errno.EFBIG, str(path))
    assert_old_one_survived(path, good)


def test_the_new_file_is_on_the_disk_before_it_takes_the_name_and_the_folder_after(path, monkeypatch):
    steps = []
    sync, rename = os.fsync, os.replace

    def recorded_sync(handle: int) -> None:
        steps.append("folder" if stat.S_ISDIR(os.fstat(handle).st_mode) else "file")
        sync(handle)

    def recorded_rename(source: Path, target: Path) -> None:
        steps.append("rename")
        rename(source, target)

    monkeypatch.setattr(os, "fsync", recorded_sync)
    monkeypatch.setattr(os, "replace", recorded_rename)
    save(state(), path)
    assert steps == ["file", "rename", "folder"]


def test_a_system_that_opens_no_folder_still_saves(path, monkeypatch):
    def refuse(*arguments: Any) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    with monkeypatch.context() as windows:
        windows.setattr(os, "name", "nt")
        windows.setattr(os, "open", refuse)
        save(state(), path)
    assert checkpoint.load(path)["progress"] == state()["progress"]


def test_a_folder_that_is_not_there_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere/last\.pt"):
        save(state(), tmp_path / "nowhere" / "last.pt")


def test_what_a_killed_write_left_is_cleared_and_nothing_else(good, path):
    path.with_name(".last.pt.part").write_bytes(good[:100])
    path.with_name("other.part").write_bytes(b"")
    checkpoint.clear_parts(path.parent)
    assert sorted(entry.name for entry in path.parent.iterdir()) == ["last.pt", "other.part"]


# --- the newest readable one -----------------------------------------------------------------------------------------


def step_of(found: tuple[Path, dict[str, Any], list[str]] | None) -> tuple[str, int, int] | None:
    """File name, step and number of warnings."""
    return None if found is None else (found[0].name, found[1]["progress"]["step"], len(found[2]))


def test_the_last_checkpoint_comes_before_the_best(tmp_path):
    save(state(progress={"step": 3}), tmp_path / "best.pt")
    save(state(progress={"step": 5}), tmp_path / "last.pt")
    assert step_of(newest_valid(tmp_path)) == ("last.pt", 5, 0)


@pytest.mark.parametrize("content", [b"", b"half", None])
def test_a_damaged_last_checkpoint_is_named_in_a_warning_and_the_best_taken(tmp_path, content):
    save(state(progress={"step": 3}), tmp_path / "best.pt")
    (tmp_path / "last.pt").write_bytes((tmp_path / "best.pt").read_bytes()[:-500] if content is None else content)
    found = newest_valid(tmp_path)
    assert step_of(found) == ("best.pt", 3, 1)
    assert str(tmp_path / "last.pt") in found[2][0]


def test_a_missing_last_checkpoint_needs_no_warning(tmp_path):
    save(state(progress={"step": 3}), tmp_path / "best.pt")
    assert step_of(newest_valid(tmp_path)) == ("best.pt", 3, 0)


def test_without_checkpoints_there_is_nothing_to_resume(tmp_path):
    assert newest_valid(tmp_path) is None


def test_where_every_checkpoint_is_damaged_the_folder_is_refused(tmp_path):
    for name in ("last.pt", "best.pt"):
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(IntegrityError, match=f"no readable checkpoint in {tmp_path}"):
        newest_valid(tmp_path)


# --- the hash of weights ---------------------------------------------------------------------------------------------


def test_the_hash_ignores_order_layout_and_gradients():
    tensors = {"a": torch.randn(2, 3, 4, 4), "b": torch.randn(5)}
    same = OrderedDict(
        b=tensors["b"].clone().requires_grad_(), a=tensors["a"].contiguous(memory_format=torch.channels_last)
    )
    assert tensor_hash(same) == tensor_hash(tensors)


def test_the_hash_of_one_element_with_an_odd_stride_is_that_of_its_value():
    odd = torch.arange(10.0).as_strided((1,), (5,))
    assert tensor_hash({"a": odd}) == tensor_hash({"a": torch.zeros(1)})


def test_the_hash_of_a_view_is_that_of_its_values():
    base = torch.randn(10, 4)
    assert tensor_hash({"a": base[::2].T}) == tensor_hash({"a": base[::2].T.clone()})


CHANGES: dict[str, Callable[[torch.Tensor], dict[str, torch.Tensor]]] = {
    "one bit": lambda tensor: {
        "a": (tensor.view(torch.int32) ^ torch.tensor([[1, 0, 0], [0, 0, 0]])).view(torch.float32)
    },
    "name": lambda tensor: {"b": tensor},
    "shape": lambda tensor: {"a": tensor.view(3, 2)},
    "dtype": lambda tensor: {"a": tensor.view(torch.int32)},
    "one more": lambda tensor: {"a": tensor, "b": torch.zeros(0)},
    "sign of zero": lambda tensor: {"a": tensor.where(tensor != 0, torch.tensor(-0.0))},
    "transposed": lambda tensor: {"a": tensor.T.contiguous().view(2, 3)},
}


@pytest.mark.parametrize("change", CHANGES)
def test_the_hash_changes_with(change):
    tensor = torch.tensor([[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]])
    assert tensor_hash(CHANGES[change](tensor)) != tensor_hash({"a": tensor})


def test_the_hash_is_that_of_names_dtypes_shapes_and_bytes():
    values = np.arange(6, dtype=np.float32).reshape(2, 3)
    expected = hashlib.sha256(
        b"a/torch.float32/(2, 3)/" + values.tobytes() + b"b/torch.int64/()/" + struct.pack("<q", 7)
    )
    assert tensor_hash({"b": torch.tensor(7), "a": torch.from_numpy(values)}) == expected.hexdigest()


# --- eval of a file from a stranger ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def stranger() -> dict[str, Any]:
    """The state of an untrained tiny run, as it would come by mail."""
    config = tiny_config("data.size=600")
    data = load_images(config.data)
    parts = split(data, config.split)
    mean, std = channel_statistics(parts.train.images)
    passport = {
        "dataset": {"name": data.name, "fingerprint": data.fingerprint},
        "split": {"name": parts.name, "fingerprint": parts.fingerprint},
        "mean": list(mean),
        "std": list(std),
        "environment": {"precision": "fp32", "threads": 1, "device": "cpu"},
    }
    return state(model=build_model(config).state_dict(), config=to_plain(config), passport=passport)


def with_config(stranger: dict[str, Any], section: str, values: Any) -> dict[str, Any]:
    """The state with one section of its config changed; the section "" is the whole."""
    config = stranger["config"]
    if not section:
        return {**stranger, "config": values}
    merged = {**config[section], **values} if isinstance(values, dict) and section in config else values
    return {**stranger, "config": {**config, section: merged}}


def test_a_checkpoint_is_evaluated_from_nothing_but_itself(cli, path, stranger):
    save(stranger, path)
    result = cli("eval", f"checkpoint={path}")
    assert (result.code, result.err) == (0, "")


HOSTILE_CONFIGS: dict[str, tuple[str, Any]] = {
    "target in the model": ("model", {"_target_": "os.system", "command": "touch canary"}),
    "target at the top": ("_target_", "os.system"),
    "target in place of everything": ("", {"_target_": "os.system", "command": "touch canary"}),
    "a model named os.system": ("model", {"name": "os.system"}),
    "a model of another file": ("model", {"name": "../../canary"}),
    "an optimizer named os.system": ("optim", {"name": "os.system"}),
    "an interpolation": ("model", {"name": "${oc.env:HOME}"}),
    "an unknown key": ("trainer", {"command": "touch canary"}),
    "a section that is a list": ("model", []),
    "no config": ("", None),
}


@pytest.mark.parametrize("kind", HOSTILE_CONFIGS)
def test_a_stored_config_that_names_something_else_exits_3_and_imports_nothing(cli, path, stranger, kind):
    save(with_config(stranger, *HOSTILE_CONFIGS[kind]), path)
    before = set(sys.modules)
    result = cli("eval", f"checkpoint={path}")
    assert result.code == 3, result.err
    assert len(result.err.splitlines()) == 1
    assert not Path("canary").exists()
    ours = ("cifarbench", "hydra", "omegaconf", "rich")
    assert [name for name in set(sys.modules) - before if not name.startswith(ours)] == []


def test_plugins_that_a_checkpoint_names_are_not_run(cli, path, stranger, canary, tmp_path):
    plugin = tmp_path / "plugin.py"
    plugin.write_text(f"from pathlib import Path\nPath({str(canary)!r}).touch()\n")
    save(with_config(stranger, "plugins", [str(plugin)]), path)
    cli("eval", f"checkpoint={path}")
    assert not canary.exists()


def test_weights_of_another_model_exit_3_with_the_first_mismatches(cli, path, stranger):
    save({**stranger, "model": model().state_dict()}, path)
    result = cli("eval", f"checkpoint={path}")
    assert result.code == 3
    assert "does not fit the model: " in result.err
    assert " is missing; " in result.err


@pytest.mark.parametrize(
    "changes",
    [
        {"std": [0.2, 0.0, 0.2]},
        {"mean": [float("nan")] * 3},
        {"split": {"fingerprint": "0" * 64}},
        {"environment": {"precision": "fp32", "threads": "1", "device": "cpu"}},
        {"environment": {"precision": "fp99", "threads": 1, "device": "cpu"}},
    ],
)
def test_a_passport_with_values_that_no_run_writes_exits_3(cli, path, stranger, changes):
    save({**stranger, "passport": {**stranger["passport"], **changes}}, path)
    assert cli("eval", f"checkpoint={path}").code == 3


def test_a_checkpoint_of_other_data_exits_3(cli, path, stranger):
    passport = {**stranger["passport"], "split": {"name": "last20", "fingerprint": "0" * 64}}
    save({**stranger, "passport": passport}, path)
    result = cli("eval", f"checkpoint={path}")
    assert result.code == 3
    assert "was trained on other data or another split" in result.err
