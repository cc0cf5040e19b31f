"""scripts/damage.py: every damaged checkpoint is noticed, and the script would tell if one were not."""

from __future__ import annotations

import argparse
import itertools
import re
from pathlib import Path

import damage
from conftest import SCRIPTS
from processes import script
from test_checkpoint import state

from cifarbench.training import checkpoint

OPTIONS = argparse.Namespace(flips=60, truncations=12, others=15, commands=0, seed=5)


def test_a_short_run_of_the_script_misses_nothing(tmp_path):
    words = ["--flips", "90", "--truncations", "30", "--others", "30", "--commands", "3", "--seed", "4"]
    done = script(SCRIPTS / "damage.py", *words, cwd=tmp_path)
    assert done.code == 0, done.out + done.err
    assert done.out.startswith("seed 4\n")
    assert done.out.endswith("153 damaged files, 153 noticed, 0 missed\n")
    counts = re.findall(r"(\d+) of (\d+)", done.out)
    assert sum(int(number) for _, number in counts) == 153
    assert "cifarbench eval" in done.out


def test_a_loader_that_takes_everything_is_found_out(tmp_path, capsys):
    whole = checkpoint.sealed_bytes({"schema": checkpoint.SCHEMA, **state()})
    done, noticed = damage.damage_all({"sgd": whole}, OPTIONS, tmp_path / "x.pt", lambda path: {})
    assert (done.total(), noticed.total()) == (87, 0)
    assert damage.summarise(done, noticed) == 1
    assert "87 damaged files, 0 noticed, 87 missed" in capsys.readouterr().out


def test_a_loader_that_misses_one_region_is_found_out(tmp_path):
    whole = checkpoint.sealed_bytes({"schema": checkpoint.SCHEMA, **state()})
    comment = damage.regions(whole)["comment"][0][0]

    def careless(path: Path) -> dict:
        content = path.read_bytes()
        unread = len(content) == len(whole) and content[:comment] == whole[:comment]
        return {} if unread else checkpoint.load(path)

    done, noticed = damage.damage_all({"sgd": whole}, OPTIONS, tmp_path / "x.pt", careless)
    missed = {kind for kind, name in done if noticed[kind, name] < done[kind, name]}
    assert missed == {"flip in comment"}


def test_the_regions_cover_the_file_but_for_what_lies_between_entries():
    whole = checkpoint.sealed_bytes({"schema": checkpoint.SCHEMA, **state()})
    places = sorted(place for found in damage.regions(whole).values() for place in found)
    assert all(stop <= start for (_, stop), (start, _) in itertools.pairwise(places))
    assert places[0][0] == 0
    assert places[-1][1] == len(whole)
    assert sum(stop - start for start, stop in places) > 0.9 * len(whole)


def test_every_damage_changes_the_file_and_follows_from_the_seed():
    whole = checkpoint.sealed_bytes({"schema": checkpoint.SCHEMA, **state()})
    first, second = (list(damage.damages(damage.random.Random(9), whole, OPTIONS, 1)) for _ in range(2))
    assert first == second
    assert all(content != whole for _, content in first)
    assert {len(content) for kind, content in first if kind == "truncated"} >= {0, 1, len(whole) - 1}
