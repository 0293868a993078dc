"""The programs of the cluster, one line each, and the small tools that they and we run besides."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from . import sites
from .choices import engine
from .core.context import Context
from .core.report import BOARD
from .sites import Project


@dataclass(frozen=True)
class Program:
    """A program of the cluster."""

    name: str
    tasks: Sequence[str] = ()  # those that run it; none: whoever is at the cluster does
    version: tuple[str, ...] = ("--version",)  # the arguments that make it say its version
    project: Project | None = None  # whose release site has it; None: it cannot be downloaded
    package: str = ""  # the Debian package that has it; of Kubernetes' own: none, they are built
    wanted: Callable[[Context], bool] = field(default=lambda context: True)  # whether this cluster needs it
    says_flags: bool = False  # its --help names every flag that it takes

    @property
    def of_kubernetes(self) -> bool:
        """Whether it is one of Kubernetes' own, of which only the wanted release will do."""
        return self.project is sites.KUBERNETES

    @property
    def shelf(self) -> str:
        """Its directory in the cache: that of its project."""
        return self.project.name if self.project else self.name


def _with_docker(context: Context) -> bool:
    return engine(context) == "docker"


PROGRAMS = {
    program.name: program
    for program in (
        Program("etcd", ["etcd"], project=sites.ETCD, package="etcd-server"),
        Program("kube-apiserver", ["apiserver"], project=sites.KUBERNETES, says_flags=True),
        Program("kube-controller-manager", ["controller_manager"], project=sites.KUBERNETES, says_flags=True),
        Program("kube-scheduler", ["scheduler"], project=sites.KUBERNETES, says_flags=True),
        Program("kube-proxy", ["kube_proxy"], project=sites.KUBERNETES, says_flags=True),
        Program("kubelet", ["kubelet"], project=sites.KUBERNETES, says_flags=True),
        Program("kubectl", version=("version", "--client"), project=sites.KUBERNETES),
        Program("dockerd", ["container_engine"], package="docker.io", wanted=_with_docker),  # Docker publishes no sums
        Program("docker", ["container_engine"], package="docker.io", wanted=_with_docker),
        Program("containerd", ["container_engine"], project=sites.CONTAINERD, package="containerd"),
        Program("runc", ["container_engine"], project=sites.RUNC, package="runc"),
        Program("docker-registry", ["_registry", "_pull_through"], package="docker-registry"),
    )
}


@dataclass(frozen=True)
class Tool:
    """A small program that the programs, or we, run besides."""

    name: str
    package: str  # the Debian package that has it
    tasks: Sequence[str]  # in which it is run
    wanted: Callable[[Context], bool] = field(default=lambda context: True)


def _on_its_own(context: Context) -> bool:
    return not context.settings.on_host


TOOLS = (
    Tool("ip", "iproute2", ["machine"], _on_its_own),  # the link
    Tool("unshare", "util-linux", ["machine"], _on_its_own),  # the machine's namespaces
    Tool("nsenter", "util-linux", ["machine"], _on_its_own),
    Tool("mount", "mount", ["machine"], _on_its_own),
    Tool("iptables", "iptables", ["container_engine", "kube_proxy"]),
    Tool("conntrack", "conntrack", ["kube_proxy"]),  # when a Service of UDP loses a Pod
    Tool("socat", "socat", ["kubelet"]),  # for `kubectl port-forward`
)


def wanted(context: Context) -> dict[str, Program]:
    """The programs that this cluster needs, by name; in a run, no more than its tasks do."""
    return {name: program for name, program in PROGRAMS.items() if _is_wanted(program, context)}


def tools(context: Context) -> list[Tool]:
    """The same for the tools."""
    return [tool for tool in TOOLS if _is_wanted(tool, context)]


def _is_wanted(what: Program | Tool, context: Context) -> bool:
    run = BOARD.expected & {task for program in PROGRAMS.values() for task in program.tasks}
    return what.wanted(context) and (not run or not what.tasks or not run.isdisjoint(what.tasks))
