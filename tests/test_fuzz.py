"""scripts/fuzz.py: a few spoilt commands keep every promise, and the fuzzer notices one that does not."""

from __future__ import annotations

import json
import re
import textwrap
from pathlib import Path

import pytest
from conftest import SCRIPTS
from fuzzing.case import Case, from_json
from fuzzing.files import Spoiler
from processes import python, script


@pytest.fixture(scope="module")
def records(tmp_path_factory) -> Path:
    """The corpus that the fuzzer spoils, made by the first test that needs it."""
    return tmp_path_factory.mktemp("fuzz") / "corpus"


def test_a_few_spoilt_commands_keep_every_promise(records, tmp_path):
    words = ["--cases", "18", "--seed", "11", "--limit", "60", "--corpus", records, "--failures", tmp_path / "failures"]
    done = script(SCRIPTS / "fuzz.py", *words, cwd=tmp_path)
    assert done.code == 0, done.out + done.err
    assert re.search(r"^18 cases of seed 11 from 0 on in \d+ s: 0 failed;", done.out, re.MULTILINE)
    assert not (tmp_path / "failures").exists()


def caged(body: str, tmp_path: Path, limit: float = 20, network: bool = False) -> dict:
    """How a planted `main(argv)` of this body ends in the cage, which is tried in a process without other threads."""
    (tmp_path / "planted.py").write_text(
        "import dataclasses, json, os, signal, socket, subprocess, sys, time\nfrom pathlib import Path\n"
        f"sys.path.insert(0, {str(SCRIPTS)!r})\nfrom fuzzing import cage\n"
        f"def main(argv):\n{textwrap.indent(body, '    ')}\n"
        "cwd = Path(sys.argv[1]) / 'work' / 'cwd'\ncwd.mkdir(parents=True)\n"
        f"ended = cage.run(main, ['eval'], cwd, [cwd.parent / 'named'], {limit}, {network})\n"
        "print(json.dumps(dataclasses.asdict(ended)))\n"
    )
    done = python(tmp_path / "planted.py", tmp_path, cwd=tmp_path)
    assert done.code == 0, done.err
    return json.loads(done.out)


@pytest.mark.parametrize(
    ("body", "broken"),
    [
        ("raise RuntimeError('planted')", "traceback"),
        ("print('a bug: please report it', file=sys.stderr); return 2", "called a bug"),
        ("return 1", "exit code 1"),
        ("return 77", "exit code 77"),
        ("return 2", "no word of why"),
        ("os.kill(os.getpid(), signal.SIGSEGV)", "died of signal 11"),
        ("Path('../../escaped').write_text('x'); return 0", "escape to '../../escaped'"),
        ("Path('/var/tmp/escaped').mkdir(); return 0", "escape to '/var/tmp/escaped'"),
        ("Path('/dev/escaped').touch(); return 0", "escape to '/dev/escaped'"),
        ("os.rename('x', '../moved'); return 0", "escape to '../moved'"),
        ("Path('canary').touch(); return 0", "canary"),
        ("subprocess.run(['true']); return 0", "process 'true'"),
        ("os.system('true'); return 0", "process b'true'"),
        ("socket.create_connection(('example.com', 80)); return 0", "network 'example.com'"),
    ],
)
def test_a_planted_offence_is_noticed(body, broken, tmp_path):
    assert broken in caged(body, tmp_path)["broken"]


def test_a_planted_hang_is_noticed_and_leaves_no_process(tmp_path):
    body = "Path('pid').write_text(str(os.getpid()))\nif os.fork() == 0: time.sleep(600)\ntime.sleep(600)"
    ended = caged(body, tmp_path, limit=1)
    assert ended["broken"] == ["hang"]
    assert ended["seconds"] < 10
    group = (tmp_path / "work" / "cwd" / "pid").read_text()
    stats = [path.read_text().rpartition(")")[2].split() for path in Path("/proc").glob("[0-9]*/stat")]
    assert not [stat for stat in stats if stat[2] == group and stat[0] not in "ZX"]


def test_what_is_allowed_is_no_offence(tmp_path):
    body = (
        "Path('inside').write_text('x'); Path('../named').write_text('x'); Path.home().joinpath('x').touch()\n"
        "open('/dev/null', 'w').close()\n"
        "try: socket.create_connection(('example.com', 80))\n"
        "except OSError: print('no network', file=sys.stderr)\n"
        "return 5"
    )
    ended = caged(body, tmp_path, network=True)
    assert (ended["code"], ended["broken"], ended["err"]) == (5, [], "no network\n")


def test_a_kept_case_is_the_same_case_again(records, tmp_path):
    case = Case(
        "data", "word", ("data", "check", "data.root=batches", "\udcff"), ("batches",), {"a/b": b"\xff", "c": None}
    )
    assert from_json(case.to_json(broken=("hang",))) == case
    (tmp_path / "case.json").write_text(case.to_json())
    done = script(SCRIPTS / "fuzz.py", "--corpus", records, "--replay", tmp_path / "case.json", cwd=tmp_path)
    assert done.code == 0, done.out + done.err
    assert "exit code 2" in done.out


def test_a_case_is_a_function_of_its_seed_and_number(records):
    import fuzz  # which settles the threads of its process

    spoiler = Spoiler(records)
    first, second = ([fuzz.draw_case(3, number, spoiler) for number in range(80)] for _ in range(2))
    assert first == second
    assert len({case.verb for case in first}) > 10
    assert len({case.kind for case in first}) > 10
