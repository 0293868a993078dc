"""`scripts/bench scale`: how long commands take, and how much memory is in use, with many Pods and Services.

The node gets as many Pods as a kubelet accepts by default, all of the Deployment web, whose Service leads to all of
them. Each further Service leads to one Pod. The figures of each step are taken when the components have come to rest.
Of the seconds, the median of three runs counts. With ten times the Services, a command may take at most ten times as
long.

A machine of its own is used, and nothing is left of it. No packet leaves it.
"""

from __future__ import annotations

import re
import resource
import statistics
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from scripts.common import ROOT
from tasks import binaries, choices, deployment
from tasks.commands.trace import has_rules
from tasks.core import api
from tasks.core.context import Context
from tasks.core.machine import run
from tasks.core.probe import Probe, ask_api, objects, wait_or_fail
from tasks.core.progress import Silent
from tasks.core.result import Result

PAGE = ROOT / "docs" / "scale.md"
PODS = 110  # max-pods, the kubelet's default
SERVICES = (1, 10, 100, 1000)
COMMANDS = {"trace": ("trace", deployment.NAME), "why": ("why",), "status": ("status",)}
_TIMES = 3  # runs of each command
_REST = 10.0  # seconds in which components come to rest after a change
_DEADLINE = 900.0  # seconds for the Pods, and for each step
_READ = 60.0  # seconds to read how much memory the processes use
_WIDTH = 50  # characters of the longest bar
_AROUND = {"nsenter", "unshare"}  # have started a program in the machine, and wait for its end
_SPACE = "/api/v1/namespaces/default"

Doit = Callable[..., tuple[float, str]]  # runs scripts/doit with these words; returns its seconds and its output


@dataclass(frozen=True)
class Row:
    """The figures with one number of Services."""

    services: int
    seconds: dict[str, float]  # by command
    memory: int  # KiB of all processes in the machine


@dataclass(frozen=True)
class Figures:
    """All figures, and of which programs they are."""

    programs: str
    rows: Sequence[Row]
    idle: Mapping[str, int]  # the programs that run outside of the machine while no command does, and their number
    idle_memory: int  # KiB of these
    peak: int  # KiB that one of dmuc's commands used at most, from the start of the cluster on


def measure(context: Context, doit: Doit) -> Figures:
    """Return the figures of a cluster that runs already. Raise DmucError when its objects are not ready in time."""
    names = have_pods(context)
    for number, name in enumerate(names):
        api.send(context, "PATCH", f"{_SPACE}/pods/{name}", {"metadata": {"labels": {"number": str(number)}}})
    rows: list[Row] = []
    for total in SERVICES:
        have_services(context, total, len(names))
        time.sleep(_REST)
        runs = {name: [doit(*words)[0] for _ in range(_TIMES)] for name, words in COMMANDS.items()}
        rows.append(Row(total, {name: statistics.median(each) for name, each in runs.items()}, in_machine(context)))
        told = ", ".join(f"{name} {' '.join(f'{seconds:.2f}' for seconds in each)}" for name, each in runs.items())
        print(f"{total} Services: {told} s; {rows[-1].memory / 1024:.0f} MiB", flush=True)
    versions = binaries.versions(context)
    used = ("etcd", "containerd") if choices.engine(context) == "containerd" else ("etcd", "dockerd")
    programs = [f"Kubernetes {versions['kube-apiserver'].lstrip('v')}", *(f"{name} {versions[name]}" for name in used)]
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss  # KiB; see getrusage(2)
    programs.append(f"Services through {context.settings.proxy_mode}")
    found = outside(context.state)
    memory = sum(proportional((process / "smaps_rollup").read_text("utf-8")) for process in found)
    return Figures(", ".join(programs), rows, Counter(sorted(found.values())), memory, peak)


def have_pods(context: Context) -> list[str]:
    """Scale the Deployment to all the Pods, wait until all are ready, and return their names."""
    api.send(context, "PATCH", deployment.PATH, {"spec": {"replicas": PODS}})

    def judge(found: Any) -> Result:
        ready = found["status"].get("readyReplicas", 0)
        return Result(ready == PODS, f"{ready} of {PODS} Pods are ready")

    _await(context, lambda context: ask_api(context, deployment.PATH, judge), f"starting {PODS} Pods")
    return [pod["metadata"]["name"] for pod in objects(context, f"{_SPACE}/pods", "measuring")]


def have_services(context: Context, total: int, pods: int) -> None:
    """Create Services up to this number, that of the Deployment included, and wait until each is reachable by rules."""
    tried = f"waiting for {total} Services"
    there = [
        one for one in objects(context, f"{_SPACE}/services", "measuring") if one["metadata"]["name"] != "kubernetes"
    ]
    for number in range(len(there), total):
        api.create(context, service(number, pods))

    def judge(found: Any) -> Result:
        complete = [one for one in found["items"] if one.get("subsets")]
        return Result(len(complete) > total, f"{len(complete)} Services have endpoints")  # one is the API server's

    _await(context, lambda context: ask_api(context, f"{_SPACE}/endpoints", judge), tried)
    _await(context, lambda context: has_rules(context, *objects(context, f"{_SPACE}/services", "measuring")), tried)


def service(number: int, pods: int) -> dict[str, Any]:
    """Return a Service that leads to one of the Pods."""
    spec = {"ports": [{"port": 80}], "selector": {"number": str(number % pods)}}
    return {"apiVersion": "v1", "kind": "Service", "metadata": {"name": f"scale-{number}"}, "spec": spec}


def _await(context: Context, probe: Probe, tried: str) -> None:
    wait_or_fail(context, probe, deadline=_DEADLINE, progress=Silent(), tried=tried)


# Memory


def proportional(text: str) -> int:
    """Return the sum in KiB of the proportional sizes in these contents of /proc/PID/smaps_rollup (proc(5)).

    A page that N processes share counts 1/N for each of them.
    """
    return sum(map(int, re.findall(r"^Pss: +(\d+) kB", text, re.MULTILINE)))


def in_machine(context: Context) -> int:
    """Return the KiB that all processes in the machine use."""
    script = "cat /proc/[0-9]*/smaps_rollup 2> /dev/null || true"  # processes end meanwhile
    return proportional(run(context.machine, "sh", "-c", script, timeout=_READ))


def outside(state: Path) -> dict[Path, str]:
    """Return the processes that run outside of the machine with its state on their command line, each with its program.

    These are dmuc's if there are any, and those that have started the machine's programs in it and wait for their end.
    """
    here, found = Path("/proc/self/ns/pid").readlink(), {}
    for process in Path("/proc").glob("[0-9]*"):
        try:
            words = (process / "cmdline").read_bytes().decode(errors="replace").split("\0")
            if f"{state}" in " ".join(words) and (process / "ns/pid").readlink() == here:
                found[process] = Path(words[0]).name
        except OSError:
            continue  # it has ended
    return found


# The page


def growth(rows: Sequence[Row], name: str) -> list[float]:
    """Return for each row after the first how much the command's seconds grew, as a fraction of linear growth.

    Linear (1.0) means: with ten times the Services, ten times the seconds.
    """
    return [
        (row.seconds[name] / before.seconds[name]) / (row.services / before.services) for before, row in pairwise(rows)
    ]


def is_linear(rows: Sequence[Row]) -> bool:
    """Return whether no command's seconds grew more than linearly."""
    return all(factor <= 1 for name in COMMANDS for factor in growth(rows, name))


def page(figures: Figures) -> str:
    """Return the page with the table and the plot."""
    rows = figures.rows
    names = " | ".join(f"`{' '.join(words)}`" for words in COMMANDS.values())
    lines = [
        "# How dmuc scales",
        "",
        f"{PODS} Pods on one node, and 1 to {SERVICES[-1]} Services: seconds of `scripts/doit` with each command (the",
        "median of three runs; 2 cores, with other programs beside them), and the memory that all processes in the",
        f"machine use: {figures.programs}. Written by `scripts/bench scale --write`.",
        "",
        f"| Services | {names} | memory of the cluster |",
        "|---:|" + "---:|" * (len(COMMANDS) + 1),
    ]
    for row in rows:
        seconds = " | ".join(f"{row.seconds[name]:.2f} s" for name in COMMANDS)
        lines.append(f"| {row.services} | {seconds} | {row.memory / 1024:.0f} MiB |")
    factors = " | ".join(f"x {rows[-1].seconds[name] / rows[0].seconds[name]:.1f}" for name in COMMANDS)
    more = rows[-1].services // rows[0].services
    lines.append(f"| x {more} | {factors} | x {rows[-1].memory / rows[0].memory:.1f} |")
    growing = "at most linear" if is_linear(rows) else "MORE THAN LINEAR"
    ours = sum(number for name, number in figures.idle.items() if name not in _AROUND)
    around = ", ".join(f"{number} {name}" for name, number in figures.idle.items())
    lines += [
        "",
        f"The growth from each row to the next is {growing}. While no command runs, {ours} processes of dmuc run.",
        f"Around the machine there are {around or 'none'}, with {figures.idle_memory / 1024:.1f} MiB together.",
        f"A command of dmuc uses at most {figures.peak / 1024:.0f} MiB.",
        "",
        "```",
        *plot(rows),
        "```",
        "",
    ]
    return "\n".join(lines)


def plot(rows: Sequence[Row]) -> list[str]:
    """Return the lines of a plot: for each command a bar of its seconds for each number of Services."""
    most = max(max(row.seconds.values()) for row in rows)
    lines = [f"{'':8}{'Services':>8}  seconds"]
    for name in COMMANDS:
        for row in rows:
            bar = "█" * max(1, round(_WIDTH * row.seconds[name] / most))
            lines.append(f"{name if row is rows[0] else '':8}{row.services:8}  {bar} {row.seconds[name]:.2f}")
    return lines
