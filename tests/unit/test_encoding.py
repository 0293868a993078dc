"""Text is UTF-8 in every file and from every program, and is printed in any encoding."""

from __future__ import annotations

import ast
from collections.abc import Iterator

import pytest

from tests.unit.support import CHECKOUT

SOURCES = [CHECKOUT / "dodo.py", *(CHECKOUT / "tasks").rglob("*.py"), *(CHECKOUT / "scripts").glob("*.py")]
BINARY = ("os.open", "os.pidfd_open", "tarfile.open")


def nameless(source: str) -> Iterator[int]:
    """The lines in which text is read or written in whatever encoding the locale has."""
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call) or "encoding" in (words := {word.arg: word.value for word in node.keywords}):
            continue
        name = ast.unparse(node.func)
        called = name.rpartition(".")[2]
        if len(node.args) > {"read_text": 0, "write_text": 1}.get(called, len(node.args)):
            continue
        said = [one for value in (*node.args, words.get("mode")) if value for one in ast.walk(value)]
        modes = [one.value for one in said if isinstance(one, ast.Constant) and isinstance(one.value, str)]
        binary = name in BINARY or any("b" in mode for mode in modes)
        if (called in {"read_text", "write_text"} or (called in {"open", "fdopen"} and not binary)) or "text" in words:
            yield node.lineno


def test_each_file_and_each_output_is_read_and_written_with_an_encoding() -> None:
    found = [f"{file.relative_to(CHECKOUT)}:{n}" for file in SOURCES for n in nameless(file.read_text("utf-8"))]
    assert found == []


@pytest.mark.parametrize(
    ("line", "is_nameless"),
    [
        ("path.read_text()", True),
        ("path.read_text(errors='replace')", True),
        ("path.read_text(encoding='utf-8')", False),
        ("path.read_text('utf-8')", False),
        ("path.write_text(text)", True),
        ("path.write_text(text, 'utf-8')", False),
        ("path.open()", True),
        ("path.open('a')", True),
        ("open(path, mode='rb')", False),
        ("path.open('ab')", False),
        ("os.open(path, os.O_RDONLY)", False),
        ("os.fdopen(handle, 'w')", True),
        ("subprocess.run(command, text=True)", True),
        ("subprocess.run(command, encoding='utf-8')", False),
    ],
)
def test_a_missing_encoding_is_found(line: str, is_nameless: bool) -> None:
    assert bool([*nameless(line)]) is is_nameless
