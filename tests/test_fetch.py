"""Fetching from servers that work, break, lie or are not there; every one of them is local."""

from __future__ import annotations

import hashlib
import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from test_cifar10 import made_up_files, publish, write

from cifarbench.data import cifar10
from cifarbench.data.fetch import unpack
from cifarbench.errors import IntegrityError

# Prepares the data in a process of its own: argv is root, mirrors and the published sums, as JSON.
PREPARE = """
import json, resource, sys
from pathlib import Path
from cifarbench.data import cifar10
root, mirrors, sums, limit = json.loads(sys.argv[1])
for name, value in sums.items():
    setattr(cifar10, name, value)
if limit:
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
print("ready", flush=True)
sys.stdin.readline()
cifar10.ensure(Path(root), True, mirrors, lambda line: print(line, flush=True))
"""


# --- archives and servers --------------------------------------------------------------------------------------------


def member(name: str, content: bytes = b"", **fields: object) -> tuple[tarfile.TarInfo, bytes]:
    """An entry of a tar archive; `fields` are set on its header."""
    entry = tarfile.TarInfo(name)
    entry.size = len(content)
    for field, value in fields.items():
        setattr(entry, field, value)
    return entry, content


def archive_of(*members: tuple[tarfile.TarInfo, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for entry, content in members:
            tar.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


def as_published(files: dict[str, bytes]) -> list[tuple[tarfile.TarInfo, bytes]]:
    """The members of the published archive: the folder, its seven files, and a page about them."""
    folder = member(cifar10.FOLDER, type=tarfile.DIRTYPE, mode=0o755)
    page = member(f"{cifar10.FOLDER}/readme.html", b"<html></html>")
    return [folder, *(member(f"{cifar10.FOLDER}/{name}", content) for name, content in files.items()), page]


class Server:
    """Mirrors by name: each a function of the request; `requests` lists (name, Range header)."""

    def __init__(self) -> None:
        self.mirrors: dict[str, Callable[[BaseHTTPRequestHandler], None]] = {}
        self.requests: list[tuple[str, str | None]] = []
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                name = self.path.strip("/")
                server.requests.append((name, self.headers["Range"]))
                server.mirrors[name](self)

            def log_message(self, *arguments: object) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self.http.handle_error = lambda *arguments: None  # a client that hangs up is no news
        self.thread = threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.02})
        self.thread.start()

    def address(self, name: str) -> str:
        return f"http://127.0.0.1:{self.http.server_port}/{name}"

    def addresses(self, *names: str) -> list[str]:
        return [self.address(name) for name in names]

    def close(self) -> None:
        self.http.shutdown()
        self.thread.join()
        self.http.server_close()


def answer(
    request: BaseHTTPRequestHandler, body: bytes, status: int = 200, length: int | None = None, kind: str = ""
) -> None:
    request.send_response(status)
    request.send_header("Content-Type", kind or "application/gzip")
    request.send_header("Content-Length", str(len(body) if length is None else length))
    request.end_headers()
    request.wfile.write(body)


def start_of(request: BaseHTTPRequestHandler) -> int:
    """The byte that a request asks to begin at."""
    return int((request.headers["Range"] or "bytes=0-")[len("bytes=") : -1])


def whole(content: bytes) -> Callable:
    """A server that resumes."""

    def serve(request: BaseHTTPRequestHandler) -> None:
        start = start_of(request)
        answer(request, content[start:], 206 if request.headers["Range"] else 200)

    return serve


def without_range(content: bytes) -> Callable:
    """A server that always begins at the beginning."""
    return lambda request: answer(request, content)


def breaking_after(content: bytes, count: int) -> Callable:
    """A server that promises everything and closes the connection `count` bytes later."""

    def serve(request: BaseHTTPRequestHandler) -> None:
        rest = content[start_of(request) :]
        answer(request, rest[:count], 206 if request.headers["Range"] else 200, length=len(rest))

    return serve


def unavailable(request: BaseHTTPRequestHandler) -> None:
    answer(request, b"busy", 503)


def web_page(request: BaseHTTPRequestHandler) -> None:
    answer(request, b"<html>Please log in</html>", kind="text/html; charset=utf-8")


class Published:
    """Made-up published files, their archive, and how to get them."""

    def __init__(self, files: dict[str, bytes], archive: bytes, root: Path) -> None:
        self.files = files
        self.archive = archive
        self.root = root
        self.said: list[str] = []

    @property
    def part(self) -> Path:
        return self.root / "archive.tar.gz.part"

    def fetch(self, *mirrors: str) -> None:
        cifar10.ensure(self.root, True, mirrors, self.said.append)

    def assert_complete(self) -> None:
        """Every file is there as published, and nothing of the download is left."""
        folder = self.root / cifar10.FOLDER
        assert {name: (folder / name).read_bytes() for name in self.files} == self.files
        assert {path.name for path in self.root.iterdir()} <= {cifar10.FOLDER, ".fetch.lock"}

    def process(self, *mirrors: str, limit: int = 0) -> subprocess.Popen:
        """Another process, which prepares the data once it is told to `go`."""
        names = ("BATCHES", "META", "ARCHIVE_MD5", "ARCHIVE_BYTES")
        settings = [str(self.root), mirrors, {name: getattr(cifar10, name) for name in names}, limit]
        return subprocess.Popen(
            [sys.executable, "-c", PREPARE, json.dumps(settings)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parent.parent,
        )


def go(*processes: subprocess.Popen) -> None:
    """Let processes begin at the same time, when each has started."""
    for process in processes:
        assert process.stdout.readline() == "ready\n", process.communicate()[1]
    for process in processes:
        process.stdin.write("go\n")
        process.stdin.flush()


@pytest.fixture
def server(monkeypatch) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "*")
    running = Server()
    yield running
    running.close()


@pytest.fixture
def published(tmp_path, monkeypatch) -> Published:
    files = made_up_files()[0]
    publish(files, monkeypatch)
    archive = archive_of(*as_published(files))
    use(archive, monkeypatch)
    return Published(files, archive, tmp_path / "data")


def use(archive: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let `archive` be the published one."""
    monkeypatch.setattr(cifar10, "ARCHIVE_MD5", hashlib.md5(archive).hexdigest())
    monkeypatch.setattr(cifar10, "ARCHIVE_BYTES", len(archive))


# --- a whole transfer ------------------------------------------------------------------------------------------------


def test_a_fetch_leaves_the_published_files_and_nothing_else(server, published):
    server.mirrors["first"] = whole(published.archive)
    published.fetch(server.address("first"))
    published.assert_complete()
    assert server.requests == [("first", None)]


def test_the_first_mirror_that_answers_is_the_only_one_asked(server, published):
    server.mirrors.update(first=whole(published.archive), second=whole(published.archive))
    published.fetch(*server.addresses("first", "second"))
    assert [name for name, _ in server.requests] == ["first"]


def test_data_fetch_downloads_checks_and_lists(server, published, cli):
    server.mirrors["first"] = whole(published.archive)
    result = cli("data", "fetch", f"data.root={published.root}", f"data.mirrors=['{server.address('first')}']")
    assert (result.code, result.err) == (0, "")
    assert result.out.endswith("All 7 files are as published.\n")
    published.assert_complete()


def test_data_that_is_there_needs_no_network(server, published):
    server.mirrors["first"] = whole(published.archive)
    write(published.files, published.root)
    published.fetch(server.address("first"))
    cifar10.load(str(published.root), True, server.addresses("first"))
    assert server.requests == []
    assert [path.name for path in published.root.iterdir()] == [cifar10.FOLDER]


def test_a_single_missing_file_is_fetched_with_the_others(server, published):
    server.mirrors["first"] = whole(published.archive)
    (write(published.files, published.root) / "data_batch_4").unlink()
    published.fetch(server.address("first"))
    published.assert_complete()


# --- broken transfers ------------------------------------------------------------------------------------------------


def test_a_broken_transfer_goes_on_at_the_next_mirror_where_it_stopped(server, published):
    server.mirrors.update(broken=breaking_after(published.archive, 300_000), second=whole(published.archive))
    published.fetch(*server.addresses("broken", "second"))
    assert server.requests == [("broken", None), ("second", "bytes=300000-")]
    published.assert_complete()


def test_a_transfer_that_keeps_breaking_gets_further_with_every_run(server, published, cli):
    server.mirrors["first"] = breaking_after(published.archive, 400_000)
    arguments = ("data", "fetch", f"data.root={published.root}", f"data.mirrors=['{server.address('first')}']")
    result = cli(*arguments)
    assert result.code == 5
    assert f"the transfer ended after 400,000 of {len(published.archive):,} bytes" in result.err
    assert cli(*arguments).code == 0
    assert [start for _, start in server.requests] == [None, "bytes=400000-"]
    published.assert_complete()


def test_a_server_that_cannot_resume_is_read_from_the_beginning(server, published):
    server.mirrors.update(broken=breaking_after(published.archive, 300_000), second=without_range(published.archive))
    published.fetch(*server.addresses("broken", "second"))
    assert server.requests == [("broken", None), ("second", "bytes=300000-")]
    published.assert_complete()


def test_a_beginning_that_is_not_of_the_archive_is_thrown_away_and_the_mirror_asked_again(server, published):
    published.root.mkdir()
    published.part.write_bytes(b"not the archive")
    server.mirrors["only"] = whole(published.archive)
    published.fetch(server.address("only"))
    assert server.requests == [("only", "bytes=15-"), ("only", None)]
    published.assert_complete()


@pytest.mark.parametrize("excess", [0, 1, 500_000])
def test_a_part_as_long_as_the_archive_or_longer_but_wrong_is_replaced(server, published, excess):
    published.root.mkdir()
    published.part.write_bytes(bytes(len(published.archive) + excess))
    server.mirrors["only"] = whole(published.archive)
    published.fetch(server.address("only"))
    published.assert_complete()


def test_a_whole_part_is_used_without_asking_anyone(server, published):
    published.root.mkdir()
    published.part.write_bytes(published.archive)
    server.mirrors["only"] = whole(published.archive)
    published.fetch(server.address("only"))
    assert server.requests == []
    published.assert_complete()


def test_an_archive_that_was_not_yet_unpacked_is_used_without_asking_anyone(server, published):
    published.root.mkdir()
    (published.root / "archive.tar.gz").write_bytes(published.archive)
    published.fetch()
    published.assert_complete()


def test_an_archive_with_another_md5_is_not_unpacked_where_every_mirror_fails(server, published, cli):
    published.root.mkdir()
    other = archive_of(*as_published({**published.files, "test_batch": b"another"}))
    (published.root / "archive.tar.gz").write_bytes(other)
    server.mirrors["down"] = unavailable
    result = cli("data", "fetch", f"data.root={published.root}", f"data.mirrors=['{server.address('down')}']")
    assert result.code == 5
    assert not (published.root / cifar10.FOLDER).exists()


# --- mirrors that fail -----------------------------------------------------------------------------------------------


def closing(request: BaseHTTPRequestHandler) -> None:
    request.close_connection = True
    request.connection.close()


FAILING = {
    "unavailable": (unavailable, "HTTP Error 503"),
    "gone": (lambda request: answer(request, b"", 404), "HTTP Error 404"),
    "unsatisfied": (lambda request: answer(request, b"", 416), "HTTP Error 416"),
    "web_page": (web_page, "a web page instead of the archive"),
    "empty": (lambda request: answer(request, b""), "the transfer ended after 0 of"),
    "altered": (lambda request: answer(request, bytes(cifar10.ARCHIVE_BYTES)), "another MD5"),
    "endless": (lambda request: answer(request, bytes(cifar10.ARCHIVE_BYTES + 10)), "it sent more than"),
    "closing": (closing, ""),
}


@pytest.mark.parametrize("kind", FAILING)
def test_after_a_mirror_that_fails_the_next_one_is_asked(server, published, kind):
    serve, reason = FAILING[kind]
    server.mirrors.update(bad=serve, good=whole(published.archive))
    published.fetch(*server.addresses("bad", "good"))
    assert [name for name, _ in server.requests][-1] == "good"
    assert any(line.startswith(server.address("bad")) and reason in line for line in published.said)
    published.assert_complete()


@pytest.mark.parametrize("address", ["http://127.0.0.1:1/archive", "no-address", "http://name.invalid/archive"])
def test_after_an_address_without_a_server_the_next_one_is_asked(server, published, address):
    server.mirrors["good"] = whole(published.archive)
    published.fetch(address, server.address("good"))
    published.assert_complete()


def test_when_every_mirror_fails_the_message_says_what_each_answered_and_what_to_do_by_hand(server, published, cli):
    server.mirrors.update({kind: serve for kind, (serve, _) in FAILING.items()})
    mirrors = ",".join(f"'{address}'" for address in server.addresses(*FAILING))
    result = cli("data", "fetch", f"data.root={published.root}", f"data.mirrors=[{mirrors}]")
    assert result.code == 5
    assert len(result.err.splitlines()) == 1
    for kind, (_, reason) in FAILING.items():
        assert server.address(kind) in result.err
        assert reason in result.err
    assert f"so that {published.root / cifar10.FOLDER / 'data_batch_1'} exists; or use data=synthetic" in result.err
    assert not (published.root / cifar10.FOLDER).exists()


def test_without_mirrors_the_message_still_says_what_to_do_by_hand(published, cli):
    result = cli("data", "fetch", f"data.root={published.root}", "data.mirrors=[]")
    assert result.code == 5
    assert "none is named" in result.err
    assert "By hand: " in result.err


def test_a_full_disk_is_named_and_no_mirror_is_blamed_for_it(server, published):
    server.mirrors.update(first=whole(published.archive), second=whole(published.archive))
    process = published.process(*server.addresses("first", "second"), limit=300_000)
    go(process)
    errors = process.communicate(timeout=60)[1]
    assert process.returncode == 1
    assert errors.splitlines()[-1] == f"OSError: [Errno 27] File too large: '{published.part}'"
    assert [name for name, _ in server.requests] == ["first"]


# --- archives that reach outside -------------------------------------------------------------------------------------

INSIDE = f"{cifar10.FOLDER}/data_batch_1"
HOSTILE = {
    "a parent folder": [member("../x", b"x")],
    "a parent folder of the dataset's": [member(f"{cifar10.FOLDER}/../x", b"x")],
    "a parent folder with a known name": [member("../data_batch_1", b"x")],
    "an absolute name": [member("/tmp/cifarbench-x", b"x")],
    "an absolute name of a known file": [member(f"/{INSIDE}", b"x")],
    "a symbolic link": [member(INSIDE, type=tarfile.SYMTYPE, linkname="../../x")],
    "a hard link": [member(INSIDE, type=tarfile.LNKTYPE, linkname="../../victim")],
    "a hard link to a known file": [
        member(f"{cifar10.FOLDER}/data_batch_2", b"x"),
        member(INSIDE, type=tarfile.LNKTYPE, linkname=f"{cifar10.FOLDER}/data_batch_2"),
    ],
    "a folder that is a link": [member(cifar10.FOLDER, type=tarfile.SYMTYPE, linkname=".."), member(INSIDE, b"x")],
    "a FIFO": [member(INSIDE, type=tarfile.FIFOTYPE)],
    "a device": [member(INSIDE, type=tarfile.CHRTYPE)],
    "another file": [member(f"{cifar10.FOLDER}/run.py", b"x")],
    "another folder": [member("elsewhere", type=tarfile.DIRTYPE)],
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_an_archive_that_reaches_outside_is_refused_and_writes_nothing(server, published, monkeypatch, tmp_path, kind):
    (tmp_path / "victim").write_text("untouched")
    archive = archive_of(*as_published(published.files), *HOSTILE[kind])
    use(archive, monkeypatch)
    server.mirrors["first"] = whole(archive)
    with pytest.raises(IntegrityError, match="which is no file of the dataset; refused"):
        published.fetch(server.address("first"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "victim"]
    assert (tmp_path / "victim").read_text() == "untouched"
    assert {path.name for path in published.root.iterdir()} <= {"archive.tar.gz", ".fetch.lock"}
    assert not Path("/tmp/cifarbench-x").exists()


def test_data_fetch_of_an_archive_that_reaches_outside_exits_3(server, published, monkeypatch, cli):
    archive = archive_of(member("../x", b"x"))
    use(archive, monkeypatch)
    server.mirrors["first"] = whole(archive)
    result = cli("data", "fetch", f"data.root={published.root}", f"data.mirrors=['{server.address('first')}']")
    assert result.code == 3
    assert "'../x'" in result.err


@pytest.mark.parametrize("damage", ["no archive", "truncated", "altered"])
def test_a_damaged_archive_is_an_integrity_error_and_leaves_no_files(published, tmp_path, damage):
    middle = len(published.archive) // 2
    content = {
        "no archive": b"no archive",
        "truncated": published.archive[:middle],
        "altered": published.archive[:20] + b"\xff" * 200 + published.archive[220:],
    }[damage]
    (tmp_path / "archive").write_bytes(content)
    with pytest.raises(IntegrityError, match="no whole tar archive"):
        unpack(tmp_path / "archive", tmp_path, cifar10.FOLDER, set(published.files) | {"readme.html"})
    assert not (tmp_path / cifar10.FOLDER).exists()


# --- processes -------------------------------------------------------------------------------------------------------


def test_of_two_processes_that_prepare_together_one_downloads_and_both_succeed(server, published):
    def slowly(request: BaseHTTPRequestHandler) -> None:
        time.sleep(0.5)  # the second process comes to the lock meanwhile
        answer(request, published.archive)

    server.mirrors["first"] = slowly
    processes = [published.process(server.address("first")) for _ in range(2)]
    go(*processes)
    errors = [process.communicate(timeout=60)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], errors
    assert server.requests == [("first", None)]
    published.assert_complete()


def test_a_download_that_is_killed_half_way_completes_when_run_again(server, published):
    half = len(published.archive) // 2
    killed = threading.Event()

    def stalls(request: BaseHTTPRequestHandler) -> None:
        if request.headers["Range"]:
            whole(published.archive)(request)
        else:
            answer(request, published.archive[:half], length=len(published.archive))
            killed.wait(30)

    server.mirrors["first"] = stalls
    process = published.process(server.address("first"))
    go(process)
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and not (published.part.exists() and published.part.stat().st_size > 0):
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    killed.set()
    kept = published.part.stat().st_size
    assert 0 < kept <= half
    assert cifar10.missing(published.root)
    published.fetch(server.address("first"))
    assert server.requests == [("first", None), ("first", f"bytes={kept}-")]
    published.assert_complete()
