"""etcd 3.4, 3.5 and 3.6: how each is asked whether it is ready; what is said of data that another one has written."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tasks import etcd
from tasks.core.context import Context
from tasks.core.daemon import error_line
from tasks.core.errors import DmucError
from tasks.core.progress import Silent
from tests.unit.support import Site, a_context, a_program, serving

VERSION = b'{"etcdserver":"3.4.23","etcdcluster":"3.4.0"}'
# What etcd 3.6.13 logs when 3.4 has written the data, 3.5.30 and 3.4.23 when 3.6 or 3.5 has.
SAID = {
    "3.6": '{"level":"panic","ts":"2026-11-27T08:23:52.828430Z","caller":"etcdserver/apply_v2.go:31","msg":"detected '
    'disallowed v2 WAL for stage --v2-deprecation=write-only","method":"QGET","stacktrace":"go.etcd.io/etcd/server"}',
    "3.5": '{"level":"fatal","ts":"2026-11-27T08:21:27.640423Z","caller":"membership/downgrade.go:69","msg":"invalid '
    'downgrade; server version is lower than determined cluster version","current-server-version":"3.5.30",'
    '"determined-cluster-version":"3.6","stacktrace":"go.etcd.io/etcd/server/etcdserver"}',
    "3.4": "2026-11-27 08:21:30.668260 C | etcdserver/membership: cluster cannot be downgraded (current version: "
    "3.4.23 is lower than determined cluster version: 3.5).",
}


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    with serving(Site()) as site:
        monkeypatch.setattr(etcd, "url", lambda context: site.url)
        yield site


def with_etcd(context: Context, version: str, path: str = "/usr/bin/etcd") -> Context:
    context.programs_file.write_text(json.dumps({"etcd": {"path": path, "version": version}}))
    return context


@pytest.mark.parametrize(("version", "path"), [("3.4.23", "version"), ("3.5.16", "health"), ("3.6.13", "health")])
def test_only_etcd_3_4_is_not_asked_for_its_health(tmp_path: Path, site: Site, version: str, path: str) -> None:
    """There that would write an entry which etcd 3.6 does not start with."""
    context = with_etcd(a_context(tmp_path), version)
    site.pages = {f"/{path}": (200, VERSION if path == "version" else b'{"health":"true"}')}
    assert etcd.ETCD.ready(context).why == f"{site.url}/{path} answers"


@pytest.mark.parametrize(
    ("version", "page"),
    [
        ("3.4.23", b'{"etcdserver":"3.4.23","etcdcluster":"not_decided"}'),
        ("3.5.16", b'{"health":"false","reason":"RAFT NO LEADER"}'),
    ],
)
def test_an_etcd_that_accepts_no_writes_is_not_ready(tmp_path: Path, site: Site, version: str, page: bytes) -> None:
    context = with_etcd(a_context(tmp_path), version)
    site.pages = {"/health": (200, page), "/version": (200, page)}
    assert not etcd.ETCD.ready(context)


@pytest.mark.parametrize(
    ("version", "error", "cause"),
    [
        (
            "3.6",
            "detected disallowed v2 WAL for stage --v2-deprecation=write-only (method: QGET)",
            "etcd 3.4 has written this data",
        ),
        (
            "3.5",
            "invalid downgrade; server version is lower than determined cluster version "
            "(current-server-version: 3.5.30, determined-cluster-version: 3.6)",
            "A newer etcd has written this data",
        ),
        ("3.4", SAID["3.4"], "A newer etcd has written this data"),
    ],
)
def test_data_that_it_cannot_read_is_explained(tmp_path: Path, version: str, error: str, cause: str) -> None:
    (tmp_path / "said").write_text(SAID[version] + "\n")
    program = a_program(tmp_path / "etcd", f"cat {tmp_path}/said; exit 1")
    context = a_context(tmp_path, machine="host", security="none")
    context = with_etcd(context, f"{version}.9", str(program))
    with pytest.raises(DmucError) as caught:
        replace(etcd.ETCD, started=None, ports=()).start(context, Silent())
    assert f"error: {error}\n" in caught.value.seen
    assert f"Known cause: {cause}" in caught.value.do and "scripts/doit clean etcd" in caught.value.do


def test_a_line_of_a_log_that_is_json_is_said_in_short() -> None:
    assert error_line('{"level":"fatal","ts":"2026","msg":"no way","stacktrace":"a\\nb"}') == "no way"
    assert error_line('["level=fatal"]') == '["level=fatal"]'
