"""The real thing: real etcd, Kubernetes, Docker and nginx on a machine of its own, on a host of its own (own_host)."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import pytest
from tenacity import retry, stop_after_delay, wait_fixed

from tests.e2e import host_picture, newer, own_host

T = TypeVar("T")

ROOT = own_host.ROOT
STATE = ROOT / "var" / "e2e"
KUBECONFIG = STATE / "kubeconfig"

# A machine and ranges that are not the default ones: a dmuc1 that runs on the real host is left alone. Nothing is
# looked for outside: what is missing comes from Debian's packages.
ENVIRONMENT = {
    "DMUC_OBTAIN": "debian",
    "DMUC_KUBERNETES": "1.20",
    "DMUC_REGISTRY": "local",
    **os.environ,
    "DMUC_MACHINE": "e2e",
    "DMUC_LINK_RANGE": "10.98.0.0/30",
    "DMUC_SERVICE_RANGE": "10.99.0.0/16",
    "DMUC_POD_RANGE": "10.245.0.0/24",
}

if os.geteuid() != 0:
    pytest.skip("the end-to-end tests power on a machine, which takes root", allow_module_level=True)


def doit(
    *arguments: str,
    status: int | None = 0,
    timeout: float = 300,
    checkout: Path = ROOT,
    script: Path | None = None,
    prefix: Sequence[str | Path] = (),
    environment: Mapping[str, str] | None = None,
    cwd: Path | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run scripts/doit as a user would; whatever happens, no traceback is shown.

    `script` is the path by which it is called, `prefix` a command that runs it, `environment` all of it.
    """
    done = subprocess.run(
        [*prefix, script or checkout / "scripts" / "doit", *arguments],
        env=ENVIRONMENT if environment is None else environment,
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        timeout=timeout,
        check=False,
    )
    # The errors first: what CI shows of a long output is its head.
    said = f"doit {' '.join(arguments)}: status {done.returncode}\n{done.stderr}\n{done.stdout}"
    assert "Traceback" not in done.stdout + done.stderr, said
    assert status is None or done.returncode == status, said
    return done


def executed(done: subprocess.CompletedProcess[str]) -> set[str]:
    """The tasks that did something in this run."""
    lines = [line.split() for line in done.stdout.splitlines()]
    return {words[1] for words in lines if len(words) > 2 and words[0] in {"✓", "✗"}}


@dataclass(frozen=True)
class User:
    """A user who is not root, with a checkout and a home directory."""

    uid: int
    checkout: Path

    def run(self, *command: str | Path, status: int = 0) -> subprocess.CompletedProcess[str]:
        """Run a command in the checkout."""
        # To read what is root's own here (the virtual environment, the cache), and nothing else.
        may = "-all,+dac_read_search"
        prefix = ["setpriv", f"--reuid={self.uid}", f"--regid={self.uid}", "--clear-groups"]
        prefix += [f"--bounding-set={may}", f"--inh-caps={may}", f"--ambient-caps={may}"]
        environment = {
            **{key: value for key, value in ENVIRONMENT.items() if not key.startswith("DMUC_") or key == "DMUC_OBTAIN"},
            "DMUC_REGISTRY": "local",
            "DMUC_CACHE": ENVIRONMENT.get("DMUC_CACHE", str(Path.home() / ".cache" / "dmuc")),
            "HOME": str(self.checkout),
        }
        done = subprocess.run(
            [*prefix, *command],
            env=environment,
            cwd=self.checkout,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert "Traceback" not in done.stdout + done.stderr, done
        assert done.returncode == status, done
        return done

    def doit(self, *arguments: str, status: int = 0) -> subprocess.CompletedProcess[str]:
        """Run scripts/doit."""
        return self.run(self.checkout / "scripts" / "doit", *arguments, status=status)


def make_checkout(checkout: Path) -> None:
    """Make this directory a checkout, with the virtual environment of this one."""
    checkout.mkdir(exist_ok=True)
    for name in ("dodo.py", "pyproject.toml", "tasks", "scripts", "requirements.lock"):
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, checkout / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy2(source, checkout / name)
    (checkout / ".venv").symlink_to(ROOT / ".venv")


def a_user(checkout: Path, uid: int) -> User:
    """Make this directory a checkout, in which only the virtual environment is another user's."""
    make_checkout(checkout)
    for path in (checkout, *checkout.rglob("*")):
        os.chown(path, uid, uid, follow_symlinks=False)
    return User(uid, checkout)


@pytest.fixture
def user(tmp_path: Path) -> User:
    """The ordinary user of these tests: `nobody`, from /etc/passwd."""
    return a_user(tmp_path / "checkout", 65534)


def within(seconds: float) -> Callable[[Callable[[], T]], Callable[[], T]]:
    """Repeat a function of assertions until they hold, or fail with the last of them."""
    return retry(stop=stop_after_delay(seconds), wait=wait_fixed(0.3), reraise=True)


def shell(*command: str) -> str:
    """Run a command in the machine; return its output."""
    return str(doit("shell", "--", *command).stdout)


def kubectl(*arguments: str) -> str:
    """Run the kubectl that was chosen, on the host."""
    command: list[str | Path] = [STATE / "bin" / "kubectl", "--kubeconfig", KUBECONFIG, *arguments]
    done = subprocess.run(
        command,
        env={**os.environ, "HOME": str(STATE / "home")},  # it keeps a cache there
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return str(done.stdout)


def pid_of(component: str, state: Path = STATE) -> int:
    """The pid in the component's file."""
    return int((state / "run" / f"{component}.pid").read_text().splitlines()[0])


def command_line(component: str) -> list[str]:
    """The command line of the component, as the kernel has it."""
    words = Path(f"/proc/{pid_of(component)}/cmdline").read_text().split("\0")[:-1]
    return [Path(words[0]).name, *words[1:]]


def take() -> host_picture.Picture:
    """The picture of this host, without the test run's own traces."""
    return host_picture.take(
        roots=[*own_host.EMPTY, own_host.VAR],
        layers=own_host.LAYERS,
        # The checkout, perhaps below /tmp, is a layer; the cache is kept.
        ignore_files=[own_host.OWN, own_host.CACHE, ROOT, ROOT / ".pytest_cache", Path("/tmp/pytest-of-root")],
    )


def prepare(*, long: bool) -> None:
    """On the real host, have everything that is obtained once: Debian's packages, programs and images in the cache.

    `long`: also what only the tests marked `long` need.
    """
    machine = f"machine=e2e-{os.getpid()}"  # never powered on, and another one in another run of the tests
    try:
        # Building Kubernetes takes minutes, once for each machine that the tests run on.
        doit(machine, "binaries", "image_content", timeout=3600)
        doit(machine, "engine=containerd", "binaries", timeout=600)
        if long:
            newer.prepare(own_host.CACHE)
        for name in ("toolbox", "redis", "httpd"):
            doit(machine, "image", name, timeout=600)
    finally:
        doit(machine, "clean")


@pytest.fixture(scope="session")
def prepared() -> Iterator[None]:
    """This host has nothing of a cluster, and everything that is obtained once."""
    assert own_host.is_here(), "These tests take a host of their own. Run: scripts/test e2e [ARGUMENT OF PYTEST ...]"
    yield
    doit("clean")


@pytest.fixture(scope="session")
def before(prepared: None) -> host_picture.Picture:
    """The picture of the host before anything ran."""
    return take()


@contextmanager
def nothing_left() -> Iterator[None]:
    """Begin without a cluster; at the end remove it, and compare this host with what it was at the beginning."""
    doit("clean")
    picture = take()
    yield
    doit("clean")
    changes = host_picture.difference_settled(picture, take, deadline=10)
    assert not changes, changes


@pytest.fixture
def cluster(before: host_picture.Picture) -> None:
    """The whole cluster is up."""
    doit("service_reachable")
