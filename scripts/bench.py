"""Measure one after the other: dmuc from nothing to a Service that answers, the ideal, by hand, and short commands.

All use the same programs with the same flags. The ideal is a script for nothing but this start, without any check
(scripts/ideal.py). "By hand" means: in the order of the walk-through, each step after
the one before it is ready, on an ordinary machine. That is a machine like dmuc's, but without the settings with which
dmuc avoids delays: here the default route leads to a bridge without ports, so that packets for the name server or for
169.254.169.254 get lost, as behind many firewalls, and /etc/hosts does not have the machine's own name. The Node is not
created in advance, and nginx is pulled (from the same registry) when the kubelet asks for it.

The following favours the by-hand time: the machine is powered on, the registry answers and the programs are known
before its clock starts; and readiness is checked ten times a second, faster than any person could.

`scripts/bench scale` measures something else: how commands and memory grow with Pods and Services (scripts/scale.py).

Three machines are used, `bench`, `bench-ideal` and `bench-by-hand`, with ranges of their own, and nothing is left of
them. No packet leaves them.
"""

from __future__ import annotations

import argparse
import ipaddress
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import dodo
from scripts import ideal, scale
from scripts.common import ROOT, nothing_left, of_one_release, to_the_end
from tasks import (
    apiserver,
    binaries,
    choices,
    container_engine,
    controller_manager,
    etcd,
    kubeconfig,
    kubelet,
    pki,
    registry,
    scheduler,
    service,
    service_account,
)
from tasks.cluster import load
from tasks.core.cluster import Cluster
from tasks.core.context import Context
from tasks.core.daemon import Daemon
from tasks.core.errors import DmucError
from tasks.core.lock import only_one
from tasks.core.machine import run
from tasks.core.probe import ask_api, wait_or_fail
from tasks.core.progress import Silent
from tasks.core.result import Result
from tasks.proxies import kube_proxy

DMUC, IDEAL, BY_HAND = "bench", "bench-ideal", "bench-by-hand"  # the machines
SETTINGS = ("link_range=10.91.0.0/30", "service_range=10.92.0.0/16", "pod_range=10.93.0.0/24", "registry=local")
AIM = 0.2  # dmuc's time from nothing, as a fraction of the by-hand time
IDEAL_AIM = 1.2  # dmuc's time from nothing, as a multiple of the ideal
# Of each further figure: what it is, and what it is at most.
SHORT = {
    "own CPU": ("CPU seconds of doit and of the commands that it waits for, in a start from nothing", 1.5),
    "no-op": ("seconds of a run with nothing to do", 0.5),
    "empty": ("seconds of doit with an empty list of tasks", None),
    "status": ("seconds of `scripts/doit status`", 0.5),
    "why": ("seconds of `scripts/doit why`", 0.5),
}
EMPTY_AIM = 1.7  # seconds of a run with nothing to do, as a multiple of those of doit with an empty list of tasks

# Reverts the settings with which dmuc avoids delays in the machine (see namespaces.py).
_AS_IT_IS = """
ip link delete eth0
ip link add eth0 type bridge
ip address add {address}/{bits} dev eth0
ip link set eth0 up
ip neighbour add {gateway} lladdr 02:00:00:00:00:01 dev eth0
ip rule delete pref 100
ip rule delete pref 200
ip route add default via {gateway}
echo nameserver {gateway} > /etc/resolv.conf
echo 127.0.0.1 localhost > /etc/hosts
"""


Figures = dict[str, float]  # of one run: what was measured -> seconds

# dmuc


def doit(settings: Sequence[str], *words: str) -> tuple[float, str]:
    """Run scripts/doit; return its seconds and its output. Raise DmucError when it fails."""
    command = ["scripts/doit", *settings, f"machine={DMUC}", *words]
    begin = time.monotonic()
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, encoding="utf-8", check=False)
    seconds = time.monotonic() - begin
    if done.returncode:
        raise DmucError(" ".join(command), f"exit code {done.returncode}\n{done.stdout}{done.stderr}")
    return seconds, done.stdout


def own_cpu() -> float:
    """Return the CPU seconds of all ended children of this process, and of the children for which these have waited."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def noop(settings: Sequence[str]) -> float:
    """Run scripts/doit with nothing to do; return its seconds. Raise DmucError when there was something to do."""
    seconds, output = doit(settings)
    busy = [line for line in output.splitlines() if not line.startswith("·")]
    if busy:
        raise DmucError("running with nothing to do", "There was something to do:\n" + "\n".join(busy))
    return seconds


def empty() -> float:
    """Run doit with an empty list of tasks; return its seconds."""
    with tempfile.TemporaryDirectory() as directory:
        (Path(directory) / "dodo.py").write_text("DOIT_CONFIG = {}\n", "utf-8")
        begin = time.monotonic()
        subprocess.run([sys.executable, "-m", "doit"], cwd=directory, capture_output=True, check=True)
        return time.monotonic() - begin


def short(settings: Sequence[str]) -> Figures:
    """Return the seconds of short commands on a running cluster: each the median of five, run in turn."""
    commands: dict[str, Callable[[], float]] = {
        "no-op": lambda: noop(settings),
        "empty": empty,
        "status": lambda: doit(settings, "status")[0],
        "why": lambda: doit(settings, "why")[0],
    }
    runs = [{name: command() for name, command in commands.items()} for _ in range(5)]
    return {name: statistics.median(run[name] for run in runs) for name in commands}


# By hand


def make_ready(context: Context) -> None:
    """Make what is there before the clock starts: programs that are known, and images in the registry's directory."""
    context.state.mkdir(mode=0o700, parents=True)
    for goal in (binaries.BINARIES, registry.UPSTREAM, registry.CONTENT):
        goal.make(context, Silent())


def by_hand(cluster: Cluster) -> tuple[float, dict[str, float]]:
    """Do the walk-through; return its seconds, and the seconds of each step."""
    context = cluster.context
    make_ready(context)
    power_on(context)
    start(registry.REGISTRY)(context)
    steps: dict[str, float] = {}
    begin = time.monotonic()
    for name, step in STEPS.items():
        before = time.monotonic()
        step(context)
        steps[name] = time.monotonic() - before
    return time.monotonic() - begin, steps


def power_on(context: Context) -> None:
    """Power on an ordinary machine, without the settings with which dmuc avoids delays."""
    context.machine.power_on(Silent())
    settings = context.settings
    bits = ipaddress.ip_network(settings.link_range).prefixlen
    script = _AS_IT_IS.format(address=settings.address, gateway=settings.host_address, bits=bits)
    run(context.machine, "sh", "-euc", script)


def start(daemon: Daemon) -> Callable[[Context], None]:
    """Return a step that starts the daemon and waits until it is ready, not only until it answers."""
    return lambda context: replace(daemon, started=None).start(context, Silent())


def kubectl(context: Context, *words: str) -> None:
    """Run kubectl in the machine."""
    variables = (f"{name}={value}" for name, value in context.environment().items())
    run(context.machine, "env", "-i", *variables, "kubectl", *words)


def keys(context: Context) -> None:
    """Create keys, certificates and kubeconfig files, which Kubernetes needs since 1.20."""
    pki.PKI.make(context, Silent())
    kubeconfig.KUBECONFIG.make(context, Silent())


def token(context: Context) -> None:
    """Wait for the token, which the controller manager creates."""
    goal, deadline = service_account.SERVICE_ACCOUNT, context.settings.deadline
    wait_or_fail(context, goal.holds, deadline=deadline, progress=Silent(), tried="waiting for a token")


def pause_image(context: Context) -> None:
    """Pull and tag the pause image, which the kubelet knows by the name of a registry that cannot be reached."""
    docker, image = str(context.bin / "docker"), context.release.pause_image
    here = f"{registry.LOCAL}/library/{image.rpartition('/')[2]}"
    run(context.machine, docker, "pull", here)
    run(context.machine, docker, "tag", here, image)


def await_pod(phase: str) -> Callable[[Context], None]:
    """Return a step that waits until there is a Pod in this phase."""

    def judge(pods: Any) -> Result:
        phases = [pod["status"]["phase"] for pod in pods["items"]]
        return Result(phase in phases, f"Pods: {phases}")

    def step(context: Context) -> None:
        wait_or_fail(
            context,
            lambda context: ask_api(context, "/api/v1/namespaces/default/pods", judge),
            deadline=context.settings.deadline,
            progress=Silent(),
            tried=f"waiting for a Pod that is {phase}",
        )

    return step


# The walk-through, step by step.
STEPS: dict[str, Callable[[Context], None]] = {
    "keys": keys,
    "etcd": start(etcd.ETCD),
    "apiserver": start(apiserver.APISERVER),
    "kubectl create": lambda context: kubectl(context, "create", "deployment", "web", "--image=nginx"),
    "controller manager": start(controller_manager.CONTROLLER_MANAGER),
    "token": token,
    "Pod is there": await_pod("Pending"),
    "container engine": start(container_engine.CONTAINER_ENGINE),
    "pause image": pause_image,
    "kubelet": start(replace(kubelet.KUBELET, prepare=None)),  # the kubelet creates its Node itself
    "scheduler": start(scheduler.SCHEDULER),
    "Pod runs": await_pod("Running"),
    "kubectl expose": lambda context: kubectl(context, "expose", "deployment", "web", "--port=80"),
    "kube-proxy": start(kube_proxy.DAEMON),
    "answer": lambda context: service.SERVICE_REACHABLE.make(context, Silent()),
}


# Both


def measure(settings: Sequence[str], cluster_of: Callable[[str], Cluster], hands: bool) -> Figures:
    """Return the seconds of one run each: dmuc from nothing, the ideal, by hand (with Docker), and short commands.

    Without `hands`, the steps by hand, which take a minute, are left out.
    """
    with nothing_left(lambda: void(doit(settings, "clean"))):
        before = own_cpu()
        from_nothing, _ = doit(settings, "service_reachable")
        cpu = own_cpu() - before
        rest = {"own CPU": cpu, **short(settings)}
    print(f"dmuc {from_nothing:.1f} s, {', '.join(f'{name} {s:.2f}' for name, s in rest.items())}", flush=True)
    cluster = cluster_of(IDEAL)
    with nothing_left(cluster.remove):
        make_ready(cluster.context)
        best, moments = ideal.start(cluster.context)
    print(f"ideal {best:.1f} s: {', '.join(f'{name} {s:.1f}' for name, s in moments.items())}", flush=True)
    figures = {"dmuc": from_nothing, "ideal": best, **rest}
    cluster = cluster_of(BY_HAND)
    if not hands or choices.engine(cluster.context) != "docker":  # the walk-through has no other engine
        return figures
    with nothing_left(cluster.remove):
        hand, steps = by_hand(cluster)
    print(f"by hand {hand:.1f} s: {', '.join(f'{name} {s:.1f}' for name, s in steps.items())}", flush=True)
    return {**figures, "by hand": hand}


def void(_: object) -> None:
    """Discard a value."""


def table(runs: Sequence[Figures]) -> str:
    """Return the figures of all runs, their medians and the ratios as text."""
    names = [name for name in ("dmuc", "ideal", "by hand", *SHORT) if name in runs[0]]
    ratios = [name for name in ("ideal", "by hand") if name in names]
    medians: Figures = {name: statistics.median(run[name] for run in runs) for name in names}
    heads = [*(f"{name:>11}" for name in names), *(f" dmuc/{name}" for name in ratios)]
    lines = [" " * 8 + "".join(heads)]
    rows: list[tuple[str, Figures]] = [*((f"run {i + 1}", one) for i, one in enumerate(runs)), ("median", medians)]
    for title, row in rows:
        seconds = "".join(f"{row[name]:9.2f} s" for name in names)
        shares = "".join(f"{row['dmuc'] / row[name]:{len(name) + 6}.3f}" for name in ratios)
        lines.append(f"{title:8}{seconds}{shares}")
    for name, aim in (("ideal", IDEAL_AIM), ("by hand", AIM)):
        if name in names:
            worst = max(run["dmuc"] / run[name] for run in runs)
            lines.append(f"worst ratio to {name}: {worst:.3f} (aim: at most {aim})")
    ratio = statistics.median(run["no-op"] / run["empty"] for run in runs)
    lines.append(f"no-op/empty, median: {ratio:.2f} (aim: at most {EMPTY_AIM})")
    for name, (what, most) in SHORT.items():
        aimed = f" (aim: at most {most})" if most else ""
        lines.append(f"{name}: {medians[name]:.2f}{aimed}: {what}")
    return "\n".join(lines)


def measure_scale(arguments: Sequence[str]) -> int:
    """`scripts/bench scale`: print the page, and with --write also write it to docs; return 0 when growth is linear."""
    description, _, more = (scale.__doc__ or "").partition("\n\n")
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("scripts/bench scale", description=description, epilog=more, formatter_class=form)
    parser.add_argument("--write", action="store_true", help=f"write {scale.PAGE.relative_to(ROOT)}")
    parser.add_argument("settings", nargs="*", metavar="NAME=VALUE", help="settings, as for scripts/doit")
    chosen = parser.parse_args(arguments)
    settings = of_one_release([*SETTINGS, *chosen.settings])
    more_than_linear = False

    def act() -> None:
        nonlocal more_than_linear
        with nothing_left(lambda: void(doit(settings, "clean"))):
            doit(settings, "service_reachable")
            context = load(ROOT, os.environ, [*settings, f"machine={DMUC}"], dodo.PARTS).context
            figures = scale.measure(context, lambda *words: doit(settings, *words))
        page = scale.page(figures)
        print(page)
        if chosen.write:
            scale.PAGE.write_text(page, "utf-8")
        more_than_linear = not scale.is_linear(figures.rows)

    return to_the_end(act) or int(more_than_linear)


def main() -> int:
    """Measure, and print the table; return 0 when all runs succeeded."""
    os.chdir(ROOT)
    if sys.argv[1:2] == ["scale"]:
        return measure_scale(sys.argv[2:])
    description, _, more = (__doc__ or "").partition("\n\n")
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("scripts/bench", description=description, epilog=more, formatter_class=form)
    parser.add_argument("--runs", type=int, default=3, metavar="N", help="number of measurements (3)")
    parser.add_argument("--no-by-hand", action="store_true", help="leave out the steps by hand, which take a minute")
    parser.add_argument("settings", nargs="*", metavar="NAME=VALUE", help="settings, as for scripts/doit")
    arguments = parser.parse_args()
    settings = of_one_release([*SETTINGS, *arguments.settings])
    if arguments.runs < 1 or not all("=" in word for word in settings):
        parser.error("at least one run, and settings are NAME=VALUE")

    def cluster_of(machine: str) -> Cluster:
        return load(ROOT, os.environ, [*settings, f"machine={machine}"], dodo.PARTS)

    def act() -> None:
        with only_one(cluster_of(IDEAL).context), only_one(cluster_of(BY_HAND).context):
            print("getting programs and images, once", flush=True)
            with nothing_left(lambda: void(doit(settings, "clean"))):
                doit(settings, "binaries", "image_content")
            print(table([measure(settings, cluster_of, not arguments.no_by_hand) for _ in range(arguments.runs)]))

    return to_the_end(act)


if __name__ == "__main__":
    sys.exit(main())
