"""The golden text: every command line, each flag with its reason, and every file that is written for a program.

A changed flag is a difference that can be read and agreed with. What the text depends on besides the settings (what
this host may do and has, what was found out about its network) is set here, both ways. Of each release the text has the
default in full, and of each choice what it changes; the releases in WHOLE have all there is.

And no flag is in it that the release's own program does not name in its --help (tests/data/help).
"""

from __future__ import annotations

import difflib
import functools
import json
import os
import shlex
import tomllib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import TypeAlias

import pytest

from tasks import kubeconfig, pki
from tasks.api_client import administrators
from tasks.cluster import load
from tasks.core import release
from tasks.core.cgroups import Hierarchy
from tasks.core.context import Context
from tasks.core.daemon import Daemon
from tasks.core.errors import DmucError
from tasks.core.first_process import setup_script
from tasks.core.mounts import Plan
from tasks.core.namespaces import Namespaces
from tasks.image_files.recipes import registry_root
from tasks.programs import catalog
from tests.unit.support import CHECKOUT, a_host, load_dodo

GOLDEN = CHECKOUT / "tests" / "golden"
HELP = CHECKOUT / "tests" / "data" / "help"
RELEASES = ("1.19", "1.20", "1.23", "1.24", "1.28", "1.31", "1.35", "1.36")
WHOLE = ("1.20", "1.36")  # the last with Docker that CI can run, and the newest
UPDATE = "UPDATE_GOLDEN"  # set in the environment: the golden text is written again
MACHINES = ("dmuc1", "host")
CHOICES = ("engine=docker", "engine=containerd", "security=rbac", "security=none")
ALL_CHOICES = (
    *CHOICES,
    *("proxy_mode=nftables", "proxy_mode=ipvs", "service_account=no-mount", "service_account=disabled"),
    *("scheduling=manual", "insecure_port=on"),
    *("kubelet_flags=--v=6 --node-labels='a=b c'", "etcd_flags=--quota-backend-bytes 9 --cert-file=/other"),
)

UPSTREAM = "https://registry.example"

V1 = [
    Hierarchy(Path("/sys/fs/cgroup/systemd"), "name=systemd"),
    Hierarchy(Path("/sys/fs/cgroup/cpu,cpuacct"), "cpu,cpuacct"),
    Hierarchy(Path("/sys/fs/cgroup/memory"), "memory"),
    Hierarchy(Path("/sys/fs/cgroup/unified"), ""),
]
V2 = [Hierarchy(Path("/sys/fs/cgroup"), "")]


@contextmanager
def as_root() -> Iterator[None]:
    """Be root, as an ordinary user's cluster is on free ports and has no node."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "geteuid", lambda: 0)
        yield


def flags_in_help(minor: str) -> dict[str, list[str]]:
    """The flags that each program of this release names; `kubectl proxy` is a program of its own here."""
    with (HELP / f"{minor}.toml").open("rb") as file:
        read = tomllib.load(file)
    assert read["from"].keys() == read["flags"].keys()
    return {program: [f"--{name}" for name in names.split()] for program, names in read["flags"].items()}


def a_cluster(directory: Path, minor: str, machine: str) -> tuple[SimpleNamespace, Context]:
    """The real dodo.py with a cluster of these settings, with nothing found out yet but what the programs are."""
    directory.mkdir(parents=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(directory / "cache"))
        dodo = load_dodo(directory)
    context = with_settings(dodo, directory, minor, machine)
    context.state.mkdir(parents=True)
    context.pki.mkdir()
    for name in pki.files(context):
        (context.pki / name).write_text(f"placeholder for {name}")
    flags, version = flags_in_help(minor), f"v{release.find(minor).default}"
    found = {
        name: {
            "path": f"/programs/{name}",
            "version": version if program.of_kubernetes else "",
            "flags": flags.get(name, ()),
        }
        for name, program in catalog.PROGRAMS.items()
    }
    context.programs_file.write_text(json.dumps(found))
    for port in (port for daemon in dodo.DMUC.daemons for port in daemon.ports):
        context.decide(port.decision, str(port.standard + 10000))  # used on free ports only
    return dodo, context


def with_settings(dodo: SimpleNamespace, directory: Path, minor: str, machine: str, *more: str) -> Context:
    """The context of a cluster with these settings. Raises DmucError when they cannot be."""
    own = {"machine": machine, "kubernetes": minor, "cache": str(directory / "cache")}
    words = [f"{name}={value}" for name, value in own.items()]
    return load(directory, {}, [*words, *more], dodo.PARTS, facts=a_host(has_ipvs=True)).context


def of_daemon(daemon: Daemon, context: Context) -> str:
    """Its command line, a flag on each line with its reason below, and its files."""
    disabled_because = daemon.disabled_because(context)
    if disabled_because:
        return f"not started: {disabled_because}\n"
    program, *arguments = daemon.command(context)
    flags = daemon.all_flags(context)
    assert arguments == [flag.text for flag in flags]
    lines = [program]
    for flag in flags:
        lines += [f"    {shlex.quote(flag.text)}", f"        # {flag.why}"]
    for path, text in daemon.writes(context).items():
        lines += ["", f"{path}:", *(f"    | {line}" for line in text.splitlines())]
    return "\n".join(lines) + "\n"


@dataclass(frozen=True)
class Variant:
    """One way to run a cluster."""

    title: str  # empty: the usual one
    context: Context | None  # None: it cannot be
    refused: str = ""


def variants(dodo: SimpleNamespace, context: Context, directory: Path, minor: str) -> Iterator[Variant]:
    """The usual way, then the others. What was decided holds while one is looked at."""
    yield Variant("", context)
    if minor in WHOLE:
        context.decide("registry", UPSTREAM)
        yield Variant(f"when {UPSTREAM} can be reached", context)
        context.decide("registry", "none")
        for title, facts in (
            ("on a host with swap", a_host(has_swap=True)),
            ("without CAP_SYS_RESOURCE", a_host(lacking_capabilities=["sys_resource"])),
            ("on a host with cgroup v2", a_host(has_cgroup_v1=False)),
        ):
            yield Variant(title, replace(context, facts=facts))
    for choice in ALL_CHOICES if minor in WHOLE else CHOICES:
        try:
            yield Variant(f"with {choice}", with_settings(dodo, directory, minor, context.settings.machine, choice))
        except DmucError as error:
            yield Variant(f"with {choice}", None, refused=error.seen)


WHAT = Plan(plain=[Path("/")], overlays=[Path("/etc"), Path("/usr"), Path("/var")])


def sections(directory: Path, minor: str, machine: str) -> Iterator[tuple[str, str]]:
    """All there is to tell, with the placeholders' real paths."""
    dodo, context = a_cluster(directory, minor, machine)
    if minor in WHOLE:
        if isinstance(context.machine, Namespaces):
            yield "machine.sh, on a host with cgroup v1", setup_script(context.machine, V1, WHAT) + "\n"
            yield "machine.sh, on a host with cgroup v2", setup_script(context.machine, V2, WHAT) + "\n"
        yield str(administrators(context)), kubeconfig.text(context)
    usual: dict[str, str] = {}
    for variant in variants(dodo, context, directory, minor):
        if variant.context is None:
            yield variant.title, f"refused: {variant.refused}\n"
            continue
        with as_root():
            texts = {daemon.name: of_daemon(daemon, variant.context) for daemon in dodo.DMUC.daemons}
        for label, text in texts.items():
            if not variant.title:
                yield label, text
            elif text != usual[label]:
                yield f"{label}, {variant.title}", difference(usual[label], text)
        usual = usual or texts


def difference(usual: str, text: str) -> str:
    """The lines that are gone and new; the whole text where hardly any stayed."""
    lines = [*difflib.ndiff(usual.splitlines(), text.splitlines())]
    changed = [line.rstrip() for line in lines if line[0] in "+-"]
    return "\n".join(changed) + "\n" if len(changed) < len(text.splitlines()) else text


def golden_text(directory: Path, minor: str, machine: str) -> str:
    text = "".join(f"=== {title}\n{text}\n" for title, text in sections(directory, minor, machine))
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


CASES = [
    *((minor, machine) for minor in RELEASES for machine in MACHINES),
    *((minor, "host.one") for minor in ("1.19", *WHOLE)),  # on free ports
]


Made: TypeAlias = Callable[[str, str], str]
PLACE = "a-place-of-this-host"


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """The text of each case, made when it is first asked for."""
    directory = tmp_path_factory.mktemp(PLACE)
    return functools.cache(lambda minor, machine: golden_text(directory / minor / machine, minor, machine))


def file_of(minor: str, machine: str) -> Path:
    return GOLDEN / f"{minor}-{machine}.txt"


@pytest.mark.parametrize(("minor", "machine"), CASES)
def test_the_command_lines_and_files_are_the_golden_ones(made: Made, minor: str, machine: str) -> None:
    file, now = file_of(minor, machine), made(minor, machine)
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
    two_nodes = {"two-nodes.txt"}  # see test_nodes.py
    assert {path.name for path in GOLDEN.iterdir()} == {file_of(*case).name for case in CASES} | two_nodes


# That the programs take these flags


@pytest.mark.parametrize(("minor", "machine"), CASES)
def test_every_flag_is_one_that_the_programs_of_the_release_name(tmp_path: Path, minor: str, machine: str) -> None:
    dodo, context = a_cluster(tmp_path / "checkout", minor, machine)
    known = flags_in_help(minor)
    known["kubectl"] = known.pop("kubectl proxy")
    looked_at = set()
    for variant in variants(dodo, context, tmp_path / "checkout", minor):
        if variant.context is None:
            continue
        with as_root():
            for daemon in dodo.DMUC.daemons:
                program = daemon.program_name(variant.context)
                given = {flag.text.partition("=")[0] for flag in daemon.flags(variant.context)}
                if program in known and not daemon.disabled_because(variant.context):
                    looked_at.add(program)
                    unknown = {name for name in given if name.startswith("-")} - {*known[program]}
                    assert not unknown, f"{program} of {minor} {variant.title}"
    assert looked_at >= {name for name in known if name != "kubectl"}


# That the text would show what matters


def test_no_path_of_this_host_is_in_it(made: Made) -> None:
    for case in CASES:
        assert PLACE not in made(*case)


def test_on_the_host_nothing_has_an_address_of_a_link_that_is_not_there(made: Made) -> None:
    for minor in RELEASES:
        assert [line for line in made(minor, "host").splitlines() if "10.95." in line] == []


def test_a_changed_flag_and_a_changed_reason_show(tmp_path: Path) -> None:
    dodo, context = a_cluster(tmp_path / "checkout", "1.20", "dmuc1")
    for daemon in dodo.DMUC.daemons:
        flags = [*daemon.flags(context)]
        if flags:
            changed = [replace(flags[0], why="For another reason."), *flags[1:]]
            more = [*flags, replace(flags[0], text="--one-more")]
            texts = {
                of_daemon(
                    replace(daemon, flags=lambda context, given=given: given, disabled_because=lambda context: ""),
                    context,
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
