"""The composition root: makes the cluster from the settings and the parts, for dodo.py, the scripts and the tests."""

from __future__ import annotations

import itertools
import os
import socket
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from . import choices, newest, ranges
from .core import release, settings
from .core.cluster import Cluster
from .core.context import Context
from .core.daemon import Daemon
from .core.errors import DmucError
from .core.facts import HostFacts
from .core.graph import Part, tasks
from .core.machine import Host, Machine
from .core.namespaces import Namespaces
from .core.node import Node
from .core.report import Reporter
from .core.run import Run
from .core.settings import Settings
from .engines.chosen import ENGINES, refuse_kubelet
from .machine import DISK, KERNEL, MODULES
from .programs.catalog import PROGRAMS


def load(
    root: Path,
    environment: Mapping[str, str],
    arguments: Sequence[str],
    parts: Sequence[Part],
    *,
    own_words: Mapping[str, Collection[str]] | None = None,
    facts: HostFacts | None = None,
    choosing: bool = False,
    removing: bool = False,
) -> Cluster:
    """Return the cluster that consists of `parts` and has these settings.

    The settings are read from `root`/cluster.toml, the environment and the words of the command line (`arguments`,
    without the program's name); `own_words` are NAMEs of NAME=VALUE words that are arguments of a command, not
    settings: the command's name -> these NAMEs. The state is under `root`/var, or under ~/.local/state/dmuc where
    another user owns the checkout. With `choosing`, what is not decided yet is decided now: the address ranges, and
    kubernetes=auto, which can take some seconds. Without, these are the defaults, and what Debian's source package has.
    With `removing`, nothing will be started: settings that do not go together are no obstacle.

    Raise DmucError when a setting is wrong.
    """
    words = settings.arguments(arguments, own_words)
    names = {part.name for part in parts}
    read = partial(
        settings.load,
        root / "cluster.toml",
        environment,
        words,
        programs=PROGRAMS,
        daemons=_programs(parts),
        tasks=names,
    )
    chosen = read(warn=lambda line: print(line, file=sys.stderr))
    state = _home_of_states(root, environment) / chosen.machine
    other = root / "var" / chosen.machine
    if state != other and other.exists():
        print(f"{other} is another user's cluster (of root, with sudo?); yours is in {state}", file=sys.stderr)
    made_with = settings.remembered(state)
    chosen = read(remembered=made_with) if made_with else chosen
    chosen = ranges.choose(chosen, state) if choosing else chosen
    run = Run()
    node = Node(_node_name(chosen), _machine(chosen, state, root, run), chosen.address, chosen.pod_range, state)
    if newest.wanted(chosen):
        unknown = Context(chosen, release.find(newest.DEBIANS), [node], state, run, facts or HostFacts())
        minor, why = unknown.decided(newest.DECISION), unknown.decided(newest.REASON) or ""
        if minor is None or minor not in release.RELEASES:
            minor, why = newest.choose(unknown) if choosing else (newest.DEBIANS, "")
        chosen, why_release = replace(chosen, kubernetes=minor), why
    else:
        why_release = f"kubernetes={chosen.kubernetes}"
    context = Context(
        chosen, release.find(chosen.kubernetes), [node], state, run, facts or HostFacts(), why_release=why_release
    )
    _refuse_path(state)
    if not removing:
        if "kubelet" not in chosen.programs:  # the user's own kubelet may be of another release, and is checked later
            refuse_kubelet(context, context.release)
        choices.refuse_impossible(context)
    behind_dashes = [*itertools.dropwhile(lambda word: word != "--", arguments)][1:]
    return Cluster(context, parts, words, behind_dashes)


def _programs(parts: Sequence[Part]) -> set[str]:
    """Return the programs that run as daemons; that of the container engine depends on the choice of the engine."""
    daemons = [*parts, *(one.DAEMON for one in ENGINES.values())]
    return {one.program for one in daemons if isinstance(one, Daemon) and isinstance(one.program, str)}


def _node_name(settings: Settings) -> str:
    """Return the kubelet's default name for its node: the machine's host name, in lower case."""
    return socket.gethostname().lower() if settings.on_host else settings.machine


def _machine(settings: Settings, state: Path, root: Path, run: Run) -> Machine:
    if settings.on_host:
        return Host(settings.machine, disposable=settings.shares_host, stop=run.stop)
    ranges = (settings.link_range, settings.service_range, settings.pod_range)
    handed_in = [root, settings.cache, *map(Path, filter(None, (settings.bin_dir, *settings.programs.values())))]
    shared = [*map(Path, filter(None, settings.share.split(os.pathsep)))]
    return Namespaces(
        settings.machine, state, *ranges, DISK, KERNEL, MODULES, handed_in=handed_in, shared=shared, stop=run.stop
    )


def _home_of_states(root: Path, environment: Mapping[str, str]) -> Path:
    var = root / "var"
    if os.access(var if var.exists() else root, os.W_OK, effective_ids=True):
        return var
    return Path(environment.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "dmuc"


def _refuse_path(state: Path) -> None:
    """Raise DmucError when programs cannot use the path of the state, or when this user may not read it."""
    why = "PATH cannot have a directory with a colon in its name." if ":" in str(state) else ""
    if os.fsencode(state) != str(state).encode("utf-8", "replace"):
        why = "Its name is not UTF-8, or this locale is not: configuration files are."
    if '"' in str(state):
        why = "The kubelet cannot read the mounts of a directory with a quotation mark in its name."
    if why:
        raise DmucError(f"keeping the cluster's state in {state}", why, "Use a checkout in another directory.")
    try:
        os.scandir(state).close()
    except PermissionError as error:
        do = "Run as the user who owns this directory, or use machine=NAME."
        raise DmucError(f"reading the cluster's state in {state}", str(error), do) from None
    except OSError:
        return  # not there yet


def _default_tasks(context: Context) -> list[str]:
    """Return the tasks of `doit` without names: the last that this cluster can have."""
    if context.settings.shares_host:  # no node: the rest needs a machine of its own
        return ["service", "service_account", "scheduler"]
    return ["service_reachable", *(["dns"] if choices.dns_enabled(context) else [])]


def doit_namespace(cluster: Cluster) -> dict[str, Any]:
    """Return what doit expects in a module of tasks: the configuration, and a function that yields the tasks."""
    context = cluster.context

    def task_dmuc() -> Iterator[dict[str, Any]]:
        """Yield all tasks."""
        yield from tasks(cluster.parts, context)

    return {
        "DOIT_CONFIG": {
            "default_tasks": _default_tasks(context),
            "backend": "robust",  # see core/database.py
            "dep_file": str(context.state / "doit.json"),
            "reporter": Reporter(context.run),
            # A thread for every task: tasks mostly wait.
            "par_type": "thread",
            "num_process": 32,
        },
        "task_dmuc": task_dmuc,
    }
