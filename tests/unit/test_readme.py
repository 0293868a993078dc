"""README's tables are the code's own words. `UPDATE_README=1 scripts/test unit` writes them anew."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import json
import os
import re
import tokenize
from collections.abc import Iterator, Mapping
from io import StringIO
from pathlib import Path

import pytest

from tasks import kubeconfig, pki, registry
from tasks.core import machine, release
from tasks.core import settings as settings_module
from tasks.core.context import Context
from tasks.core.daemon import Daemon
from tasks.core.settings import HOST, Settings
from tests.unit.support import CHECKOUT, load_dodo

README = CHECKOUT / "README.md"
STATE = Path("$PWD/var/dmuc1")
_LISTENING = ("etcd", "api", "controller_manager", "scheduler")
FREE_PORTS = {f"port {name}": str(20001 + number) for number, name in enumerate(_LISTENING)}
# What the command lines depend on, beside the settings: the host's files, and what was decided at the first start.
PLAIN = {
    Path("/proc/self/status"): f"CapEff:\t{2**41 - 1:016x}\n",
    Path("/proc/swaps"): "Filename\tType\tSize\tUsed\tPriority\n",
    STATE / "decisions.json": json.dumps({"registry": "none"}),
}
OTHERWISE: Mapping[str, tuple[Mapping[Path, str], Settings]] = {
    "without CAP_SYS_RESOURCE": ({Path("/proc/self/status"): f"CapEff:\t{0:016x}\n"}, Settings()),
    "where the host has swap": ({Path("/proc/swaps"): "Filename\n/dev/vda2 partition\n"}, Settings()),
    "where a registry can be reached": (
        {STATE / "decisions.json": json.dumps({"registry": registry.DOCKER_HUB})},
        Settings(),
    ),
    "with `machine=host`": ({}, Settings(machine=HOST)),
    "with `security=none`": ({}, Settings(security="none")),
    "with `machine=host.NAME`, a free port": (
        {STATE / "decisions.json": json.dumps(FREE_PORTS)},
        Settings(machine=f"{HOST}.one"),
    ),
    "with `front_door=on`": ({}, Settings(front_door="on")),
    "with `engine=containerd`": ({}, Settings(engine="containerd")),
    "with `kubernetes=1.36` where the host has cgroup v1": (
        {Path("/proc/self/mountinfo"): "31 30 0:26 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"},
        Settings(kubernetes="1.36"),
    ),
    "with `service_account=disabled`": ({}, Settings(service_account="disabled")),
}


def tasks(parts: list[object]) -> Iterator[str]:
    yield from ("| Task | What it does |", "|---|---|")
    for part in parts:
        for goal in part.goals():  # type: ignore[attr-defined]
            if not goal.name.startswith("_"):
                yield f"| `{goal.name}` | {goal.doc} |"


def command_lines(parts: list[object]) -> Iterator[str]:
    yield from ("| Command line | Why |", "|---|---|")
    for daemon in (part for part in parts if isinstance(part, Daemon)):
        with pytest.MonkeyPatch.context() as monkeypatch:
            plain = flags(daemon, PLAIN, Settings(), monkeypatch)
            unwanted = daemon.unwanted(a_context(Settings()))
        seldom = f" Not started when {unwanted}." if unwanted else ""
        yield f"| **`{daemon.program_name(a_context(Settings()))}`** | **{daemon.label}**: {daemon.doc}.{seldom} |"
        yield from (f"| `{text}` | {why} |" for text, why in plain.items())
        told = set(plain)
        for condition, (files, settings) in OTHERWISE.items():
            with pytest.MonkeyPatch.context() as monkeypatch:
                other = flags(daemon, {**PLAIN, **files}, settings, monkeypatch)
            yield from (f"| `{text}` ({condition}) | {why} |" for text, why in other.items() if text not in told)
            told |= other.keys()


def a_context(settings: Settings) -> Context:
    return Context(settings, release.find(settings.kubernetes), machine.Host(), STATE)


def flags(
    daemon: Daemon, files: Mapping[Path, str], settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> dict[str, str]:
    """The daemon's flags and their reasons on a host with these files."""
    read_text = Path.read_text
    monkeypatch.setattr(os, "geteuid", lambda: 0)  # an ordinary user's ports are free ones
    monkeypatch.setattr(Path, "read_text", lambda self, *a, **k: files.get(self) or read_text(self, *a, **k))
    return {flag.text: flag.why for flag in daemon.flags(a_context(settings))}


def counts(parts: list[object]) -> Iterator[str]:
    """What minimal means to the walk-through, counted; its own numbers are those of its last slide."""
    columns = [
        # etcd, API server, controller manager, Docker, kubelet, scheduler, kube-proxy; --etcd-servers, --kubeconfig,
        # three times --master; ~/.kube/config.
        ("the walk-through", (7, 5, 1, 0)),
        ("dmuc", count(parts, Settings())),
        ("`security=none`", count(parts, Settings(security="none"))),
        (
            "`front_door=on service_account=no-mount`",
            count(parts, Settings(front_door="on", service_account="no-mount")),
        ),
    ]
    names = ("components started", "flags given", "configuration files written", "keys and certificates")
    yield f"| | {' | '.join(title for title, _ in columns)} |"
    yield "|---|" + "---:|" * len(columns)
    for name, *numbers in zip(names, *(column for _, column in columns), strict=True):
        yield f"| {name} | {' | '.join(map(str, numbers))} |"


def count(parts: list[object], settings: Settings) -> tuple[int, ...]:
    context = a_context(settings)
    with pytest.MonkeyPatch.context() as monkeypatch:
        daemons = [p for p in parts if isinstance(p, Daemon) and not p.unwanted(context)]
        texts = [text for daemon in daemons for text in flags(daemon, PLAIN, settings, monkeypatch)]
        files = {path for daemon in daemons for path in daemon.writes(context)}
    files |= {*kubeconfig.files(context)}
    files -= set() if settings.uses_front_door else {context.home / ".kube" / "config"}  # that one is a link
    return len(daemons), sum(text.startswith("--") for text in texts), len(files), len(pki.files(context))


def settings() -> Iterator[str]:
    """The fields of Settings, each with the comment behind it."""
    yield from ("| Setting | Default | What it is |", "|---|---|---|")
    source = inspect.getsource(settings_module)
    comments = {
        token.start[0]: token.string.lstrip("# ")
        for token in tokenize.generate_tokens(StringIO(source).readline)
        if token.type == tokenize.COMMENT
    }
    (definition,) = (n for n in ast.parse(source).body if isinstance(n, ast.ClassDef) and n.name == "Settings")
    lines = {
        node.target.id: range(node.lineno, (node.end_lineno or node.lineno) + 1)
        for node in definition.body
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
    }
    for field in dataclasses.fields(Settings):
        comment = " ".join(comments[line] for line in lines[field.name] if line in comments)
        assert comment, f"Settings.{field.name} has no comment"
        # A field that stands for several settings names them first.
        several = re.match(r"(`.*?)(: |$)", comment)
        name = several[1] if several else f"`{field.name}`"
        yield f"| {name} | {default(field)} | {comment[several.end() if several else 0 :]} |"


def releases() -> Iterator[str]:
    """What a user sees of the table of releases; one row for those that are alike in it."""
    yield from (
        "| Release | security by default | engines | a Pod's token | kube-proxy's modes | on cgroup v1 |",
        "|---|---|---|---|---|---|",
    )
    rows: dict[tuple[str, ...], list[str]] = {}
    for row in release.RELEASES.values():
        engines = "docker, containerd" if row.dockershim else "containerd"
        token = "from the API server" if row.projected_tokens else "in a Secret"
        modes = ", ".join(f"{mode} (alpha)" if gate else mode for mode, gate in row.proxy_modes.items())
        cgroups = "refuses by default" if row.fail_cgroup_v1 else "runs"
        rows.setdefault((row.security, engines, token, modes, cgroups), []).append(row.minor)
    for seen, minors in rows.items():
        name = minors[0] if len(minors) == 1 else f"{minors[0]} to {minors[-1]}"
        yield f"| {' | '.join((name, *seen))} |"


def default(field: dataclasses.Field[object]) -> str:
    if field.name == "cache":
        return "`~/.cache/dmuc`"
    value = field.default
    if value is dataclasses.MISSING or value == "":
        return ""
    return f"`{value:g}`" if isinstance(value, float) else f"`{value}`"


def test_the_tables_are_those_of_the_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parts = load_dodo(tmp_path).PARTS
    text = README.read_text()
    wanted = text
    for name, rows in (
        ("tasks", tasks(parts)),
        ("command lines", command_lines(parts)),
        ("settings", settings()),
        ("releases", releases()),
        ("counts", counts(parts)),
    ):
        begin, end = f"<!-- {name}: written by tests/unit/test_readme.py -->\n", f"<!-- end of {name} -->\n"
        assert wanted.count(begin) == wanted.count(end) == 1, f"README must have one place for the {name}"
        before, _, rest = wanted.partition(begin)
        wanted = before + begin + "\n".join(rows) + "\n" + end + rest.partition(end)[2]
    if os.environ.get("UPDATE_README"):
        README.write_text(wanted)
    else:
        assert text == wanted, "run: UPDATE_README=1 scripts/test unit"


def test_what_readme_points_to_is_there() -> None:
    text = README.read_text()
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", text) if "://" not in link]
    scripts = re.findall(r"scripts/\w+", text)
    assert scripts
    for path in {*links, *scripts}:
        assert (CHECKOUT / path).exists(), f"README names {path}, which is not there"


def test_the_commands_in_readme_exist(tmp_path: Path) -> None:
    """Each `scripts/doit WORD` is a command of ours or a task, be it README's own example."""
    names = {goal.name for part in load_dodo(tmp_path).PARTS for goal in part.goals()}
    plugins = re.findall(r'^(\w+) = "tasks\.', (CHECKOUT / "pyproject.toml").read_text(), re.MULTILINE)
    text = README.read_text()
    words = re.findall(r"scripts/doit ([a-z_]+)(?![\w=])", text)
    examples = re.findall(r'^    name="(\w+)"', text, re.MULTILINE)
    assert set(words) <= names | {*plugins, *examples}
