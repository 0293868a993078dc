"""Small files: read where they may be missing or broken, written whole or not at all, told apart by a look."""

from __future__ import annotations

import hashlib
import json
import os
import threading
from pathlib import Path
from typing import Any

MISSING = "missing"


def read_json(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file; an empty one when the file is missing, unreadable or anything else."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def write_atomic(path: Path, text: str, mode: int = 0o644) -> None:
    """Write a file such that every reader finds the old text or the new one, whole; the umask counts, as in open(2).

    Raises OSError; then the old file is as it was.
    """
    part = path.with_name(f".{path.name}.{threading.get_native_id()}.part")  # no other thread of this host has this id
    try:
        with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode), "w", encoding="utf-8") as file:
            file.write(text)
        part.rename(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def fingerprint(path: Path) -> str:
    """Return the size and the time of change of a file that is too large to be read at every check."""
    status = path.stat()
    return f"{status.st_size} {status.st_mtime_ns}"


def digest(content: bytes) -> str:
    """Return a short digest: it tells versions of one file apart."""
    return hashlib.sha256(content).hexdigest()[:16]


def content_digest(path: Path) -> str:
    """Return the digest of what is in a file; MISSING when there is none."""
    try:
        return digest(path.read_bytes())
    except FileNotFoundError:
        return MISSING


def quoted(text: str) -> str:
    """Return `text` as a string in double quotes that TOML and YAML read alike, whatever is in it."""
    escaped = (f"\\{c}" if c in '"\\' else c if c.isprintable() else f"\\U{ord(c):08x}" for c in text)
    return f'"{"".join(escaped)}"'
