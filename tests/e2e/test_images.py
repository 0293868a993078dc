"""Images of one's own, on both engines: built on the machine, loaded from archives and engines, built from packages."""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tasks.core.machine import ARCHITECTURES
from tests.e2e.conftest import ENVIRONMENT, ROOT, STATE, doit, executed, kubectl, nothing_left, shell
from tests.unit.support import eventually

DOCKERFILE = (
    "FROM nginx\nCOPY page /usr/share/nginx/html/index.html\nRUN echo built >> /usr/share/nginx/html/index.html\n"
)
BUILD = ROOT / "var" / "build"  # the machine sees the checkout as the host does
PUSHED = "127.0.0.1:5000/team/pushed:1"
FOREIGN = "quay.io/team/app:latest"


@pytest.fixture(scope="module")
def archive(prepared: None) -> Iterator[Path]:
    """A cluster with Docker, and an archive of an image that was built there, from the caller's directory."""
    with nothing_left():
        doit("service_reachable")
        BUILD.mkdir(parents=True)
        try:
            (BUILD / "Dockerfile").write_text(DOCKERFILE)
            (BUILD / "page").write_text("my own page\n")
            doit("shell", "--", "docker", "build", "-t", "mine:1", "-t", PUSHED, ".", cwd=BUILD)
            doit("shell", "--", "docker", "push", PUSHED)
            doit("shell", "--", "docker", "save", "-o", "mine.tar", "mine:1", cwd=BUILD)
            doit("shell", "--", "docker", "rmi", "mine:1")
            yield BUILD / "mine.tar"
        finally:
            shutil.rmtree(BUILD)


def run_pod(name: str, image: str, *command: str, policy: str = "Always") -> None:
    """Run the image in a Pod of this name, in which a container that was there before plays no part."""
    kubectl("delete", "pod", name, "--ignore-not-found", "--grace-period=1")
    rest = ["--command", "--", *command] if command else []
    kubectl("run", name, f"--image={image}", f"--image-pull-policy={policy}", *rest)
    kubectl("wait", f"pod/{name}", "--for=condition=Ready", "--timeout=50s")


def page_of(name: str) -> str:
    return kubectl("exec", name, "--", "wget", "-T", "5", "-qO-", "http://127.0.0.1")


def all_run() -> None:
    """Each of the images runs, and is asked for at the registry; that one is in the engine, too."""
    for name, image in {"plain": "mine", "foreign": FOREIGN, "tagged": "team/mine:2", "pushed": PUSHED}.items():
        run_pod(name, image)
        assert page_of(name) == "my own page\nbuilt\n", name
    run_pod("never", "mine", policy="Never")


def test_an_archive_under_any_name_on_both_engines_and_after_down(archive: Path) -> None:
    said = doit("load", archive.name, f"name={FOREIGN}", cwd=archive.parent).stdout
    assert said.startswith(f"✓ {FOREIGN} (sha256:"), said
    doit("load", str(archive), "name=mine")
    with archive.open("rb") as file:  # from standard input, compressed
        packed = subprocess.run(["gzip", "-c"], stdin=file, stdout=subprocess.PIPE, check=True).stdout
    done = subprocess.run(
        [ROOT / "scripts" / "doit", "load", "-", "name=team/mine:2"],
        env=ENVIRONMENT,
        input=packed,
        capture_output=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    all_run()
    doit("down")
    said = doit("load", str(archive), "name=later:1").stdout
    assert said.endswith("Kept for the next start of e2e: scripts/doit\n"), said
    assert "images" in executed(doit("service_reachable"))
    assert "images" not in executed(doit("service_reachable"))
    assert "later" in shell("docker", "images")
    all_run()
    try:
        doit("engine=containerd", "service_reachable")
        all_run()
        run_pod("later", "later:1", policy="IfNotPresent")
        doit("load", str(archive), "name=ghcr.io/x/y")
        run_pod("ghcr", "ghcr.io/x/y")
        refused = doit("load", str(archive), "name=quay.io/x/y", status=3).stderr
        assert "There is ghcr.io/x/y:latest already" in refused, refused
    finally:
        doit("engine=docker", "service_reachable")


def test_a_new_image_under_an_old_name_is_the_one_that_runs(archive: Path) -> None:
    doit("load", str(archive), "name=again:1")
    run_pod("again", "again:1", policy="IfNotPresent")
    (BUILD / "page").write_text("another page\n")
    doit("shell", "--", "docker", "build", "-t", "again:1", ".", cwd=BUILD)
    doit("load", "again:1")  # from the machine's own engine
    run_pod("again", "again:1", policy="IfNotPresent")
    assert page_of("again").startswith("another page\n")
    run_pod("again", "again:1")
    assert page_of("again").startswith("another page\n")


def test_what_cannot_be_loaded_leaves_nothing(archive: Path, tmp_path: Path) -> None:
    before = {path for path in (STATE / "registry").rglob("*") if path.is_file()}
    cut = tmp_path / "cut.tar"
    cut.write_bytes(archive.read_bytes()[:-1_000_000])
    text = tmp_path / "text.tar"
    text.write_text("not an archive")
    other = tmp_path / "other.tar"
    subprocess.run(["mkdir", tmp_path / "x"], check=True)
    subprocess.run(["tar", "-C", tmp_path / "x", "-xf", archive], check=True)
    (entry,) = json.loads((tmp_path / "x/manifest.json").read_text())
    config = tmp_path / "x" / entry["Config"]
    for name in ARCHITECTURES.values():
        config.write_text(config.read_text().replace(f'"architecture":"{name}"', '"architecture":"s390x"'))
    subprocess.run(["tar", "-C", tmp_path / "x", "-cf", other, "."], check=True)
    for words, said in (
        ([cut], "ends too early"),
        ([text], "no tar file"),
        ([other], "the image is for linux/s390x"),
        ([tmp_path], "This is a directory"),
        (["/nosuch.tar"], "There is no file"),
        (["nosuch:1"], "No engine has it"),
        (["nosuch@sha256:0"], "has a digest"),
    ):
        error = doit("load", *map(str, words), status=3).stderr
        assert said in error, error
    assert {path for path in (STATE / "registry").rglob("*") if path.is_file()} == before


# What Docker changes, beside its own directories: settings of the network, mounts, and files outside of these.
APART = ["unshare", "--mount", "--net", "sh", "-euc"]
APART += ['mkdir -p /etc/docker; for d in /opt /etc/docker; do mount -t tmpfs tmpfs $d; done; exec "$@"', "sh"]


@contextlib.contextmanager
def a_daemon(command: Sequence[str | Path], ready: Sequence[str]) -> Iterator[None]:
    """A daemon on this host, which is ready when that command succeeds."""
    with subprocess.Popen([*APART, *command], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:

            def answers() -> bool:
                return subprocess.run(ready, capture_output=True, check=False).returncode == 0

            eventually(answers, " ".join(ready))
            yield
        finally:
            process.terminate()
            process.wait(20)


def test_images_of_the_hosts_docker_and_containerd(archive: Path, tmp_path: Path) -> None:
    directories = (Path("/run/docker"), Path("/run/containerd"))
    own: list[str | Path] = ["--data-root", tmp_path / "d", "--exec-root", tmp_path / "e", "-p", tmp_path / "pid"]
    plain = ["dockerd", "--iptables=false", "--ip6tables=false", "--bridge=none", "-H", "unix:///var/run/docker.sock"]
    try:
        with a_daemon([*plain, *own], ["docker", "version"]):
            subprocess.run(["docker", "load", "-qi", archive], check=True, capture_output=True)
            subprocess.run(["docker", "tag", "mine:1", "of-docker:3"], check=True)
            said = doit("load", "of-docker:3").stdout
            assert "from docker\n✓ of-docker:3" in said, said
        config = tmp_path / "containerd.toml"
        config.write_text(
            f'version = 2\nroot = "{tmp_path}/c"\nstate = "{tmp_path}/s"\n'
            'disabled_plugins = ["io.containerd.grpc.v1.cri", "io.containerd.internal.v1.opt"]\n'
        )
        with a_daemon(["containerd", "--config", config], ["ctr", "version"]):
            subprocess.run(["ctr", "images", "import", archive], check=True, capture_output=True)
            subprocess.run(
                ["ctr", "images", "tag", "docker.io/library/mine:1", "quay.io/of/containerd:4"],
                check=True,
                capture_output=True,
            )
            said = doit("load", "quay.io/of/containerd:4").stdout
            assert "from containerd\n✓ quay.io/of/containerd:4" in said, said
    finally:
        Path("/run/docker.sock").unlink(missing_ok=True)
        for directory in directories:
            shutil.rmtree(directory, ignore_errors=True)
    for name, image in {"of-docker": "of-docker:3", "of-containerd": "quay.io/of/containerd:4"}.items():
        run_pod(name, image)
        assert page_of(name).startswith("my own page\n")


def test_images_from_packages(archive: Path) -> None:
    doit("image", "toolbox")
    doit("image", "redis:6", "redis-server", "nosuchpackage", status=3)  # there is no network
    doit("image", "redis")
    doit("image", "httpd")
    run_pod("redis", "redis")
    run_pod("httpd", "httpd")
    run_pod("toolbox", "toolbox", "sleep", "1000")
    assert kubectl("exec", "redis", "--", "redis-cli", "ping") == "PONG\n"
    ip = kubectl("get", "pod", "httpd", "-o", "jsonpath={.status.podIP}")
    for command in (["wget", "-T", "5", "-qO-"], ["curl", "-s", "-m", "5"]):
        assert "It works!" in kubectl("exec", "toolbox", "--", *command, f"http://{ip}")
    assert "DiG" in kubectl("exec", "toolbox", "--", "sh", "-c", "dig -v 2>&1")
    assert "Welcome to nginx" in kubectl("exec", "deploy/web", "--", "wget", "-T", "5", "-qO-", "http://127.0.0.1")


def test_why_lists_the_images(archive: Path) -> None:
    doit("load", str(archive), "name=listed:1")
    kubectl("run", "missing", "--image=nosuch:3")
    try:

        def says() -> bool:
            text = " ".join(doit("why", "pod/missing", status=None).stdout.split())
            return (
                'Failed to pull image "nosuch:3". Images that are here: ' in text
                and ", listed:1, " in text
                and "scripts/doit load IMAGE|FILE; one from Debian's packages: scripts/doit image NAME PACKAGE." in text
                and text.endswith("next: scripts/doit load nosuch:3")
            )

        eventually(says, "why lists the images", 60)
        doit("load", str(archive), "name=nosuch:3")
        kubectl("wait", "pod/missing", "--for=condition=Ready", "--timeout=120s")
    finally:
        kubectl("delete", "pod", "missing", "--grace-period=1")
