"""README's tables are the code's own words, and what README points to is there."""

from __future__ import annotations

import re

import dodo
from scripts.update_readme import README, SCRIPT, updated
from tests.unit.support import CHECKOUT


def test_the_tables_are_those_of_the_code() -> None:
    text = README.read_text()
    assert text == updated(text), f"run: {SCRIPT}"


def test_what_readme_points_to_is_there() -> None:
    text = README.read_text()
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", text) if "://" not in link]
    scripts = re.findall(r"scripts/[\w-]+", text)
    assert scripts
    for path in {*links, *scripts}:
        assert (CHECKOUT / path).exists(), f"README names {path}, which is not there"


def test_the_commands_in_readme_exist() -> None:
    """Each `scripts/doit WORD` is a command of ours or a task, be it README's own example."""
    names = {goal.name for part in dodo.PARTS for goal in part.goals()}
    plugins = re.findall(r'^(\w+) = "tasks\.', (CHECKOUT / "pyproject.toml").read_text(), re.MULTILINE)
    text = README.read_text()
    words = re.findall(r"scripts/doit ([a-z_]+)(?![\w=])", text)
    examples = re.findall(r'^    name="(\w+)"', text, re.MULTILINE)
    assert set(words) <= names | {*plugins, *examples}
