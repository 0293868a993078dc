"""The picture of the host sees what it is there to see, and two of nothing new are equal."""

import os
import socket
import subprocess
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pytest

from tests.e2e import host_picture
from tests.e2e.host_picture import Picture, difference, difference_settled, take


def only(section: str, **arguments: list[Path]) -> Picture:
    """One section: others show what the rest of this host does meanwhile. What one may see is tested on a host of its
    own, in test_own_host.py.
    """
    return {section: take(**arguments)[section]}  # type: ignore[arg-type]


# Comparing


def test_equal_pictures_do_not_differ() -> None:
    assert difference({"links": ["lo"], "files": []}, {"links": ["lo"], "files": []}) == ""


def test_what_is_gone_and_new_is_told_by_section() -> None:
    before = {"links": ["lo"], "swap": ["/dev/sda2"], "mounts": ["/ ext4"]}
    after = {"links": ["lo", "dmuc1"], "swap": [], "mounts": ["/ ext4"]}
    assert difference(before, after) == "links:\n  + dmuc1\nswap:\n  - /dev/sda2"


def test_the_same_line_twice_is_a_difference() -> None:
    assert difference({"mounts": ["/tmp tmpfs"]}, {"mounts": ["/tmp tmpfs"] * 2}) == "mounts:\n  + /tmp tmpfs"


def test_a_new_sysctl_is_not_a_changed_one() -> None:
    before, after = {"sysctls": ["vm/a = 0"]}, {"sysctls": ["vm/a = 1", "net/b = 5"]}
    assert difference(before, after) == "sysctls:\n  - vm/a = 0\n  + vm/a = 1"


@pytest.mark.parametrize(
    ("pictures", "left"),
    [
        ([["old"]], ""),
        ([["old", "ending"], ["old"]], ""),
        ([["old", "stranger #"]], ""),
        ([["old", "leak"]], "processes:\n  + leak"),
        ([["old", "leak", "stranger #"]], "processes:\n  + leak"),
        ([["old", "ending"], ["old", "ending", "late leak"]], "processes:\n  + ending\n  + late leak"),
        ([[]], "processes:\n  - old"),
    ],
    ids=["equal", "settles", "strangers come and go", "leak", "leak among strangers", "late", "gone"],
)
def test_settling(monkeypatch: pytest.MonkeyPatch, pictures: list[list[str]], left: str) -> None:
    monkeypatch.setattr("tenacity.nap.time.sleep", lambda seconds: None)
    number = count()

    def retake() -> Picture:  # the last one again and again, but for the strangers in it
        n = next(number)
        return {"processes": [process.replace("#", str(n)) for process in pictures[min(n, len(pictures) - 1)]]}

    assert difference_settled({"processes": ["old"]}, retake, deadline=0.01) == left


# Files


def test_files(tmp_path: Path) -> None:
    file, link, folder = tmp_path / "file", tmp_path / "link", tmp_path / "folder"
    file.write_text("before")
    link.symlink_to("there")
    before = only("files", roots=[tmp_path])

    folder.mkdir()
    (folder / "new").touch()
    file.write_text("after")
    link.unlink()
    link.symlink_to("elsewhere")
    told = difference(before, only("files", roots=[tmp_path]))
    assert f"+ {folder} drwx" in told
    assert f"+ {folder / 'new'} -rw" in told
    assert f"- {file} -rw" in told
    assert "size 5" in told
    assert f"+ {link} lrwxrwxrwx" in told

    (folder / "new").unlink()
    before = only("files", roots=[tmp_path])
    file.chmod(0o600)
    assert f"+ {file} -rw-------" in difference(before, only("files", roots=[tmp_path]))


def test_a_folder_in_which_something_was_once_is_no_difference(tmp_path: Path) -> None:
    before = only("files", roots=[tmp_path])
    (tmp_path / "gone").touch()
    (tmp_path / "gone").unlink()
    assert difference(before, only("files", roots=[tmp_path])) == ""


def test_files_that_do_not_count(tmp_path: Path) -> None:
    before = only("files", roots=[tmp_path])
    (tmp_path / "__pycache__").mkdir()
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "etcd").touch()
    assert difference(before, only("files", roots=[tmp_path], ignore_files=[tmp_path / "cache"])) == ""
    assert "cache/etcd" in difference(before, only("files", roots=[tmp_path]))


# Processes and sockets


def test_processes() -> None:
    before = only("processes")
    with subprocess.Popen(["sleep", "4321"]) as process:
        try:
            assert f"sleep 4321 (process {process.pid} since" in difference(before, only("processes"))
        finally:
            process.kill()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert f"+ sleep: (zombie) (process {process.pid} since" in difference(before, only("processes"))
    assert f"(process {process.pid} since" not in difference(before, only("processes"))


def test_we_ourselves_and_our_ancestors_are_not_in_the_picture() -> None:
    processes = take()["processes"]
    assert not [line for line in processes for pid in (os.getpid(), os.getppid()) if f"(process {pid} " in line]


@pytest.fixture
def sockets() -> Iterator[tuple[Picture, int]]:
    before = only("listening sockets")
    with socket.socket() as tcp, socket.socket(type=socket.SOCK_DGRAM) as udp, socket.socket(socket.AF_UNIX) as unix:
        tcp.bind(("127.0.0.1", 0))
        port = tcp.getsockname()[1]
        tcp.listen()
        udp.bind(("127.0.0.1", port))
        unix.bind("\0dmuc-picture")
        unix.listen()
        yield before, port


def test_listening_sockets(sockets: tuple[Picture, int]) -> None:
    before, port = sockets
    told = difference(before, only("listening sockets"))
    assert f"+ tcp 127.0.0.1:{port}" in told
    assert f"+ udp 127.0.0.1:{port}" in told
    assert "+ unix @dmuc-picture" in told


# Packet filters, as text: not every machine has nft


def test_rules_carry_their_table_and_no_counters(monkeypatch: pytest.MonkeyPatch) -> None:
    printed = {
        "iptables-nft-save": """\
# Generated by iptables-save v1.8.9 (nf_tables) on Mon Nov 23 06:34:00 2026
*nat
:POSTROUTING ACCEPT [3:180]
-A POSTROUTING -s 10.244.0.0/24 -j MASQUERADE
COMMIT
# Completed on Mon Nov 23 06:34:00 2026
# Table `filter' is incompatible, use 'nft' tool.""",
        "nft": """\
table ip dmuc {
\tset clients {
\t\ttype ipv4_addr
\t\telements = { 10.0.0.1 expires 59s,
\t\t\t     10.0.0.2 }
\t}

\tchain input {
\t\ttype filter hook input priority filter; policy accept;
\t\ttcp dport { 80, 443 } accept
\t}
}
table ip6 other {
}""",
    }
    monkeypatch.setattr(host_picture, "_run", lambda program, *_: printed.get(program, "").splitlines())
    assert take()["packet filter"] == [
        "iptables-nft-save *nat # Table `filter' is incompatible, use 'nft' tool.",
        "iptables-nft-save *nat -A POSTROUTING -s 10.244.0.0/24 -j MASQUERADE",
        "iptables-nft-save *nat :POSTROUTING ACCEPT",
        "nft table ip dmuc",
        "nft table ip dmuc chain input",
        "nft table ip dmuc chain input tcp dport { 80, 443 } accept",
        "nft table ip dmuc chain input type filter hook input priority filter; policy accept;",
        "nft table ip dmuc set clients",
        "nft table ip dmuc set clients 10.0.0.2 }",
        "nft table ip dmuc set clients elements = { 10.0.0.1,",
        "nft table ip dmuc set clients type ipv4_addr",
        "nft table ip6 other",
    ]


def test_a_missing_program_is_told() -> None:
    assert host_picture._run("dmuc-no-such-program") == ["(not installed)"]
    assert host_picture._run("false") == ["(exit status 1: )"]
