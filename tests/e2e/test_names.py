"""Names that a program could take for a word of its own: a keyword, an option, an abbreviation, a value of YAML."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from tests.e2e import host_picture
from tests.e2e.conftest import doit, kubectl, take

RANGES = ("link_range=10.98.4.0/30", "service_range=10.94.0.0/16", "pod_range=10.246.0.0/24")


def links() -> set[str]:
    return {path.name for path in Path("/sys/class/net").iterdir()}


@pytest.mark.parametrize(
    "name",
    [
        *("tx", "up", "down", "dev", "type", "name", "address", "via", "a", "no", "docker0", "peer", "txqueuelen"),
        *("on", "y", "null", "run", "list", "clean", "etcd", "n-1", "netns", "kube-ipvs0"),
    ],
)
def test_a_machine_may_be_called_what_ip_has_a_word_for(before: host_picture.Picture, name: str) -> None:
    there, picture = links(), take()
    try:
        doit(f"machine={name}", *RANGES, "machine")
        assert links() - there == {name}
        assert "· machine" in doit(f"machine={name}", *RANGES, "machine").stdout
        assert doit(f"machine={name}", *RANGES, "shell", "--", "hostname").stdout == f"{name}\n"
    finally:
        doit(f"machine={name}", *RANGES, "clean")
    changes = host_picture.difference_settled(picture, take, deadline=10)
    assert not changes, changes


@pytest.mark.parametrize(
    "name", ["all", "default", "lo", "localhost", "-a", "a-", "a_b", "A", "0", "a" * 14, "*", "a b", "é"]
)
def test_what_cannot_be_a_name_is_said_in_a_few_lines(before: host_picture.Picture, name: str) -> None:
    done = doit(f"machine={name}", *RANGES, "machine", status=None)
    assert done.returncode not in (0, None)
    lines = done.stderr.strip().splitlines()
    assert len(lines) <= 3 and f"machine={name}" in done.stderr


def test_a_link_of_the_host_by_that_name_stays(before: host_picture.Picture) -> None:
    subprocess.run(["ip", "link", "add", "name", "via", "type", "bridge"], check=True)
    try:
        done = doit("machine=via", *RANGES, "machine", status=1)
        assert "a network link called via" in done.stderr
        doit("machine=via", *RANGES, "clean")
        assert "via" in links()
    finally:
        subprocess.run(["ip", "link", "delete", "dev", "via"], check=True)


@pytest.mark.parametrize(("user", "namespace"), [("get", "all"), ("true", "123"), ("admin", "no"), ("null", "default")])
def test_users_and_namespaces_may_be_called_so_too(cluster: None, user: str, namespace: str) -> None:
    doit("user", f"name={user}", f"namespace={namespace}")
    told = json.loads(kubectl("get", "rolebinding", f"edit-{user}", "-n", namespace, "-o", "json"))
    assert told["subjects"][0]["name"] == user
