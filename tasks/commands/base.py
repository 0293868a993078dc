"""The base classes of all doit commands: how they end, and their cluster. pyproject.toml lists the commands."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

from doit.cmd_base import DoitCmdBase

from ..core import signals
from ..core.cluster import Cluster
from ..core.errors import DmucError


def reporting_errors(method: Callable[..., int]) -> Callable[..., int]:
    """Wrap `method` so that an error becomes one message on standard error and exit status 3, never a traceback."""

    @functools.wraps(method)
    def wrapper(*args: Any, **kwargs: Any) -> int:
        try:
            return method(*args, **kwargs)
        except (DmucError, OSError) as error:
            if isinstance(error, BrokenPipeError):
                raise
            print(f"✗ {error}", file=sys.stderr)
            return 3

    return wrapper


class EndsQuietly:
    """A command that ends without a traceback when its output is closed (`doit info kubelet | head`), or by Ctrl-C."""

    interrupted = "interrupted"  # what is printed then

    def execute(self, params: Any, args: list[str]) -> int:
        """Run the command; return its exit status, 130 when interrupted."""
        try:
            status = int(super().execute(params, args) or 0)  # type: ignore[misc]
            sys.stdout.flush()
            return status
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 0
        except KeyboardInterrupt:
            with signals.ignored():
                print(f"\n{self.interrupted}", file=sys.stderr)
            return 130


class OnCluster:
    """A command that works on the cluster that the loader has made (loader.py)."""

    loader: Any

    @property
    def cluster(self) -> Cluster:
        """The cluster that the command works on."""
        cluster: Cluster = self.loader.cluster
        return cluster


class Command(EndsQuietly, OnCluster, DoitCmdBase):  # type: ignore[misc]
    """A command that doit does not have: a subclass implements `act`."""

    cmd_options: Sequence[dict[str, object]] = ()

    def _execute(self, pos_args: list[str]) -> int:
        return reporting_errors(self.act)(self.cluster, pos_args)

    def act(self, cluster: Cluster, arguments: list[str]) -> int:
        """Run the command on the cluster; return the exit status. Raise DmucError when it fails."""
        raise NotImplementedError
