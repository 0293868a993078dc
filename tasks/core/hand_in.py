"""Show files and directories of the host in a mount namespace, at the same path: `python hand_in.py PID PATH ...`.

PID is a process in that namespace. A program of its own, because a process with threads cannot enter a mount namespace
(setns(2)). What is mounted there is a copy of the host's mounts (open_tree(2), move_mount(2), Linux 5.2), so no path of
the host has to be reachable there. Missing directories above it are made. On failure the error output is one line.
"""

from __future__ import annotations

import ctypes
import os
import stat
import sys

_OPEN_TREE, _MOVE_MOUNT = 428, 429  # the same on every architecture
_CLONE, _CLOEXEC, _RECURSIVE, _HERE = 1, os.O_CLOEXEC, 0x8000, -100  # OPEN_TREE_*, AT_RECURSIVE, AT_FDCWD
_EMPTY_PATH = 4  # MOVE_MOUNT_F_EMPTY_PATH
_NEWNS = 0x00020000
_DETACH = 2  # MNT_DETACH
_REC, _PRIVATE, _SHARED = 0x4000, 1 << 18, 1 << 20  # <linux/mount.h>


def hand_in(pid: int, paths: list[str]) -> None:
    """Mount each path of this mount namespace in that of the process `pid`. Raise OSError with the path on failure."""
    libc = ctypes.CDLL(None, use_errno=True)

    def checked(result: int, path: str) -> int:
        if result < 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), path)
        return result

    trees = []
    for path in paths:
        flags = _CLONE | _CLOEXEC | _RECURSIVE
        tree = checked(libc.syscall(_OPEN_TREE, _HERE, os.fsencode(path), flags), path)
        trees.append((path, tree, stat.S_ISDIR(os.stat(path).st_mode)))  # noqa: PTH116
    namespace = os.open(f"/proc/{pid}/ns/mnt", os.O_RDONLY)
    checked(libc.setns(namespace, _NEWNS), f"/proc/{pid}/ns/mnt")
    for path, tree, is_directory in trees:
        # What was handed in before, and has been removed on the host since: nothing can be mounted on that.
        while os.path.exists(path) and not os.stat(path).st_nlink:  # noqa: PTH110, PTH116
            checked(libc.umount2(os.fsencode(path), _DETACH), path)
        os.makedirs(path if is_directory else os.path.dirname(path), exist_ok=True)  # noqa: PTH103, PTH120
        if not is_directory and not os.path.exists(path):  # noqa: PTH110
            os.close(os.open(path, os.O_WRONLY | os.O_CREAT, 0o600))
        name = os.fsencode(path)
        checked(libc.syscall(_MOVE_MOUNT, tree, b"", _HERE, name, _EMPTY_PATH), path)
        # Mounts of the host may be shared with other namespaces; what is mounted below these here must stay here.
        for flags in (_REC | _PRIVATE, _REC | _SHARED):
            checked(libc.mount(None, name, None, ctypes.c_ulong(flags), None), path)


if __name__ == "__main__":
    try:
        hand_in(int(sys.argv[1]), sys.argv[2:])
    except OSError as error:
        sys.exit(f"{error.filename}: {error.strerror}")
