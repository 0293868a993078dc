"""What all doit commands share: how they end, and the cluster that they work on. pyproject.toml lists them for doit."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

from doit.cmd_base import DoitCmdBase

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
            print("\ninterrupted", file=sys.stderr)
            return 130


class OnCluster:
    """A command that works on the cluster which the loader has put together (loader.py)."""

    loader: Any

    @property
    def cluster(self) -> Cluster:
        """The cluster."""
        cluster: Cluster = self.loader.cluster
        return cluster


class Command(EndsQuietly, OnCluster, DoitCmdBase):  # type: ignore[misc]
    """A command of dmuc's own: `act` gets the cluster and the arguments."""

    cmd_options: Sequence[dict[str, object]] = ()

    def _execute(self, pos_args: list[str]) -> int:
        return reporting_errors(self.act)(self.cluster, pos_args)

    def act(self, cluster: Cluster, arguments: list[str]) -> int:
        """Carry out the command; return the exit status. Raise DmucError when that fails."""
        raise NotImplementedError
