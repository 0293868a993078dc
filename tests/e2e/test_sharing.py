"""dmuc and its user share the cluster: whatever the user has changed, `doit` ends soon, and says what `why` says."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.conftest import doit, executed, kubectl

SOON = 10.0  # seconds
WEB = "deployment/web"


@pytest.fixture
def web(cluster: None) -> Iterator[None]:
    """The walk-through's Deployment and Service, as at its end; and so again."""
    yield
    kubectl("uncordon", "e2e")
    attempt("taint", "node", "e2e", "mine-")
    attempt("delete", "all", "-l", "app")
    attempt("delete", "pod", "--all", "--grace-period=0", "--force")
    kubectl("delete", "service", "web", "--ignore-not-found")
    doit("service_reachable")


def attempt(*arguments: str) -> None:
    """Run kubectl, which may fail."""
    doit("shell", "--", "kubectl", *arguments, status=None)


def doit_soon(status: int) -> str:
    """What `doit` prints, with this exit status, after at most ten seconds."""
    began = time.monotonic()
    done = doit("service_reachable", status=status)
    took = time.monotonic() - began
    said = done.stdout + done.stderr
    assert took < 2 * SOON, f"{took:.1f} s: {said}"  # other work on this host may take half of the time
    return said


def is_red_with_what_why_says(*parts: str) -> None:
    said = doit_soon(1)
    why = doit("why", status=1).stdout
    assert "cannot happen by itself" in said, said
    cause = re.search(r"^cause: (\w+: .{10})", said, re.MULTILINE)
    assert cause is not None and f"cause: {cause[1]}" in why, f"{said}\n{why}"
    following = re.findall(r"^next: (.*)$", said, re.MULTILINE)
    assert following == re.findall(r"^next: (.*)$", why, re.MULTILINE), f"{said}\n{why}"
    assert all(part in " ".join(said.split()) for part in parts), said


# Green: the page answers


def long(*values: object) -> Any:
    """Parameters of which there are others of the same kind."""
    return pytest.param(*values, marks=pytest.mark.long)


@pytest.mark.parametrize(
    "command",
    [
        ("cordon", "e2e"),
        long(("taint", "node", "e2e", "mine=1:NoSchedule")),
        ("scale", WEB, "--replicas=3"),
        long(("set", "image", WEB, "nginx=nosuch")),
        long(
            ("patch", "service", "web", "-p", '{"spec":{"ports":[{"$patch":"replace"},{"port":8080,"targetPort":80}]}}')
        ),
        ("patch", "service", "web", "-p", '{"spec":{"ports":[{"$patch":"replace"},{"port":81,"targetPort":80}]}}'),
        long(("delete", "endpoints", "web")),
        ("delete", "service", "web"),
        long(("delete", "deployment", "web")),
        ("delete", "pod", "-l", "app=web", "--grace-period=1"),
        long(("create", "deployment", "other", "--image=nosuch")),
        long(
            (
                "exec",
                WEB,
                "--",
                "sh",
                "-c",
                "echo hello > /var/www/html/index.html; echo hello > /usr/share/nginx/html/index.html",
            )
        ),
    ],
    ids=lambda command: "-".join(command)[:40],
)
def test_it_is_green_where_the_page_answers(web: None, command: tuple[str, ...]) -> None:
    kubectl(*command)
    said = doit_soon(0)
    assert "answers" in said or "accepts connections" in said or "up to date" in said, said


# Red: it cannot


@pytest.mark.parametrize(
    ("commands", "parts"),
    [
        ([("scale", WEB, "--replicas=0")], ["scaled to 0 replicas", "kubectl scale deployment web --replicas=1"]),
        long(
            [("cordon", "e2e"), ("delete", "pod", "-l", "app=web", "--grace-period=1")],
            ["unschedulable", "uncordon e2e"],
        ),
        ([("taint", "node", "e2e", "mine=1:NoExecute")], ["has the taint mine", "taint node e2e mine-"]),
        (
            [("patch", "service", "web", "-p", '{"spec":{"ports":[{"port":80,"targetPort":81}]}}')],
            ["nothing in the Pod listens on port 81", "kubectl edit service web"],
        ),
        long(
            [("patch", "service", "web", "-p", '{"spec":{"ports":[{"port":80,"targetPort":"http"}]}}')],
            ["no container has a port of this name"],
        ),
        long([("set", "selector", "service", "web", "app=other")], ["its selector is app=other"]),
        (
            [
                ("patch", WEB, "-p", '{"spec":{"strategy":{"type":"Recreate","rollingUpdate":null}}}'),
                ("set", "image", WEB, "nginx=nosuch"),
            ],
            ["nosuch", "kubectl set image deployment/web nginx=nginx"],
        ),
        (
            [
                ("patch", WEB, "-p", '{"spec":{"strategy":{"type":"Recreate","rollingUpdate":null}}}'),
                (
                    "patch",
                    WEB,
                    "-p",
                    '{"spec":{"template":{"spec":{"containers":[{"name":"nginx","command":["sh","-c","exit 3"]}]}}}}',
                ),
            ],
            ["CrashLoopBackOff: nginx ended with exit code 3", "kubectl logs"],
        ),
        long(
            [
                ("patch", WEB, "-p", '{"spec":{"strategy":{"type":"Recreate","rollingUpdate":null}}}'),
                ("patch", WEB, "-p", '{"spec":{"template":{"spec":{"nodeSelector":{"disk":"ssd"}}}}}'),
            ],
            ["has no node, says the scheduler", "kubectl describe pod"],
        ),
    ],
    ids=[
        "replicas-0",
        "cordon",
        "taint",
        "target-port",
        "named-port",
        "selector",
        "image",
        "crash",
        "selector-of-nodes",
    ],
)
def test_it_is_red_where_only_the_user_can_help(web: None, commands: list[tuple[str, ...]], parts: list[str]) -> None:
    for command in commands:
        kubectl(*command)
    # The page of the Pod that is on its way out answers for a moment, and a container that has ended is started again.
    deadline = time.monotonic() + 60
    while "next: " not in (said := doit("why", status=None).stdout) or not all(
        p in " ".join(said.split()) for p in parts
    ):
        assert time.monotonic() < deadline, said
        time.sleep(1)
    is_red_with_what_why_says(*parts)


# kube-proxy's rules


FLUSHES = [
    "iptables -t nat -F",
    "for table in nat filter mangle raw; do iptables -t $table -F; iptables -t $table -X; done",
    "iptables -t nat -F OUTPUT",
    "iptables -t nat -S | sed -n 's/^-N \\(KUBE-SVC-.*\\)/-F \\1/p' | while read a b; do iptables -t nat $a $b; done",
    "iptables -t nat -D KUBE-SERVICES 1; iptables -t nat -D KUBE-SERVICES 1",
]


@pytest.mark.parametrize("flush", [FLUSHES[0], *map(long, FLUSHES[1:-1]), FLUSHES[-1]], ids=range(len(FLUSHES)))
def test_rules_that_are_gone_come_back(web: None, flush: str) -> None:
    doit("shell", "--", "sh", "-c", flush)
    why = eventually_why("cause: kube_proxy: ")  # at first it may have been started just now
    assert why.endswith("\nnext: scripts/doit kube_proxy\n"), why
    assert "kube_proxy" in doit("trace", "web", status=None).stderr or "OUTPUT" in flush or "-D" in flush
    began = time.monotonic()
    done = doit("service_reachable")
    assert time.monotonic() - began < 2 * SOON and "kube_proxy" in executed(done), done.stdout
    assert "100 answered" in doit("trace", "web").stdout
    assert doit("why").stdout.endswith("Everything works.\n")
    assert not executed(doit("service_reachable")), "the next has nothing to do"


# why


def test_why_covers_every_pod_and_follows_what_is_named(web: None) -> None:
    kubectl("create", "namespace", "apart")
    try:
        kubectl("run", "alone", "-n", "apart", "--image=nosuch")
        kubectl("run", "ends", "--image=nginx", "--", "sh", "-c", "echo Error: it is broken; echo more; exit 3")
        text = eventually_why("apart/alone: ", "default/ends: CrashLoopBackOff")
        assert re.search(r"ErrImagePull|ImagePullBackOff", text), text
        assert "next: scripts/doit why " in text and "pod/" in text, text
        assert re.search(r"(ErrImage|ImagePull)\w+", doit("why", "apart/pod/alone", status=1).stdout)
        assert re.search(r"(ErrImage|ImagePull)\w+", doit("status", status=None).stdout)
        text = doit("why", "pod/ends", status=1).stdout
        assert "ended with exit code 3; its log says: Error: it is broken" in " ".join(text.split()), text
        assert doit("why", "svc/web").stdout.endswith("Everything works.\n")
        assert doit("why", "deploy/web").stdout.endswith("Everything works.\n")
        assert "default/kubernetes" in doit("why", "svc/kubernetes").stdout
        kubectl("scale", WEB, "--replicas=0")
        assert "scaled to 0" in eventually_why("scaled to 0", arguments=("svc/web",))
        kubectl("scale", WEB, "--replicas=1")
        for name in ("pod/nosuch", "svc/nosuch", "deploy/nosuch", "nowhere/pod/ends", "a/b/c/d"):
            said = doit("why", name, status=3).stderr
            assert "Name it as" in said, said
        assert "Pods: " in doit("why", "pod/nosuch", status=3).stderr
    finally:
        attempt("delete", "pod", "ends", "--grace-period=0", "--force")
        kubectl("delete", "namespace", "apart")


def eventually_why(*parts: str, arguments: tuple[str, ...] = ()) -> str:
    deadline = time.monotonic() + 60
    while True:
        text = doit("why", *arguments, status=None).stdout
        if all(part in " ".join(text.split()) for part in parts):
            return text
        assert time.monotonic() < deadline, text
        time.sleep(0.5)


def test_a_programs_own_error_comes_first(web: None, tmp_path: Path) -> None:
    program = tmp_path / "kube-scheduler"
    program.write_text(
        '#!/bin/sh\n[ "$1" = --version ] && echo Kubernetes v1.20.2 && exit\n'
        "echo Error: unknown flag: --nosuch; for i in $(seq 200); do echo usage $i; done; exit 1\n"
    )
    program.chmod(0o755)
    done = doit(f"kube_scheduler_bin={program}", "scheduler", status=1)
    said = (done.stdout + done.stderr).splitlines()
    shown = [line.strip() for line in said]
    assert shown.index("error: Error: unknown flag: --nosuch") < shown.index("usage 200"), said
    doit("kube_scheduler_bin=", "scheduler")
