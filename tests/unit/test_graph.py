"""The graph: what comes of the parts' needs, and that the real parts in dodo.py fit together."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from doit.control import TaskControl
from doit.loader import load_tasks

from tasks.cluster import doit_namespace
from tasks.core.context import Context
from tasks.core.daemon import Daemon
from tasks.core.errors import DmucError
from tasks.core.goal import Goal, resolve
from tasks.core.graph import Part, add_order, join, tasks
from tasks.core.result import Result
from tasks.programs import catalog
from tests.unit.support import CHECKOUT, a_context, load_dodo, set_programs

YES = Result(True, "")


def a_goal(name: str, *needs: str, after: Sequence[str] = (), started: bool = False) -> Goal:
    return Goal(
        name, f"doc of {name}", lambda context: YES, lambda *_: None, needs=needs, after=after, needs_started=started
    )


def a_daemon(name: str, *needs: str, after: Sequence[str] = ()) -> Daemon:
    return Daemon(name, f"doc of {name}", name, lambda context: (), lambda context: YES, needs=needs, after=after)


def names(goal: Goal, field: str = "needs") -> list[str]:
    found = getattr(goal, field)
    assert not callable(found), "not joined yet"
    return list(found)


def in_doit(parts: Sequence[Any], context: Context) -> dict[str, Any]:
    """The tasks as doit itself makes them."""
    loaded = load_tasks({"task_all": lambda: tasks(parts, context)})
    return dict(TaskControl(loaded).tasks)


# What comes of needs


def test_a_daemon_is_two_goals_of_which_the_early_one_needs_the_early_ones(tmp_path: Path) -> None:
    parts: list[Part] = [a_goal("machine"), a_daemon("store", "machine"), a_daemon("server", "machine", "store")]
    needs = {goal.name: names(goal) for goal in join(parts, a_context(tmp_path))}
    assert needs == {
        "machine": [],
        "store:started": ["machine"],
        "store": ["store:started", "machine"],
        "server:started": ["machine", "store:started"],
        "server": ["server:started", "machine", "store"],
    }


def test_a_goal_that_is_not_a_daemons_needs_the_ready_ones(tmp_path: Path) -> None:
    parts: list[Part] = [a_daemon("server"), a_goal("object", "server", after=("server",))]
    goal = join(parts, a_context(tmp_path))[-1]
    assert (names(goal), names(goal, "after")) == (["server"], ["server"])


def test_an_order_names_the_early_goal_or_the_ready_one(tmp_path: Path) -> None:
    parts: list[Part] = [a_daemon("node"), a_daemon("server"), a_daemon("proxy", after=("node:started", "server"))]
    after = {goal.name: names(goal, "after") for goal in join(parts, a_context(tmp_path))}
    assert after["proxy:started"] == ["node:started", "server"]
    assert after["proxy"] == []


def test_an_order_is_a_dependency_only_among_what_runs_together(tmp_path: Path) -> None:
    parts: list[Part] = [a_goal("a"), a_goal("b"), a_goal("c", "a", after=("b",)), a_goal("all", "b", "c")]
    alone = in_doit(parts, a_context(tmp_path))
    assert add_order(alone, ["c"]) == {"a", "c"}
    assert alone["c"].task_dep == ["a"]
    together = in_doit(parts, a_context(tmp_path))
    assert add_order(together, ["all"]) == {"a", "b", "c", "all"}
    assert together["c"].task_dep == ["a", "b"]
    both = in_doit(parts, a_context(tmp_path))
    add_order(both, ["c", "b"])
    assert both["c"].task_dep == ["a", "b"]


def test_an_order_after_something_that_is_itself_in_order_is_kept(tmp_path: Path) -> None:
    parts: list[Part] = [a_goal("a"), a_goal("b", after=("a",)), a_goal("c", after=("b",))]
    together = in_doit(parts, a_context(tmp_path))
    add_order(together, ["a", "b", "c"])
    assert (together["b"].task_dep, together["c"].task_dep) == (["a"], ["b"])


# The real parts


@pytest.fixture
def dodo(tmp_path: Path) -> SimpleNamespace:
    return load_dodo(tmp_path)


@pytest.fixture
def goals(dodo: SimpleNamespace) -> dict[str, Goal]:
    listed = join(dodo.PARTS, dodo.DMUC.context)
    by_name = {goal.name: goal for goal in listed}
    assert len(by_name) == len(listed), "two have the same name"
    return by_name


def test_the_public_names_are_those_of_the_walk_through_in_its_order(goals: dict[str, Goal]) -> None:
    assert [name for name, goal in goals.items() if not goal.hidden] == [
        *("machine", "binaries", "pki", "etcd", "apiserver", "kubeconfig", "controller_manager", "service_account"),
        *("deployment", "container_engine", "images", "kubelet", "scheduler", "service", "kube_proxy"),
        "service_reachable",
        "dns",  # beyond it
    ]


def test_each_has_one_line_of_documentation(goals: dict[str, Goal]) -> None:
    wrong = [name for name, goal in goals.items() if not re.fullmatch(r"[^\n]{3,100}(?<![.\s])", goal.doc)]
    assert wrong == []


def test_they_need_only_names_that_exist(goals: dict[str, Goal]) -> None:
    named = {n for goal in goals.values() for n in (*names(goal), *names(goal, "after"))}
    assert named - goals.keys() == set()


def test_no_two_need_each_other_even_when_all_run_together(goals: dict[str, Goal]) -> None:
    left = {name: {*names(goal), *names(goal, "after")} for name, goal in goals.items()}
    while left:
        free = {name for name, needs in left.items() if not needs & left.keys()}
        assert free, f"a circle among {sorted(left)}"
        left = {name: needs for name, needs in left.items() if name not in free}


def test_doit_takes_the_whole_graph(dodo: SimpleNamespace) -> None:
    found = in_doit(dodo.PARTS, dodo.DMUC.context)
    add_order(found, doit_namespace(dodo.DMUC)["DOIT_CONFIG"]["default_tasks"])
    assert TaskControl(list(found.values())).tasks.keys() == found.keys()


def test_asking_for_the_last_one_takes_in_all_of_the_walk_through(
    dodo: SimpleNamespace, goals: dict[str, Goal]
) -> None:
    taken = add_order(in_doit(dodo.PARTS, dodo.DMUC.context), ["service_reachable"])
    assert {name for name, goal in goals.items() if not goal.hidden} - taken == {"dns"}


def test_what_is_asked_for_by_default_exists(dodo: SimpleNamespace, goals: dict[str, Goal]) -> None:
    assert set(doit_namespace(dodo.DMUC)["DOIT_CONFIG"]["default_tasks"]) <= goals.keys()


def test_what_a_part_needs_comes_before_it_in_the_walk_through(goals: dict[str, Goal]) -> None:
    public = [name for name, goal in goals.items() if not goal.hidden]
    late = {(name, n) for name in public for n in names(goals[name]) if n in public[public.index(name) :]}
    assert late == set()


def test_loading_it_writes_nothing_and_reads_no_home_directory(dodo: SimpleNamespace, tmp_path: Path) -> None:
    assert [*tmp_path.iterdir()] == []


# Flags


def daemons_on(machine: str, root: Path) -> Iterator[tuple[Daemon, Context]]:
    root.mkdir()
    dodo = load_dodo(root)
    context = a_context(root, machine=machine)
    set_programs(context, {name: f"/programs/{name}" for name in catalog.PROGRAMS})
    context.decide("registry", "https://registry.example")
    for daemon in dodo.DMUC.daemons:
        yield daemon, context


@pytest.mark.parametrize("machine", ["dmuc1", "host"])
def test_no_flag_stands_without_its_reason(tmp_path: Path, machine: str) -> None:
    wrong = [
        f"{daemon.name}: {flag.text}: {flag.why!r}"
        for daemon, context in daemons_on(machine, tmp_path / "root")
        for flag in daemon.flags(context)
        if not re.fullmatch(r"[\w`][^\n]* [^\n]*\.", flag.why)
    ]
    assert wrong == []


@pytest.mark.parametrize("machine", ["dmuc1", "host"])
def test_no_flag_is_said_twice(tmp_path: Path, machine: str) -> None:
    for daemon, context in daemons_on(machine, tmp_path / "root"):
        texts = [flag.text for flag in daemon.flags(context)]
        assert len(texts) == len(set(texts)), daemon.name


def programs_of(daemon: Daemon, context: Context) -> list[str]:
    return [daemon.program_name(context), *resolve(daemon.tools, context)]


def test_every_daemon_says_what_it_needs_of_programs_that_exist(dodo: SimpleNamespace) -> None:
    needed = {program for daemon in dodo.DMUC.daemons for program in programs_of(daemon, dodo.DMUC.context)}
    assert needed - catalog.PROGRAMS.keys() == set()


def test_every_known_cause_is_a_pattern_and_a_sentence(dodo: SimpleNamespace) -> None:
    for daemon in dodo.DMUC.daemons:
        for pattern, meaning in daemon.causes.items():
            re.compile(pattern)
            assert re.fullmatch(r"\w[^\n]* [^\n]*[.\w=]", meaning), f"{daemon.name}: {meaning!r}"


def test_without_its_program_a_daemon_says_what_to_run(dodo: SimpleNamespace) -> None:
    for daemon in dodo.DMUC.daemons:
        with pytest.raises(DmucError, match=re.escape(daemon.program_name(dodo.DMUC.context))):
            daemon.command(dodo.DMUC.context)


# The layers of the code

CORE = sorted((CHECKOUT / "tasks" / "core").glob("*.py"))
COMPONENT = re.compile(
    r"etcd|apiserver|api-server|kubelet|scheduler|controller.?manager|kube.?proxy|kube-|docker|containerd|(?<!t)runc"
    r"|nginx|deployment|service_(account|reachable)|container_engine|kubeconfig",
    re.IGNORECASE,
)
# What core/ says of components all the same, and why it may.
ALLOWED = {
    ("settings.py", ""): "names and values of settings, and their texts for users",
    ("release.py", ""): "the table of what differs between releases has columns for each of them",
    ("oci.py", "docker"): "the image format's and the registry layout's own names",
}


def words_of(path: Path) -> Iterator[tuple[int, str]]:
    """Every name and text in the code of a module, but for its comments and docstrings."""
    tree = ast.parse(path.read_text())
    docs = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        and node.body
        and isinstance(node.body[0], ast.Expr)
    }
    for node in ast.walk(tree):
        line = getattr(node, "lineno", 0)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docs:
            yield line, node.value
        for attribute in ("id", "attr", "name", "arg", "module"):
            text = getattr(node, attribute, None)
            if isinstance(text, str):
                yield line, text


def test_the_core_names_no_component() -> None:
    named = {
        f"tasks/core/{path.name}:{line}: {match[0]}: {text.strip()[:90]}"
        for path in CORE
        for line, text in words_of(path)
        for match in COMPONENT.finditer(text)
        if not {(path.name, match[0].lower()), (path.name, "")} & ALLOWED.keys()
    }
    assert named == set()


def imported_by(path: Path) -> Iterator[str]:
    package = path.relative_to(CHECKOUT).parent.parts
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join((*base, *filter(None, [node.module])))
            yield from (f"{module}.{alias.name}" for alias in node.names)


def test_imports_run_one_way() -> None:
    seen = False
    for path in CORE:
        for name in imported_by(path):
            seen = seen or name.startswith("tasks.core.")
            assert not name.startswith("tasks.") or name.startswith("tasks.core"), f"{path.name} imports {name}"
    assert seen
    for path in (CHECKOUT / "tasks").rglob("*.py"):
        assert not {"dodo", "tests"} & {name.partition(".")[0] for name in imported_by(path)}, path


def test_every_module_is_used() -> None:
    modules = [path for path in (CHECKOUT / "tasks").rglob("*.py") if path.stem != "__init__"]
    names = {name for path in (*modules, CHECKOUT / "dodo.py") for name in imported_by(path)}
    used = names | {name.rpartition(".")[0] for name in names}
    used |= {*re.findall(r'= "(tasks[\w.]+):', (CHECKOUT / "pyproject.toml").read_text())}  # doit's commands
    used |= {"tasks.core.hand_in"}  # a program of its own, which namespaces.py runs
    there = {".".join(path.relative_to(CHECKOUT).with_suffix("").parts) for path in modules}
    assert there - used == set()
