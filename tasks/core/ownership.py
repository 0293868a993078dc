"""Directories outside of our own state: whose one is, which a mark in it says, and how one of ours is emptied."""

from __future__ import annotations

import os
import re
from pathlib import Path

from .errors import DmucError
from .machine import Machine, run

MARK = ".dmuc"  # a file that holds the path of its owner's state directory


def claim(machine: Machine, directory: Path, state: Path) -> None:
    """Make the directory, and put our mark into it."""
    place = machine.path(directory)
    place.mkdir(mode=0o700, parents=True, exist_ok=True)
    (place / MARK).write_text(str(state), "utf-8")


def is_ours(machine: Machine, directory: Path, state: Path) -> bool:
    """Return whether the mark in the directory is ours: a directory without one is not."""
    try:
        return (machine.path(directory) / MARK).read_text("utf-8") == str(state)
    except OSError:
        return False


def is_foreign(machine: Machine, directory: Path, state: Path) -> bool:
    """Return whether there is something in the directory, and no mark of ours."""
    place = machine.path(directory)
    return place.is_dir() and not is_ours(machine, directory, state) and any(place.iterdir())


def empty(machine: Machine, directory: Path) -> None:
    """Remove what is in the directory, the mark last: what is left when this breaks off is still ours.

    The directory itself stays: the machine may have it mounted elsewhere.
    """
    place = machine.path(directory)
    for path in sorted(place.iterdir(), key=lambda path: path.name == MARK) if place.is_dir() else ():
        if path.is_dir() and not path.is_symlink():
            path.delete()
        else:
            path.unlink()


def unmount_below(machine: Machine, directory: Path) -> None:
    """Unmount all that is mounted below it on the machine; else it could not be emptied."""
    if points := _mounted_below(machine, directory):
        try:
            run(machine, "umount", "-l", *reversed(points))
        except DmucError:  # of one that has gone meanwhile, too
            if _mounted_below(machine, directory):
                raise


def _mounted_below(machine: Machine, directory: Path) -> list[str]:
    lines = run(machine, "cat", "/proc/self/mountinfo").splitlines()
    # proc(5): a blank is \040, a tab \011, a newline \012, a backslash \134.
    points = [re.sub(r"\\([0-7]{3})", lambda code: chr(int(code[1], 8)), line.split(" ")[4]) for line in lines]
    below = f"{os.path.realpath(directory)}/"
    return [point for point in points if point.startswith(below) and not point.endswith("//deleted")]


def sockets_below(machine: Machine, directory: Path) -> list[str]:
    """Return the paths below it at which a process of the machine has a socket: those that have ended have none."""
    lines = run(machine, "cat", "/proc/net/unix").splitlines()[1:]
    paths = [columns[7] for columns in (line.split(maxsplit=7) for line in lines) if len(columns) > 7]
    paths = [re.sub("^/var/run/", "/run/", path) for path in paths]
    return [path for path in paths if path.startswith(f"{directory}/")]
