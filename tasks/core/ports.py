"""Ports: the standard ports; or, for several clusters on one host, free ports."""

from __future__ import annotations

import random
import socket
from collections.abc import Collection
from dataclasses import dataclass

from .errors import DmucError

# Below the NodePorts (from 30000) and below the kernel's ports for outgoing connections (from 32768).
_RANGE = range(20000, 30000)


@dataclass(frozen=True)
class Port:
    """A port on which a component listens; `Context.port` returns its number on a cluster."""

    name: str
    standard: int

    @property
    def decision(self) -> str:
        """The name of the decision about the port's number; see `Context.decide`."""
        return f"port {self.name}"


API = Port("api", 6443)  # the API server's, which dmuc uses as a client


def is_free(number: int) -> bool:
    """Return whether a program could listen on this port of 127.0.0.1."""
    try:
        socket.create_server(("127.0.0.1", number)).close()
    except OSError:
        return False
    return True


def free_port(taken: Collection[int]) -> int:
    """Return a free port that is not in `taken`. Raise DmucError when none is found."""
    for number in random.sample(_RANGE, 200):
        if number not in taken and is_free(number):
            return number
    seen = f"200 ports from {_RANGE.start} to {_RANGE.stop - 1} were tried, and all are in use."
    raise DmucError("looking for a free port", seen, "Find the processes with `ss -ltnp`, and stop some.")
