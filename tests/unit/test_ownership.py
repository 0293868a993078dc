"""Whose a directory outside of our state is, and how one of ours is emptied."""

from __future__ import annotations

import os
import socket
import subprocess
from pathlib import Path

import pytest

from tasks.core import ownership
from tasks.core.errors import DmucError
from tasks.core.machine import Host
from tests.unit.private_host import on_a_private_host


def mount(at: Path) -> None:
    at.mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", str(at)], check=True)


def mounted() -> set[str]:
    text = Path("/proc/self/mountinfo").read_text()
    return {line.split()[4] for line in text.splitlines()}


def test_a_directory_is_of_whose_mark_is_in_it(tmp_path: Path) -> None:
    directory, ours, theirs = tmp_path / "there", tmp_path / "state", tmp_path / "other"
    assert not ownership.is_ours(Host(), directory, ours) and not ownership.is_foreign(Host(), directory, ours)
    directory.mkdir()
    assert not ownership.is_foreign(Host(), directory, ours)  # there is nothing of anyone's in it
    ownership.claim(Host(), directory, ours)
    assert ownership.is_ours(Host(), directory, ours) and not ownership.is_foreign(Host(), directory, ours)
    assert ownership.is_foreign(Host(), directory, theirs) and not ownership.is_ours(Host(), directory, theirs)


@pytest.mark.parametrize("names", [("a", "z"), ("z", "a")])  # on some file systems the order is that of creation
def test_the_mark_is_removed_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, names: tuple[str, str]) -> None:
    (tmp_path / names[0]).touch()
    ownership.claim(Host(), tmp_path, Path("/state"))
    (tmp_path / names[1]).touch()
    order: list[str] = []
    from plumbum import LocalPath  # it takes the environment as it is when it is imported

    monkeypatch.setattr(LocalPath, "unlink", lambda path: order.append(path.name))
    ownership.empty(Host(), tmp_path)
    assert sorted(order) == [".dmuc", "a", "z"] and order[-1] == ".dmuc"


def test_nothing_to_empty_is_no_error(tmp_path: Path) -> None:
    ownership.empty(Host(), tmp_path / "nowhere")


@on_a_private_host
def test_all_that_is_mounted_below_is_unmounted_and_nothing_else(tmp_path: Path) -> None:
    ours = tmp_path / "our data"  # mountinfo writes \040 for the blank
    for at in (ours / "a\tb\\c", ours / "a\tb\\c/d e", ours / "twice", ours / "twice", tmp_path / "our data 2"):
        mount(at)
    (tmp_path / "link").symlink_to(ours)
    before = mounted()
    ownership.unmount_below(Host(), tmp_path / "link")
    assert mounted() == {point for point in before if not point.startswith(f"{tmp_path}/our\\040data/")}
    assert f"{tmp_path}/our\\040data\\0402" in mounted()
    ownership.unmount_below(Host(), ours)  # with nothing mounted
    (ours / "a\tb\\c").rmdir()


@on_a_private_host
def test_that_something_cannot_be_unmounted_is_said(tmp_path: Path) -> None:
    mount(tmp_path / "at")
    os.environ["PATH"] = f"{tmp_path}/bin:{os.environ['PATH']}"
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/umount").symlink_to("/bin/false")
    with pytest.raises(DmucError, match="umount -l"):
        ownership.unmount_below(Host(), tmp_path)


@on_a_private_host
def test_sockets_tell_who_uses_a_directory(tmp_path: Path) -> None:
    directory = Path("/run/containerd")
    (directory / "s").mkdir(parents=True)
    Path("/run/containerd2").mkdir()
    at = ["/run/containerd/s/a b", "/var/run/containerd/containerd.sock", "/run/containerd2/x.sock"]
    sockets = [socket.socket(socket.AF_UNIX) for _ in at]
    for path, one in zip(at, sockets, strict=True):
        one.bind(path)
    there = sorted(ownership.sockets_below(Host(), directory))
    assert there == ["/run/containerd/containerd.sock", "/run/containerd/s/a b"]
    for one in sockets:
        one.close()
    assert Path(at[0]).exists()  # left behind, as by one that was killed: nothing uses it
    assert ownership.sockets_below(Host(), directory) == []
