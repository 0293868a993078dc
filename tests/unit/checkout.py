"""A checkout in which a test runs doit, for a machine that nothing else has.

To start a Python that imports doit and dmuc takes a third of a second of the processor, and these tests run doit some
hundred times; so a process that has imported them is forked for each run (multiprocessing's forkserver): a process of
its own, with a fresh state, that does what `python -m doit` does. Where a test needs the process itself, it starts one
(`DOIT`).
"""

from __future__ import annotations

import itertools
import multiprocessing
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import dodo
from tests.unit.support import CHECKOUT

DOIT = [sys.executable, "-m", "doit"]
_COMMANDS = [f"tasks.commands.{path.stem}" for path in CHECKOUT.glob("tasks/commands/[a-z]*.py")]
_forks = multiprocessing.get_context("forkserver")
_forks.set_forkserver_preload([__name__, "doit.__main__", *_COMMANDS, "cryptography.x509", "rich.live", "yaml"])
_number = itertools.count()


class Checkout:
    """A directory that is a checkout to doit: this one's files, with its own var/."""

    def __init__(self, root: Path) -> None:
        self.root = root
        for name in ("dodo.py", "pyproject.toml"):
            shutil.copy(CHECKOUT / name, root)
        (root / "tasks").symlink_to(CHECKOUT / "tasks")
        self.machine = f"u{os.getpid()}x{next(_number)}"  # short, as names of machines are
        self.state = root / "var" / self.machine
        self.environment = {name: value for name, value in os.environ.items() if not name.startswith("DMUC_")}
        self.environment |= {"DMUC_MACHINE": self.machine, "DMUC_CACHE": str(root / "cache")}
        self.environment |= {"DMUC_KUBERNETES": "1.20"}

    def doit(self, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run doit with these words to its end."""
        out, err = (self.root / name for name in (".out", ".err"))
        process = _forks.Process(target=_doit, args=(self.root, words, self.environment | environment, out, err))
        process.start()
        process.join(60)
        if process.exitcode is None:
            process.kill()
            process.join()
        code, texts = process.exitcode, [path.read_text("utf-8", "replace") for path in (out, err)]
        for path in (out, err):
            path.unlink()
        assert code != -9, f"not done after 60 s: doit {' '.join(words)}\n{texts}"
        return subprocess.CompletedProcess([*DOIT, *words], code or 0, *texts)

    def made(self) -> set[str]:
        """The names of what is new in it."""
        return {path.name for path in self.root.iterdir()} - {"dodo.py", "pyproject.toml", "tasks", "__pycache__"}


def _doit(root: Path, words: Sequence[str], environment: Mapping[str, str], out: Path, err: Path) -> None:
    """What `python -m doit` does in this checkout, as far as it is not done yet."""
    for number, path in enumerate((Path(os.devnull), out, err)):
        os.dup2(os.open(path, os.O_RDWR | os.O_CREAT), number)
    encoding, _, errors = environment.get("PYTHONIOENCODING", "utf-8").partition(":")
    sys.stdin, sys.stdout = open(0), open(1, "w", encoding=encoding, errors=errors or None)  # noqa: SIM115
    sys.stderr = open(2, "w", encoding=encoding, errors="backslashreplace")  # noqa: SIM115
    os.chdir(root)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = ["doit", *words]
    dodo.Loader.root = root
    from doit.__main__ import main

    main()


def is_told(done: subprocess.CompletedProcess[str], *parts: str, lines: int = 3) -> None:
    """Check that it failed, and said so in a few lines: what was wrong, with these in it, and no traceback."""
    assert done.returncode not in (0, None)
    assert "Traceback" not in done.stderr + done.stdout
    assert len(done.stderr.strip().splitlines()) <= lines, done.stderr
    for part in parts:
        assert part in done.stderr
    assert done.stdout == ""
