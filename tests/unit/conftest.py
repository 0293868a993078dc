"""Fixtures that several of the unit tests use."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tasks.core import download
from tasks.programs import download_sites
from tests.unit.support import Site, serving


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    """One that is laid out as dl.k8s.io and as etcd's releases on GitHub are."""
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(os, "uname", lambda: os.uname_result(("Linux", "here", "6", "1", "x86_64")))
    monkeypatch.setattr(download, "PAUSE", 0.0)
    monkeypatch.setattr(download_sites, "pinned_sums", dict)
    with serving(Site()) as site:
        yield site
