"""Run Kubernetes' own conformance tests on a cluster of one node: `scripts/conformance E2E_TEST`.

E2E_TEST is the program e2e.test of the cluster's release, built from the release's source: `go test -c -o e2e.test
./test/e2e`. Its specs tagged [Conformance] run in the machine, several at a time, and those tagged [Serial] alone, at
the end. A spec counts as left out when it says itself why it cannot run here (fewer than two nodes), or when its Pods
need an image that is missing.

The cluster is the one of the settings (machine=NAME and so on); it is started as by `scripts/doit`, and goes on
afterwards. Reports are in the machine's state, conformance/.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import time
import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import dodo
from scripts.common import ROOT, to_the_end
from tasks.cluster import load
from tasks.core.context import Context
from tasks.core.errors import DmucError

PAGE = ROOT / "docs" / "conformance.md"
TAG = "[Conformance]"
_BATCH = 12  # specs of one process: it takes two seconds to start
_DEADLINE = 3600  # seconds of one process
_LONGEST = 160  # characters of a reason
# What a Pod or its events say when an image cannot be had, in the output of a spec.
_IMAGE = re.compile(r'(?:Failed to pull image|Back-off pulling image) \\*"([^"\\]+)')


@dataclass(frozen=True)
class Spec:
    """How one spec has ended: "passed", "failed" or "left out", with the reason."""

    name: str
    end: str
    why: str
    seconds: float


def read(reports: Iterable[Path]) -> list[Spec]:
    """Return the specs of these JUnit reports that were selected to run, each once: its last end."""
    found: dict[str, Spec] = {}
    for report in reports:
        for case in ET.parse(report).getroot().iter("testcase"):
            name, status = case.get("name", ""), case.get("status", "")
            told = case.find("skipped")
            message = told.get("message", "") if told is not None else ""
            if TAG not in name or (status == "skipped" and message in ("", "skipped")):  # not selected
                continue
            found[name] = Spec(name.removeprefix("[It] "), *_ended(case, status), float(case.get("time", "0")))
    return sorted(found.values(), key=lambda spec: spec.name)


def _ended(case: ET.Element, status: str) -> tuple[str, str]:
    if status == "passed":
        return "passed", ""
    if status == "skipped":
        told = case.find("skipped")
        return "left out", _short((told.get("message", "") if told is not None else "").removeprefix("skipped - "))
    output = "\n".join(text for part in case for text in (part.get("message") or "", part.text or ""))
    if missing := sorted(set(_IMAGE.findall(output))):
        return "left out", f"the image {', '.join(missing)} is missing"
    told = next((part for part in case if part.tag in ("failure", "error")), None)
    said = (told.get("message") or told.text or "") if told is not None else ""
    return "failed", _short(said.rpartition("[FAILED]")[2] or status)


def _short(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"


def selected(program: Path, directory: Path, focus: str) -> list[str]:
    """Return the names of the specs tagged [Conformance] that match the regular expression `focus`."""
    command = [str(program), "--ginkgo.dry-run", f"--ginkgo.focus={re.escape(TAG)}", f"--report-dir={directory}"]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", errors="replace", timeout=300, check=False)
    if done.returncode:
        seen = "\n".join((done.stdout + done.stderr).splitlines()[-5:])
        raise DmucError(f"listing the specs of {program}", seen, "Name the program e2e.test of the cluster's release.")
    names = [spec.name for spec in read(directory.glob("*.xml"))]
    return [name for name in names if re.search(focus, name)]


def run_specs(context: Context, program: Path, names: Sequence[str], directory: Path) -> None:
    """Run these specs in one process in the machine; its report and its output are below `directory`."""
    directory.mkdir(mode=0o700, parents=True)
    command = context.inside(
        str(program),
        f"--kubeconfig={context.state / 'kubeconfig'}",
        f"--kubectl-path={context.bin / 'kubectl'}",
        "--provider=skeleton",
        "--num-nodes=1",
        "--dump-logs-on-failure=false",
        "--ginkgo.no-color",
        f"--ginkgo.timeout={_DEADLINE}s",
        f"--ginkgo.focus=({'|'.join(re.escape(name) for name in names)})",
        f"--report-dir={directory}",
    )
    with (directory / "output").open("wb") as output:
        subprocess.run(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, timeout=_DEADLINE, check=False)


def batches(names: Sequence[str]) -> tuple[list[Sequence[str]], list[Sequence[str]]]:
    """Return the specs in batches: those that may run beside others, and those that must run alone."""
    serial = [name for name in names if "[Serial]" in name or "[Disruptive]" in name]
    others = [name for name in names if name not in serial]
    number = max(1, round(len(others) / _BATCH))
    # The specs of one area take equally long, so each batch gets some of every area.
    return [b for b in (others[i::number] for i in range(number)) if b], [serial] if serial else []


def table(specs: Sequence[Spec], title: str) -> str:
    """Return the page: the counts, each spec that failed or was left out, with the reason, and the counts by area."""
    counts = Counter(spec.end for spec in specs)
    numbers = ", ".join(f"{counts[end]} {end}" for end in ("passed", "failed", "left out"))
    lines = [f"{title}: {len(specs)} specs, {numbers}."]
    for end in ("failed", "left out"):
        rows = [spec for spec in specs if spec.end == end]
        if rows:
            lines += ["", f"## {end.capitalize()}", "", "| Spec | Reason |", "|---|---|"]
            lines += [f"| {_cell(spec.name)} | {_cell(spec.why)} |" for spec in rows]
    areas = Counter((match[1] if (match := re.match(r"\[(sig-[a-z-]+)]", s.name)) else "other", s.end) for s in specs)
    lines += ["", "## By area", "", "| Area | Passed | Failed | Left out |", "|---|---|---|---|"]
    for area in sorted({area for area, _ in areas}):
        each = " | ".join(str(areas[area, end]) for end in ("passed", "failed", "left out"))
        lines.append(f"| {area} | {each} |")
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")


def main() -> int:
    """Run the specs and print the table; return 0 when none failed."""
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("scripts/conformance", description=__doc__, formatter_class=form)
    parser.add_argument("program", type=Path, metavar="E2E_TEST", help="the program e2e.test of the cluster's release")
    parser.add_argument("settings", nargs="*", metavar="NAME=VALUE", help="settings, as for scripts/doit")
    parser.add_argument("--specs", default="", metavar="REGEX", help="only the specs whose names match")
    parser.add_argument("--jobs", type=int, default=4, metavar="N", help="processes side by side (4)")
    parser.add_argument("--write", action="store_true", help=f"write the table to {PAGE.relative_to(ROOT)}")
    arguments = parser.parse_args()
    failed: list[Spec] = []

    def act() -> None:
        program = Path(os.environ.get("CALLER_PWD", ".")).joinpath(arguments.program).resolve()
        if subprocess.run(["scripts/doit", *arguments.settings], stdin=subprocess.DEVNULL, check=False).returncode:
            raise DmucError("starting the cluster", "scripts/doit has failed, see above.")
        context = load(ROOT, os.environ, arguments.settings, dodo.PARTS).context
        context.machine.show([program])
        directory = context.state / "conformance" / time.strftime("%F-%H-%M-%S")
        names = selected(program, directory / "list", arguments.specs)
        begin = time.monotonic()
        together, alone = batches(names)
        print(f"{len(names)} specs; reports: {directory}", flush=True)

        def run(number: int, batch: Sequence[str]) -> None:
            run_specs(context, program, batch, directory / f"{number:03}")
            ends = Counter(spec.end for spec in read((directory / f"{number:03}").glob("*.xml")))
            told = ", ".join(f"{count} {end}" for end, count in ends.items()) or "no report: see its output"
            print(f"{time.monotonic() - begin:5.0f} s  batch {number}: {len(batch)} specs: {told}", flush=True)

        with ThreadPoolExecutor(arguments.jobs) as pool:
            list(pool.map(run, range(len(together)), together))
        for number, batch in enumerate(alone, len(together)):
            run(number, batch)
        specs = read(sorted(directory.glob("[0-9]*/*.xml")))
        missing = set(names) - {spec.name for spec in specs}
        specs += [Spec(name, "failed", "the process ended before this spec", 0.0) for name in sorted(missing)]
        release, minutes = context.version_of("kube-apiserver"), (time.monotonic() - begin) / 60
        page = table(specs, f"Kubernetes {release}, {minutes:.0f} minutes with {arguments.jobs} processes")
        print(page)
        if arguments.write:
            PAGE.write_text(f"# Conformance\n\nWritten by `scripts/conformance --write E2E_TEST`.\n\n{page}", "utf-8")
        failed.extend(spec for spec in specs if spec.end == "failed")

    os.chdir(ROOT)
    return to_the_end(act) or (1 if failed else 0)


if __name__ == "__main__":
    sys.exit(main())
