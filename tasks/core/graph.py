"""Join the goals into doit's graph: `needs` always, `after` only among the tasks of one run.

With several nodes, a goal that each node has becomes a doit sub-task per node (`kubelet:dmuc2`), and the plain name
means all of them. A goal of a node needs the goals of the same node; a goal of the cluster needs those of all nodes.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, Protocol

from .context import Context
from .goal import STARTED, Goal, Nodes, resolve, task


class Part(Protocol):
    """A part of the cluster, which consists of goals: a Goal itself, or a Daemon."""

    @property
    def name(self) -> str:
        """The name of the part: that of its last goal."""

    @property
    def nodes(self) -> Nodes:
        """The nodes that have this part."""

    def goals(self) -> Sequence[Goal]:
        """Return the goals of the part."""


def join(parts: Sequence[Part], context: Context) -> list[Goal]:
    """Return all goals of this cluster, each with its task's full name and the full names of the goals it needs."""
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
    """Return the names of all doit tasks in a run of `selected`; turn each `after` among them into a dependency.

    `selected` are names or patterns of tasks; the run also includes the tasks that these need.
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
