"""The golden text: every command line, each flag with its reason, and every file that is written for a program.

A changed flag is a difference that can be read and agreed with. What the text depends on besides the settings (what
this host may do and has, what was found out about its network) is set here, both ways.
"""

from __future__ import annotations

import difflib
import os
import shlex
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tasks import binaries, kubeconfig, pki
from tasks.core.cgroups import Hierarchy
from tasks.core.context import Context
from tasks.core.daemon import Daemon
from tasks.core.namespaces import Namespaces, setup_script
from tasks.image_content import registry_root
from tests.unit.support import CHECKOUT, load_dodo, set_programs

GOLDEN = CHECKOUT / "tests" / "golden"
RELEASES = ("1.20",)
UPDATE = "UPDATE_GOLDEN"  # set in the environment: the golden text is written anew
MACHINES = ("dmuc1", "host")
CHOICES = (
    "security=none",
    "service_account=no-mount",
    "service_account=disabled",
    "scheduling=manual",
    "front_door=on",
)

SWAPS = "Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n"
SWAP = "/dev/vda2                               partition\t2097148\t\t0\t\t-2\n"
MAY_ALL, MAY_MOST = "CapEff:\t000001ffffffffff\n", "CapEff:\t000001fffeffffff\n"  # the second lacks bit 24
UPSTREAM = "https://registry.example"

V1 = [
    Hierarchy(Path("/sys/fs/cgroup/systemd"), "name=systemd"),
    Hierarchy(Path("/sys/fs/cgroup/cpu,cpuacct"), "cpu,cpuacct"),
    Hierarchy(Path("/sys/fs/cgroup/memory"), "memory"),
    Hierarchy(Path("/sys/fs/cgroup/unified"), ""),
]
V2 = [Hierarchy(Path("/sys/fs/cgroup"), "")]


@contextmanager
def a_host(*, swap: bool, may_all: bool) -> Iterator[None]:
    """Be on a host that has swap or not, with all capabilities or without CAP_SYS_RESOURCE."""
    files = {"/proc/swaps": SWAPS + SWAP * swap, "/proc/self/status": MAY_ALL if may_all else MAY_MOST}
    real: Callable[..., str] = Path.read_text

    def read_text(path: Path, *args: Any, **keywords: Any) -> str:
        return files[str(path)] if str(path) in files else real(path, *args, **keywords)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "read_text", read_text)
        yield


def a_cluster(directory: Path, release: str, machine: str) -> tuple[ModuleType, Context]:
    """The real dodo.py with a cluster of these settings, with nothing found out yet but where the programs are."""
    directory.mkdir(parents=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(directory / "cache"))
        dodo = load_dodo(directory)
    arguments = {"machine": machine, "kubernetes": release}
    context = dodo.machine.context(
        directory, {}, arguments | {"cache": str(directory / "cache")}, programs=binaries.PROGRAMS, tasks=()
    )
    context.state.mkdir(parents=True)
    context.pki.mkdir()
    for name in pki.files(context):
        (context.pki / name).write_text(f"placeholder for {name}")
    set_programs(context, {name: f"/programs/{name}" for name in binaries.PROGRAMS})
    return dodo, context


def of_daemon(daemon: Daemon, context: Context) -> str:
    """Its command line, a flag on each line with its reason below, and its files."""
    unwanted = daemon.unwanted(context)
    if unwanted:
        return f"not started: {unwanted}\n"
    program, *arguments = daemon.command(context)
    flags = daemon.flags(context)
    assert arguments == [flag.text for flag in flags]
    lines = [program]
    for flag in flags:
        lines += [f"    {shlex.quote(flag.text)}", f"        # {flag.why}"]
    for path, text in daemon.writes(context).items():
        lines += ["", f"{path}:", *(f"    | {line}" for line in text.splitlines())]
    return "\n".join(lines) + "\n"


def sections(directory: Path, release: str, machine: str) -> Iterator[tuple[str, str]]:
    """All there is to tell, with the placeholders' real paths."""
    dodo, context = a_cluster(directory, release, machine)
    usual = {}
    with a_host(swap=False, may_all=True):
        if isinstance(context.machine, Namespaces):
            yield "machine.sh, on a host with cgroup v1", setup_script(context.machine, V1) + "\n"
            yield "machine.sh, on a host with cgroup v2", setup_script(context.machine, V2) + "\n"
        yield str(kubeconfig.path(context)), kubeconfig.text(context)
        for daemon in dodo.DMUC.daemons:
            usual[daemon.name] = of_daemon(daemon, context)
            yield daemon.label, usual[daemon.name]
    context.decide("registry", UPSTREAM)
    others = {
        f"when {UPSTREAM} can be reached": a_host(swap=False, may_all=True),
        "on a host with swap": a_host(swap=True, may_all=True),
        "without CAP_SYS_RESOURCE": a_host(swap=False, may_all=False),
    }
    for title, host in others.items():
        with host:
            for daemon in dodo.DMUC.daemons:
                text = of_daemon(daemon, context)
                if text != usual[daemon.name]:
                    yield f"{daemon.label}, {title}", text
        context.decide("registry", "none")
    for choice in CHOICES:
        name, _, value = choice.partition("=")
        if context.settings.on_host and name == "front_door":
            continue  # refused there
        chosen = replace(context, settings=replace(context.settings, **{name: value}))  # type: ignore[arg-type]
        with a_host(swap=False, may_all=True):
            for daemon in dodo.DMUC.daemons:
                text = of_daemon(daemon, chosen)
                if text != usual[daemon.name]:
                    yield f"{daemon.label}, with {choice}", text


def golden_text(directory: Path, release: str, machine: str) -> str:
    text = "".join(f"=== {title}\n{text}\n" for title, text in sections(directory, release, machine))
    cache = directory / "cache"
    places = {
        registry_root(cache): "IMAGES",
        cache: "CACHE",
        directory / "var" / machine: "STATE",
        directory: "CHECKOUT",
    }
    for path, placeholder in places.items():
        text = text.replace(str(path), placeholder)
    return text


CASES = [(release, machine) for release in RELEASES for machine in MACHINES]


def file_of(release: str, machine: str) -> Path:
    return GOLDEN / f"{release}-{machine}.txt"


@pytest.mark.parametrize(("release", "machine"), CASES)
def test_the_command_lines_and_files_are_the_golden_ones(tmp_path: Path, release: str, machine: str) -> None:
    file, now = file_of(release, machine), golden_text(tmp_path / "checkout", release, machine)
    if os.environ.get(UPDATE):
        file.parent.mkdir(exist_ok=True)
        file.write_text(now)
    golden = file.read_text() if file.exists() else ""
    name = file.relative_to(CHECKOUT)
    changes = difflib.unified_diff(
        golden.splitlines(), now.splitlines(), str(name), "what the code gives now", "", "", 3, ""
    )
    if golden != now:
        pytest.fail(
            "\n".join(
                [
                    f"What is started or written is not what {name} says:",
                    *changes,
                    f"If that is as it should be: {UPDATE}=1 python -m pytest tests/unit/test_golden.py",
                    "and commit the file with the change that it belongs to.",
                ]
            ),
            pytrace=False,
        )


def test_there_is_no_golden_text_of_what_is_no_more() -> None:
    assert {path.name for path in GOLDEN.iterdir()} == {file_of(*case).name for case in CASES}


# That the text would show what matters


def test_no_path_of_this_host_is_in_it(tmp_path: Path) -> None:
    for release, machine in CASES:
        assert str(tmp_path) not in golden_text(tmp_path / release / machine, release, machine)


def test_it_is_the_same_wherever_it_is_made(tmp_path: Path) -> None:
    for release, machine in CASES:
        texts = {golden_text(tmp_path / where / machine, release, machine) for where in ("one", "other/place")}
        assert len(texts) == 1


def test_on_the_host_nothing_has_an_address_of_a_link_that_is_not_there(tmp_path: Path) -> None:
    for release in RELEASES:
        text = golden_text(tmp_path / release, release, "host")
        assert [line for line in text.splitlines() if "10.95." in line] == []


def test_a_changed_flag_and_a_changed_reason_show(tmp_path: Path) -> None:
    dodo, context = a_cluster(tmp_path / "checkout", "1.20", "dmuc1")
    for daemon in dodo.DMUC.daemons:
        flags = [*daemon.flags(context)]
        if flags:
            changed = [replace(flags[0], why="For another reason."), *flags[1:]]
            more = [*flags, replace(flags[0], text="--one-more")]
            texts = {
                of_daemon(
                    replace(daemon, flags=lambda context, given=given: given, unwanted=lambda context: ""), context
                )
                for given in (flags, changed, more, flags[1:])
            }
            assert len(texts) == 4


def test_the_command_lines_can_be_read_by_a_shell(tmp_path: Path) -> None:
    dodo, context = a_cluster(tmp_path / "checkout", "1.20", "dmuc1")
    for daemon in dodo.DMUC.daemons:
        lines = of_daemon(daemon, context).partition("\n\n")[0].splitlines()
        words = [word for line in lines if not line.startswith("        #") for word in shlex.split(line)]
        assert words == daemon.command(context) or words[0] == "not"
