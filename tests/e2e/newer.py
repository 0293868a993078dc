"""etcd and containerd as later releases of Debian have them: unpacked in the cache, not installed."""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path

from tasks.core import debian
from tasks.core.errors import DmucError
from tasks.core.progress import Silent

SUITES = ("trixie", "sid")
PACKAGES = ("etcd-server", "containerd")


def of(suite: str, cache: Path) -> Path:
    """Return the directory of the programs; each package's version is in a file of its name."""
    return cache / "newer" / suite


def prepare(cache: Path) -> None:
    """Have them all in the cache. A suite that cannot be reached is left out, and its tests say so."""
    for suite in SUITES:
        there = of(suite, cache)
        if there.exists():
            continue
        part = there.with_name(f"{suite}.part")
        shutil.rmtree(part, ignore_errors=True)
        try:
            with debian.archive(suite, part / "lists", Silent()) as options:
                debs = debian.fetch_debs(PACKAGES, part / "debs", Silent(), options)
        except DmucError as error:
            print(f"no packages of Debian {suite}: {error}", file=sys.stderr)
            continue
        for deb in debs:
            debian.extract(deb, part / "root")
            name, version, *_ = deb.name.split("_")
            found = re.match(r"\d+\.\d+\.\d+", version.rpartition("%3a")[2])
            (part / "root" / name).write_text(found[0] if found else version)
        (part / "root").rename(there)
        shutil.rmtree(part)
