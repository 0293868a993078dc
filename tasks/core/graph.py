"""Joins the goals into doit's graph: needs always, order only among what runs together."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, Protocol

from .context import Context
from .goal import Goal, resolve, task


class Part(Protocol):
    """Anything that gives goals: a Goal itself, or a Daemon."""

    @property
    def name(self) -> str:
        """Its name: the public one of its goals, or the only one."""

    def goals(self) -> Sequence[Goal]:
        """Its goals."""


def join(parts: Sequence[Part], context: Context) -> list[Goal]:
    """Give all goals as they are for this cluster, with what they need as lists.

    Each name that an early goal needs is turned into that daemon's `_NAME`, where there is one.
    """
    goals = [goal for part in parts for goal in part.goals()]
    names = {goal.name for goal in goals}

    def early(name: str) -> str:
        return f"_{name}" if f"_{name}" in names else name

    def joined(goal: Goal) -> Goal:
        needs = resolve(goal.needs, context)
        return replace(
            goal, needs=[*map(early, needs)] if goal.early else [*needs], after=[*resolve(goal.after, context)]
        )

    return [joined(goal) for goal in goals]


def tasks(parts: Sequence[Part], context: Context) -> Iterator[dict[str, Any]]:
    """Give doit's dictionary for every goal, in the order of `parts`."""
    for goal in join(parts, context):
        yield task(goal, context)


def add_order(tasks: dict[str, Any], selected: Sequence[str]) -> set[str]:
    """Among the doit tasks that a run of `selected` takes in, turn each `after` into a dependency of this run.

    `selected` are names or patterns. Gives the names of all tasks that are taken in.
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
