"""What the caller's shell may have: proxies, a umask, limits, an encoding, our own programs on its PATH, sudo."""

from __future__ import annotations

import http.server
import json
import os
import re
import resource
import shutil
import signal
import socketserver
import subprocess
import threading
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import pytest

from tasks.image_files.recipes import registry_root
from tests.e2e import own_host
from tests.e2e.conftest import ENVIRONMENT, KUBECONFIG, STATE, doit, kubectl, nothing_left, pid_of
from tests.unit.support import eventually

DEAD = "http://127.0.0.1:9"
CACHE = own_host.CACHE


def having(**variables: str) -> dict[str, str]:
    return {**ENVIRONMENT, **variables}


@pytest.fixture(autouse=True)
def alone(prepared: None) -> Iterator[None]:
    with nothing_left():
        yield


# Proxies


@pytest.mark.parametrize(
    "names",
    [["HTTPS_PROXY"], ["https_proxy", "http_proxy"], ["ALL_PROXY"], ["HTTP_PROXY", "all_proxy", "FTP_PROXY"]],
    ids=str,
)
def test_a_cluster_does_not_use_the_callers_proxy(names: Sequence[str]) -> None:
    caller = having(**dict.fromkeys(names, DEAD), no_proxy="corp.example")
    assert "answers: Welcome to nginx!" in doit("service_reachable", environment=caller).stdout
    for words in (["status"], ["why"], ["user", "name=ada", "namespace=ada"], ["trace", "web"], ["list", "-s"]):
        doit(*words, environment=caller)
    told = doit("env", environment=caller).stdout
    script = 'eval "$1"; exec "$KUBEBUILDER_ASSETS/kubectl" --cache-dir="$2" get nodes'
    seen = subprocess.run(
        ["sh", "-euc", script, "sh", told, STATE / "home"], env=caller, capture_output=True, text=True, check=False
    )
    assert "Ready" in seen.stdout, seen.stderr
    assert re.search(r"^export NO_PROXY='?corp\.example,", told, re.MULTILINE)


def test_so_it_is_on_the_host_itself() -> None:
    for name in ("HTTPS_PROXY", "all_proxy"):
        caller = having(**{name: DEAD, "DMUC_MACHINE": "host.one"})
        try:
            doit("scheduler", "deployment", environment=caller)
            assert "default/web" in doit("why", environment=caller, status=None).stdout
        finally:
            doit("clean", environment=caller)


class _Proxy(http.server.BaseHTTPRequestHandler):
    """A proxy for plain HTTP; what it is asked for as registry.test comes from a registry on the loopback."""

    registry = ""
    asked: ClassVar[list[str]] = []

    def do_GET(self) -> None:
        type(self).asked.append(self.path)
        there = self.path.replace("http://registry.test", type(self).registry, 1)
        try:
            headers = {"Accept": ", ".join(self.headers.get_all("Accept", ["*/*"]))}  # Docker sends several
            request = urllib.request.Request(there, headers=headers, method=self.command)
            opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
            with opener.open(request, timeout=10) as answer:
                body = answer.read()
                self.send_response(answer.status)
                for name, value in answer.headers.items():
                    if name.lower() not in {"connection", "transfer-encoding"}:
                        self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body)
        except OSError:
            self.send_error(404)

    do_HEAD = do_GET

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def proxy(tmp_path: Path) -> Iterator[str]:
    """A proxy that alone leads to the registry http://registry.test, which has nginx and pause; its URL."""
    root = registry_root(CACHE)
    config = tmp_path / "config.yml"
    config.write_text(
        f"version: 0.1\nstorage: {{filesystem: {{rootdirectory: {root}}}}}\nhttp: {{addr: 127.0.0.1:5055, secret: x}}\n"
    )
    with subprocess.Popen(["docker-registry", "serve", config], stderr=subprocess.DEVNULL) as registry:
        _Proxy.registry, _Proxy.asked = "http://127.0.0.1:5055", []
        with socketserver.ThreadingTCPServer(("127.0.0.1", 0), _Proxy) as server:
            server.daemon_threads = True
            threading.Thread(target=server.serve_forever, daemon=True).start()
            yield f"http://127.0.0.1:{server.server_address[1]}"
            server.shutdown()
        registry.kill()


@pytest.mark.parametrize("name", ["http_proxy", "HTTP_PROXY"])
def test_a_registry_that_only_a_proxy_reaches_is_used_through_it(proxy: str, name: str) -> None:
    pulled = CACHE / "pulled"
    shutil.rmtree(pulled, ignore_errors=True)
    caller = having(**{name: proxy})
    done = doit("registry=http://registry.test", "service_reachable", environment=caller)
    assert "images from http://registry.test through a proxy" in done.stdout
    assert "answers: Welcome to nginx!" in done.stdout
    assert any("/library/nginx/" in path for path in _Proxy.asked)
    # Later runs need not have the proxy in their environment.
    assert "up to date" in doit("registry=http://registry.test", "pull_through").stdout


def test_a_registry_that_cannot_be_used_is_said_or_done_without(proxy: str) -> None:
    done = doit("registry=http://nowhere.test", "images", environment=having(http_proxy=DEAD), status=None)
    assert done.returncode == 1
    assert "pull_through" in done.stderr and "registry=local" in done.stderr and "doit shell" not in done.stderr
    done = doit("registry=auto", "images", environment=having(https_proxy=DEAD))
    assert "images are built from Debian's packages" in done.stdout


# Programs


def test_our_own_programs_first_on_path() -> None:
    doit("controller_manager")
    told = dict(re.findall(r"export (\w+)=(\S+)", doit("env").stdout))
    assets, pids = told["KUBEBUILDER_ASSETS"], {name: pid_of(name) for name in ("etcd", "apiserver")}
    links = {link.name: link.readlink() for link in Path(assets).iterdir()}
    twice = Path("/tmp/assets")
    twice.symlink_to(assets)
    try:
        for first in (assets, f"{assets}/", str(twice), f"{assets}:{twice}"):
            done = doit("controller_manager", "scheduler", environment=having(PATH=f"{first}:{os.environ['PATH']}"))
            assert "✓ etcd" not in done.stdout and "✓ apiserver" not in done.stdout
            assert links.items() <= {link.name: link.readlink() for link in Path(assets).iterdir()}.items()
            assert pids == {name: pid_of(name) for name in pids}
        done = doit(f"bin_dir={assets}", "scheduler")  # named, the links mean the programs
        assert all(link.readlink().parent != Path(assets) for link in Path(assets).iterdir())
        doit("bin_dir=", "scheduler")
    finally:
        twice.unlink()


# What a process inherits

PATHS = ["/nonexistent", "", "/usr/bin:/bin"]


def odd_process(mask: int) -> None:
    """Be a process with much that is odd: umask, priority, limits, signals."""
    os.umask(mask)
    os.nice(12)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, (10**6, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGCHLD, signal.SIGUSR1})
    for number in (signal.SIGHUP, signal.SIGQUIT, signal.SIGTERM, signal.SIGCHLD):
        signal.signal(number, signal.SIG_IGN)


ODD = (
    "import os, sys; sys.path.insert(0, {root!r}); from tests.e2e.test_caller import odd_process; odd_process({mask}); "
)
ODD += "os.execv(sys.argv[1], sys.argv[1:])"


@pytest.mark.parametrize("mask", [0o077, 0o777, 0o027])
def test_a_shell_with_an_odd_umask_and_more(mask: int) -> None:
    python = str(own_host.ROOT / ".venv" / "bin" / "python")
    prefix = [python, "-c", ODD.format(root=str(own_host.ROOT), mask=mask)]
    caller = having(PATH=PATHS[mask % 3], HOME="/nonexistent", TMPDIR="/nonexistent", LC_ALL="C", CDPATH="/")
    assert "answers: Welcome to nginx!" in doit("service_reachable", prefix=prefix, environment=caller).stdout
    assert doit("shell", "--", "stat", "-c", "%a", "/etc", "/etc/hosts", "/var/lib").stdout.split() == [
        "755",
        "644",
        "755",
    ]
    for daemon in ("kubelet", "etcd", "apiserver"):
        status = Path(f"/proc/{pid_of(daemon)}/status").read_text()
        assert "Umask:\t0022" in status
        assert re.search(r"SigIgn:\t0+[01]000\n", status), status
        assert Path(f"/proc/{pid_of(daemon)}/stat").read_text().rpartition(")")[2].split()[16] == "0"  # nice
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "reads"},
        "spec": {
            "securityContext": {"runAsUser": 1000, "runAsGroup": 1000},
            "containers": [{"name": "one", "image": "nginx", "command": ["sh", "-c", "cat /etc/hosts && sleep 1000"]}],
        },
    }
    file = Path("/tmp/pod.json")
    file.write_text(json.dumps(pod))
    kubectl("create", "-f", str(file))
    file.unlink()
    phase = ("get", "pod", "reads", "-o", "jsonpath={.status.phase}")
    eventually(lambda: kubectl(*phase) in {"Running", "Failed"}, "it runs", 60)
    eventually(lambda: "localhost" in kubectl("logs", "reads"), "it reads /etc/hosts")
    assert KUBECONFIG.stat().st_mode & 0o777 == 0o600


def test_too_few_open_files_are_said() -> None:
    # With setpriv, because root with CAP_SYS_RESOURCE may raise any limit.
    prefix = ["setpriv", "--bounding-set=-sys_resource", "--inh-caps=-sys_resource", "prlimit", "--nofile=256:256"]
    done = doit("etcd", prefix=prefix, status=None)
    assert done.returncode == 3 and "256" in done.stderr and len(done.stderr.splitlines()) == 3, done.stderr


# Encodings

ENCODINGS = {
    "ascii": {"LC_ALL": "C", "PYTHONIOENCODING": "ascii:strict"},
    "latin-1": {"LC_ALL": "de_DE.ISO-8859-1", "PYTHONIOENCODING": "iso-8859-1:strict"},
    "POSIX": {"LC_ALL": "POSIX", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    "nosuch": {"LC_ALL": "xx_YY.nosuch"},
}


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_every_command_in_every_encoding(encoding: str) -> None:
    caller = having(**ENCODINGS[encoding])
    done = doit("service_reachable", environment=caller)
    assert "answers: Welcome to nginx!" in done.stdout
    commands = "list|list -s|list --all|info kubelet|status|why|why web|trace web|preflight|timeline|env|logs etcd"
    commands += "|tour --list|help|help why|user name=eve namespace=eve|down|status|why|clean|nosuch|machine=é"
    for words in commands.split("|"):
        done = doit(*words.split(), environment=caller, status=None)
        assert done.returncode in {0, 1, 3}, done
        if encoding == "ascii":
            assert (done.stdout + done.stderr).isascii()


def test_output_and_input_that_are_closed() -> None:
    script = '"$0" etcd <&- && "$0" etcd <&- >&- && "$0" list -s <&- >&- 2>&- && "$0" status | head -1;'
    script += '"$0" logs etcd | head -1'
    doit(prefix=["sh", "-c", script])
    assert pid_of("etcd")


# sudo and other users


def test_with_sudo_the_caller_can_use_the_cluster_and_no_one_else() -> None:
    doit("apiserver", "kubeconfig", environment=having(SUDO_UID="12345", SUDO_GID="12345", SUDO_USER="ada"))

    def as_user(uid: int, *command: str) -> subprocess.CompletedProcess[str]:
        prefix = ["setpriv", f"--reuid={uid}", f"--regid={uid}", "--clear-groups", "--bounding-set=-all"]
        home = {"HOME": "/tmp", "PATH": os.environ["PATH"]}
        return subprocess.run([*prefix, *command], env=home, capture_output=True, text=True, check=False)

    programs = shutil.copytree(CACHE / "kubernetes" / "v1.20.2-debian-client", "/tmp/client")
    try:
        ask = [f"{programs}/kubectl", "--kubeconfig", str(KUBECONFIG), "--cache-dir=/tmp/cache", "get", "namespaces"]
        mine, other = as_user(12345, *ask), as_user(54321, *ask)
        assert "default" in mine.stdout, mine.stderr
        assert other.returncode and "ermission denied" in other.stderr
        for key in (STATE / "pki").glob("*.key"):
            assert as_user(12345, "cat", str(key)).returncode and as_user(54321, "cat", str(key)).returncode
    finally:
        shutil.rmtree(programs)
        shutil.rmtree("/tmp/cache", ignore_errors=True)


def test_another_user_of_the_checkout_is_told() -> None:
    doit("pki")
    may = "-all,+dac_read_search"  # to read the virtual environment, which is root's here
    prefix = ["setpriv", "--reuid=12345", "--regid=12345", "--clear-groups", f"--bounding-set={may}"]
    prefix += [f"--inh-caps={may}", f"--ambient-caps={may}"]
    home = Path("/tmp/home")
    home.mkdir()
    os.chown(home, 12345, 12345)
    try:
        done = doit("status", prefix=prefix, environment=having(HOME=str(home)), status=None)
        assert f"{STATE} is another user's cluster" in done.stderr
    finally:
        shutil.rmtree(home)
