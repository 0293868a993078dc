"""Run a command on a second kernel: user-mode Linux (a Linux kernel as a program), with this host's files as its root.

    python -m tests.uml.boot [COMMAND ARGUMENT ...]

The host is one of its own (tests/e2e/own_host.py), because what is written there is written to these files. The kernel
has cgroup v2 alone, IPVS, every capability, iptables-legacy only, one processor, and no network but its own. The
checkout's var/ is an ext4 disk, because the kernel cannot use the host's files as an upper layer of overlayfs.

The output of the command is on standard output; the messages of the kernel are left out. The exit status is the
command's, or 124 when it has not ended in time.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[2]
KERNEL = "linux.uml"
PACKAGES = ("user-mode-linux", "kmod", "e2fsprogs", "ipset")  # ipset: dmuc would install it, but there is no network
_DEADLINE = 2700.0  # seconds; 900 were measured, and a machine can be half as fast
_DISK = 8 << 30  # bytes; a sparse file
_MODULES = Path("/usr/lib/uml/modules")

# What an init does, in short. The kernel's own console is not used: a serial line on files of the host takes its place.
_INIT = """#!/bin/sh
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root TERM=dumb COLUMNS=160 LANG=C.UTF-8
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t tmpfs -o mode=755 tmpfs /run
case ROOT/ in /tmp/*) ;; *) mount -t tmpfs -o mode=1777 tmpfs /tmp ;; esac
mount -t devtmpfs devtmpfs /dev 2> /dev/null
mkdir -p /dev/pts /dev/shm /run/lock
mount -t devpts -o ptmxmode=666 devpts /dev/pts
mount -t tmpfs -o mode=1777 tmpfs /dev/shm
mount -t cgroup2 cgroup2 /sys/fs/cgroup
# What the kernel starts and adds by itself with these modules is there before the first picture of this host.
modprobe -a ipv6 iptable_nat iptable_filter iptable_mangle ip6table_nat 2> /dev/null
iptables-legacy -t nat -S > /dev/null; ip6tables-legacy -t nat -S > /dev/null 2>&1
ip link set dev lo up
hostname uml
# The kubelet does not start without a line "cpu MHz", which this kernel does not write.
{ cat /proc/cpuinfo; echo "cpu MHz : 2000.000"; } > /run/cpuinfo
mount --bind /run/cpuinfo /proc/cpuinfo
[ -e /dev/ubda ] || mknod /dev/ubda b 98 0
mount -t ext4 /dev/ubda VAR || poweroff -f
cd ROOT
"""


def prepare() -> None:
    """Have the kernel and what it needs installed, or fail with the reason."""
    if all(map(shutil.which, (KERNEL, "mkfs.ext4", "modprobe", "ipset"))):
        return
    command = ["apt-get", "install", "-y", "--no-install-recommends", *PACKAGES]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", errors="replace", check=False)
    if done.returncode:
        sys.exit(f"user-mode Linux cannot be installed: {shlex.join(command)}\n{done.stdout}{done.stderr}")


def boot(command: Sequence[str], *, deadline: float = _DEADLINE, memory: str = "4G") -> int:
    """Run the command, in the checkout, on the other kernel; return its exit status."""
    with tempfile.TemporaryDirectory(prefix="dmuc-uml-", dir="/var/tmp") as name:
        directory = Path(name)
        disk, init, said, status = (directory / part for part in ("disk", "init", "said", "status"))
        with disk.open("wb") as file:
            file.truncate(_DISK)
        subprocess.run(["mkfs.ext4", "-q", "-F", disk], check=True)
        (ROOT / "var").mkdir(exist_ok=True)
        words = f"{shlex.join(command)} > {said} 2>&1 < /dev/null; echo $? > {status}; sync; poweroff -f\n"
        init.write_text(_INIT.replace("VAR", str(ROOT / "var")).replace("ROOT", str(ROOT)) + words, "utf-8")
        init.chmod(0o755)
        release = next(_MODULES.iterdir())
        place = Path("/usr/lib/modules") / release.name
        if not place.exists():
            place.parent.mkdir(exist_ok=True)
            place.symlink_to(release)
        said.touch()
        memory_in = directory / "memory"
        memory_in.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8G", "tmpfs", memory_in], check=True)
        arguments = [f"mem={memory}", "rootfstype=hostfs", "rootflags=/", "rw", f"init={init}", f"ubd0={disk}"]
        arguments += ["con=null", "con0=null,fd:1", "con1=null", "quiet"]
        try:
            with (directory / "console").open("wb") as console:
                kernel = subprocess.Popen(
                    [KERNEL, *arguments],
                    stdin=subprocess.DEVNULL,
                    stdout=console,
                    stderr=console,
                    env={**os.environ, "TMPDIR": str(memory_in)},
                    start_new_session=True,
                )
                over = _follow(kernel, said, time.monotonic() + deadline)
            if not status.exists() or not status.read_text().strip():
                print((directory / "console").read_text("utf-8", "replace")[-3000:])
                print(f"{KERNEL} {'did not end in time' if over else 'has ended'} before the command has")
                return 124
            return int(status.read_text())
        finally:
            subprocess.run(["umount", "-l", memory_in], check=True)


def _follow(kernel: subprocess.Popen[bytes], said: Path, end: float) -> bool:
    """Print what the command says until the kernel has ended; return whether it had to be ended."""
    over = False
    with said.open("rb") as lines:
        ended = False
        while not ended:
            ended = kernel.poll() is not None
            sys.stdout.write(re.sub("\r", "", lines.read().decode("utf-8", "replace")))
            sys.stdout.flush()
            if not ended and time.monotonic() > end:
                over = True
                os.killpg(kernel.pid, 9)
            time.sleep(0.2)
    return over


def main() -> int:
    """Boot, on a host of its own, the command of the arguments; without arguments, the tests."""
    from tests.e2e import own_host

    if own_host.is_here():
        return boot(sys.argv[1:])
    prepare()
    tests = [sys.executable, "-m", "pytest", "tests/uml", "-q", "-x", "-p", "no:cacheprovider"]
    return own_host.run([sys.executable, "-m", "tests.uml.boot", *(sys.argv[1:] or tests)])


if __name__ == "__main__":
    sys.exit(main())
