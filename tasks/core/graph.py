"""Joins the goals into doit's graph: needs always, order only among what runs together.

With several nodes, what there is on each of them becomes a doit sub-task of it (`kubelet:dmuc2`), and the plain name
means all of them. What is on a node needs what is on the same node; what is about the cluster needs it on all nodes.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, Protocol

from .context import Context
from .goal import STARTED, Goal, Nodes, resolve, task


class Part(Protocol):
    """Anything that gives goals: a Goal itself, or a Daemon."""

    @property
    def name(self) -> str:
        """The name of the last of its goals, or of the only one."""

    @property
    def nodes(self) -> Nodes:
        """On which nodes it is."""

    def goals(self) -> Sequence[Goal]:
        """Its goals."""


def join(parts: Sequence[Part], context: Context) -> list[Goal]:
    """Return all goals as they are for this cluster, each with its task's full name and with those that it needs."""
    all_nodes = [node.name for node in context.nodes]
    several = len(all_nodes) > 1
    spread = {part.name for part in parts if part.nodes == "each"} if several else set[str]()
    have_a_start = {g.name.removesuffix(STARTED) for p in parts for g in p.goals() if g.name.endswith(STARTED)}

    def full(name: str, node: str) -> str:
        base, colon, step = name.partition(":")
        if base not in spread:
            return name
        return f"{base}:{node}{colon}{step}" if node else base

    def joined(goal: Goal, node: str) -> Goal:
        def those(names: Sequence[str], started: bool) -> list[str]:
            found = (full(f"{n}{STARTED}" if started and n in have_a_start else n, node) for n in names)
            return [*dict.fromkeys(found)]

        there = context.on(node) if node else context
        needs = those(resolve(goal.needs, there), goal.needs_started)
        after = those(resolve(goal.after, there), False)
        return replace(goal, name=full(goal.name, node), node=node, needs=needs, after=after)

    where = {"none": [""], "first": all_nodes[:1], "each": all_nodes}
    return [joined(goal, node) for part in parts for node in where[part.nodes] for goal in part.goals()]


def tasks(parts: Sequence[Part], context: Context) -> Iterator[dict[str, Any]]:
    """Yield doit's dictionary for every goal, in the order of `parts`."""
    groups = set[str]()
    for goal in join(parts, context):
        base, _, node = goal.name.partition(":")
        if not node or goal.name.endswith(STARTED):
            yield task(goal, context)
            continue
        if base not in groups:
            groups.add(base)
            yield {"basename": base, "name": None, "doc": goal.doc}
        yield task(goal, context) | {"basename": base, "name": node}


def add_order(tasks: dict[str, Any], selected: Sequence[str]) -> set[str]:
    """Among the doit tasks that a run of `selected` takes in, turn each `after` into a dependency of this run.

    `selected` are names or patterns. Return the names of all tasks that are taken in.
    """
    taken: set[str] = set()
    left = [name for pattern in selected for name in fnmatch.filter(tasks, pattern)]
    while left:
        name = left.pop()
        if name not in taken:
            taken.add(name)
            left += tasks[name].task_dep
    for name in taken:
        tasks[name].task_dep += [a for a in (tasks[name].meta or {}).get("after", ()) if a in taken]
    return taken
