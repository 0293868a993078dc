"""A cluster as a whole: that it is powered off and removed to the end, whatever fails on the way."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tasks.core.cluster import Cluster
from tasks.core.context import Context
from tasks.core.errors import DmucError
from tasks.core.goal import Goal
from tasks.core.machine import Host
from tasks.core.result import Result
from tests.unit.support import a_context


class Lab:
    """A cluster of three goals on the host; `undone` lists the goals that were undone, `errors` the errors to raise."""

    def __init__(self, root: Path) -> None:
        self.undone: list[str] = []
        self.errors: dict[str, Exception] = {}
        self.context = a_context(root)
        goals = [self.goal(name) for name in ("etcd", "kubelet", "kube_proxy")]
        self.cluster = Cluster(self.context, goals)

    def goal(self, name: str) -> Goal:
        def undo(context: Context) -> None:
            if name in self.errors:
                raise self.errors[name]
            self.undone.append(name)

        return Goal(name, f"have {name}", lambda context: Result(True, ""), lambda context, progress: None, undo)


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    return Lab(tmp_path)


def refused(action: Callable[[], None]) -> DmucError:
    with pytest.raises(DmucError) as error:
        action()
    return error.value


def test_everything_is_undone_the_last_first_and_then_the_state_is_removed(lab: Lab) -> None:
    lab.cluster.remove()
    assert lab.undone == ["kube_proxy", "kubelet", "etcd"]
    assert not lab.context.state.exists()


def test_whatever_fails_the_rest_is_done_and_every_failure_is_said_at_the_end(lab: Lab) -> None:
    lab.errors = {
        "kube_proxy": DmucError("removing rules", "iptables says no", "See to it."),
        "kubelet": OSError(16, "Device or resource busy", "/var/lib/kubelet/x"),
    }
    error = refused(lab.cluster.remove)
    assert lab.undone == ["etcd"]
    assert "kube_proxy, kubelet failed" in error.tried
    for part in ("kube_proxy: removing rules", "iptables says no", "See to it.", "/var/lib/kubelet/x"):
        assert part in error.seen
    assert lab.context.state.exists()  # it tells what is left
    lab.errors.clear()
    lab.cluster.remove()
    assert lab.undone == ["etcd", "kube_proxy", "kubelet", "etcd"]
    assert not lab.context.state.exists()


def test_an_error_of_our_own_making_stops_nothing_either(lab: Lab) -> None:
    lab.errors = {"kubelet": KeyError("status")}
    assert "kubelet: KeyError: 'status'" in refused(lab.cluster.remove).seen
    assert lab.undone == ["kube_proxy", "etcd"]


def test_the_named_tasks_are_undone_whatever_fails(lab: Lab) -> None:
    told: list[str] = []
    lab.errors = {"kube_proxy": DmucError("removing rules", "iptables says no")}
    error = refused(lambda: lab.cluster.undo(["etcd", "kube_proxy"], told.append))
    assert "kube_proxy failed" in error.tried
    assert lab.undone == told == ["etcd"]


class Stuck(Host):
    """A machine that does not go off."""

    def power_off(self) -> None:
        raise DmucError("ending sh (pid 7)", "It does not end.")


def test_that_a_machine_does_not_go_off_is_said_and_its_state_stays(tmp_path: Path) -> None:
    context = a_context(tmp_path, on=Stuck(disposable=True))
    cluster = Cluster(context, [])
    for action in (cluster.power_off, cluster.remove):
        assert "ending sh (pid 7)" in refused(action).seen
    assert context.state.exists()
