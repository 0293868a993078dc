"""What people read is in plain English: README, CONTRIBUTING, the tour, and every string of the code."""

from __future__ import annotations

import ast
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.support import CHECKOUT

AVOIDED = re.compile(
    r"\b(somebody|nobody|whoever|everybody|whom|anew|mend|take[ns]? back|slides?|wish(es)?|stands in|is to)\b", re.I
)
PATTERNS = ("README.md", "CONTRIBUTING.md", "dodo.py", "tasks/**/*.toml", "tasks/**/*.py", "scripts/*.py")
FILES = sorted(str(path.relative_to(CHECKOUT)) for pattern in PATTERNS for path in CHECKOUT.glob(pattern))


def texts(path: Path) -> Iterator[tuple[int, str]]:
    """Yield the strings of a Python file, or the lines of another file, with their line numbers."""
    if path.suffix != ".py":
        yield from enumerate(path.read_text().splitlines(), 1)
        return
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.lineno, node.value


@pytest.mark.parametrize("name", FILES)
def test_no_avoided_word(name: str) -> None:
    plain = [(line, " ".join(re.sub(r"https?://\S+", "", text).split())) for line, text in texts(CHECKOUT / name)]
    found = [f"{name}:{line}: {match[0]!r} in: {text}" for line, text in plain if (match := AVOIDED.search(text))]
    assert not found, "\n".join(found)


CODE = sorted(
    str(path.relative_to(CHECKOUT))
    for folder in ("tasks", "scripts", "tests")
    for path in CHECKOUT.glob(f"{folder}/**/*.py")
)


@pytest.mark.parametrize("name", CODE)
def test_no_name_has_an_avoided_word(name: str) -> None:
    text = (CHECKOUT / name).read_text()
    if not AVOIDED.search(text.replace("_", " ")):
        return  # the usual case, in a hundredth of the time that reading the names takes
    with tokenize.open(CHECKOUT / name) as file:
        names = {token.string for token in tokenize.generate_tokens(file.readline) if token.type == tokenize.NAME}
    assert [name for name in sorted(names) if AVOIDED.search(name.replace("_", " "))] == []
