"""The programs of the cluster, one line each, and the small tools that they and we run besides."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from ..choices import engine, wants_dns
from ..core.context import Context
from . import download_sites
from .download_sites import Project
from .executable import VERSION


@dataclass(frozen=True)
class Program:
    """A program of the cluster."""

    name: str
    tasks: Sequence[str]  # those that run it, or bring what it is for
    version: tuple[str, ...] = ("--version",)  # the arguments that make it say its version
    project: Project | None = None  # whose release site has it; None: it cannot be downloaded
    package: str = ""  # the Debian package that has it
    wanted: Callable[[Context], bool] = field(default=lambda context: True)  # whether this cluster needs it
    says_flags: bool = False  # its --help names every flag that it takes
    says_version: str = VERSION  # how its version is found in what it says: a regular expression
    places: tuple[str, ...] = ()  # the directories in which it is installed, where these are on nobody's PATH
    links: str = "bin"  # the directory, below the state directory, that has the link to it

    @property
    def of_kubernetes(self) -> bool:
        """Whether it is one of Kubernetes' own, of which only the wanted release will do."""
        return self.project is download_sites.KUBERNETES

    @property
    def is_built(self) -> bool:
        """Whether it is built, where only Debian's packages can be had: none of them has it."""
        return self.of_kubernetes and not self.package

    @property
    def shelf(self) -> str:
        """Its directory in the cache: that of its project."""
        return self.project.name if self.project else self.name


def _with_docker(context: Context) -> bool:
    return engine(context) == "docker"


def _with_containerd(context: Context) -> bool:
    return engine(context) == "containerd"


_ENGINE = ("container_engine",)


def _cni_plugin(name: str) -> Program:
    """Without arguments it says what it is. (`bridge` on PATH is another program, iproute2's.)"""
    return Program(
        name,
        _ENGINE,
        (),
        project=download_sites.CNI_PLUGINS,
        package="containernetworking-plugins",
        wanted=_with_containerd,
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
        Program("dockerd", _ENGINE, package="docker.io", wanted=_with_docker),  # Docker publishes no sums
        Program("docker", _ENGINE, package="docker.io", wanted=_with_docker),
        Program("containerd", _ENGINE, project=download_sites.CONTAINERD, package="containerd"),
        Program(
            "containerd-shim-runc-v2",
            _ENGINE,
            ("-v",),
            project=download_sites.CONTAINERD,
            package="containerd",
            wanted=_with_containerd,
        ),
        Program("ctr", _ENGINE, project=download_sites.CONTAINERD, package="containerd", wanted=_with_containerd),
        *map(_cni_plugin, ("bridge", "host-local", "loopback", "portmap")),
        Program("runc", _ENGINE, project=download_sites.RUNC, package="runc"),
        Program("docker-registry", ["registry", "pull_through"], package="docker-registry"),
        Program("coredns", ["coredns"], ("-version",), project=download_sites.COREDNS, wanted=wants_dns),
    )
}


@dataclass(frozen=True)
class Tool:
    """A small program that the others, and we, run besides: any version will do."""

    name: str
    package: str  # the Debian package that has it
    tasks: Sequence[str]  # those that run it
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
    Tool("conntrack", "conntrack", ["kube_proxy"]),  # when a Service of UDP loses a Pod
    Tool("socat", "socat", ["kubelet"]),  # for `kubectl port-forward`
)


def wanted(context: Context) -> dict[str, Program]:
    """Return the programs that this cluster needs, by name; in a run, no more than its tasks do."""
    return {name: program for name, program in PROGRAMS.items() if _is_wanted(program, context)}


def tools(context: Context) -> list[Tool]:
    """The same for the tools."""
    return [tool for tool in TOOLS if _is_wanted(tool, context)]


def _is_wanted(what: Program | Tool, context: Context) -> bool:
    run = {*context.run.selected} - {"packages", "binaries"}
    users = {task for program in PROGRAMS.values() for task in program.tasks}
    all_of_them = not run or ("binaries" in context.run.selected and run.isdisjoint(users))  # nothing says which
    return what.wanted(context) and (all_of_them or not run.isdisjoint(what.tasks))
