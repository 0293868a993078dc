"""Hints can be pasted: they name the command as the caller has to type it, and the machine."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tasks.core.hints import pasteable
from tests.unit.support import CHECKOUT

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
        ("/home/me", "../a/scripts/doit", ["machine=two"], "../a/scripts/doit machine=two why"),
        (HERE, "scripts/doit", ["shell", "--", "env", "machine=two"], "scripts/doit why"),
    ],
)
def test_a_hint(where: str, called: str, words: list[str], expected: str) -> None:
    environment = {"CALLER_PWD": where, "CALLED_AS": called}
    argv = ["doit", *words]
    once = pasteable("Run: scripts/doit why", environment, argv)
    assert once == f"Run: {expected}"
    assert pasteable(once, environment, argv) == once  # an error that quotes another


def test_errors_have_such_hints() -> None:
    script = """
import sys
from tasks.core.errors import DmucError
print(DmucError("a", str(DmucError("b", "c", "Run: scripts/doit")), "Or: scripts/doit why"))
"""
    command = [sys.executable, "-c", script, "machine=two"]
    done = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, check=True)
    assert done.stdout == "a\nb\nc\nRun: scripts/doit machine=two\nOr: scripts/doit machine=two why\n"
