"""Directories outside of the cluster's state: a mark in a directory tells which cluster owns it and may empty it."""

from __future__ import annotations

import os
import re
from pathlib import Path

from .errors import DmucError
from .machine import Machine, run

MARK = ".dmuc"  # a file that contains the path of the owner's state directory


def claim(machine: Machine, directory: Path, state: Path) -> None:
    """Create the directory, and write the mark of the cluster with the state directory `state` into it."""
    place = machine.path(directory)
    place.mkdir(mode=0o700, parents=True, exist_ok=True)
    (place / MARK).write_text(str(state), "utf-8")


def is_ours(machine: Machine, directory: Path, state: Path) -> bool:
    """Return whether the directory has the mark of the cluster with the state directory `state`."""
    try:
        return (machine.path(directory) / MARK).read_text("utf-8") == str(state)
    except OSError:
        return False


def is_foreign(machine: Machine, directory: Path, state: Path) -> bool:
    """Return whether the directory has content, and no mark of the cluster with the state directory `state`."""
    place = machine.path(directory)
    return place.is_dir() and not is_ours(machine, directory, state) and any(place.iterdir())


def empty(machine: Machine, directory: Path) -> None:
    """Remove the directory's content, the mark last: what is left after an interruption is still marked.

    The directory itself stays, because the machine may have mounted it elsewhere.
    """
    place = machine.path(directory)
    for path in sorted(place.iterdir(), key=lambda path: path.name == MARK) if place.is_dir() else ():
        if path.is_dir() and not path.is_symlink():
            path.delete()
        else:
            path.unlink()


def unmount_below(machine: Machine, directory: Path) -> None:
    """Unmount everything that the machine has mounted below the directory, so that the directory can be emptied."""
    if points := _mounted_below(machine, directory):
        try:
            run(machine, "umount", "-l", *reversed(points))
        except DmucError:  # also raised for a mount that has vanished meanwhile
            if _mounted_below(machine, directory):
                raise


def _mounted_below(machine: Machine, directory: Path) -> list[str]:
    lines = run(machine, "cat", "/proc/self/mountinfo").splitlines()
    # proc(5): a blank is \040, a tab \011, a newline \012, a backslash \134.
    points = [re.sub(r"\\([0-7]{3})", lambda code: chr(int(code[1], 8)), line.split(" ")[4]) for line in lines]
    below = f"{os.path.realpath(directory)}/"
    return [point for point in points if point.startswith(below) and not point.endswith("//deleted")]


def sockets_below(machine: Machine, directory: Path) -> list[str]:
    """Return the paths of sockets below the directory that a running process of the machine has open."""
    lines = run(machine, "cat", "/proc/net/unix").splitlines()[1:]
    paths = [columns[7] for columns in (line.split(maxsplit=7) for line in lines) if len(columns) > 7]
    paths = [re.sub("^/var/run/", "/run/", path) for path in paths]
    return [path for path in paths if path.startswith(f"{directory}/")]
