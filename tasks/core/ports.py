"""Ports: the standard ones; or, for clusters beside each other on one host, free ones."""

from __future__ import annotations

import random
import socket
from collections.abc import Collection
from dataclasses import dataclass

from .errors import DmucError

# Below the NodePorts (from 30000) and below what the kernel gives to connections that go out (from 32768).
_RANGE = range(20000, 30000)


@dataclass(frozen=True)
class Port:
    """Where a component listens. Which port that is on a cluster: `Context.port`."""

    name: str
    standard: int

    @property
    def decision(self) -> str:
        """The question to which the number is the answer, see `Context.decide`."""
        return f"port {self.name}"


API = Port("api", 6443)  # the API server's, which we too talk to


def is_free(number: int) -> bool:
    """Whether a program could listen on this port of 127.0.0.1."""
    try:
        socket.create_server(("127.0.0.1", number)).close()
    except OSError:
        return False
    return True


def a_free_one(taken: Collection[int]) -> int:
    """Give a free port that is not among `taken`. Raises DmucError when there is none."""
    for number in random.sample(_RANGE, 200):
        if number not in taken and is_free(number):
            return number
    seen = f"200 ports from {_RANGE.start} to {_RANGE.stop - 1} were tried, and all are in use."
    raise DmucError("looking for a free port", seen, "Find the processes with `ss -ltnp`, and stop some.")
