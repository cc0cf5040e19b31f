"""Damage real checkpoints in thousands of ways, and count how many are noticed: every one has to be.

    python scripts/damage.py --flips 2000 --truncations 500 --seed 1

Tiny runs with SGD, AdamW, and Muon with averaged weights are trained on drawn images. Their last checkpoints get single
bits flipped in every region of the file, are cut off, lengthened and overwritten, and are given to the function that
reads checkpoints; some of them also to `cifarbench eval checkpoint=…`, which must end with exit code 3 and without a
traceback. Exit code 1 where one was missed.
"""

from __future__ import annotations

import argparse
import collections
import os
import random
import shutil
import struct
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # a pool of threads would not survive the fork
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from fuzzing import cage, corpus

from cifarbench.cli import main as command
from cifarbench.errors import IntegrityError
from cifarbench.training import checkpoint

Damage = tuple[str, bytes]
Counts = collections.Counter[tuple[str, str]]
REFUSED = 3  # exit code of what is damaged


def main() -> int:
    """Train, damage, count, and return 1 where damage went unnoticed."""
    options = _options()
    home = Path(tempfile.mkdtemp(prefix="cifarbench-damage-"))
    print(f"seed {options.seed}")
    try:
        originals = train(home)
        done, noticed = damage_all(originals, options, home / "damaged.pt", checkpoint.load)
        commands(originals, options, home, done, noticed)
    finally:
        shutil.rmtree(home, ignore_errors=True)
    return summarise(done, noticed)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--flips", type=int, default=2000, help="single bits flipped (default 2000)")
    parser.add_argument("--truncations", type=int, default=500, help="files cut off (default 500)")
    parser.add_argument("--others", type=int, default=300, help="files lengthened or overwritten (default 300)")
    parser.add_argument("--commands", type=int, default=60, help="of all, given to `cifarbench eval` (default 60)")
    parser.add_argument("--seed", type=int, default=1, help="what is drawn follows from it (default 1)")
    return parser.parse_args()


def train(home: Path) -> dict[str, bytes]:
    """The last checkpoint of a tiny run with each optimizer."""
    originals = {}
    for name, words in corpus.OPTIMIZERS.items():
        corpus.in_fork(home, ("train", *corpus.TINY, *words, f"hydra.run.dir={name}"))
        originals[name] = (home / name / "checkpoints" / "last.pt").read_bytes()
    corpus.warm(home)
    return originals


def damage_all(
    originals: dict[str, bytes], options: argparse.Namespace, path: Path, load: Callable[[Path], Any]
) -> tuple[Counts, Counts]:
    """Damage the checkpoints, give each to `load`, and count what was done and what was refused, by kind and run."""
    done: Counts = collections.Counter()
    noticed: Counts = collections.Counter()
    for name, content in originals.items():
        path.write_bytes(content)
        checkpoint.load(path)  # what is whole has to be read, or the rest says nothing
        for kind, damaged in damages(random.Random(f"{options.seed}/{name}"), content, options, len(originals)):
            path.write_bytes(damaged)
            done[kind, name] += 1
            noticed[kind, name] += is_noticed(path, load)
    return done, noticed


def is_noticed(path: Path, load: Callable[[Path], Any]) -> bool:
    """Whether `load` refuses the file as damaged."""
    try:
        load(path)
    except IntegrityError:
        return True
    return False


def damages(draw: random.Random, content: bytes, options: argparse.Namespace, share: int) -> Iterator[Damage]:
    """(kind, damaged bytes): each number of `options` divided by `share`, spread over the regions of the file."""
    found = regions(content)
    for number in range(-(-options.flips // share)):
        region = list(found)[number % len(found)]
        start, stop = draw.choice(found[region])
        yield f"flip in {region}", flipped(content, 8 * draw.randrange(start, stop) + draw.randrange(8))
    lengths = [0, 1, len(content) - 1, len(content) - 2]
    for number in range(-(-options.truncations // share)):
        yield "truncated", content[: lengths[number] if number < len(lengths) else draw.randrange(len(content))]
    for _ in range(-(-options.others // share)):
        yield overwritten(draw, content)


def regions(content: bytes) -> dict[str, list[tuple[int, int]]]:
    """Where in the file what lies: (start, stop) of every zip header, pickle, tensor, and of the comment at the end."""
    found: dict[str, list[tuple[int, int]]] = {"zip headers": [], "pickle": [], "tensors": [], "other entries": []}
    with tempfile.TemporaryFile() as file:
        file.write(content)
        with zipfile.ZipFile(file) as archive:
            entries, directory, comment = archive.infolist(), archive.start_dir, len(archive.comment)
    for entry in entries:
        name_bytes, extra_bytes = struct.unpack_from("<HH", content, entry.header_offset + 26)
        start = entry.header_offset + 30 + name_bytes + extra_bytes
        found["zip headers"].append((entry.header_offset, start))
        kind = (
            "pickle"
            if entry.filename.endswith(".pkl")
            else "tensors"
            if "/data/" in entry.filename
            else "other entries"
        )
        if entry.file_size:
            found[kind].append((start, start + entry.file_size))
    found["table of contents"] = [(directory, len(content) - comment)]
    found["comment"] = [(len(content) - comment, len(content))]
    return {name: places for name, places in found.items() if places}


def flipped(content: bytes, bit: int) -> bytes:
    """`content` with one bit turned round."""
    changed = bytearray(content)
    changed[bit // 8] ^= 1 << (bit % 8)
    return bytes(changed)


def overwritten(draw: random.Random, content: bytes) -> Damage:
    """Bytes appended, put in front, inserted, cut out of the middle, or written over a range."""
    start = draw.randrange(len(content))
    stop = min(len(content), start + draw.choice((1, 16, 512, 4096)))
    junk = draw.choice((draw.randbytes(stop - start), bytes(stop - start), b"\xff" * (stop - start)))
    if junk == content[start:stop]:
        junk = bytes(255 - byte for byte in junk)
    return draw.choice(
        (
            ("appended", content + junk),
            ("put in front", junk + content),
            ("inserted", content[:start] + junk + content[start:]),
            ("cut out", content[:start] + content[stop:]),
            ("overwritten", content[:start] + junk + content[stop:]),
        )
    )


def commands(
    originals: dict[str, bytes], options: argparse.Namespace, home: Path, done: Counts, noticed: Counts
) -> None:
    """Give a share of the damage to the command itself, each in a process of its own."""
    for name, content in originals.items():
        draw = random.Random(f"{options.seed}/{name}")
        everything = list(damages(draw, content, options, len(originals)))
        chosen = draw.sample(everything, min(len(everything), -(-options.commands // len(originals))))
        for _, damaged in chosen:
            cwd = home / "case" / "cwd"
            cwd.mkdir(parents=True)
            (cwd / "damaged.pt").write_bytes(damaged)
            ended = cage.run(command, ["eval", "checkpoint=damaged.pt"], cwd, [], 60, network=False)
            shutil.rmtree(cwd.parent)
            done["cifarbench eval", name] += 1
            noticed["cifarbench eval", name] += ended.code == REFUSED and not ended.broken


def summarise(done: Counts, noticed: Counts) -> int:
    """Print what was done and what was noticed, and return 1 where those differ."""
    names = sorted({name for _, name in done})
    print(f"{'damage':<28}{''.join(f'{name:>16}' for name in names)}   noticed of done")
    for kind in dict.fromkeys(kind for kind, _ in done):
        print(f"{kind:<28}" + "".join(f"{f'{noticed[kind, name]} of {done[kind, name]}':>16}" for name in names))
    missed = done.total() - noticed.total()
    print(f"{done.total()} damaged files, {noticed.total()} noticed, {missed} missed")
    return int(missed > 0 or not done)


if __name__ == "__main__":
    sys.exit(main())
