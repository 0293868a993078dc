"""A node: one machine of the cluster on which Pods run. The first node also carries the control plane."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from .machine import Machine


@dataclass(frozen=True)
class Node:
    """A node, and where what runs on it keeps its files.

    `address` is where the other nodes and the API server reach the node; `pod_range` are the addresses of its Pods;
    `state` is the directory of its logs, pidfiles and data: the cluster's own for the first node. `prefix` comes before
    the name of each file that belongs to the node but is kept with the cluster's: its certificates.
    """

    name: str  # also the name of its Node object
    machine: Machine
    address: str
    pod_range: str
    state: Path
    prefix: str = ""
