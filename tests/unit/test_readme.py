"""README's tables are the code's own words, and what README and CONTRIBUTING point to is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import dodo
from scripts.update_readme import README, SCRIPT, updated
from tests.unit.support import CHECKOUT

PAGES = (README, CHECKOUT / "CONTRIBUTING.md")


def test_the_tables_are_those_of_the_code() -> None:
    text = README.read_text()
    assert text == updated(text), f"run: {SCRIPT}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_what_a_page_points_to_is_there(page: Path) -> None:
    text = page.read_text()
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", text) if "://" not in link]
    scripts = re.findall(r"scripts/\w[\w.-]*\w", text)
    assert links and scripts
    for path in {*links, *scripts}:
        assert (CHECKOUT / path).exists(), f"{page.name} names {path}, which is not there"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_commands_on_a_page_exist(page: Path) -> None:
    """Each `scripts/doit WORD` is a command of ours or a task, be it the page's own example."""
    names = {goal.name for part in dodo.PARTS for goal in part.goals()}
    plugins = re.findall(r'^(\w+) = "tasks\.', (CHECKOUT / "pyproject.toml").read_text(), re.MULTILINE)
    text = page.read_text()
    words = re.findall(r"scripts/doit ([a-z_]+)(?![\w=])", text)
    examples = re.findall(r'^    name="(\w+)"', text, re.MULTILINE)
    assert words and set(words) <= names | {*plugins, *examples}
