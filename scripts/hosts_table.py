"""The table of hosts on which the main job was run: `scripts/hosts-table` writes docs/hosts.md.

The records are JSON files, written by the tests on each kind of host (tests/uml, tests/hosts) into the cache;
`scripts/hosts-table` takes over those that are there into docs/hosts/, and makes the table from all of docs/hosts/.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from scripts.common import ROOT
from tasks.core.settings import Settings

RECORDS, PAGE = ROOT / "docs" / "hosts", ROOT / "docs" / "hosts.md"
_HEAD = """# Where dmuc was run

Seconds of each job, as measured by the tests on that kind of host (2 cores, with other programs beside them), with
Kubernetes 1.20.2 and Docker. "main job" is `scripts/doit service_reachable` from nothing, with programs in the cache.
Written by `scripts/hosts-table`.
"""


def table(records: Path) -> str:
    """Return the page: a row for each job, a column for each host."""
    hosts = [json.loads(file.read_text("utf-8")) for file in sorted(records.glob("*.json"))]
    jobs = list(dict.fromkeys(job for host in hosts for job in host["jobs"]))
    lines = [f"| | {' | '.join(host['host'] for host in hosts)} |", "|---|" + "---:|" * len(hosts)]
    for job in jobs:
        lines.append(f"| {job} | {' | '.join(_cell(host['jobs'].get(job)) for host in hosts)} |")
    return "\n".join([_HEAD, *lines, ""])


def _cell(done: dict[str, object] | None) -> str:
    if done is None:
        return "not run"
    return f"{done['seconds']} s" if done["result"] == "passed" else str(done["result"])


def main() -> None:
    """Take over the records in the cache, and write the page."""
    RECORDS.mkdir(parents=True, exist_ok=True)
    for file in (Settings().cache / "results").glob("*.json"):
        shutil.copyfile(file, RECORDS / file.name)
    PAGE.write_text(table(RECORDS), "utf-8")


if __name__ == "__main__":
    main()
