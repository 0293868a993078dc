"""The main job on another release of Debian, with its packages alone: `python -m tests.hosts.debian trixie`.

`python -m tests.hosts.debian here` does the same on this host, on a host of its own (tests/e2e/own_host.py).

The release is installed by debootstrap below var/, and becomes the root file system of a host of its own (mount, PID,
network, IPC and UTS namespaces, pivot_root). The checkout is copied there; the programs come from that release's
packages, and what of Kubernetes is built comes from the cache of this host if it is there. Debian's archive is reached
as on this host, whose network the installation uses; the cluster itself has a network of its own.

At the end a record of seconds and results is written to the cache, from which scripts/hosts-table makes the table in
docs/hosts.md.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tasks.core.debian import mirror
from tasks.core.settings import Settings

ROOT = Path(__file__).parents[2]
CACHE = Path(os.environ.get("DMUC_CACHE") or Settings().cache)
RECORDS = CACHE / "results"
_PACKAGES = "python3,python3-venv,ca-certificates,iproute2,iptables,procps,kmod"
_DEADLINE = 2400.0  # seconds for everything in there

# Becomes the other system: its root, with this one's kernel file systems; then runs the job.
_ENTER = """
mount --make-rprivate /
mount --bind "$1" "$1"
cd "$1"
mount -t proc proc proc
mount --rbind /sys sys
mount --rbind /dev dev
mount -t tmpfs -o mode=755 tmpfs run
mount --bind "$2" root/.cache/dmuc
cp /etc/resolv.conf etc/resolv.conf
mkdir -p old
pivot_root . old
umount -l old
export HOME=/root PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin LANG=C.UTF-8 TERM=dumb
cd /srv/dmuc
exec sh -eu /srv/job
"""

# Each job is a line `job NAME COMMAND`; the record has its seconds and its result.
_JOB = """
export DMUC_MACHINE=other DMUC_LINK_RANGE=10.88.0.0/30 DMUC_SERVICE_RANGE=10.89.0.0/16 DMUC_POD_RANGE=10.90.0.0/24
export DMUC_KUBERNETES=1.20 DMUC_OBTAIN=debian DMUC_REGISTRY=local
job() {
  name=$1 begin=$(date +%s) result=passed
  shift
  echo "== $name: $*"
  "$@" || result=failed
  echo "$name|$(($(date +%s) - begin))|$result" >> /srv/results
  [ $result = passed ]
}
serves() { scripts/doit "$@" | tee /srv/said; grep -q "answers: Welcome to nginx!" /srv/said; }
healed() { pkill -KILL -x kube-scheduler; serves; }
back() { scripts/doit down; serves service_reachable; }
job "virtual environment" scripts/doit list
job preflight scripts/doit preflight
job "main job" serves service_reachable
job healing healed
job "down and back" back
job clean scripts/doit clean
[ ! -e var ] && ! ip link show dev other > /dev/null 2>&1
"""


def _run(*command: str | Path, timeout: float = 900.0) -> None:
    subprocess.run(command, check=True, timeout=timeout)


def install(suite: str, into: Path) -> None:
    """Install a small system of this release of Debian, with apt configured as on this host."""
    if not shutil.which("debootstrap"):
        _run("apt-get", "install", "-y", "-q", "--no-install-recommends", "debootstrap")
    _run("debootstrap", "--variant=minbase", f"--include={_PACKAGES}", suite, into, mirror())
    (into / "etc/apt/sources.list").write_text(f"deb {mirror()} {suite} main\n", "utf-8")
    for name in ("apt.conf.d", "auth.conf.d"):
        for file in Path("/etc/apt", name).glob("*"):
            if file.name.startswith("99"):  # how this host reaches its registries
                shutil.copy2(file, into / "etc/apt" / name)
    if (settings := Path("/etc/pip.conf")).exists():
        shutil.copy2(settings, into / "etc")
    bundle = Path("etc/ssl/certs/ca-certificates.crt")  # with the CA of a proxy that this host may be behind
    if Path("/", bundle).exists():
        shutil.copyfile(Path("/", bundle), into / bundle)


def checkout(into: Path) -> None:
    """Copy what git knows of this checkout."""
    names = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout.split(b"\0")
    for name in filter(None, map(os.fsdecode, names)):
        if (ROOT / name).is_file():
            (into / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, into / name)


def record(name: str, os_release: str, results: str) -> None:
    """Write the record of the host `name`, with the lines of its results, and print it."""
    about = dict(line.split("=", 1) for line in os_release.splitlines() if "=" in line)
    jobs = {}
    for line in results.splitlines():
        job, seconds, result = line.split("|")
        jobs[job] = {"seconds": int(seconds), "result": result}
    where = f"{shlex.split(about['PRETTY_NAME'])[0]}, Linux {os.uname().release.split('-')[0]}, cgroup v1"
    text = json.dumps({"host": where, "jobs": jobs}, indent=1)
    RECORDS.mkdir(exist_ok=True)
    (RECORDS / f"{name}.json").write_text(f"{text}\n", "utf-8")
    print(text)


def here() -> int:
    """Run the job on a host of its own, made of this one; return 0 when all of it passed."""
    from tests.e2e import own_host

    results = RECORDS / ".here"
    RECORDS.mkdir(parents=True, exist_ok=True)
    results.unlink(missing_ok=True)
    script = _JOB.replace("/srv/results", str(results)).replace("/srv/said", "/tmp/said")
    status = own_host.run(["sh", "-euc", script])
    record("here", Path("/etc/os-release").read_text("utf-8"), results.read_text("utf-8") if results.exists() else "")
    results.unlink(missing_ok=True)
    return status


def main(suite: str) -> int:
    """Install, run the job, write the record; return 0 when all of it passed."""
    if os.geteuid() != 0:
        sys.exit("this takes root")
    if suite == "here":
        return here()
    (ROOT / "var").mkdir(exist_ok=True)
    CACHE.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f"{suite}-", dir=ROOT / "var") as name:
        system = Path(name, "root")
        begin = time.monotonic()
        install(suite, system)
        print(f"installed in {time.monotonic() - begin:.0f} s", flush=True)
        checkout(system / "srv/dmuc")
        (system / "root/.cache/dmuc").mkdir(parents=True)
        (system / "srv/job").write_text(_JOB, "utf-8")
        unshare = ["unshare", "--mount", "--uts", "--ipc", "--pid", "--fork", "--kill-child"]
        inherited = [f"{key}={value}" for key, value in os.environ.items() if key.startswith(("PIP_", "SSL_"))]
        command = [*unshare, "env", "-i", *inherited, f"PATH={os.environ['PATH']}"]
        done = subprocess.run([*command, "sh", "-euc", _ENTER, "sh", system, CACHE], timeout=_DEADLINE, check=False)
        results = system / "srv/results"
        said = results.read_text("utf-8") if results.exists() else ""
        record(suite, (system / "etc/os-release").read_text("utf-8"), said)
    return done.returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
