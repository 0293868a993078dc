from __future__ import annotations

import hashlib
import http.server
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tasks.core import download
from tasks.core.download import Download, Unreachable, fetch, fetch_all, reachable
from tasks.core.errors import DmucError, Interrupted
from tasks.core.progress import Silent

CONTENT = bytes(range(256)) * 4000  # 1 MB
SUM = hashlib.sha256(CONTENT).hexdigest()
WRONG = "0" * 64


class Site(http.server.ThreadingHTTPServer):
    """A web server that can be told to misbehave."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files = {"/program": CONTENT}
        self.ranges = True
        self.faults: list[str] = []  # one for each request to come
        self.asked: list[tuple[str, str | None]] = []  # path and Range
        self.over = threading.Event()
        self.meeting: threading.Barrier | None = None  # no request is served before so many have come

    def url(self, path: str = "/program") -> str:
        return f"http://127.0.0.1:{self.server_port}{path}"


class Handler(http.server.BaseHTTPRequestHandler):
    server: Site

    def do_HEAD(self) -> None:
        self.send_error(200 if self.path in self.server.files else 404)

    def do_GET(self) -> None:
        wanted = self.headers["Range"]
        self.server.asked.append((self.path, wanted))
        fault = self.server.faults.pop(0) if self.server.faults and self.path in self.server.files else ""
        if self.server.meeting:
            self.server.meeting.wait(20)
        if self.path == "/moved":
            self.send_response(302)
            self.send_header("Location", "/program")
            self.end_headers()
            return
        if fault == "busy" or self.path not in self.server.files:
            self.send_error(503 if fault else 404)
            return
        body = self.server.files[self.path]
        begin = int(wanted.removeprefix("bytes=").removesuffix("-")) if wanted and self.server.ranges else 0
        if begin >= len(body):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(body)}")
            self.end_headers()
            return
        self.send_response(206 if begin else 200)
        self.send_header("Content-Length", str(len(body) - begin))
        self.end_headers()
        if not fault:
            self.wfile.write(body[begin:])
            return
        self.wfile.write(body[begin : begin + 100_000])
        if fault == "stall":
            self.server.over.wait(60)
        while fault == "drip" and not self.server.over.wait(0.02):
            self.wfile.write(b".")

    def log_message(self, format: str, *args: Any) -> None:
        pass


class Told(Silent):
    def __init__(self) -> None:
        super().__init__()
        self.bars: list[tuple[int, int | None]] = []
        self.parts: dict[str, Told] = {}

    def part(self, name: str) -> Told:
        return self.parts.setdefault(name, Told())

    def bar(self, done: int, total: int | None, unit: str = "bytes") -> None:
        self.bars.append((done, total))


@pytest.fixture(autouse=True)
def _here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(download, "PAUSE", 0.0)


@pytest.fixture
def site() -> Iterator[Site]:
    with Site() as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield server
        server.over.set()
        server.shutdown()


@pytest.fixture
def to(tmp_path: Path) -> Path:
    return tmp_path / "cache" / "program"


def part(to: Path) -> Path:
    return to.with_name("program.part")


def get(site: Site, to: Path, path: str = "/program", sha256: str | None = SUM, patience: float = 30.0) -> None:
    fetch(Download(site.url(path), to, sha256, None), Silent(), patience)


def leave_part(to: Path, content: bytes) -> None:
    to.parent.mkdir()
    part(to).write_bytes(content)


def test_the_file_arrives_whole(site: Site, to: Path) -> None:
    told = Told()
    fetch(Download(site.url(), to, SUM.upper(), None), told)
    assert to.read_bytes() == CONTENT
    assert list(to.parent.iterdir()) == [to]
    assert told.bars[0] == (0, len(CONTENT))
    assert told.bars[-1] == (len(CONTENT), len(CONTENT))


def test_a_download_goes_on_where_it_stopped(site: Site, to: Path) -> None:
    leave_part(to, CONTENT[:300_000])
    get(site, to)
    assert to.read_bytes() == CONTENT
    assert site.asked == [("/program", "bytes=300000-")]


def test_it_goes_on_behind_a_redirection(site: Site, to: Path) -> None:
    leave_part(to, CONTENT[:300_000])
    get(site, to, "/moved")
    assert to.read_bytes() == CONTENT
    assert site.asked[-1] == ("/program", "bytes=300000-")


def test_a_server_that_cannot_resume_is_asked_for_everything(site: Site, to: Path) -> None:
    site.ranges = False
    leave_part(to, CONTENT[:300_000])
    get(site, to)
    assert to.read_bytes() == CONTENT


def test_a_complete_part_is_not_downloaded_again(site: Site, to: Path) -> None:
    leave_part(to, CONTENT)
    get(site, to)
    assert to.read_bytes() == CONTENT
    assert len(site.asked) == 1


def test_a_part_longer_than_the_file_is_thrown_away(site: Site, to: Path) -> None:
    leave_part(to, CONTENT + b"more")
    get(site, to)
    assert to.read_bytes() == CONTENT


def test_what_was_left_of_another_file_does_no_harm(site: Site, to: Path) -> None:
    leave_part(to, b"from a bad mirror" * 1000)
    get(site, to)
    assert to.read_bytes() == CONTENT
    assert [wanted for _, wanted in site.asked] == ["bytes=17000-", None]


def test_answers_that_break_off_are_resumed(site: Site, to: Path) -> None:
    site.faults = ["break off", "break off"]
    get(site, to)
    assert to.read_bytes() == CONTENT
    assert [wanted for _, wanted in site.asked] == [None, "bytes=100000-", "bytes=200000-"]


def test_a_server_that_always_breaks_off_is_given_up(site: Site, to: Path) -> None:
    site.faults = ["break off"] * 10
    with pytest.raises(DmucError, match=r"4 tries, the last: the answer ended after 400000 of 1024000 bytes"):
        get(site, to)
    assert not to.exists()
    assert part(to).read_bytes() == CONTENT[:400_000]


def test_a_stall_is_resumed(site: Site, to: Path) -> None:
    site.faults = ["stall"]
    get(site, to, patience=0.2)
    assert to.read_bytes() == CONTENT
    assert site.asked[1] == ("/program", "bytes=100000-")


def test_a_server_that_always_stalls_is_given_up(site: Site, to: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "TRIES", 2)
    site.faults = ["stall"] * 10
    with pytest.raises(DmucError, match="2 tries, the last: timed out") as error:
        get(site, to, patience=0.2)
    assert site.url() in error.value.tried
    assert not to.exists()


def test_a_server_that_drips_is_given_up(site: Site, to: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "TRIES", 2)
    site.ranges = False
    site.faults = ["drip"] * 2
    with pytest.raises(DmucError, match=r"2 tries, the last: \d+ bytes in \d s"):
        get(site, to, patience=0.2)
    assert not to.exists()


def several(site: Site, to: Path, *names: str) -> list[Download]:
    return [Download(site.url(f"/{name}"), to.with_name(name), SUM, None) for name in names]


def test_several_are_downloaded_at_the_same_time_each_with_its_own_progress(site: Site, to: Path) -> None:
    names = [f"program{number}" for number in range(6)]
    site.files = {f"/{name}": CONTENT for name in names}
    site.meeting = threading.Barrier(6)
    told = Told()
    fetch_all(several(site, to, *names), told)
    assert sorted(path.name for path in to.parent.iterdir()) == names
    assert {name: part.bars[-1] for name, part in told.parts.items()} == dict.fromkeys(names, (1024000, 1024000))


def test_when_one_cannot_be_had_the_others_stop_and_it_is_said(site: Site, to: Path) -> None:
    site.files["/slow"] = CONTENT
    site.meeting = threading.Barrier(2)
    site.faults = ["drip"]
    begin = time.monotonic()
    with pytest.raises(DmucError) as error:
        fetch_all(several(site, to, "slow", "nothing"), Silent())
    assert error.value.tried.endswith("/nothing") and "404" in error.value.seen
    assert time.monotonic() - begin < 20
    assert [path.name for path in to.parent.iterdir()] in ([], ["slow.part"])


def test_nothing_is_nothing_to_do(site: Site) -> None:
    fetch_all([], Silent())
    assert site.asked == []


def test_a_wrong_sum_shows_both_and_leaves_nothing(site: Site, to: Path) -> None:
    with pytest.raises(DmucError) as error:
        get(site, to, sha256=WRONG)
    assert SUM in error.value.seen
    assert WRONG in error.value.seen
    assert list(to.parent.iterdir()) == []


@pytest.mark.parametrize(
    "sums",
    [
        SUM,  # dl.k8s.io
        f"{SUM}\n",
        f"{WRONG}  program.sig\n{SUM}  program\n{WRONG}  other\n",  # etcd's releases
        f"{SUM} *./program\n",
        f"-----BEGIN PGP SIGNED MESSAGE-----\nHash: SHA512\n\n{SUM}  program\n-----BEGIN PGP SIGNATURE-----\n",
    ],
)
def test_the_published_sum_is_found(site: Site, to: Path, sums: str) -> None:
    site.files["/sums"] = sums.encode()
    fetch(Download(site.url(), to, None, site.url("/sums")), Silent())
    assert to.read_bytes() == CONTENT


def test_the_published_sum_counts(site: Site, to: Path) -> None:
    site.files["/sums"] = f"{WRONG}  program\n{SUM}  other\n".encode()
    with pytest.raises(DmucError, match=f"{WRONG} .*/sums"):
        fetch(Download(site.url(), to, None, site.url("/sums")), Silent())
    assert not to.exists()


def test_no_sum_is_published_for_the_file(site: Site, to: Path) -> None:
    site.files["/sums"] = f"{SUM}  other\n<html>".encode()
    with pytest.raises(DmucError, match="SHA-256 sum of program"):
        fetch(Download(site.url(), to, None, site.url("/sums")), Silent())
    assert site.asked == [("/sums", None)]  # nothing was downloaded in vain


def test_a_pinned_sum_goes_before_a_published_one(site: Site, to: Path) -> None:
    fetch(Download(site.url(), to, SUM, site.url("/sums")), Silent())
    assert site.asked == [("/program", None)]


def test_without_any_sum_nothing_is_downloaded(site: Site, to: Path) -> None:
    with pytest.raises(ValueError, match="must be given"):
        get(site, to, sha256=None)
    assert site.asked == []


def test_what_else_can_be_done_is_said(site: Site, to: Path) -> None:
    with pytest.raises(DmucError) as error:
        fetch(Download(site.url("/nothing"), to, SUM, None, else_do="Name another site."), Silent())
    assert error.value.do == "The site has no such file.\nName another site."


def test_404_is_said_at_once(site: Site, to: Path) -> None:
    with pytest.raises(DmucError) as error:
        get(site, to, "/nothing")
    assert site.url("/nothing") in str(error.value)
    assert "404 Not Found" in str(error.value)
    assert not isinstance(error.value, Unreachable)
    assert len(site.asked) == 1


def test_a_busy_server_is_asked_again(site: Site, to: Path) -> None:
    site.faults = ["busy"]
    get(site, to)
    assert to.read_bytes() == CONTENT


@pytest.fixture
def closed_port() -> Iterator[int]:
    with socket.socket() as taken:  # bound, so that no other process gets the port, but not listening
        taken.bind(("127.0.0.1", 0))
        yield taken.getsockname()[1]


def test_a_refused_connection_is_unreachable(to: Path, closed_port: int) -> None:
    with pytest.raises(Unreachable, match="Connection refused"):
        fetch(Download(f"https://127.0.0.1:{closed_port}/x", to, SUM, None), Silent())


def test_an_unknown_name_is_unreachable(to: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def resolve(*_: object, **__: object) -> None:
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    with pytest.raises(Unreachable, match="Name or service not known"):
        fetch(Download("https://nowhere.invalid/x", to, None, "https://nowhere.invalid/s"), Silent())


def test_a_full_disk_is_said_with_its_file_system(site: Site, to: Path) -> None:
    to.parent.mkdir()
    part(to).symlink_to("/dev/full")
    with pytest.raises(DmucError, match=r"The file system at /\S* is full: \d+ MB are free"):
        get(site, to)
    assert len(site.asked) == 1
    assert not to.exists()


def test_a_directory_that_cannot_be_made_is_said(site: Site, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DmucError, match=str(tmp_path / "file")):
        get(site, tmp_path / "file" / "program")


def test_it_stops_when_the_run_is_ended(site: Site, to: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Stopping(Silent):
        def bar(self, done: int, total: int | None, unit: str = "bytes") -> None:
            if done:
                self.stop.set()

    with pytest.raises(Interrupted):
        fetch(Download(site.url(), to, SUM, None), Stopping())
    assert 0 < part(to).stat().st_size < len(CONTENT)
    assert not to.exists()


@pytest.mark.parametrize("path", ["/program", "/nothing"])
def test_any_answer_is_reachable(site: Site, path: str) -> None:
    assert reachable(site.url(path))


def test_no_answer_is_not_reachable(closed_port: int) -> None:
    assert not reachable(f"http://127.0.0.1:{closed_port}/")


def test_a_plain_server_is_not_reachable_by_tls(site: Site) -> None:
    assert not reachable(site.url().replace("http:", "https:"))


def test_a_resolver_that_does_not_answer_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    over = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: over.wait(60) and [])
    begin = time.monotonic()
    assert not reachable("https://nowhere.invalid/", timeout=0.1)
    assert time.monotonic() - begin < 5
    over.set()
