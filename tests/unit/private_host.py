"""A host for one test: its own mounts, network and processes, an empty /run and /var/lib. For what acts as root."""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.unit.support import CHECKOUT

_SETUP = 'for directory in /run /var/lib; do mount -t tmpfs tmpfs $directory; done; ip link set lo up; exec "$@"'
_UNSHARE = (
    "unshare",
    "--mount",
    "--net",
    "--pid",
    "--fork",
    "--kill-child",
    "--mount-proc",
    "sh",
    "-euc",
    _SETUP,
    "sh",
)
_RUN = """
import importlib, pathlib, sys
module, test, directory = sys.argv[1:]
getattr(importlib.import_module(module), test).__wrapped__(pathlib.Path(directory))
"""


needs_iptables = pytest.mark.skipif(
    not shutil.which("iptables"), reason="iptables is not installed: `scripts/test` installs it"
)


def on_a_private_host(test: Callable[[Path], None]) -> Callable[[Path], None]:
    """Run the test, a function of `tmp_path`, on a host of its own. Takes root."""

    @pytest.mark.skipif(os.geteuid() != 0, reason="makes namespaces and mounts: run as root")
    @needs_iptables
    @functools.wraps(test)
    def wrapper(tmp_path: Path) -> None:
        command = [*_UNSHARE, sys.executable, "-c", _RUN, test.__module__, test.__name__, str(tmp_path)]
        environment = {**os.environ, "PYTHONPATH": str(CHECKOUT)}
        done = subprocess.run(command, cwd=CHECKOUT, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"

    return wrapper
