"""The table of hosts in docs/hosts.md is made from the records of runs."""

from __future__ import annotations

import json
from pathlib import Path

from scripts.hosts_table import PAGE, RECORDS, table


def test_the_page_is_that_of_the_records() -> None:
    assert table(RECORDS) == PAGE.read_text("utf-8"), "run: scripts/hosts-table"


def test_each_job_has_its_seconds_or_what_became_of_it(tmp_path: Path) -> None:
    passed, failed = {"seconds": 7, "result": "passed"}, {"seconds": 8, "result": "failed"}
    (tmp_path / "a.json").write_text(json.dumps({"host": "one", "jobs": {"main job": passed, "ipvs": passed}}))
    (tmp_path / "b.json").write_text(json.dumps({"host": "two", "jobs": {"main job": failed}}))
    assert table(tmp_path).splitlines()[-4:] == [
        "| | one | two |",
        "|---|---:|---:|",
        "| main job | 7 s | failed |",
        "| ipvs | 7 s | not run |",
    ]
