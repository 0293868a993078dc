"""What a new release of Kubernetes brings: `scripts/new-release DIRECTORY`, the directory of its programs.

For each program the flags that came, and those that went, since the newest release whose flags are recorded in
tests/data/help/; and of those that went, the ones that dmuc uses. Then the steps for the new row of
tasks/core/release.py, which CONTRIBUTING.md explains.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import tomllib
from collections.abc import Iterator
from pathlib import Path

from scripts.common import ROOT
from tasks.core import release
from tasks.core.errors import DmucError
from tasks.programs.catalog import PROGRAMS
from tasks.programs.executable import VERSION, look_at

HELP = ROOT / "tests" / "data" / "help"


def recorded() -> tuple[str, dict[str, set[str]]]:
    """Return the newest release whose flags are recorded, and the flags of each of its programs."""
    newest = max(HELP.glob("*.toml"), key=lambda file: release.minor_of(file.stem))
    flags = tomllib.loads(newest.read_text("utf-8"))["flags"]
    return newest.stem, {program: {f"--{name}" for name in names.split()} for program, names in flags.items()}


def compare(directory: Path) -> Iterator[str]:
    """Yield the lines of the comparison. Raise DmucError when one of the programs does not run."""
    last, before = recorded()
    used = {word for file in (ROOT / "tests" / "golden").glob("*.txt") for word in file.read_text("utf-8").split()}
    used = {word.partition("=")[0] for word in used if word.startswith("--")}
    with tempfile.TemporaryDirectory() as cache:
        for name, program in PROGRAMS.items():
            if not program.says_flags:
                continue
            do = "The directory must have the five servers of the new release."
            found = look_at(
                directory / name, program.version, says=VERSION, usage=name, source="", cache=Path(cache), do=do
            )
            came, went = ({*found.flags} - before[name], before[name] - {*found.flags})
            yield f"{name} {found.version}, compared with {last}"
            yield from (f"  + {flag}" for flag in sorted(came))
            yield from (f"  - {flag}{'   dmuc uses it' if flag in used else ''}" for flag in sorted(went))
    yield ""
    yield "Now: read CHANGELOG-1.N.md (Urgent Upgrade Notes, Deprecation); then CONTRIBUTING.md, A Kubernetes release."


def main() -> int:
    """Print the comparison; return 0."""
    parser = argparse.ArgumentParser("scripts/new-release", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("directory", type=Path, metavar="DIRECTORY", help="the directory with the new programs")
    try:
        for line in compare(parser.parse_args().directory.absolute()):
            print(line)
    except DmucError as error:
        print(f"✗ {error}", file=sys.stderr)
        return 3
    return 0


if __name__ == "__main__":
    sys.exit(main())
