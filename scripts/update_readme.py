"""The tables of README, made from the code: `scripts/update-readme` writes them, and a unit test checks them."""

from __future__ import annotations

import dataclasses
import json
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from unittest import mock

import dodo
from tasks import kubeconfig, newest, pki, registry
from tasks.core import machine, release
from tasks.core.context import Context
from tasks.core.daemon import Daemon
from tasks.core.facts import HostFacts
from tasks.core.node import Node
from tasks.core.settings import DOC, HOST, Settings

README = Path(__file__).parents[1] / "README.md"
SCRIPT = "scripts/update-readme"
DAEMONS = [part for part in dodo.PARTS if isinstance(part, Daemon)]

_LISTENING = ("etcd", "api", "controller_manager", "scheduler")
FREE_PORTS = {f"port {name}": str(20001 + number) for number, name in enumerate(_LISTENING)}


@dataclass(frozen=True)
class Case:
    """A case on which command lines depend: the settings, files of the host, and decisions of the first start."""

    settings: Settings = field(default_factory=Settings)
    files: Mapping[str, str] = field(default_factory=dict)
    decided: Mapping[str, str] = field(default_factory=dict)

    def context(self, directory: Path) -> Context:
        """Return the context of a cluster in this case, with the host's files and the state below `directory`."""
        plain = {
            "host/proc/self/status": f"CapEff:\t{2**41 - 1:016x}\n",
            "host/proc/sys/kernel/cap_last_cap": "40\n",
            "host/proc/self/mountinfo": "30 29 0:25 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n",
            "host/proc/swaps": "Filename\tType\tSize\tUsed\tPriority\n",
            "state/decisions.json": json.dumps({"registry": "none", **self.decided}),
        }
        for name, text in {**plain, **{f"host/{name}": text for name, text in self.files.items()}}.items():
            (directory / name).parent.mkdir(parents=True, exist_ok=True)
            (directory / name).write_text(text, "utf-8")
        chosen = self.settings
        if newest.wanted(chosen):  # README shows the release that every host can have
            chosen = dataclasses.replace(chosen, kubernetes=newest.DEBIANS)
        row, facts = release.find(chosen.kubernetes), HostFacts(directory / "host")
        node = Node("dmuc1", machine.Host(), chosen.address, chosen.pod_range, directory / "state")
        return Context(chosen, row, [node], directory / "state", facts=facts)


OTHERWISE = {
    "without CAP_SYS_RESOURCE": Case(files={"proc/self/status": f"CapEff:\t{2**41 - 1 - 2**24:016x}\n"}),
    "where the host has swap": Case(files={"proc/swaps": "Filename\n/dev/vda2 partition\n"}),
    "where a registry can be reached": Case(decided={"registry": registry.DOCKER_HUB}),
    "with `machine=host`": Case(Settings(machine=HOST)),
    "with `security=none`": Case(Settings(security="none")),
    "with `machine=host.NAME`, a free port": Case(Settings(machine=f"{HOST}.one"), decided=FREE_PORTS),
    "with `insecure_port=on`": Case(Settings(insecure_port="on")),
    "with `engine=containerd`": Case(Settings(engine="containerd")),
    "with `kubernetes=1.36` where the host has cgroup v1": Case(
        Settings(kubernetes="1.36"),
        {"proc/self/mountinfo": "31 30 0:26 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"},
    ),
    "with `service_account=disabled`": Case(Settings(service_account="disabled")),
}
COUNTED = {
    "dmuc": Case(),
    "`security=none`": Case(Settings(security="none")),
    "`insecure_port=on service_account=no-mount`": Case(Settings(insecure_port="on", service_account="no-mount")),
}


def tasks() -> Iterator[str]:
    """Yield the table of tasks."""
    yield from ("| Task | What it does |", "|---|---|")
    for part in dodo.PARTS:
        for goal in part.goals():
            if not goal.hidden:
                yield f"| `{goal.name}` | {goal.doc} |"


def command_lines(directory: Path) -> Iterator[str]:
    """Yield the table of each daemon's flags with their reasons: for the default cluster, then those of other cases."""
    yield from ("| Command line | Why |", "|---|---|")
    plain = Case().context(directory / "plain")
    others = {title: case.context(directory / str(n)) for n, (title, case) in enumerate(OTHERWISE.items())}
    for daemon in DAEMONS:
        disabled_because = daemon.disabled_because(plain)
        seldom = f" Not started when {disabled_because}." if disabled_because else ""
        yield f"| **`{daemon.program_name(plain)}`** | **{daemon.name}**: {daemon.doc}.{seldom} |"
        told: set[str] = set()
        for title, context in {"": plain, **others}.items():
            for text, why in flags(daemon, context).items():
                if text not in told:
                    yield f"| `{text}`{f' ({title})' if title else ''} | {why} |"
                    told.add(text)


def flags(daemon: Daemon, context: Context) -> dict[str, str]:
    """Return the daemon's flags: text -> reason."""
    return {flag.text.replace(str(context.state), "$PWD/var/dmuc1"): flag.why for flag in daemon.flags(context)}


def counts(directory: Path) -> Iterator[str]:
    """Yield the table that counts components, flags and files; for the walk-through, as they are at its end."""
    # The walk-through: etcd, API server, controller manager, Docker, kubelet, scheduler, kube-proxy; --etcd-servers,
    # --kubeconfig, three times --master; ~/.kube/config.
    columns = {"the walk-through": (7, 5, 1, 0)}
    columns |= {title: count(case.context(directory / f"count {title}")) for title, case in COUNTED.items()}
    names = ("components started", "flags given", "configuration files written", "keys and certificates")
    yield f"| | {' | '.join(columns)} |"
    yield "|---|" + "---:|" * len(columns)
    for name, *numbers in zip(names, *columns.values(), strict=True):
        yield f"| {name} | {' | '.join(map(str, numbers))} |"


def count(context: Context) -> tuple[int, int, int, int]:
    """Return the numbers of one column of `counts`."""
    daemons = [daemon for daemon in DAEMONS if not daemon.disabled_because(context)]
    given = [text for daemon in daemons for text in flags(daemon, context) if text.startswith("--")]
    files = {path for daemon in daemons for path in daemon.writes(context)} | {*kubeconfig.files(context)}
    if not context.settings.uses_insecure_port:
        files.discard(context.home / ".kube" / "config")  # a link
    return len(daemons), len(given), len(files), len(pki.files(context))


def settings() -> Iterator[str]:
    """Yield the table of settings, each with its text."""
    yield from ("| Setting | Default | What it is |", "|---|---|---|")
    for setting in (one for one in dataclasses.fields(Settings) if DOC in one.metadata):
        text = setting.metadata[DOC]
        # The text of a field for several settings begins with their names.
        several = re.match(r"(`.*?)(: |$)", text)
        name = several[1] if several else f"`{setting.name}`"
        yield f"| {name} | {default(setting)} | {text[several.end() if several else 0 :]} |"


def default(setting: dataclasses.Field[object]) -> str:
    """Return the setting's default, as a user types it."""
    if setting.name == "cache":
        return "`~/.cache/dmuc`"
    value = setting.default
    if value is dataclasses.MISSING or value == "":
        return ""
    return f"`{value:g}`" if isinstance(value, float) else f"`{value}`"


def releases() -> Iterator[str]:
    """Yield the table of releases, with one row for releases that have the same values in it."""
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


def updated(text: str) -> str:
    """Return the text of README with the tables made from the code."""
    with tempfile.TemporaryDirectory() as name, mock.patch("os.geteuid", lambda: 0):  # root: standard ports
        directory = Path(name)
        tables: Mapping[str, Sequence[str]] = {
            "tasks": [*tasks()],
            "command lines": [*command_lines(directory)],
            "settings": [*settings()],
            "releases": [*releases()],
            "counts": [*counts(directory)],
        }
    for table, rows in tables.items():
        begin, end = f"<!-- {table}: written by {SCRIPT} -->\n", f"<!-- end of {table} -->\n"
        assert text.count(begin) == text.count(end) == 1, f"README must have one place for the table of {table}"
        before, _, rest = text.partition(begin)
        text = before + begin + "\n".join(rows) + "\n" + end + rest.partition(end)[2]
    return text


if __name__ == "__main__":
    README.write_text(updated(README.read_text("utf-8")), "utf-8")
