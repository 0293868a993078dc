"""Hints can be pasted: they name the command as the caller has to type it, and the machine."""

from __future__ import annotations

from pathlib import Path

import pytest

from tasks.core.errors import DmucError
from tasks.core.hints import pasteable

HERE = str(Path.cwd())


@pytest.mark.parametrize(
    ("where", "called", "words", "expected"),
    [
        (HERE, "scripts/doit", [], "scripts/doit why"),
        (HERE, "/work/dmuc/scripts/doit", ["status"], "scripts/doit why"),
        ("", "", [], "scripts/doit why"),  # not through scripts/doit
        ("/home/me", "dmuc/scripts/doit", ["kubelet"], "dmuc/scripts/doit why"),
        ("/home/me", "/opt/a b/scripts/doit", [], "'/opt/a b/scripts/doit' why"),
        (HERE, "scripts/doit", ["machine=two", "kubelet", "engine=docker"], "scripts/doit machine=two why"),
        (HERE, "scripts/doit", ["machine=two", "machine=three"], "scripts/doit machine=three why"),
        (HERE, "scripts/doit", ["shell", "--", "env", "machine=two"], "scripts/doit why"),
    ],
)
def test_a_hint(where: str, called: str, words: list[str], expected: str) -> None:
    environment = {"CALLER_PWD": where, "CALLED_AS": called}
    assert pasteable("Run: scripts/doit why", environment, ["doit", *words]) == f"Run: {expected}"


def test_errors_have_such_hints(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["doit", "machine=two"])
    assert str(DmucError("a", "b", "Run: scripts/doit")) == "a\nb\nRun: scripts/doit"
