"""The catalog: the programs of the cluster, one entry each, and the small tools that they and dmuc run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from ..choices import dns_enabled, engine
from ..core.context import Context
from . import download_sites
from .download_sites import Project
from .executable import VERSION


@dataclass(frozen=True)
class Program:
    """A program of the cluster."""

    name: str
    tasks: Sequence[str]  # the tasks that run it, or make what it is for
    version: tuple[str, ...] = ("--version",)  # the arguments with which it prints its version
    project: Project | None = None  # the project whose release site has it; None: it cannot be downloaded
    package: str = ""  # the Debian package that has it
    wanted: Callable[[Context], bool] = field(default=lambda context: True)  # whether this cluster needs it
    says_flags: bool = False  # whether its --help names every flag
    says_version: str = VERSION  # a regular expression that finds the version in its output
    places: tuple[str, ...] = ()  # the directories in which it is installed, if these are not on the PATH
    links: str = "bin"  # the directory, below the state directory, with the link to it

    @property
    def of_kubernetes(self) -> bool:
        """Whether the program is part of Kubernetes, and so must be of the wanted release."""
        return self.project is download_sites.KUBERNETES

    @property
    def is_built(self) -> bool:
        """Whether it is built, where only Debian's packages can be had: none of them has it."""
        return self.of_kubernetes and not self.package

    @property
    def cache_dir(self) -> str:
        """The program's directory in the cache, which is that of its project."""
        return self.project.name if self.project else self.name


def _with(name: str) -> Callable[[Context], bool]:
    return lambda context: engine(context) == name


_ENGINE = ("container_engine",)


def _cni_plugin(name: str) -> Program:
    """Return the entry of a CNI plugin, which prints its version when run without arguments.

    (`bridge` on the PATH is another program, from iproute2.)
    """
    return Program(
        name,
        _ENGINE,
        (),
        project=download_sites.CNI_PLUGINS,
        package="containernetworking-plugins",
        wanted=_with("containerd"),
        says_version=rf"(?<=CNI {name} plugin ).+",
        places=("/opt/cni/bin", "/usr/lib/cni"),
        links="cni/bin",
    )


PROGRAMS = {
    program.name: program
    for program in (
        Program("etcd", ["etcd"], project=download_sites.ETCD, package="etcd-server"),
        Program("kube-apiserver", ["apiserver"], project=download_sites.KUBERNETES, says_flags=True),
        Program("kube-controller-manager", ["controller_manager"], project=download_sites.KUBERNETES, says_flags=True),
        Program("kube-scheduler", ["scheduler"], project=download_sites.KUBERNETES, says_flags=True),
        Program("kube-proxy", ["kube_proxy"], project=download_sites.KUBERNETES, says_flags=True),
        Program("kubelet", ["kubelet"], project=download_sites.KUBERNETES, says_flags=True),
        Program(
            "kubectl",
            ["apiserver"],
            ("version", "--client"),
            project=download_sites.KUBERNETES,
            package="kubernetes-client",
        ),
        Program("dockerd", _ENGINE, package="docker.io", wanted=_with("docker")),  # Docker publishes no sums
        Program("docker", _ENGINE, package="docker.io", wanted=_with("docker")),
        Program("containerd", _ENGINE, project=download_sites.CONTAINERD, package="containerd"),
        Program(
            "containerd-shim-runc-v2",
            _ENGINE,
            ("-v",),
            project=download_sites.CONTAINERD,
            package="containerd",
            wanted=_with("containerd"),
        ),
        Program("ctr", _ENGINE, project=download_sites.CONTAINERD, package="containerd", wanted=_with("containerd")),
        *map(_cni_plugin, ("bridge", "host-local", "loopback", "portmap")),
        Program("runc", _ENGINE, project=download_sites.RUNC, package="runc"),
        Program("docker-registry", ["registry", "pull_through"], package="docker-registry"),
        Program("coredns", ["coredns"], ("-version",), project=download_sites.COREDNS, wanted=dns_enabled),
    )
}


@dataclass(frozen=True)
class Tool:
    """A small program that other programs, or dmuc, run; any version is good enough."""

    name: str
    package: str  # the Debian package that has it
    tasks: Sequence[str]  # the tasks that run it
    wanted: Callable[[Context], bool] = field(default=lambda context: True)  # whether this cluster needs it


def _on_its_own(context: Context) -> bool:
    return not context.settings.on_host


TOOLS = (
    Tool("ip", "iproute2", ["machine"], _on_its_own),  # the link
    Tool("unshare", "util-linux", ["machine"], _on_its_own),  # the machine's namespaces
    Tool("nsenter", "util-linux", ["machine"], _on_its_own),
    Tool("mount", "mount", ["machine"], _on_its_own),
    Tool("iptables", "iptables", ["container_engine", "kube_proxy"]),
    Tool("nft", "nftables", ["kube_proxy"], lambda context: context.settings.proxy_mode == "nftables"),
    Tool("ipset", "ipset", ["kube_proxy"], lambda context: context.settings.proxy_mode == "ipvs"),
    Tool("conntrack", "conntrack", ["kube_proxy"]),  # when a UDP Service loses a Pod
    Tool("socat", "socat", ["kubelet"]),  # for `kubectl port-forward`
)


def wanted(context: Context) -> dict[str, Program]:
    """Return the programs that this cluster needs, by name; in a run, only those that its tasks need."""
    return {name: program for name, program in PROGRAMS.items() if _is_wanted(program, context)}


def tools(context: Context) -> list[Tool]:
    """Return the tools that this cluster needs; in a run, only those that its tasks need."""
    return [tool for tool in TOOLS if _is_wanted(tool, context)]


def _is_wanted(what: Program | Tool, context: Context) -> bool:
    run = {*context.run.selected} - {"packages", "binaries"}
    users = {task for program in PROGRAMS.values() for task in program.tasks}
    all_of_them = not run or ("binaries" in context.run.selected and run.isdisjoint(users))  # nothing says which
    return what.wanted(context) and (all_of_them or not run.isdisjoint(what.tasks))
