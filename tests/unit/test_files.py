"""Small files: a reader finds one whole, or the one before; and a broken one is as if it were not there."""

from __future__ import annotations

import os
import shutil
import stat
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from tasks import kubeconfig, pki
from tasks.core import settings
from tasks.core.context import Context
from tasks.core.database import Database
from tasks.core.errors import DmucError
from tasks.core.files import fingerprint, read_json, write_atomic
from tasks.core.progress import Silent
from tests.unit.support import a_context


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "file"


# Reading

RUBBISH = [b"", b"{", b"[1]", b"null", b'"text"', b"\xff\xfe", b"\0" * 100]


@pytest.mark.parametrize("content", RUBBISH)
def test_rubbish_is_read_as_nothing(file: Path, content: bytes) -> None:
    file.write_bytes(content)
    assert read_json(file) == {}


def test_what_is_not_there_or_no_file_is_read_as_nothing(tmp_path: Path) -> None:
    assert read_json(tmp_path) == read_json(tmp_path / "no" / "where") == {}


def test_an_object_is_read(file: Path) -> None:
    file.write_text('{"é": [1, {"b": null}]}', encoding="utf-8")
    assert read_json(file) == {"é": [1, {"b": None}]}


# Writing


def test_a_reader_never_finds_half_a_file(file: Path) -> None:
    texts = [letter * 100_000 for letter in "ab"]
    write_atomic(file, texts[0])
    over = threading.Event()

    def write() -> None:
        for number in range(200):
            write_atomic(file, texts[number % 2])
        over.set()

    writers = [threading.Thread(target=write) for _ in range(2)]
    for writer in writers:
        writer.start()
    try:
        while not over.is_set():
            assert file.read_text() in texts
    finally:
        for writer in writers:
            writer.join()
    assert [*file.parent.iterdir()] == [file]


def test_what_cannot_be_written_leaves_the_old_one_and_no_other(file: Path) -> None:
    write_atomic(file, "old")
    with pytest.raises(UnicodeEncodeError):
        write_atomic(file, "new \udcff")
    assert file.read_text() == "old"
    assert [*file.parent.iterdir()] == [file]


@pytest.mark.parametrize("mode", [0o600, 0o644, 0o700])
def test_it_has_its_mode_from_the_first_moment(file: Path, mode: int, monkeypatch: pytest.MonkeyPatch) -> None:
    modes: list[int] = []
    rename = Path.rename

    def seen(self: Path, target: Path) -> Path:
        modes.append(stat.S_IMODE(self.stat().st_mode))
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", seen)
    file.write_text("old")
    file.chmod(0o666)
    write_atomic(file, "new", mode)
    assert modes == [mode] == [stat.S_IMODE(file.stat().st_mode)]


def test_a_link_is_replaced_and_not_followed(file: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").write_text("precious")
    file.symlink_to("elsewhere")
    write_atomic(file, "new")
    assert (tmp_path / "elsewhere").read_text() == "precious" and not file.is_symlink()


# Telling apart


def test_a_copy_with_its_time_is_the_same_and_a_change_is_not(file: Path, tmp_path: Path) -> None:
    file.write_text("content")
    copy = Path(shutil.copy2(file, tmp_path / "copy"))
    assert fingerprint(file) == fingerprint(copy)
    copy.write_text("other content")
    assert fingerprint(file) != fingerprint(copy)
    os.utime(file, (1, 1))
    assert fingerprint(file) != fingerprint(copy)


# What dmuc keeps


@pytest.fixture
def context(tmp_path: Path) -> Context:
    return a_context(tmp_path, machine="one")


@pytest.mark.parametrize("content", RUBBISH)
def test_decisions_that_cannot_be_read_are_made_again(context: Context, content: bytes) -> None:
    (context.state / "decisions.json").write_bytes(content)
    assert context.decided("registry") is None
    context.decide("registry", "none")
    assert context.decided("registry") == "none"


@pytest.mark.parametrize("content", RUBBISH)
def test_programs_that_cannot_be_read_have_not_been_found(context: Context, content: bytes) -> None:
    context.programs_file.write_bytes(content)
    assert context.release_of("kubelet") is context.release and context.knows("kubelet", "--v") is None
    with pytest.raises(DmucError) as error:
        context.program("kubelet")
    assert error.value.do == "Run: scripts/doit binaries"


@pytest.mark.parametrize("content", RUBBISH)
def test_settings_that_cannot_be_read_were_never_remembered(context: Context, content: bytes) -> None:
    (context.state / "settings.json").write_bytes(content)
    assert settings.remembered(context.state) == {}
    settings.remember(context.state, {"engine": "docker"})
    assert settings.remembered(context.state) == {"engine": "docker"}


def _kubeconfig(context: Context) -> None:
    context.home.mkdir(exist_ok=True)
    pki.PKI.make(context, Silent())
    kubeconfig.KUBECONFIG.make(context, Silent())


def _database(context: Context) -> None:
    from doit.dependency import JSONCodec

    database = Database(str(context.state / "doit.json"), JSONCodec())
    database.set("task", "key", context.decided("x"))
    database.dump()


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("decisions.json", lambda context: None),
        ("settings.json", lambda context: settings.remember(context.state, {"a": context.decided("x") or ""})),
        ("doit.json", _database),
        ("kubeconfig", _kubeconfig),
        ("pki/made.json", _kubeconfig),
    ],
)
def test_who_reads_while_it_is_written_again_reads_the_old_one(
    context: Context, name: str, write: Callable[[Context], None]
) -> None:
    context.decide("x", "before")
    write(context)
    old = (context.state / name).read_text()
    with (context.state / name).open() as reader:
        context.decide("x", "after")
        (context.pki / "admin.key").unlink(missing_ok=True)
        write(context)
        assert (context.state / name).read_text() not in ("", old)
        assert reader.read() == old
