"""scripts/conformance: what the reports of e2e.test say, and in what order the specs run."""

from __future__ import annotations

from pathlib import Path

from scripts.conformance import batches, read, table

REPORT = """<?xml version="1.0" encoding="UTF-8"?>
<testsuites><testsuite>
<testcase name="[SynchronizedBeforeSuite]" status="passed" time="1"/>
<testcase name="[It] [sig-node] Pods should run [Conformance]" status="passed" time="2.5"/>
<testcase name="[It] [sig-node] Pods not asked for [Conformance]" status="skipped" time="0">
<skipped message="skipped"/></testcase>
<testcase name="[It] [sig-apps] needs | nodes [Conformance]" status="skipped" time="1">
<skipped message="skipped - Requires at least 2 nodes (not 1)"/></testcase>
<testcase name="[It] [sig-apps] Job fails [Conformance]" status="failed" time="9">
<failure message="" type="failed">
[FAILED] expected 1 &lt;b&gt;
   to be 2</failure><system-err>a log</system-err></testcase>
<testcase name="[It] [sig-cli] image [Conformance]" status="timedout" time="300"><failure message="timed out">
Failed to pull image "registry.k8s.io/x:1": rpc error</failure></testcase>
<testcase name="[It] [sig-cli] another, not tagged" status="failed" time="1"/>
</testsuite></testsuites>
"""


def reports(tmp_path: Path, *texts: str) -> list[Path]:
    files = [tmp_path / f"{number}.xml" for number in range(len(texts))]
    for file, text in zip(files, texts, strict=True):
        file.write_text(text)
    return files


def test_each_spec_has_an_end_and_a_reason(tmp_path: Path) -> None:
    found = {spec.name: (spec.end, spec.why) for spec in read(reports(tmp_path, REPORT))}
    assert found == {
        "[sig-node] Pods should run [Conformance]": ("passed", ""),
        "[sig-apps] needs | nodes [Conformance]": ("left out", "Requires at least 2 nodes (not 1)"),
        "[sig-apps] Job fails [Conformance]": ("failed", "expected 1 <b> to be 2"),
        "[sig-cli] image [Conformance]": ("left out", "the image registry.k8s.io/x:1 is missing"),
    }


def test_the_page_counts_and_lists_what_did_not_pass(tmp_path: Path) -> None:
    page = table(read(reports(tmp_path, REPORT)), "Kubernetes v1.36.3, 9 minutes")
    assert page.startswith("Kubernetes v1.36.3, 9 minutes: 4 specs, 1 passed, 1 failed, 2 left out.\n")
    assert "| [sig-apps] Job fails [Conformance] | expected 1 &lt;b> to be 2 |" in page
    assert "| [sig-apps] needs \\| nodes [Conformance] | Requires at least 2 nodes (not 1) |" in page
    assert "| sig-apps | 0 | 1 | 1 |" in page and "| sig-node | 1 | 0 | 0 |" in page


def test_serial_specs_run_alone_after_the_others() -> None:
    names = [f"[sig-x] {i} [Conformance]" for i in range(40)] + ["[sig-x] alone [Serial] [Conformance]"]
    together, alone = batches(names)
    assert sorted(name for batch in together for name in batch) == sorted(names[:-1])
    assert len(together) == 3 and alone == [[names[-1]]]
    assert batches([]) == ([], [])
