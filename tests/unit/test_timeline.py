"""The record of a run, and the path through it that decided how long the run took."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tasks.core.timeline import Event, Timeline, critical_path, stored
from tests.unit.checkout import Checkout, is_told


def names(events: list[Event]) -> list[str]:
    return [event.name for event in events]


def test_the_critical_path_leads_from_the_last_task_to_what_each_waited_for_the_longest() -> None:
    events = [
        Event("disk", (), 0.1, 0.3),
        Event("keys", (), 0.1, 2.0),
        Event("server", ("disk", "keys"), 2.1, 5.0),
        Event("node", ("disk",), 0.4, 4.0),
        Event("page", ("node", "server"), 5.0, 6.0),
        Event("side", ("disk",), 0.4, 5.5),
    ]
    assert names(critical_path(events)) == ["keys", "server", "page"]
    assert critical_path([]) == []


def test_tasks_that_ended_at_the_same_time_make_no_circle() -> None:
    events = [Event("a", ("b",), 1.0, 1.0, True), Event("b", ("a",), 1.0, 1.0, True)]
    assert len(critical_path(events)) == 2


def test_a_run_without_work_keeps_the_record_of_the_one_before(tmp_path: Path) -> None:
    timeline = Timeline()
    timeline.needs = {"b": ["a"]}
    timeline.end("a")
    timeline.begin("b")
    timeline.end("b")
    timeline.store(tmp_path)
    idle = Timeline()
    idle.end("a")
    idle.store(tmp_path)
    a, b = stored(tmp_path)
    assert (a.name, a.up_to_date, b.name, b.up_to_date) == ("a", True, "b", False)
    assert (list(b.needs), list(a.needs)) == (["a"], [])
    assert 0 < b.begun <= b.ended < 1000


@pytest.mark.parametrize(
    "text", ["", "[]", '{"tasks": [{"name": "x"}]}', '{"tasks": [1]}', '{"tasks": 5}', '{"tasks": null}']
)
def test_a_record_of_another_version_counts_as_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "timeline.json").write_text(text)
    assert stored(tmp_path) == []


def test_the_command_draws_the_last_run(tmp_path: Path) -> None:
    checkout = Checkout(tmp_path)
    is_told(checkout.doit("timeline"), "No run has started anything", "scripts/doit", lines=3)
    checkout.doit("pki")
    done = checkout.doit("timeline")
    assert (done.returncode, done.stderr) == (0, "")
    assert re.search(r"^▶ +pki +\d+\.\d\d s +\d+\.\d\d s +█+$", done.stdout, re.MULTILINE)
    assert re.search(r"^▶ critical path: \d+\.\d s, of which \d+\.\d s", done.stdout, re.MULTILINE)
    is_told(checkout.doit("timeline", "surplus"), "no arguments")
