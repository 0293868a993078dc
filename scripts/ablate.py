"""Remove, one at a time, each flag, each file and each component of the default cluster, and see what breaks.

Each time a cluster is started from nothing up to service_reachable, with a deadline for every task. If the page is
still reached, the cluster is started a second time, from its stored data: the Service and the Deployment are deleted,
the machine is powered off, and everything is started again. Flags that only make sense together are also removed
together.

A thing whose removal breaks nothing needs another reason: for a flag it is Flag.kept_for, for a file or a component it
is in KEPT below. Files that dmuc writes for itself (process files, results of searches) are not included.

The machine is called `ablate`, with ranges of its own, and nothing is left of it. No packet leaves it.
"""

from __future__ import annotations

import argparse
import fnmatch
import itertools
import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import dodo
from scripts.common import ROOT, nothing_left, of_one_release, to_the_end
from tasks import kubeconfig, pki
from tasks.cluster import doit_namespace, load
from tasks.core.cluster import Cluster
from tasks.core.context import Context
from tasks.core.daemon import Daemon
from tasks.core.errors import DmucError
from tasks.core.flags import Flag
from tasks.core.goal import Goal, resolve
from tasks.core.graph import Part
from tasks.core.lock import only_one
from tasks.core.probe import ask_api
from tasks.core.progress import Progress
from tasks.core.result import Result

MACHINE = "ablate"
SETTINGS = ("link_range=10.77.0.0/30", "service_range=10.78.0.0/16", "pod_range=10.79.0.0/24", "registry=local")
TABLE = Path(__file__).with_suffix(".md")
GOAL = "service_reachable"
BASELINE_EVERY = 8  # rows
NOTHING = "nothing"  # the word in the table for a removal that breaks nothing

# The reason to keep a file or a component whose removal breaks nothing.
KEPT = {
    "file pki/ca.key": "use: renews certificates (when they expire, or for other names) without a change of the CA.",
    "file pki/etcd-ca.key": "use: the same, for the certificates of etcd and its client.",
    "file pki/front-proxy-ca.key": "use: the same, for the certificate with which the API server asks others.",
    "file kubeconfig": "use: kubectl on the host, and dmuc's own commands, are the administrator at the API server.",
    "file home/.kube/config": "use: in the machine, kubectl finds the API server without a flag.",
    "component packages": "use: installs missing packages, once.",
    "component upstream": "use: if a registry can be reached, images come from it.",
    "component image_content": "use: builds the images, once.",
    "component service_account": "use: the ways past the missing token, and a new token after a change of the key.",
    "component roles": "speed: a component that RBAC refuses tries again only after seconds.",
    "component schedulable": "use: with scheduling=manual, no Pod is bound to a node that is not ready for Pods.",
    "component binding": "use: with scheduling=manual, assigns nodes to Pods.",
}


@dataclass(frozen=True)
class Thing:
    """A flag, file or component that can be removed."""

    name: str
    without: Callable[[Sequence[Part]], list[Part]]  # returns the parts without it
    kept: str = ""  # the reason to keep it, if the page is reached without it


# The things to remove


def flag_name(flag: Flag) -> str:
    """Return the name of a flag, without its value."""
    name = flag.text.partition("=")[0]
    return Path(name).name if name.startswith("/") else name


def _belong_together(one: Flag, other: Flag) -> bool:
    """Return whether two flags have the same reason, or name a certificate and its key."""
    paths = {Path(flag.text.partition("=")[2]) for flag in (one, other) if "=/" in flag.text}
    return one.why == other.why or (len(paths) == 2 and len({path.stem for path in paths}) == 1)


def things(parts: Sequence[Part], context: Context) -> list[Thing]:
    """Return everything that can be removed from this cluster."""
    daemons = [part for part in parts if isinstance(part, Daemon)]
    wanted = [daemon for daemon in daemons if not daemon.disabled_because(context)]
    flags = [thing for daemon in wanted for thing in _flags(daemon, context)]
    goals = {f"pki/{name}": "pki" for name in pki.files(context)}
    goals |= {str(path.relative_to(context.state)): "kubeconfig" for path in kubeconfig.files(context)}
    files = {path: partial(_without_made, goal, path) for path, goal in goals.items()}
    for daemon in wanted:
        for path in daemon.writes(context):
            files[str(path.relative_to(context.state))] = partial(_without_written, daemon.name, path)
    asked_for = itertools.takewhile(lambda part: part.name != GOAL, parts)  # parts after GOAL are not needed
    components = [p for p in asked_for if p not in daemons or p in wanted]
    return [
        *flags,
        *(_thing(f"file {path}", without) for path, without in files.items()),
        *(_thing(f"component {p.name.lstrip('_')}", partial(_without_part, p)) for p in components),
    ]


def _thing(name: str, without: Callable[[Sequence[Part]], list[Part]]) -> Thing:
    return Thing(name, without, KEPT.get(name, ""))


def _flags(daemon: Daemon, context: Context) -> Iterator[Thing]:
    flags = [*daemon.flags(context)]
    pairs = (pair for pair in itertools.combinations(flags, 2) if _belong_together(*pair))
    for gone in (*((flag,) for flag in flags), *pairs):
        names = [flag_name(flag) for flag in gone]
        kept = f"{gone[0].kept_for}: {gone[0].why}" if gone[0].kept_for else ""
        name = f"flag {daemon.name} {' '.join(names)}"
        yield Thing(name, partial(_without_flags, daemon.name, frozenset(names)), kept)


def _changed(parts: Sequence[Part], name: str, change: Callable[[Any], Part]) -> list[Part]:
    return [change(part) if part.name == name else part for part in parts]


def _without_flags(name: str, gone: frozenset[str], parts: Sequence[Part]) -> list[Part]:
    def change(daemon: Daemon) -> Daemon:
        return replace(daemon, flags=lambda context: [f for f in daemon.flags(context) if flag_name(f) not in gone])

    return _changed(parts, name, change)


def _without_written(name: str, gone: Path, parts: Sequence[Part]) -> list[Part]:
    def change(daemon: Daemon) -> Daemon:
        return replace(daemon, writes=lambda context: {p: t for p, t in daemon.writes(context).items() if p != gone})

    return _changed(parts, name, change)


def _without_made(name: str, gone: str, parts: Sequence[Part]) -> list[Part]:
    def change(goal: Goal) -> Goal:
        def make(context: Context, progress: Progress) -> None:
            goal.make(context, progress)
            (context.state / gone).unlink()

        return replace(goal, make=make)

    return _changed(parts, name, change)


def _without_part(gone: Part, parts: Sequence[Part]) -> list[Part]:
    """Return the parts without one; parts that needed it then need what it needed, so that the order is the same."""
    names = {goal.name for goal in gone.goals()}

    def left(part: Any) -> Part:
        def needs(context: Context) -> list[str]:
            instead = resolve(gone.needs, context)  # type: ignore[attr-defined]
            return [n for name in resolve(part.needs, context) for n in (instead if name in names else [name])]

        def after(context: Context) -> list[str]:
            return [name for name in resolve(part.after, context) if name not in names]

        changed: Part = replace(part, needs=needs, after=after)
        return changed

    return [left(part) for part in parts if part.name != gone.name]


# One run


@dataclass(frozen=True)
class Outcome:
    """The result of a run: the task that broke, and how that showed; or the seconds to the page, both times."""

    broke: str = ""
    showed: str = ""
    seconds: float = 0.0
    again: float = 0.0


def doit_without(name: str, words: Sequence[str]) -> int:
    """Run doit on the cluster without the thing `name` (empty: the whole cluster), in this process; see `run`."""
    from doit.cmd_base import ModuleTaskLoader
    from doit.doit_cmd import DoitMain

    cluster = load(ROOT, os.environ, words, dodo.PARTS)
    for thing in things(cluster.parts, cluster.context):
        if thing.name == name:
            cluster = replace(cluster, parts=thing.without(cluster.parts))
    loader = ModuleTaskLoader(doit_namespace(cluster))
    loader.cluster = cluster
    return int(DoitMain(loader).run(list(words)))


def run(name: str, settings: Sequence[str], *words: str, deadline: float = 1000) -> tuple[float, str]:
    """Run doit without the thing `name` in a process of its own; return its seconds, and its output if it failed."""
    command = [sys.executable, "-m", "scripts.ablate", "--one", name, *settings, *words, f"deadline={deadline:.0f}"]
    pipe, begin = subprocess.PIPE, time.monotonic()
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=pipe, stderr=pipe, encoding="utf-8") as child:
        try:
            out, errors = child.communicate(timeout=6 * deadline)
        except subprocess.TimeoutExpired:
            out, errors = "", f"✗ doit failed\nnot done after {6 * deadline:.0f} s"
        finally:
            child.kill()  # if it has not ended; its processes end with the machine
            child.wait()
    return time.monotonic() - begin, (errors or out or "no output") if child.returncode else ""


def outcome(name: str, settings: Sequence[str], cluster: Cluster, deadline: float) -> Outcome:
    """Start the cluster without the thing `name`, twice if that works, and remove the cluster; return the result."""

    def clean() -> None:
        with only_one(cluster.context):
            cluster.remove()

    with nothing_left(clean):
        seconds, said = run(name, settings, GOAL, deadline=deadline)
        if said:
            return broken(cluster.context, said, "")
        for words in (("clean", "service", "deployment"), ("down",)):
            _, said = run("", settings, *words)
            if said:
                raise DmucError(f"without {name}: {' '.join(words)}", said)
        again, said = run(name, settings, GOAL, deadline=deadline)
        return broken(cluster.context, said, ", the second time") if said else Outcome("", "", seconds, again)


_NOISE = re.compile(r'^[IWEF]\d{4} \S+ +\d+ \S+\] |^\d{4}[-/]\S+ \S+ [IWEC] \| |^time="\S+" level=\w+ msg=')
_TELLING = re.compile(r"(?i)error|fail|panic|must|requir|invalid|unable|cannot|no such|not found|missing|refus|unknown")


def broken(context: Context, said: str, when: str) -> Outcome:
    """Return the result of a failed run, from doit's report: the first failure counts."""
    first = re.search(r"✗ (\S+) failed\n(.*?)(?=\n✗ |\Z)", said, re.DOTALL)
    task, text = (first[1], first[2]) if first else ("doit", said)
    lines = text.strip().splitlines()
    result = re.search(r"[Ll]ast answer: (.*)", text)
    log = [_NOISE.sub("", line.strip()) for line in lines if line.startswith("  ")]
    telling = [line for line in log if _TELLING.search(line)] or log or lines[1:2] or lines
    showed = result[1] if result else telling[-1]
    events = _warnings(context) if task == GOAL else []
    showed = "; ".join([showed, *events[-1:]]).replace(f"{context.state}/", "")
    showed = re.sub(r"\s+", " ", showed).replace("`", "'").replace("|", r"\|")
    return Outcome(task + when, f"`{showed[:200].strip()}{'…' if showed[200:] else ''}`")


def _warnings(context: Context) -> list[str]:
    """Return the cluster's events that say why there is no Pod."""
    found: list[str] = []

    def judge(events: Any) -> Result:
        said = [event for event in events["items"] if event["reason"].startswith("Failed")]
        found.extend(f"{event['reason']}: {event['message']}" for event in said)
        return Result(True, "")

    ask_api(context, "/api/v1/namespaces/default/events?fieldSelector=type=Warning", judge)
    return found


# The table


def median(outcomes: Sequence[Outcome]) -> Outcome:
    """Return the outcome with the median times of several runs; if one broke, that outcome."""
    for one in outcomes:
        if one.broke:
            return one
    return Outcome("", "", statistics.median(o.seconds for o in outcomes), statistics.median(o.again for o in outcomes))


def row(thing: Thing, came: Outcome, whole: Outcome) -> str:
    """Return the line of the table, with the seconds compared to those of the whole cluster."""
    if came.broke:
        return f"| `{thing.name}` | {came.broke} | {came.showed} |"
    first = f"{came.seconds:.1f} s instead of {whole.seconds:.1f} s"
    again = f"{came.again:.1f} s instead of {whole.again:.1f} s"
    return f"| `{thing.name}` | {NOTHING} | {first}, again {again}. Kept for {thing.kept or '?'} |"


def read_table(text: str) -> dict[str, tuple[str, str]]:
    """Return, for each thing in the table, what broke and the rest of the line."""
    return {m[1]: (m[2], m[3]) for m in re.finditer(r"^\| `(\w+ .+?)` \| (.+?) \| (.+) \|$", text, re.MULTILINE)}


def write_table(rows: Sequence[str], order: Sequence[str]) -> None:
    """Write these rows into the table, in this order of things; the other rows stay as they are."""
    text = TABLE.read_text("utf-8")
    all_rows = {n: f"| `{n}` | {broke} | {rest} |" for n, (broke, rest) in read_table(text).items()}
    all_rows |= {name: line for line in rows for name in read_table(line)}
    lines = sorted(all_rows, key=lambda name: order.index(name) if name in order else len(order))
    head, rule, _ = text.partition("|---|---|---|\n")
    TABLE.write_text(head + rule + "".join(f"{all_rows[name]}\n" for name in lines), "utf-8")


def measure(chosen: Sequence[Thing], runs: int, settings: Sequence[str], cluster: Cluster) -> Iterable[str]:
    """Remove each of the things; yield the rows, as soon as they are measured."""
    print("getting programs and images, once", flush=True)
    _, said = run("", settings, "binaries", "image_content")
    if said:
        raise DmucError("getting programs and images", said)
    wholes: list[Outcome] = []
    deadline = 120.0
    for number, thing in enumerate(chosen):
        if number % BASELINE_EVERY == 0:
            wholes.append(outcome("", settings, cluster, deadline))
            if wholes[-1].broke:
                raise DmucError("starting the whole cluster", f"{wholes[-1].broke} failed: {wholes[-1].showed}")
            deadline = max(40.0, 4 * median(wholes).seconds)
            print(f"the whole cluster: {wholes[-1].seconds:.1f} s, again {wholes[-1].again:.1f} s", flush=True)
        outcomes: list[Outcome] = []
        while len(outcomes) < runs and not (outcomes and outcomes[-1].broke):
            outcomes.append(outcome(thing.name, settings, cluster, deadline))
        yield row(thing, median(outcomes), median(wholes))


def main() -> int:
    """Remove each thing, and print the table; return 0 when all runs succeeded."""
    description, _, more = (__doc__ or "").partition("\n\n")
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("scripts/ablate", description=description, epilog=more, formatter_class=form)
    parser.add_argument(
        "--only", default="", metavar="PATTERN", help="only things with this in their name, such as 'flag etcd'"
    )
    parser.add_argument("--list", action="store_true", help="list the things that can be removed")
    parser.add_argument("--write", action="store_true", help=f"write the rows into {TABLE.name}")
    parser.add_argument(
        "--runs", type=int, default=1, metavar="N", help="number of runs for things that break nothing (1)"
    )
    parser.add_argument("--one", metavar="NAME", help=argparse.SUPPRESS)
    parser.add_argument("words", nargs="*", metavar="NAME=VALUE", help="settings, as for scripts/doit")
    arguments = parser.parse_args()
    os.chdir(ROOT)
    if arguments.one is not None:
        return doit_without(arguments.one, arguments.words)
    settings = [*of_one_release([*SETTINGS, *arguments.words]), f"machine={MACHINE}"]
    if arguments.runs < 1 or not all("=" in word for word in settings):
        parser.error("at least one run, and settings are NAME=VALUE")
    cluster = load(ROOT, os.environ, settings, dodo.PARTS)
    everything = things(cluster.parts, cluster.context)
    chosen = [thing for thing in everything if fnmatch.fnmatch(thing.name, f"*{arguments.only}*")]
    if arguments.list:
        print("\n".join(thing.name for thing in chosen))
        return 0

    def act() -> None:
        with only_one(cluster.context, "table"):
            rows: list[str] = []
            for line in measure(chosen, arguments.runs, settings, cluster):
                print(line, flush=True)
                rows.append(line)
                if arguments.write:
                    write_table(rows, [thing.name for thing in everything])

    return to_the_end(act)


if __name__ == "__main__":
    sys.exit(main())
