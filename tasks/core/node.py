"""A node: one machine of the cluster on which Pods run. The first node also carries the control plane."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from .machine import Machine


@dataclass(frozen=True)
class Node:
    """A node, its machine, its addresses and the directory of its files.

    The other nodes and the API server reach the node at `address`; its Pods have addresses in `pod_range`; `state` is
    the directory of its logs, pidfiles and data: the cluster's state directory for the first node. `prefix` begins the
    names of the node's files in the cluster's directories: its certificates.
    """

    name: str  # also the name of its Node object
    machine: Machine
    address: str
    pod_range: str
    state: Path
    prefix: str = ""
