"""A file that should be a program: asked for its version and its flags, once for each file."""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from .errors import DmucError


@dataclass(frozen=True)
class Found:
    """Where a program is, and what it says."""

    path: str
    version: str
    how: str  # in words: how it was come by
    print: str  # its fingerprint: whether it is still the same
    flags: Sequence[str] = ()  # what its --help names, where that is asked


def fingerprint(path: Path) -> str:
    """Give the file's size and time of change."""
    status = path.stat()
    return f"{status.st_size} {status.st_mtime_ns}"


def look_at(path: Path, ask: Sequence[str], *, says_flags: bool, how: str, cache: Path, do: str) -> Found:
    """Ask the program at `path` for its version with the arguments `ask`: what it is called proves nothing.

    The answers are kept in `cache`. Raises DmucError, with the advice `do`, for what is no program of this machine.
    """
    tried = f"asking {path} for its version"
    if not path.is_file() or not os.access(path, os.X_OK, effective_ids=True):
        seen = "It is not executable." if path.is_file() else "There is no such file."
        raise DmucError(tried, seen, do)
    known = cache / "versions" / (str(path).strip("/").replace("/", "-") + ".json")
    try:
        found = Found(**json.loads(known.read_text()))
        if found.print == fingerprint(path):
            return replace(found, how=how)
    except (OSError, ValueError, TypeError):
        pass
    try:
        status, said = _run(path, ask)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise DmucError(tried, f"It cannot be run: {error}", do) from None
    version = re.search(r"v?\d+\.\d+\.\d+[^\s,\"]*", said)
    if status or not version:
        raise DmucError(tried, f"exit code {status}: {said.strip()[:400]}", do)
    found = Found(str(path), version[0], how, fingerprint(path), _flags(path) if says_flags else ())
    with contextlib.suppress(OSError):  # a cache that others own serves us all the same
        known.parent.mkdir(parents=True, exist_ok=True)
        part = known.with_suffix(f".{os.getpid()}.part")
        part.write_text(json.dumps(asdict(found)))
        part.rename(known)
    return found


def _run(path: Path, arguments: Sequence[str]) -> tuple[int, str]:
    done = subprocess.run(
        [path, *arguments], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, timeout=20
    )
    return done.returncode, done.stdout + done.stderr


def _flags(path: Path) -> list[str]:
    """The flags that the program's --help names."""
    _, said = _run(path, ["--help"])
    return sorted(set(re.findall(r"^\s+(?:-\w, )?(--[a-z0-9][\w.-]*)", said, re.MULTILINE)))
