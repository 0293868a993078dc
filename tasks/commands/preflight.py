"""`doit preflight`: what this host is like, how that was found out, and what dmuc does about it, and why.

What a component is told because of a fact is taken from that component, with its reason. Nothing is changed, but for
the notes in the cache of what programs have said of themselves.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

from .. import binaries, choices
from ..core import debian, release
from ..core.cluster import Cluster
from ..core.context import Context
from ..core.daemon import Daemon
from ..core.errors import DmucError
from ..core.facts import rules_of_the_other
from ..core.machine import is_root
from ..core.namespaces import Namespaces
from ..core.ports import is_free
from ..programs import build_kubernetes
from ..programs.catalog import PROGRAMS
from .base import Command
from .checklist import Row, State, show

_MEMORY, _DISK = 1000, 5000  # MiB that a cluster, and building Kubernetes with what is then stored, take
_CONTROLLERS = {  # cgroup version -> those without which the kubelet or the engine does not start
    "v2": {"cpu", "cpuset", "memory", "pids"},
    "v1": {"cpu", "cpuacct", "cpuset", "memory", "devices", "pids"},
}


def rows(cluster: Cluster) -> Iterator[Row]:
    """Give every fact that matters for this cluster."""
    for topic in (_rights, _kernel, _cgroups, _resources, _packets, _addresses, _programs, _chosen):
        yield from topic(cluster)


# What is told to whom


def _told(cluster: Cluster, *words: str) -> str:
    """What the components are told that has one of these words in it, and why: as a flag, or in a file."""
    context, found = cluster.context, []
    for daemon in cluster.daemons:
        if not daemon.unwanted(context):
            found += [f"{daemon.name} {said}" for said in _said_to(daemon, context, words)]
    return "; ".join(found)


def _said_to(daemon: Daemon, context: Context, words: tuple[str, ...]) -> Iterator[str]:
    for flag in daemon.flags(context):
        if any(word in flag.text for word in words):
            yield f"{flag.text}: {flag.why.rstrip('.')}"
    for path, text in daemon.writes(context).items():
        if text.startswith("#!"):
            continue
        before = ""
        for line in text.splitlines():
            if any(word in line for word in words):
                why = f": {before.lstrip('# ').rstrip('.')}" if before.startswith("#") else ""
                yield f"{line.strip().strip(',')} (in {path.name}){why}"
            before = line


# The facts, topic by topic


def _rights(cluster: Cluster) -> Iterator[Row]:
    who = "yes" if is_root() else f"no: uid {os.geteuid()}"
    if cluster.context.settings.shares_host:
        does = "all up to the scheduler runs, which takes none; the rest takes a machine of its own, and root"
        yield Row("root", who, does, State.FINE if is_root() else State.ADAPTED)
        return
    if not is_root():
        do = "Run it as root; or with machine=host, where what needs no root works without."
        yield Row("root", who, "", State.IMPOSSIBLE, do)
        return
    yield Row("root", who)
    lacking = cluster.context.facts.lacking_capabilities
    how = "CapEff in /proc/self/status"
    if not lacking:
        yield Row("capabilities", f"all that are used ({how})")
        return
    found = f"without {', '.join(lacking)} ({how})"
    if lacking != ["sys_resource"]:
        do = "Run it where root may do that: not in a container, or in a privileged one."
        yield Row("capabilities", found, "", State.IMPOSSIBLE, do)
        return
    does = _told(cluster, "default-runtime", "restrict_oom_score_adj")
    yield Row("capabilities", found, f"{does}; kubelet and kube-proxy only log it", State.ADAPTED)


def _kernel(cluster: Cluster) -> Iterator[Row]:
    context = cluster.context
    yield Row("kernel", f"Linux {os.uname().release} {os.uname().machine}")
    if isinstance(context.machine, Namespaces):
        wanted = ("mnt", "uts", "net", "ipc", "pid", "cgroup")
        lacking = [name for name in wanted if not Path("/proc/self/ns", name).exists()]
        does = f"{context.machine.name} is made of them; those of users are not used"
        yield _there("namespaces", lacking, "/proc/self/ns", does, "Use a kernel that has them, or machine=host.")
    questions: dict[str, Callable[[], bool | None]] = {
        "overlay": lambda: cluster.context.facts.has_filesystem("overlay"),
        "bridge": lambda: cluster.context.facts.has_module("bridge", "CONFIG_BRIDGE"),
        "veth": lambda: cluster.context.facts.has_module("veth", "CONFIG_VETH"),
        "nf_conntrack": lambda: cluster.context.facts.has_module("nf_conntrack", "CONFIG_NF_CONNTRACK"),
    }
    answers = {name: ask() for name, ask in questions.items()}
    unknown = [name for name, answer in answers.items() if answer is None]
    how = "/proc/filesystems, /sys/module, the lists in /lib/modules, the kernel's configuration"
    how += f"; not to be told: {', '.join(unknown)}" if unknown else ""
    lacking = [name for name, answer in answers.items() if answer is False]
    yield _there(
        "modules",
        lacking,
        how,
        "images, the machine's /etc and /var, and the Pods' network stand on them",
        "Use a kernel that has them.",
        list(answers),
    )


def _there(name: str, lacking: list[str], how: str, does: str, do: str, wanted: list[str] | None = None) -> Row:
    """A row about things that must all be there."""
    if lacking:
        return Row(name, f"there is no {', '.join(lacking)} ({how})", "", State.IMPOSSIBLE, do)
    return Row(name, f"{', '.join(wanted) if wanted else 'all that are used'} ({how})", does)


def _cgroups(cluster: Cluster) -> Iterator[Row]:
    context, version = cluster.context, cluster.context.facts.cgroup_version
    controllers = cluster.context.facts.cgroup_controllers
    lacking = sorted(_CONTROLLERS["v2" if version == "v2" else "v1"] - controllers)
    if context.settings.shares_host:
        return
    if lacking:
        found = f"{version or 'none mounted'}, without {', '.join(lacking)} (/proc/self/mountinfo, cgroup.controllers)"
        do = "Mount them below /sys/fs/cgroup, or turn them on: cgroup_enable= on the kernel's command line."
        yield Row("cgroups", found, "", State.IMPOSSIBLE, do)
        return
    held = cluster.context.facts.undelegated_controllers
    if held:
        found = f"v2, in which the group of this container holds processes and so cannot pass on {', '.join(held)}"
        do = "Move what is in /sys/fs/cgroup/cgroup.procs to a group below it, before anything else runs there."
        yield Row("cgroups", found, "", State.IMPOSSIBLE, do)
        return
    kind = "v1, and v2 without controllers beside it" if version == "hybrid" else version
    found = f"{kind}: {', '.join(sorted(controllers))} (/proc/self/mountinfo)"
    if context.settings.on_host:
        does = "engine and kubelet make their groups at the root"
    else:
        does = f"{context.machine.name} has a group of its own in each, which it sees as the root: no flag is needed"
    if version == "v2":
        does += "; controllers that the root does not pass on are turned on there, and stay on"
    yield Row("cgroups", found, does)
    stand = context.release_of("kubelet").fail_cgroup_v1
    if version == "v2":
        return
    if stand:
        does = _told(cluster, "cgroupv1", "failCgroupV1")
        yield Row(
            "cgroup v1", f"Kubernetes {context.release_of('kubelet').minor} refuses it by default", does, State.ADAPTED
        )
    else:
        why = "and has no flag about it" if stand is None else "it is deprecated, and refused from 1.35 on unless told"
        yield Row("cgroup v1", f"Kubernetes {context.release_of('kubelet').minor} runs on it, {why}")


def _resources(cluster: Cluster) -> Iterator[Row]:
    context = cluster.context
    if not cluster.context.facts.has_swap:
        yield Row("swap", "none (/proc/swaps)", "as the kubelet wants it")
    else:
        yield Row("swap", "on (/proc/swaps)", _told(cluster, "fail-swap-on", "failSwapOn"), State.ADAPTED)
    memory = cluster.context.facts.available_memory
    little = memory < _MEMORY
    does = "a cluster takes about 700 MiB" + (
        "; with less the kubelet evicts Pods, or the kernel ends somebody" if little else ""
    )
    do = "Free some memory." if little else ""
    yield Row("memory", f"{memory} MiB available (/proc/meminfo)", does, State.DOUBTFUL if little else State.FINE, do)
    for name, path in {"disk": context.state, "cache disk": context.settings.cache}.items():
        free = cluster.context.facts.free_disk(path)
        little = free < _DISK
        does = (
            _told(cluster, "eviction-hard", "evictionHard")
            if name == "disk"
            else "downloads and builds; building takes 3.3 GB"
        )
        state = State.DOUBTFUL if little else State.FINE
        yield Row(name, f"{free} MiB free at {path} (statvfs)", does, state, "Free some space." if little else "")


def _packets(cluster: Cluster) -> Iterator[Row]:
    context, mode = cluster.context, cluster.context.settings.proxy_mode
    if context.settings.shares_host:
        return
    kind, version = cluster.context.facts.iptables
    other = {"nft": "legacy", "legacy": "nft"}.get(kind, "")
    if kind:
        does = "engine, kubelet and kube-proxy all run the iptables on PATH, which is the host's: so all use this kind"
        yield Row("iptables", f"{version}, {kind} (iptables --version)", does)
        yield from _other_rules(context, kind, other)
    else:
        yield Row("iptables", "not found", "obtained: see tools")
    there = cluster.context.facts.has_module("nf_tables", "CONFIG_NF_TABLES")
    if there is False and (kind == "nft" or mode == "nftables"):
        do = "Use a kernel with CONFIG_NF_TABLES; or iptables-legacy: update-alternatives --config iptables"
        yield Row("nftables", "the kernel has none", "", State.IMPOSSIBLE, do)
    else:
        where = {True: "the kernel has it", False: "the kernel has none", None: "cannot be told"}[there]
        modes = ", ".join(context.release_of("kube-proxy").proxy_modes)
        yield Row("nftables", where, f"proxy_mode={mode}; this release has {modes}")
    yield Row(
        "ip_vs",
        "the kernel has it" if cluster.context.facts.has_ipvs else "the kernel has none",
        "used with proxy_mode=ipvs, which is refused without",
    )


def _other_rules(context: Context, kind: str, other: str) -> Iterator[Row]:
    where = context.machine.name
    if context.machine.down() is not None:
        yield Row(f"{other} rules", f"none: {where} begins without any", "the host's own are not touched")
        return
    count = rules_of_the_other(context.machine, kind)
    if count is None:
        yield Row(f"{other} rules", "cannot be told: they cannot be listed here")
    elif count:
        do = f"See them: iptables-{other}-save. Who still writes them must use iptables-{kind}, too."
        does = "both kinds are asked for every packet: what one lets through the other may drop"
        yield Row(f"{other} rules", f"{count} on {where} (iptables-{other}-save)", does, State.DOUBTFUL, do)
    else:
        yield Row(f"{other} rules", f"none on {where}")


def _addresses(cluster: Cluster) -> Iterator[Row]:
    context, machine = cluster.context, cluster.context.machine
    if isinstance(machine, Namespaces):
        ranges = f"{machine.link}, {machine.services}, {machine.pods}"
        if machine.down() is None:
            yield Row("ranges", f"{ranges}: routed to {machine.name}, which is on (ip route)")
        else:
            try:
                machine.refuse_overlaps()
                yield Row(
                    "ranges", f"{ranges}: free (ip route, ip address)", f"routed to {machine.name}, once it is on"
                )
            except DmucError as error:
                yield Row("ranges", error.seen, "", State.IMPOSSIBLE, error.do)
        yield Row("ports", f"all are free: {machine.name} has a network of its own")
        return
    running = cluster.running()
    for daemon in cluster.daemons:
        for path in daemon.in_the_way(context) if is_root() else ():
            do = f"Use a machine of its own (machine=NAME), or see whose {path} is and move it away."
            yield Row("directories", f"{path} is there already, and not from here", "", State.IMPOSSIBLE, do)
    if context.settings.shares_host:
        yield Row("ports", "beside others", "free ones are chosen for all that listens", State.ADAPTED)
        return
    ports = {p.standard: d.name for d in cluster.daemons if d.name not in running for p in d.ports}
    taken = [f"{number} ({label})" for number, label in ports.items() if not is_free(number)]
    if taken:
        yield Row("ports", f"taken: {', '.join(taken)}", "", State.IMPOSSIBLE, "See whose they are: ss -ltnp. End it.")
    else:
        yield Row("ports", f"free: {', '.join(map(str, sorted(ports))) or 'all are ours'}")


def _programs(cluster: Cluster) -> Iterator[Row]:
    context = cluster.context
    try:
        found = binaries.find_all(context)
    except DmucError as error:
        yield Row("programs", error.seen, "", State.IMPOSSIBLE, error.do)
        return
    alike: dict[str, list[str]] = {}  # several of one release are one row
    for name, program in found.items():
        if program is not None:
            alike.setdefault(f"{program.version}, {program.how}: {Path(program.path).parent}", []).append(name)
    for what, names in alike.items():
        yield Row("programs", f"{', '.join(names)}: {what}")
    yield from (_to_be_obtained(context, name) for name, program in found.items() if program is None)
    missing = binaries.missing_tools(context)
    if not missing:
        yield Row("tools", "all there (PATH)")
    elif is_root() and debian.available():
        yield Row(
            "tools",
            f"not here: {', '.join(missing)} (PATH)",
            "installed with apt-get; no service is started",
            State.ADAPTED,
        )
    else:
        do = f"Install the packages, or what your system calls them: {' '.join(missing)}"
        yield Row("tools", f"not here: {', '.join(missing)} (PATH)", "", State.IMPOSSIBLE, do)
    versions = {name: program.version for name, program in found.items() if program is not None}
    skewed = release.skew(versions)
    if skewed:
        yield Row("version skew", "; ".join(skewed), "said, not forbidden", State.DOUBTFUL)
    else:
        yield Row("version skew", "none" if "kube-apiserver" in versions else "cannot be told yet")


def _to_be_obtained(context: Context, name: str) -> Row:
    """The row of a program that is nowhere yet."""
    program, settings, ways = PROGRAMS[name], context.settings, []
    if program.project and settings.obtain != "debian":
        ways.append(f"downloaded from {getattr(settings, program.project.site)}")
    if debian.available() and (settings.obtain != "download" or not program.project):
        if program.of_kubernetes:
            if release.fits(settings.kubernetes, build_kubernetes.VERSION):
                built = "built from Debian's source package, which takes about 4 minutes"
                ways.append(built if program.is_built else f"taken from Debian's package {program.package}")
        elif program.package and is_root():
            ways.append(f"installed with Debian's package {program.package}")
    if not ways:
        do = (
            f"Name one of your own with {name.replace('-', '_')}_bin=PATH or bin_dir=DIRECTORY, or say obtain=download."
        )
        return Row(
            "programs",
            f"{name}: not here, and obtain={settings.obtain} cannot have it",
            "",
            State.IMPOSSIBLE,
            do,
        )
    return Row(
        "programs", f"{name}: not here", f"obtained: {' or, where that cannot be reached, '.join(ways)}", State.ADAPTED
    )


def _chosen(cluster: Cluster) -> Iterator[Row]:
    context = cluster.context
    settings, row = context.settings, context.release
    speaks = f"the kubelet of {row.minor} {'still speaks to Docker itself' if row.dockershim else 'speaks CRI only'}"
    yield Row("engine", choices.engine(context), speaks if settings.engine == "auto" else f"engine={settings.engine}")
    if settings.security != "auto":
        why = f"security={settings.security}"
    elif settings.uses_insecure_port:
        why = "insecure_port=on: whoever comes through it is the administrator"
    else:
        why = f"the default of {row.minor}"
    yield Row("security", "rbac" if choices.rbac_enabled(context) else "none", why)


class Preflight(Command):
    """`doit preflight`."""

    doc_purpose = "what this host is like, what dmuc does about it and why, and whether something is missing"
    doc_usage = ""
    doc_description = (
        "Asks in a moment, and changes nothing. Exit status 1 when the cluster cannot be as it is asked for."
    )

    def act(self, cluster: Cluster, arguments: list[str]) -> int:
        """Print it; gives 1 when something makes the cluster impossible."""
        if arguments:
            raise DmucError("reading the command line", f"`preflight` does not know {' '.join(arguments)!r}.")
        found = list(rows(cluster))
        show(found)
        return int(any(row.state is State.IMPOSSIBLE for row in found))
