"""CONTRIBUTING.md names files that exist, and what it says about imports is true."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from tests.unit.support import CHECKOUT

PAGE = CHECKOUT / "CONTRIBUTING.md"
# A path has a slash or a suffix; the example's own file is not there.
PATH = re.compile(r"`(\.?[\w.-]+(?:/[\w.-]*)+|[\w-]+\.(?:py|toml|md|txt))`")


def test_every_path_exists() -> None:
    paths = set(PATH.findall(PAGE.read_text()))
    assert len(paths) > 50
    assert [path for path in sorted(paths) if not (CHECKOUT / path).exists()] == []


def test_every_name_in_a_file_is_there() -> None:
    """`NAME` in `FILE`: the file has the name."""
    found = re.findall(r"`(\w+)`(?: and `(\w+)`)? in\s+`([\w./-]+)`", PAGE.read_text())
    assert len(found) > 5
    for *names, path in found:
        for name in filter(None, names):
            assert re.search(rf"\b{name}\b", (CHECKOUT / path).read_text()), f"{path} has no {name}"


def imported(file: Path) -> Iterator[str]:
    """Yield the modules of tasks/ that a file imports, as `tasks.core.errors`."""
    package = file.relative_to(CHECKOUT).parts[:-1]
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = ".".join(package[: len(package) - node.level + 1])
            for name in node.names:
                yield ".".join(filter(None, (base, node.module, name.name)))


def test_imports_run_one_way() -> None:
    for file in CHECKOUT.glob("tasks/**/*.py"):
        place = file.relative_to(CHECKOUT).as_posix()
        for module in imported(file):
            if place.startswith("tasks/core/"):
                assert module.startswith("tasks.core."), f"{place}: the core imports {module}"
            elif not place.startswith("tasks/commands/"):
                assert not module.startswith("tasks.commands"), f"{place}: a part imports the command {module}"


def test_functions_import_no_module_by_its_dotted_name() -> None:
    """`import http.client` in two threads at once: one may find `http` without `client` (`from http import client`)."""
    for file in CHECKOUT.glob("tasks/**/*.py"):
        for function in ast.walk(ast.parse(file.read_text())):
            if isinstance(function, ast.FunctionDef):
                for node in ast.walk(function):
                    names = [name.name for name in node.names] if isinstance(node, ast.Import) else []
                    assert not [name for name in names if "." in name], f"{file}: {names} in {function.name}"
