"""Executables: run a file that should be a program for its version and its flags, once for each file."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import signal
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from ..core.errors import DmucError
from ..core.files import fingerprint, read_json, write_atomic

VERSION = r"v?\d+\.\d+\.\d+[^\s,\"]*"  # the form of nearly all programs' versions
PATIENCE = 20.0  # seconds in which a program must print its version

# Files that are mistaken for a program, by their first bytes.
_NO_PROGRAM = {
    b"\x1f\x8b": "It is a gzip archive: unpack it.",
    b"\xfd7zXZ": "It is an xz archive: unpack it.",
    b"PK\x03\x04": "It is a zip archive: unpack it.",
    b"MZ": "It is a program for Windows.",
    b"\xcf\xfa\xed\xfe": "It is a program for macOS.",
    b"\xca\xfe\xba\xbe": "It is a program for macOS.",
}
# ELF's e_machine -> what `uname -m` says there: /usr/include/elf.h.
_MACHINES = {3: "i686", 8: "mips", 21: "ppc64le", 22: "s390x", 40: "arm", 62: "x86_64", 183: "aarch64", 243: "riscv64"}


@dataclass(frozen=True)
class Found:
    """A program that was found: its path, and what it prints about itself."""

    path: str
    version: str
    source: str  # where it comes from, in words
    fingerprint: str  # the file's fingerprint: tells whether the file has changed
    flags: Sequence[str] = ()  # the flags in its --help, if that was asked for
    calls_itself: str | None = None  # the name in its --help, or "" if there is none; None: not asked for


def look_at(path: Path, ask: Sequence[str], *, says: str, usage: str, source: str, cache: Path, do: str) -> Found:
    """Return the program at `path` with its version, which it prints when run with the arguments `ask`.

    `says` is a regular expression that finds the version in the output. With `usage` the program is also asked for its
    flags, and its --help must contain this name, if any. The results are stored in `cache`. Raise DmucError, with the
    advice `do`, when the file is not a program that runs here.
    """
    tried = f"asking {path} for its version"
    known = cache / "versions" / (str(path).strip("/").replace("/", "-") + ".json")
    try:
        if not path.is_file() or not os.access(path, os.X_OK, effective_ids=True):
            raise DmucError(tried, _looks(path) or f"The file is not executable. If it should be: chmod +x {path}", do)
        found = _remembered(known, path, usage) or _ask(path, ask, says, usage, known)
    except subprocess.TimeoutExpired:
        raise DmucError(tried, f"The program did not end within {PATIENCE:g} s.", do) from None
    except OSError as error:
        lost = "its dynamic loader does not exist." if error.errno == errno.ENOENT else error.strerror
        raise DmucError(tried, _looks(path) or f"The program cannot be run: {lost}", do) from None
    except ValueError as error:
        raise DmucError(tried, str(error), do) from None
    if usage and found.calls_itself not in ("", usage):
        raise DmucError(tried, f"This program is {found.calls_itself}, not {usage}.", do)
    return replace(found, source=source)


def _remembered(known: Path, path: Path, usage: str) -> Found | None:
    try:
        found = Found(**read_json(known))
    except TypeError:
        return None
    same = found.path == str(path) and found.fingerprint == fingerprint(path)
    return found if same and (found.calls_itself is not None or not usage) else None


def _ask(path: Path, ask: Sequence[str], says: str, usage: str, known: Path) -> Found:
    status, said = _run(path, ask)
    version = re.search(says, said.replace(str(path), ""))  # its directory may be named after a version, too
    if status or not version:
        raise ValueError(f"exit code {status}: {said.strip()[:400]}")
    found = Found(str(path), version[0], "", fingerprint(path))
    if usage:
        _, said = _run(path, ["--help"])
        flags = sorted(set(re.findall(r"^\s+(?:-\w, )?(--[a-z0-9][\w.-]*)", said, re.MULTILINE)))
        name = re.search(r"^Usage:\s+(\S+)", said, re.MULTILINE)
        found = replace(found, flags=flags, calls_itself=name[1] if name else "")
    with contextlib.suppress(OSError):  # the cache may be another user's, and not writable
        known.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(known, json.dumps(asdict(found)))
    return found


def _looks(path: Path) -> str:
    """Return what kind of file this is, if not a program for this machine; empty when it looks like one."""
    if path.is_dir():
        return "It is a directory."
    try:
        with path.open("rb") as file:
            head = file.read(300)
    except OSError as error:
        return "There is no such file." if error.errno == errno.ENOENT else ""
    return next(_objections(head), "")


def _objections(head: bytes) -> Iterator[str]:
    here = os.uname().machine
    yield from (what for begin, what in _NO_PROGRAM.items() if head.startswith(begin))
    if head[257:262] == b"ustar":
        yield "It is a tar archive: unpack it."
    if head.startswith(b"\x7fELF"):
        number = int.from_bytes(head[18:20], "little" if head[5:6] == b"\1" else "big")
        machine = _MACHINES.get(number, f"another machine (number {number} of ELF)")
        if len(head) > 20 and machine != here:
            yield f"It is a program for {machine}, and this machine is {here}."
    elif head.startswith(b"#!"):
        interpreter = os.fsdecode(b"".join(head[2:].partition(b"\n")[0].split()[:1]))
        if not Path(interpreter).is_file():
            yield f"It is a script for {interpreter}, which does not exist."
    else:
        line = head.decode(errors="replace").partition("\n")[0][:60].strip()
        yield f"It is not a program; it begins with {line!r}." if head else "The file is empty."


def _run(path: Path, arguments: Sequence[str]) -> tuple[int, str]:
    """Return the exit code and the output. Raise TimeoutExpired; even then, no process is left behind."""
    with subprocess.Popen(
        [path, *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        errors="replace",
        start_new_session=True,
    ) as process:
        try:
            said, _ = process.communicate(timeout=PATIENCE)
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            raise
    return process.returncode, said
