"""What scripts/ablate can take away, and that its table and the flags' reasons say the same."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from scripts import ablate
from tasks.core.daemon import Daemon
from tasks.core.goal import Goal
from tasks.core.graph import join
from tasks.core.probe import Answer
from tasks.core.progress import Silent
from tests.unit.support import a_context, a_host, load_dodo
from tests.unit.test_golden import as_root

RUN = "scripts/ablate --write --only"


@pytest.fixture
def dodo(tmp_path: Path) -> Iterator[SimpleNamespace]:
    """The default cluster, on a host where it takes the most flags."""
    with as_root():
        yield load_dodo(tmp_path, a_host(lacking_capabilities=["sys_resource"]))


@pytest.fixture
def things(dodo: SimpleNamespace) -> dict[str, ablate.Thing]:
    return {thing.name: thing for thing in ablate.things(dodo.PARTS, dodo.DMUC.context)}


@pytest.fixture(scope="module")
def table() -> dict[str, tuple[str, str]]:
    return ablate.read_table(ablate.TABLE.read_text())


# The table


def test_whatever_can_be_taken_away_has_its_row(
    things: dict[str, ablate.Thing], table: dict[str, tuple[str, str]]
) -> None:
    missing = [f"{RUN} '{name}'" for name in things if name not in table]
    assert not missing, "not in scripts/ablate.md: run " + ", ".join(missing)
    assert table.keys() <= things.keys(), "these are no more: take their rows out of scripts/ablate.md"


def test_what_breaks_nothing_says_why_it_is_there(
    things: dict[str, ablate.Thing], table: dict[str, tuple[str, str]]
) -> None:
    for name, (broke, rest) in table.items():
        if broke == ablate.NOTHING:
            assert things[name].kept, f"{name} can be taken away: do so, or say what it is kept for"
            again = f"not its reason any more: run {RUN} '{name}'"
            assert rest.endswith(f"Kept for {things[name].kept}"), again


def test_a_flag_is_kept_for_another_reason_exactly_when_it_breaks_nothing(
    dodo: SimpleNamespace, table: dict[str, tuple[str, str]]
) -> None:
    idle = {
        (daemon, flag)
        for name, (broke, _) in table.items()
        if broke == ablate.NOTHING and name.startswith("flag ")
        for _, daemon, *flags in [name.split()]
        for flag in flags
    }
    context = dodo.DMUC.context
    kept = {
        (daemon.name, ablate.flag_name(flag))
        for daemon in dodo.DMUC.daemons
        if not daemon.unwanted(context)
        for flag in daemon.flags(context)
        if flag.kept_for
    }
    assert kept == idle


def test_no_reason_is_kept_for_what_is_needed_or_is_no_more(table: dict[str, tuple[str, str]]) -> None:
    assert {name for name in ablate.KEPT if table[name][0] != ablate.NOTHING} == set()


def test_new_rows_are_put_among_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ablate, "TABLE", tmp_path / "table.md")
    old = "# Head\n\n| a | b | c |\n|---|---|---|\n| `file a` | one | x |\n| `file c` | two | y \\| z |\n"
    ablate.TABLE.write_text(old)
    ablate.write_table(["| `file b` | etcd | new |", "| `file a` | nothing | new |"], ["file a", "file b", "file c"])
    assert ablate.TABLE.read_text() == old.replace(
        "| `file a` | one | x |", "| `file a` | nothing | new |\n| `file b` | etcd | new |"
    )


# What is taken away


def test_a_flag_that_is_taken_away_is_gone_and_no_other(dodo: SimpleNamespace, things: dict[str, ablate.Thing]) -> None:
    for name, thing in things.items():
        if name.startswith("flag "):
            _, label, *gone = name.split()
            for before, after in zip(dodo.PARTS, thing.without(dodo.PARTS), strict=True):
                if isinstance(before, Daemon) and isinstance(after, Daemon):
                    flags = list(before.flags(dodo.DMUC.context))
                    left = [f for f in flags if before.name != label or ablate.flag_name(f) not in gone]
                    assert list(after.flags(dodo.DMUC.context)) == left
                    assert before.name != label or len(left) == len(flags) - len(gone)


def test_without_a_component_the_others_still_fit_together(
    dodo: SimpleNamespace, things: dict[str, ablate.Thing]
) -> None:
    for name, thing in things.items():
        if name.startswith("component "):
            goals = join(thing.without(dodo.PARTS), dodo.DMUC.context)
            names = {goal.name for goal in goals}
            assert name.partition(" ")[2] not in names
            assert {n for goal in goals for n in (*goal.needs, *goal.after)} <= names  # type: ignore[misc]


def test_a_file_that_is_taken_away_is_made_and_then_gone(tmp_path: Path) -> None:
    context = a_context(tmp_path)

    def make(*_: object) -> None:
        (context.state / "key").touch()
        (context.state / "other").touch()

    goal = Goal("keys", "make keys", lambda context: Answer(True, ""), make)
    (changed,) = ablate._without_made("keys", "key", [goal])
    changed.goals()[0].make(context, Silent())
    assert [path.name for path in context.state.iterdir()] == ["other"]


# What is seen


@pytest.mark.parametrize(
    ("said", "broke", "showed"),
    [
        (
            "\n✗ etcd failed\netcd did not start\nThe process ended with exit code 1 after 0.1 s.\ncommand: etcd\n"
            "log: x, its last lines:\n  I1123 09:00:00.1  12 a.go:1] begin\n"
            "  E1123 09:00:00.1  12 a.go:1] must be | given\n  bye\n\n✗ other failed\nno\n",
            "etcd",
            r"`must be \| given`",
        ),
        (
            "\n✗ kubelet failed\nkubelet did not become ready\nNot ready after 40 s; it was stopped. "
            "Last answer: no address\ncommand: kubelet\nlog: x, its last lines:\n  error\n",
            "kubelet",
            "`no address`",
        ),
        ("\n✗ images failed\non dmuc1: docker pull\nexit code 1: refused\n", "images", "`exit code 1: refused`"),
        ("Traceback\nOops\n", "doit", "`Oops`"),
    ],
)
def test_a_failure_is_told_in_one_line(tmp_path: Path, said: str, broke: str, showed: str) -> None:
    came = ablate.broken(a_context(tmp_path), said, "")
    assert (came.broke, came.showed) == (broke, showed)


def test_of_several_runs_one_that_broke_counts_or_else_the_median() -> None:
    good = [ablate.Outcome("", "", seconds, seconds * 2) for seconds in (3.0, 1.0, 2.0)]
    assert ablate.median(good) == ablate.Outcome("", "", 2.0, 4.0)
    bad = ablate.Outcome("etcd", "gone")
    assert ablate.median([*good, bad]) == bad
