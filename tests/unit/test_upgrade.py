"""The order of an upgrade in place: kept where programs are replaced, and only there."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path

import pytest

from tasks.binaries import _asked_for, known
from tasks.core.context import Context
from tasks.core.files import fingerprint
from tasks.core.graph import join
from tasks.core.process import Record
from tasks.programs import catalog
from tasks.programs.executable import Found
from tests.unit.support import a_context, a_program, load_dodo

COMPONENTS = ("apiserver", "controller_manager", "scheduler", "kubelet", "kube_proxy")
ENGINE = "container_engine"


@pytest.fixture
def context(tmp_path: Path) -> Context:
    """A cluster whose programs are known, and of which nothing runs."""
    context = a_context(tmp_path)
    found = {}
    context.bin.mkdir()
    for name in catalog.wanted(context):
        path = a_program(tmp_path / "old" / name, "")
        found[name] = asdict(Found(str(path), "v1.20.2", "named in the settings", fingerprint(path)))
        (context.bin / name).symlink_to(path)
    context.programs_file.write_text(json.dumps({"_asked_for": _asked_for(context)} | found))
    assert known(context)
    context.pidfiles.mkdir()
    return context


def runs(context: Context, component: str, program: Path) -> None:
    """Have a component's record name this very process, started from that program."""
    command, inputs = [str(program)], {str(program): fingerprint(program)}
    Record.of(os.getpid(), command, inputs).save(context.pidfiles / f"{component}.pid")


def order(context: Context, tmp_path: Path) -> dict[str, set[str]]:
    """Of each component: those that are started before it, when all run together."""
    dodo = tmp_path / "dodo"
    dodo.mkdir()
    goals = {goal.name: goal for goal in join(load_dodo(dodo).PARTS, context)}

    def before(name: str) -> set[str]:
        direct = {*goals[name].needs, *goals[name].after}  # type: ignore[misc]
        return direct.union(*map(before, direct))

    return {name: before(f"{name}:started") & ready(*COMPONENTS) for name in (*COMPONENTS, ENGINE)}


def ready(*names: str) -> set[str]:
    """The goals of components that are not only to answer, but to be ready."""
    return {f"{name}{step}" for name in names for step in (":started", "")}


def test_from_nothing_each_is_started_as_early_as_it_can_be(context: Context, tmp_path: Path) -> None:
    found = order(context, tmp_path)
    assert found[ENGINE] == set()
    assert found["kubelet"] == {"apiserver:started"}
    assert found["kube_proxy"] == {"apiserver:started", "kubelet:started"}


def test_a_cluster_that_runs_with_its_programs_is_mended_without_waiting(context: Context, tmp_path: Path) -> None:
    runs(context, "apiserver", context.program("kube-apiserver"))
    assert order(context, tmp_path)["kubelet"] == {"apiserver:started"}


@pytest.mark.parametrize("looked_for", [True, False])
def test_the_programs_of_a_running_cluster_are_replaced_in_the_supported_order(
    context: Context, tmp_path: Path, looked_for: bool
) -> None:
    runs(context, "apiserver", a_program(tmp_path / "older" / "kube-apiserver", ""))
    if not looked_for:
        context.programs_file.unlink()
    found = order(context, tmp_path)
    assert found["apiserver"] == set()
    assert found["controller_manager"] == found["scheduler"] == ready("apiserver")
    assert found["kubelet"] == ready("apiserver", "controller_manager", "scheduler")
    assert found[ENGINE] == found["kubelet"]  # with another engine all containers end
    assert found["kube_proxy"] == ready("apiserver", "controller_manager", "scheduler", "kubelet")


def test_a_program_that_was_rebuilt_in_place_is_another(context: Context, tmp_path: Path) -> None:
    program = context.program("kubelet")
    runs(context, "kubelet", program)
    a_program(program, "# new")
    assert "scheduler:started" in order(context, tmp_path)["kubelet"]


def test_one_that_is_gone_is_not_in_the_way(context: Context, tmp_path: Path) -> None:
    runs(context, "apiserver", a_program(tmp_path / "older" / "kube-apiserver", ""))
    record = Record.load(context.pidfiles / "apiserver.pid")
    assert record is not None
    Record(record.pid, 1, record.boot, record.since, record.command, record.inputs).save(
        context.pidfiles / "apiserver.pid"
    )
    assert order(context, tmp_path)["kubelet"] == {"apiserver:started"}
