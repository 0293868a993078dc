"""`doit preflight`: facts about this host, how they were found out, what dmuc does about them, and why.

If a component gets a flag because of a fact, the flag and its reason are shown. Nothing is changed, except for the
versions of programs, which are stored in the cache.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

from .. import binaries, choices, registry, service_proxy
from ..core import caller, debian, download, release
from ..core.cluster import Cluster
from ..core.context import Context
from ..core.daemon import Daemon
from ..core.errors import DmucError
from ..core.facts import NEEDED_CAPABILITIES, rules_of_other_kind
from ..core.machine import is_root
from ..core.namespaces import Namespaces
from ..core.ports import is_free
from ..core.settings import AUTO
from ..programs import build_kubernetes, packages
from ..programs.catalog import PROGRAMS
from .base import Command
from .checklist import Check, Verdict, show

_MEMORY, _DISK = 1000, 5000  # MiB for a cluster; for building Kubernetes and what is then stored
_CONTROLLERS = {  # cgroup version -> controllers without which the kubelet or the engine does not start
    "v2": {"cpu", "memory", "pids"},  # the kubelet asks for no more there (cm/container_manager_linux.go)
    "v1": {"cpu", "cpuacct", "cpuset", "memory", "devices", "pids"},
}


def rows(cluster: Cluster) -> Iterator[Check]:
    """Yield a row for every fact that matters for this cluster."""
    for topic in (
        _rights,
        _directories,
        _kernel,
        _cgroups,
        _resources,
        _packets,
        _addresses,
        _programs,
        _sites,
        _chosen,
    ):
        yield from topic(cluster)


# Flags and settings of components


def _told(cluster: Cluster, *words: str) -> str:
    """Return the flags and lines of files with one of these words in them, by component, with their reasons."""
    context, found = cluster.context, []
    for daemon in cluster.daemons:
        if not daemon.disabled_because(context):
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


def _rights(cluster: Cluster) -> Iterator[Check]:
    who = "yes" if is_root() else f"no: uid {os.geteuid()}"
    if cluster.context.settings.shares_host:
        does = "everything up to the scheduler can run without root; the rest needs root and a machine of its own"
        yield Check("root", who, does, Verdict.FINE if is_root() else Verdict.ADAPTED)
        return
    if not is_root():
        do = "Run dmuc as root; or use machine=host, where everything up to the scheduler runs without root."
        yield Check("root", who, "", Verdict.IMPOSSIBLE, do)
        return
    yield Check("root", who)
    lacking = [one for one in cluster.context.facts.lacking_capabilities if one in NEEDED_CAPABILITIES]
    how = "CapEff in /proc/self/status"
    if not lacking:
        yield Check("capabilities", f"all that are needed ({how})")
        return
    found = f"without {', '.join(lacking)} ({how})"
    if lacking != ["sys_resource"]:
        do = "Run dmuc outside of a container, or in a privileged container."
        yield Check("capabilities", found, "", Verdict.IMPOSSIBLE, do)
        return
    does = _told(cluster, "default-runtime", "restrict_oom_score_adj")
    yield Check("capabilities", found, f"{does}; the kubelet and kube-proxy only log it", Verdict.ADAPTED)


def _directories(cluster: Cluster) -> Iterator[Check]:
    """The directories that dmuc writes to, and the limit of open files."""
    context = cluster.context
    for name, path in {"state": context.state, "cache": context.settings.cache}.items():
        there = next(p for p in (path, *path.parents) if p.exists())
        flags = os.statvfs(there).f_flag
        lacks = [
            "is read-only" if flags & os.ST_RDONLY else "",
            "" if os.access(there, os.W_OK | os.X_OK, effective_ids=True) else "cannot be written to",
            "is mounted noexec, and programs in it cannot run" if flags & os.ST_NOEXEC else "",
            "" if there.is_dir() else "is not a directory",
        ]
        why = "; ".join(filter(None, lacks))
        do = "Use another directory: cache=DIRECTORY." if name == "cache" else "Use a checkout in another directory."
        yield Check(f"{name} directory", f"{path}: {f'{there} {why}' if why else 'fine'}", "", *_verdict(why, do))
    if isinstance(context.machine, Namespaces):
        yield from _shared(context.machine, context.settings.share)
    too_few = caller.too_few_files()
    yield Check(
        "open files", too_few or "enough (getrlimit)", "", *_verdict(too_few, f"ulimit -n {caller.FEWEST_FILES}")
    )


def _shared(machine: Namespaces, share: str) -> Iterator[Check]:
    """Directories of the host that the machine has, too: those of share=, the cache, and those of programs."""
    try:
        machine.refuse_shares()
    except DmucError as error:
        yield Check("shared", error.seen, "", Verdict.IMPOSSIBLE, error.do)
    else:
        if share:
            yield Check("shared", share, "the machine has these directories of the host")


def _verdict(why: str, do: str) -> tuple[Verdict, str]:
    return (Verdict.IMPOSSIBLE, do) if why else (Verdict.FINE, "")


def _kernel(cluster: Cluster) -> Iterator[Check]:
    context = cluster.context
    yield Check("kernel", f"Linux {os.uname().release} {os.uname().machine}")
    if isinstance(context.machine, Namespaces):
        wanted = ("mnt", "uts", "net", "ipc", "pid", "cgroup")
        lacking = [name for name in wanted if not Path("/proc/self/ns", name).exists()]
        does = f"{context.machine.name} is made of these; user namespaces are not used"
        yield _there("namespaces", lacking, "/proc/self/ns", does, "Use a kernel with these, or machine=host.")
    questions: dict[str, Callable[[], bool | None]] = {
        "overlay": lambda: cluster.context.facts.has_filesystem("overlay"),
        "bridge": lambda: cluster.context.facts.has_module("bridge", "CONFIG_BRIDGE"),
        "veth": lambda: cluster.context.facts.has_module("veth", "CONFIG_VETH"),
        "nf_conntrack": lambda: cluster.context.facts.has_module("nf_conntrack", "CONFIG_NF_CONNTRACK"),
    }
    results = {name: ask() for name, ask in questions.items()}
    unknown = [name for name, result in results.items() if result is None]
    how = "/proc/filesystems, /sys/module, the lists in /lib/modules, the kernel's configuration"
    how += f"; unknown: {', '.join(unknown)}" if unknown else ""
    lacking = [name for name, result in results.items() if result is False]
    yield _there(
        "modules",
        lacking,
        how,
        "needed for images, the machine's own files, and the Pods' network",
        "Use a kernel with these modules.",
        list(results),
    )


def _there(name: str, lacking: list[str], how: str, does: str, do: str, wanted: list[str] | None = None) -> Check:
    """Return a row about things that must all be present."""
    if lacking:
        return Check(name, f"missing: {', '.join(lacking)} ({how})", "", Verdict.IMPOSSIBLE, do)
    return Check(name, f"{', '.join(wanted) if wanted else 'all that are needed'} ({how})", does)


def _cgroups(cluster: Cluster) -> Iterator[Check]:
    context, version = cluster.context, cluster.context.facts.cgroup_version
    controllers = cluster.context.facts.cgroup_controllers
    lacking = sorted(_CONTROLLERS["v2" if version == "v2" else "v1"] - controllers)
    if context.settings.shares_host:
        return
    if lacking:
        found = f"{version or 'none mounted'}, without {', '.join(lacking)} (/proc/self/mountinfo, cgroup.controllers)"
        do = "Mount them below /sys/fs/cgroup, or enable them: cgroup_enable= on the kernel's command line."
        yield Check("cgroups", found, "", Verdict.IMPOSSIBLE, do)
        return
    held = cluster.context.facts.undelegated_controllers
    if held:
        found = f"v2; the cgroup of this container has processes in it and so cannot enable {', '.join(held)}"
        do = "Move the processes in /sys/fs/cgroup/cgroup.procs to a cgroup below it, before you start others there."
        yield Check("cgroups", found, "", Verdict.IMPOSSIBLE, do)
        return
    kind = "v1, and v2 without controllers beside it" if version == "hybrid" else version
    found = f"{kind}: {', '.join(sorted(controllers))} (/proc/self/mountinfo)"
    if context.settings.on_host:
        does = "the engine and the kubelet create their cgroups in the root"
    else:
        does = f"{context.machine.name} has a cgroup of its own in each hierarchy, which it sees as the root"
    if version == "v2":
        does += "; controllers that are not enabled in the root are enabled, and stay enabled"
    yield Check("cgroups", found, does)
    stand = context.release_of("kubelet").fail_cgroup_v1
    if version == "v2":
        return
    if stand:
        does = _told(cluster, "cgroupv1", "failCgroupV1")
        yield Check(
            "cgroup v1",
            f"Kubernetes {context.release_of('kubelet').minor} refuses cgroup v1 by default",
            does,
            Verdict.ADAPTED,
        )
    else:
        why = "without a flag for it" if stand is None else "which is deprecated, and refused by default from 1.35 on"
        yield Check("cgroup v1", f"Kubernetes {context.release_of('kubelet').minor} runs on cgroup v1, {why}")


def _resources(cluster: Cluster) -> Iterator[Check]:
    context = cluster.context
    if not cluster.context.facts.has_swap:
        yield Check("swap", "none (/proc/swaps)", "as the kubelet expects")
    else:
        yield Check("swap", "on (/proc/swaps)", _told(cluster, "fail-swap-on", "failSwapOn"), Verdict.ADAPTED)
    memory = cluster.context.facts.available_memory
    little = memory < _MEMORY
    does = "a cluster needs about 700 MiB" + (
        "; with less, the kubelet evicts Pods, or the kernel kills processes" if little else ""
    )
    do = "Free some memory." if little else ""
    verdict = Verdict.DOUBTFUL if little else Verdict.FINE
    yield Check("memory", f"{memory} MiB available (/proc/meminfo)", does, verdict, do)
    for name, path in {"disk": context.state, "cache disk": context.settings.cache}.items():
        free = cluster.context.facts.free_disk(path)
        little = free < _DISK
        does = (
            _told(cluster, "eviction-hard", "evictionHard")
            if name == "disk"
            else "for downloads and builds; a build needs 3.3 GB"
        )
        state = Verdict.DOUBTFUL if little else Verdict.FINE
        yield Check(name, f"{free} MiB free at {path} (statvfs)", does, state, "Free some space." if little else "")


def _packets(cluster: Cluster) -> Iterator[Check]:
    context, mode = cluster.context, cluster.context.settings.proxy_mode
    if context.settings.shares_host:
        return
    kind, version = cluster.context.facts.iptables
    other = {"nft": "legacy", "legacy": "nft"}.get(kind, "")
    if kind:
        does = "the engine, the kubelet and kube-proxy all run the host's iptables, and so all use this variant"
        yield Check("iptables", f"{version}, {kind} (iptables --version)", does)
        yield from _other_rules(context, kind, other)
    else:
        yield Check("iptables", "not found", "will be installed: see tools")
    there = cluster.context.facts.has_module("nf_tables", "CONFIG_NF_TABLES")
    if there is False and (kind == "nft" or mode == "nftables"):
        do = "Use a kernel with CONFIG_NF_TABLES; or iptables-legacy: update-alternatives --config iptables"
        yield Check("nftables", "the kernel has no nf_tables", "", Verdict.IMPOSSIBLE, do)
    else:
        where = {True: "the kernel has nf_tables", False: "the kernel has no nf_tables", None: "unknown"}[there]
        modes = ", ".join(service_proxy.proxy(context).modes(context))
        yield Check("nftables", where, f"proxy_mode={mode}; this release has {modes}")
    yield Check(
        "ip_vs",
        "the kernel has IPVS" if cluster.context.facts.has_ipvs else "the kernel has no IPVS",
        "needed only for proxy_mode=ipvs",
    )


def _other_rules(context: Context, kind: str, other: str) -> Iterator[Check]:
    where = context.machine.name
    if not context.machine.is_up():
        yield Check(f"{other} rules", f"none: {where} starts without rules", "the host's rules are not touched")
        return
    count = rules_of_other_kind(context.machine, kind)
    if count is None:
        yield Check(f"{other} rules", "unknown: they cannot be listed here")
    elif count:
        do = f"List them: iptables-{other}-save. The program that writes them must use iptables-{kind}, too."
        does = "every packet goes through both sets of rules: one may drop what the other accepts"
        yield Check(f"{other} rules", f"{count} on {where} (iptables-{other}-save)", does, Verdict.DOUBTFUL, do)
    else:
        yield Check(f"{other} rules", f"none on {where}")


def _addresses(cluster: Cluster) -> Iterator[Check]:
    context, machine = cluster.context, cluster.context.machine
    if isinstance(machine, Namespaces):
        ranges = f"{machine.link}, {machine.services}, {machine.pods}"
        if machine.is_up():
            yield Check("ranges", f"{ranges}: routed to {machine.name}, which is powered on (ip route)")
        else:
            try:
                machine.refuse_overlaps()
                found = f"{ranges}: free (ip route, ip address)"
                yield Check("ranges", found, f"will be routed to {machine.name} when it is powered on")
            except DmucError as error:
                yield Check("ranges", error.seen, "", Verdict.IMPOSSIBLE, error.do)
        yield Check("ports", f"all are free: {machine.name} has a network of its own")
        return
    running = cluster.running()
    for daemon in cluster.daemons:
        for path in daemon.foreign_directories(context) if is_root() else ():
            do = f"Use a machine of its own (machine=NAME), or find out which program uses {path}, and move it away."
            found = f"{path} already exists and was not created by dmuc"
            yield Check("directories", found, "", Verdict.IMPOSSIBLE, do)
    if context.settings.shares_host:
        yield Check("ports", "shared with other programs", "each component gets a free port", Verdict.ADAPTED)
        return
    ports = {p.standard: d.name for d in cluster.daemons if d.name not in running for p in d.ports}
    taken = [f"{number} ({label})" for number, label in ports.items() if not is_free(number)]
    if taken:
        yield Check(
            "ports", f"taken: {', '.join(taken)}", "", Verdict.IMPOSSIBLE, "Find the process with: ss -ltnp. Stop it."
        )
    else:
        yield Check("ports", f"free: {', '.join(map(str, sorted(ports))) or 'all are in use by this cluster'}")


def _programs(cluster: Cluster) -> Iterator[Check]:
    context = cluster.context
    try:
        found = binaries.find_all(context)
    except DmucError as error:
        yield Check("programs", error.seen, "", Verdict.IMPOSSIBLE, error.do)
        return
    alike: dict[str, list[str]] = {}  # programs of one release share a row
    for name, program in found.items():
        if program is not None:
            alike.setdefault(f"{program.version}, {program.source}: {Path(program.path).parent}", []).append(name)
    for what, names in alike.items():
        yield Check("programs", f"{', '.join(names)}: {what}")
    yield from (_to_be_obtained(context, name) for name, program in found.items() if program is None)
    missing = binaries.missing_tools(context)
    if not missing:
        yield Check("tools", "all installed (PATH)")
    elif packages.can_install():
        yield Check(
            "tools",
            f"missing: {', '.join(missing)} (PATH)",
            "will be installed with apt-get; no service is started",
            Verdict.ADAPTED,
        )
    else:
        found_missing = f"missing: {', '.join(missing)} (PATH)"
        yield Check("tools", found_missing, "", Verdict.IMPOSSIBLE, packages.advice(missing))
    versions = {name: program.version for name, program in found.items() if program is not None}
    of_kubernetes = {name: version for name, version in versions.items() if PROGRAMS[name].of_kubernetes}
    for line in release.doubts(of_kubernetes, context.release.minor):
        yield Check("release", line, "a warning only", Verdict.DOUBTFUL)
    skewed = release.skew(versions)
    if skewed:
        yield Check("version skew", "; ".join(skewed), "a warning only", Verdict.DOUBTFUL)
    else:
        yield Check("version skew", "none" if "kube-apiserver" in versions else "not known yet")


def _to_be_obtained(context: Context, name: str) -> Check:
    """Return the row of a missing program."""
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
        do = f"Name a program: {name.replace('-', '_')}_bin=PATH or bin_dir=DIRECTORY; or use obtain=download."
        found = f"{name}: missing, and obtain={settings.obtain} cannot get it"
        return Check("programs", found, "", Verdict.IMPOSSIBLE, do)
    does = f"will be {' or, if there is no network, '.join(ways)}"
    return Check("programs", f"{name}: missing", does, Verdict.ADAPTED)


def _sites(cluster: Cluster) -> Iterator[Check]:
    """The sites from which the run will get something: asked now, as the run will ask them (proxies included)."""
    context, settings = cluster.context, cluster.context.settings
    try:
        missing = [PROGRAMS[name] for name, program in binaries.find_all(context).items() if program is None]
    except DmucError:
        return  # said above
    wanted: dict[str, str] = {}  # URL -> what it is asked for
    for program in missing:
        if program.project and binaries.is_downloaded(context, program):
            wanted.setdefault(getattr(settings, program.project.site), f"{program.name} and other programs")
        elif debian.available():
            wanted.setdefault(debian.mirror(), f"{program.name} and other packages")
    if packages.can_install() and binaries.missing_tools(context):
        wanted.setdefault(debian.mirror(), "packages")
    if settings.registry not in {AUTO, "local"}:
        wanted.setdefault(settings.registry, "images")
    elif debian.available() and not registry.are_built(context):
        wanted.setdefault(debian.mirror(), "the packages from which images are made")
    silent = {url: what for url, what in wanted.items() if not download.reachable(url)}
    if silent:
        found = "; ".join(f"{url} does not answer, and has {what}" for url, what in silent.items())
        do = "Check the network, or the proxy (http_proxy=URL); or name another site: see Settings in README."
        yield Check("sites", found, "", Verdict.IMPOSSIBLE, do)
    else:
        yield Check(
            "sites", f"{', '.join(wanted) or 'none'}: {'each answers' if wanted else 'everything is here'} (HEAD)"
        )


def _chosen(cluster: Cluster) -> Iterator[Check]:
    context = cluster.context
    settings, row = context.settings, context.release
    yield Check("Kubernetes", settings.kubernetes, context.why_release)
    speaks = f"the kubelet of {row.minor} {'can use Docker directly' if row.dockershim else 'can use CRI engines only'}"
    yield Check("engine", choices.engine(context), speaks if settings.engine == "auto" else f"engine={settings.engine}")
    if settings.security != "auto":
        why = f"security={settings.security}"
    elif settings.uses_insecure_port:
        why = "insecure_port=on: every client of localhost:8080 is the administrator"
    else:
        why = f"the default of {row.minor}"
    yield Check("security", "rbac" if choices.rbac_enabled(context) else "none", why)


class Preflight(Command):
    """`doit preflight`: check this host before the first run."""

    doc_purpose = "check this host: the facts, what dmuc does about them and why, and what is missing"
    doc_usage = ""
    doc_description = "Takes half a second and changes nothing. The exit status is 1 if the cluster cannot run here."

    def act(self, cluster: Cluster, arguments: list[str]) -> int:
        """Print the checklist; return 1 when the cluster cannot run here."""
        if arguments:
            raise DmucError("reading the command line", f"`preflight` does not know {' '.join(arguments)!r}.")
        found = list(rows(cluster))
        show(found)
        return int(any(row.state is Verdict.IMPOSSIBLE for row in found))
