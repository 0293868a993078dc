"""On a host of its own, a test sees what itself leaves there and nothing of what other programs do on the real one."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import NamedTemporaryFile

import pytest

from tasks.core import cgroups
from tests.e2e import own_host
from tests.unit.private_host import needs_iptables
from tests.unit.support import CHECKOUT

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="a host of its own takes root")

# Takes a picture, and after each command on its input prints how the host differs from it.
WATCH = """
import subprocess, sys
from tests.e2e import own_host
from tests.e2e.conftest import take
from tests.e2e.host_picture import difference
before = take()
print("ready", flush=True)
for line in sys.stdin:
    subprocess.run(["sh", "-ec", line], stdin=subprocess.DEVNULL, check=True)
    print(difference(before, take()), "end", sep="\\n", flush=True)
"""
IN_EACH = "for group in /sys/fs/cgroup/*; do mkdir $group/{}; done"
RUN = "import sys; from tests.e2e import own_host; sys.exit(own_host.run(sys.argv[1:]))"


class OwnHost:
    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process

    def line(self) -> str:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, "the command on the own host failed, see the error output"
        return line

    def after(self, command: str) -> str:
        """How the host differs, after this command in it, from how it was at first."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{command}\n")
        self.process.stdin.flush()
        return "".join(iter(self.line, "end\n")).strip()


def started(*command: str) -> subprocess.Popen[str]:
    pipe = subprocess.PIPE
    return subprocess.Popen([sys.executable, "-c", RUN, *command], cwd=CHECKOUT, stdin=pipe, stdout=pipe, text=True)


@contextmanager
def an_own_host() -> Iterator[OwnHost]:
    with started(sys.executable, "-c", WATCH) as process:
        host = OwnHost(process)
        assert host.line() == "ready\n"
        yield host
        assert process.stdin is not None
        process.stdin.close()
        assert process.wait(20) == 0


@pytest.fixture(scope="module")
def own() -> Iterator[OwnHost]:
    """One on which every test leaves what it found."""
    with an_own_host() as host:
        yield host


@contextmanager
def another_program_at_work() -> Iterator[None]:
    """Files, a process, a link, a cgroup, sockets that are new on the real host."""
    with ExitStack() as stack:
        for directory in ("/tmp", "/var/tmp", "/run", "/dev/shm", "/etc", Path.home(), own_host.VAR, CHECKOUT):
            stack.enter_context(NamedTemporaryFile(dir=directory, prefix="another-program-"))
        stack.enter_context(process := subprocess.Popen(["sleep", "600"]))
        stack.callback(process.kill)
        subprocess.run(["ip", "link", "add", "anotherone0", "type", "veth", "peer", "anotherone1"], check=True)
        stack.callback(subprocess.run, ["ip", "link", "delete", "anotherone0"], check=True)
        group = cgroups.mounted()[0].mount_point / "another-program"
        group.mkdir()
        stack.callback(group.rmdir)
        tcp = stack.enter_context(socket.create_server(("", 0)))
        assert tcp
        unix = stack.enter_context(socket.socket(socket.AF_UNIX))
        unix.bind("\0another-program")
        unix.listen()
        yield


def test_another_program_of_the_real_host_is_not_seen(own: OwnHost) -> None:
    with another_program_at_work():
        assert own.after("true") == ""
    assert own.after("true") == ""


@needs_iptables
def test_whatever_is_left_is_seen() -> None:
    left = {
        "+ /run/left ": "echo > /run/left",
        "+ /tmp/left ": "echo > /tmp/left",
        "+ /var/tmp/left ": "mkdir /var/tmp/left",
        "+ /dev/shm/left ": "echo > /dev/shm/left",
        "+ /etc/left ": "echo > /etc/left",
        "+ /etc/passwd ": "chmod 600 /etc/passwd",
        "+ /etc/hostname is gone": "rm /etc/hostname",
        "+ /etc/apt is gone, and another one there": "rm -r /etc/apt; mkdir /etc/apt",
        "+ /var/lib/left ": "mkdir -p /var/lib/left/below",
        f"+ {Path.home()}/left lrwx": f"ln -s / {Path.home()}/left",
        f"+ {CHECKOUT}/var/left ": "mkdir var/left",
        f"+ {CHECKOUT}/left ": "echo > left",
        "+ sleep: sleep 600 ": "sleep 600 > /dev/null &",
        "+ /mnt tmpfs left ": "mount -t tmpfs left /mnt",
        "+ lo family inet local 198.51.100.1 prefixlen 32 ": "ip address add 198.51.100.1/32 dev lo",
        "IPv6 32765:\tfrom 2001:db8::1 lookup 77": "ip -6 rule add from 2001:db8::1 lookup 77",
        "+ net:[": "unshare --net sleep 600 > /dev/null &",
        "+ left0 veth ": "ip link add left0 type veth peer left1",
        "IPv4 203.0.113.0/24 dev lo ": "ip route add 203.0.113.0/24 dev lo",
        ":left -": "iptables -N left",
        "+ net/ipv4/ip_forward = 1": "echo 1 > /proc/sys/net/ipv4/ip_forward",
        "+ named /run/netns/left": "ip netns add left",
        f"+ {cgroups.mounted()[0].mount_point}/left": f"mkdir {cgroups.mounted()[0].mount_point}/left",
        "+ left\n": "hostname left",
    }
    with an_own_host() as own:
        seen = own.after("; ".join(command.replace(" &", " & true") for command in left.values())) + "\n"
    assert [line for line in left if line not in seen] == [], seen


def test_what_was_written_and_is_as_before_is_no_trace(own: OwnHost) -> None:
    there = "echo > /etc/left; mkdir /var/lib/left; chmod 600 /etc/passwd"
    back = "rm -r /etc/left /var/lib/left; chmod 644 /etc/passwd"
    assert own.after(f"{there}; {back}") == ""


def left_of(process: subprocess.Popen[str]) -> list[Path]:
    """What the real host has of it."""
    groups = [path for hierarchy in cgroups.mounted() for path in [hierarchy.group(f"tests-{process.pid}")]]
    return [path for path in (*groups, *own_host.VAR.glob(f"own-host-{process.pid}-*")) if path.exists()]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_nothing_is_left_of_one_that_is_ended(number: signal.Signals) -> None:
    with started("sh", "-c", f"sleep 4343 & {IN_EACH.format('below')}; echo up; sleep 4343") as process:
        assert process.stdout is not None and process.stdout.readline() == "up\n"
        assert left_of(process)
        process.send_signal(number)
        assert process.wait(20) == 128 + number
    assert left_of(process) == []
    assert subprocess.run(["pgrep", "-f", "sleep 434[3]"], check=False).returncode == 1


def test_the_next_run_removes_what_a_killed_one_has_left() -> None:
    with started("sh", "-c", f"sleep 4545 & {IN_EACH.format('below')}; echo up; sleep 4545") as killed:
        assert killed.stdout is not None and killed.stdout.readline() == "up\n"
        killed.kill()
    assert left_of(killed)
    with started("true") as following:
        assert following.wait(20) == 0
    assert left_of(killed) == left_of(following) == []
    assert subprocess.run(["pgrep", "-f", "sleep 454[5]"], check=False).returncode == 1


def test_the_status_is_that_of_the_command() -> None:
    with started("sh", "-c", "exit 7") as process:
        assert process.wait(20) == 7
    assert left_of(process) == []


def test_two_at_once(own: OwnHost) -> None:
    make = f"ip link add twin type veth peer twin1; {IN_EACH.format('twin')}; echo up; cat"
    with started("sh", "-c", make) as other:
        assert other.stdin is not None and other.stdout is not None and other.stdout.readline() == "up\n"
        assert own.after("ip link add twin type veth peer twin1; ip link delete twin") == ""
        other.stdin.close()
        assert other.wait(20) == 0
