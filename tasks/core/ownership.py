"""Directories outside of our own state: whose one is, which a mark in it says, and how one of ours is emptied."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

from .errors import DmucError
from .machine import Machine, run

MARK = ".dmuc"  # a file that holds the path of its owner's state directory


def claim(directory: Path, state: Path) -> None:
    """Make the directory, and put our mark into it."""
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    (directory / MARK).write_text(str(state), "utf-8")


def is_ours(directory: Path, state: Path) -> bool:
    """Whether the mark in it is ours: a directory without one is not."""
    try:
        return (directory / MARK).read_text("utf-8") == str(state)
    except OSError:
        return False


def is_foreign(directory: Path, state: Path) -> bool:
    """Whether there is something in it, and no mark of ours."""
    return directory.is_dir() and not is_ours(directory, state) and any(directory.iterdir())


def empty(directory: Path) -> None:
    """Remove what is in it, the mark last: what is left when this breaks off is still ours.

    Not the directory: the machine may have it mounted elsewhere.
    """
    for path in sorted(directory.iterdir(), key=lambda path: path.name == MARK) if directory.is_dir() else ():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
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
