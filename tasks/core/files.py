"""Small files: read files that may be missing or invalid, write atomically, tell versions of a file apart."""

from __future__ import annotations

import hashlib
import json
import os
import threading
from pathlib import Path
from typing import Any

MISSING = "missing"


def read_json(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file; an empty one when the file is missing, unreadable or has other content."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def write_atomic(path: Path, text: str, mode: int = 0o644) -> None:
    """Write a file atomically: every reader finds the old text or the new one, complete. The umask applies to `mode`.

    Raise OSError on failure; the old file is then unchanged.
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
    """Return the size (bytes) and time of change (ns) of a file that is too large to be read at every check."""
    status = path.stat()
    return f"{status.st_size} {status.st_mtime_ns}"


def digest(content: bytes) -> str:
    """Return a short digest of `content`, which tells versions of a file apart."""
    return hashlib.sha256(content).hexdigest()[:16]


def content_digest(path: Path) -> str:
    """Return the digest of a file's content; MISSING when the file does not exist."""
    try:
        return digest(path.read_bytes())
    except FileNotFoundError:
        return MISSING


def quoted(text: str) -> str:
    """Return `text` as a string in double quotes that TOML and YAML both read as exactly this text."""
    escaped = (f"\\{c}" if c in '"\\' else c if c.isprintable() else f"\\U{ord(c):08x}" for c in text)
    return f'"{"".join(escaped)}"'
