"""What is no program of this machine is said to be what it is."""

from __future__ import annotations

import gzip
import io
import os
import shutil
import sys
import tarfile
from pathlib import Path

import pytest

from tasks.core.errors import DmucError
from tasks.programs import executable
from tasks.programs.executable import VERSION, Found, look_at
from tests.unit.support import a_program, eventually


def look(path: Path, usage: str = "", cache: str = "cache") -> Found:
    do = "Name another."
    at = path.parent / cache
    return look_at(path, ["--version"], says=VERSION, usage=usage, source="named in the settings", cache=at, do=do)


def refused(path: Path, usage: str = "") -> str:
    with pytest.raises(DmucError) as error:
        look(path, usage)
    assert error.value.tried == f"asking {path} for its version"
    assert error.value.do == "Name another."
    return error.value.seen


def elf(machine: int, big: bool = False) -> bytes:
    """The head of a program that is for another machine: /usr/include/elf.h."""
    order = "big" if big else "little"
    ident = b"\x7fELF" + bytes([2, 2 if big else 1, 1]) + bytes(9)
    return ident + (2).to_bytes(2, order) + machine.to_bytes(2, order) + bytes(100)  # type: ignore[arg-type]


def a_tar() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("kubelet"))
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("content", "seen"),
    [
        (b"", "The file is empty."),
        (b"<html>\n<title>Sign in</title>", "It is not a program; it begins with '<html>'."),
        (b"echo v1.2.3\n", "It is not a program; it begins with 'echo v1.2.3'."),
        (b"\xff\xfe\x00", "It is not a program; it begins with "),
        (gzip.compress(b"a program", mtime=0), "It is a gzip archive: unpack it."),
        (a_tar(), "It is a tar archive: unpack it."),
        (b"PK\x03\x04" + bytes(30), "It is a zip archive: unpack it."),
        (b"MZ\x90\x00" + bytes(30), "It is a program for Windows."),
        (b"\xcf\xfa\xed\xfe" + bytes(30), "It is a program for macOS."),
        (
            elf(9999),
            f"It is a program for another machine (number 9999 of ELF), and this machine is {os.uname().machine}.",
        ),
        (elf(22, big=True), f"It is a program for s390x, and this machine is {os.uname().machine}."),
        (b"#!/no/such/interpreter --flag\n", "It is a script for /no/such/interpreter, which does not exist."),
        (b"#!\n", "It is a script for "),
        (b"\x7fELF", "The program cannot be run: Exec format error"),
    ],
)
def test_what_cannot_be_run_is_said_by_its_looks(tmp_path: Path, content: bytes, seen: str) -> None:
    path = tmp_path / "kubelet"
    path.write_bytes(content)
    path.chmod(0o755)
    assert refused(path).startswith(seen)


def test_another_architecture_is_named_and_so_is_this_one(tmp_path: Path) -> None:
    here = os.uname().machine
    number, other = (183, "aarch64") if here != "aarch64" else (62, "x86_64")
    path = tmp_path / "kubelet"
    for mode in (0o755, 0o644):
        path.write_bytes(elf(number))
        path.chmod(mode)
        assert refused(path) == f"It is a program for {other}, and this machine is {here}."


def test_what_is_not_there_or_a_directory_is_said(tmp_path: Path) -> None:
    assert refused(tmp_path / "kubelet") == "There is no such file."
    (tmp_path / "link").symlink_to("nowhere")
    assert refused(tmp_path / "link") == "There is no such file."
    assert refused(tmp_path) == "It is a directory."


def test_a_script_that_is_not_executable_is_said_with_the_remedy(tmp_path: Path) -> None:
    path = a_program(tmp_path / "kubelet", "echo v1.2.3")
    path.chmod(0o644)
    assert refused(path) == f"The file is not executable. If it should be: chmod +x {path}"
    path.chmod(0o755)
    assert look(path).version == "v1.2.3"


def test_a_real_program_whose_loader_is_not_there_is_said(tmp_path: Path) -> None:
    path = tmp_path / "kubelet"
    head = Path(os.path.realpath(sys.executable)).read_bytes()
    loader = b"/lib64/ld-linux-x86-64.so.2"
    if loader not in head:
        pytest.skip("this Python has another loader")
    path.write_bytes(head.replace(loader, b"/lib64/ld-nowhere-86-64.so.2"[: len(loader)]))
    path.chmod(0o755)
    assert refused(path) == "The program cannot be run: its dynamic loader does not exist."


def test_one_that_hangs_is_given_up_and_leaves_no_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(executable, "PATIENCE", 0.2)
    pids = tmp_path / "pids"
    path = a_program(tmp_path / "kubelet", f"sleep 600 & echo $$ $! > {pids}; wait")
    assert refused(path) == "The program did not end within 0.2 s."
    eventually(lambda: not any(map(is_alive, pids.read_text().split())), "they have ended")


def is_alive(pid: str) -> bool:
    try:
        return ") Z " not in Path("/proc", pid, "stat").read_text()
    except OSError:
        return False


def test_what_says_something_that_is_not_text_is_said(tmp_path: Path) -> None:
    path = a_program(tmp_path / "kubelet", r"printf '\377\376 who knows'; exit 3")
    assert refused(path).startswith("exit code 3: ")


HELP = "echo 'Runs on each node.'; echo; echo Usage:; echo '  kube-proxy [flags]'; echo; echo '      --config string'"


def test_one_under_the_name_of_another_is_said(tmp_path: Path) -> None:
    path = a_program(tmp_path / "kubelet", f"[ $1 = --version ] && echo Kubernetes v1.20.2 || {{ {HELP}; }}")
    assert refused(path, usage="kubelet") == "This program is kube-proxy, not kubelet."
    assert refused(path, usage="kubelet") == "This program is kube-proxy, not kubelet."  # remembered
    found = look(path, usage="kube-proxy")
    assert (found.version, found.flags) == ("v1.20.2", ["--config"])


def test_one_that_was_not_asked_for_its_name_is_asked_when_that_counts(tmp_path: Path) -> None:
    path = a_program(tmp_path / "kubelet", f"[ $1 = --version ] && echo Kubernetes v1.20.2 || {{ {HELP}; }}")
    assert look(path).calls_itself is None
    assert refused(path, usage="kubelet") == "This program is kube-proxy, not kubelet."


def test_one_that_says_its_path_first_is_understood(tmp_path: Path) -> None:
    path = a_program(tmp_path / "v1.7.34/containerd-shim-runc-v2", 'echo "$0:"; echo "  Version:  1.6.20~ds1"')
    assert look(path).version == "1.6.20~ds1"


def test_a_real_program_of_the_system_says_its_version(tmp_path: Path) -> None:
    bash = shutil.which("bash")
    assert bash
    assert look(Path(bash), cache=str(tmp_path)).version


def test_two_files_whose_paths_look_alike_are_two(tmp_path: Path) -> None:
    one, other = tmp_path / "a-b" / "c", tmp_path / "a" / "b-c"
    a_program(one, "echo v1.0.0")
    a_program(other, "echo v2.0.0")
    for path in (one, other):
        os.utime(path, (1, 1))

    def version(path: Path) -> str:
        cache = tmp_path / "cache"
        found = look_at(path, ["--version"], says=VERSION, usage="", source="as you said", cache=cache, do="")
        assert found.path == str(path)
        return found.version

    assert [version(path) for path in (one, other, one)] == ["v1.0.0", "v2.0.0", "v1.0.0"]
