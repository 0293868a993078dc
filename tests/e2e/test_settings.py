"""A cluster remembers the settings that it was started with, and every command describes that cluster."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.conftest import ENVIRONMENT, ROOT, STATE, command_line, doit, executed, nothing_left, pid_of


@pytest.fixture(scope="module", autouse=True)
def one_cluster(prepared: None) -> Iterator[None]:
    with nothing_left():
        doit("engine=containerd", "scheduling=manual", "security=none", "service_reachable")
        yield
        doit("clean")


def test_the_next_run_has_the_same_settings() -> None:
    done = doit("service_reachable")
    assert executed(done) == set()
    assert "from now on" not in done.stdout
    assert not (STATE / "run" / "scheduler.pid").exists()


def test_commands_describe_the_cluster_as_it_is() -> None:
    assert "Everything works." in doit("why").stdout
    status = doit("status").stdout
    assert re.search(r"^container_engine .* 1\.6\.20", status, re.MULTILINE), status  # a release of containerd
    assert "--authorization-mode" not in doit("info", "apiserver").stdout
    listed = doit("list", "-s").stdout
    assert "scheduler" not in {line.split()[1] for line in listed.splitlines() if line.startswith("R ")}


def test_a_later_value_replaces_the_remembered_one_and_is_said() -> None:
    engine = pid_of("container_engine")
    done = doit("scheduling=scheduler", "service_reachable")
    assert "scheduling: scheduler from now on (before: manual)" in done.stdout
    assert executed(done) >= {"scheduler"} and pid_of("container_engine") == engine
    assert executed(doit("service_reachable")) == set()


def test_an_empty_value_is_the_default_again() -> None:
    done = doit("security=", "apiserver")
    assert "security: auto from now on (before: none)" in done.stdout
    assert "--authorization-mode=Node,RBAC" in command_line("apiserver")
    assert executed(doit("apiserver")) == set()


def test_the_settings_outlive_down_and_end_with_clean() -> None:
    doit("down")
    assert "containerd" in doit("container_engine").stdout
    doit("clean")
    assert "docker" in doit("container_engine").stdout


def test_hints_are_as_the_caller_must_type_them(tmp_path: Path) -> None:
    script = tmp_path / "a link"
    script.symlink_to(ROOT / "scripts" / "doit")
    doit("down")
    why = doit("machine=e2e", "why", cwd=tmp_path, script=script, status=1).stdout
    assert why.endswith(f"\nnext: '{script}' machine=e2e machine\n")
    pasted = why.splitlines()[-1].removeprefix("next: ")
    done = doit(cwd=tmp_path, prefix=["sh", "-c", f"exec {pasted}"], environment={**ENVIRONMENT, "DMUC_MACHINE": "x"})
    assert executed(done) == {"machine"}
