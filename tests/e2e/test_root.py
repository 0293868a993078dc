"""The machine's root file system: as on a machine that has just been booted, and nothing of it is the host's."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.conftest import doit, kubectl, nothing_left, shell
from tests.unit.support import eventually

ON_HOST = Path("/srv/shared")


@pytest.fixture(scope="module")
def sharing(prepared: None) -> Iterator[None]:
    """The whole cluster, on a machine that shares one directory with the host."""
    with nothing_left():
        ON_HOST.mkdir(parents=True)
        try:
            doit(f"share={ON_HOST}", "service_reachable")
            yield
        finally:
            doit("clean")
            for path in ON_HOST.iterdir():
                path.unlink()
            ON_HOST.rmdir()


DIRECTORIES = [
    "/",
    "/root",
    "/etc",
    "/usr",
    "/usr/local/bin",
    "/var",
    "/var/lib",
    "/opt",
    "/srv",
    "/home",
    "/mnt",
    "/tmp",
]
DIRECTORIES += ["/run", "/dev", "/dev/shm", "/var/tmp"]


@pytest.mark.parametrize("directory", DIRECTORIES)
def test_what_is_written_in_any_directory_is_the_machines_own(sharing: None, directory: str) -> None:
    file = Path(directory, "written-in-the-machine")
    shell("touch", str(file))
    assert not file.exists()
    shell("test", "-e", str(file))


def test_a_file_of_the_host_that_is_changed_or_removed_stays_on_the_host(sharing: None) -> None:
    text = Path("/etc/passwd").read_text()
    shell("sh", "-c", "echo more >> /etc/passwd; rm /etc/group; chmod 700 /usr/share")
    assert Path("/etc/passwd").read_text() == text
    assert Path("/etc/group").exists() and Path("/usr/share").stat().st_mode & 0o777 == 0o755


def run_pod(name: str, script: str, mounts: dict[str, str], propagation: str = "None") -> str:
    """Run a Pod to its end, with directories of the node (their path there -> in the Pod); return its output."""
    volumes = [
        {"name": f"v{n}", "hostPath": {"path": path} | ({} if path == "/" else {"type": "DirectoryOrCreate"})}
        for n, path in enumerate(mounts)
    ]
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name},
        "spec": {
            "restartPolicy": "Never",
            "volumes": volumes,
            "containers": [
                {
                    "name": "one",
                    "image": "nginx",
                    "command": ["sh", "-c", script],
                    "volumeMounts": [
                        {"name": f"v{n}", "mountPath": where, "mountPropagation": propagation}
                        for n, where in enumerate(mounts.values())
                    ],
                }
            ],
        },
    }
    file = Path("/tmp") / f"{name}.json"
    file.write_text(json.dumps(pod))
    try:
        kubectl("create", "-f", str(file))
    finally:
        file.unlink()

    def phase() -> str:
        return kubectl("get", "pod", name, "-o", "jsonpath={.status.phase}")

    try:
        eventually(lambda: phase() in {"Succeeded", "Failed"}, f"the end of {name}", 60)
    except AssertionError as error:
        raise AssertionError(kubectl("get", "events", "--field-selector", f"involvedObject.name={name}")) from error
    output, ended = kubectl("logs", name), phase()
    kubectl("delete", "pod", name)
    assert ended == "Succeeded", output
    return output


@pytest.mark.parametrize("propagation", ["HostToContainer", "None"])
@pytest.mark.parametrize("directory", ["/", "/var/lib/kubelet"])
def test_volumes_with_mount_propagation(sharing: None, directory: str, propagation: str) -> None:
    name = f"mp-{'root' if directory == '/' else 'kubelet'}-{propagation.lower()}"
    assert "done" in run_pod(name, "ls /host > /dev/null && echo done", {directory: "/host"}, propagation)


PLACES = ["/var/lib/shop", "/tmp/shop", "/root/shop", "/opt/shop/data", "/shop", "/home/shop"]


def test_volumes_of_pods_are_kept_by_down_removed_by_clean_and_never_on_the_host(sharing: None) -> None:
    mounts = {place: f"/data{n}" for n, place in enumerate(PLACES)}
    run_pod("writes", " && ".join(f"echo sold > {where}/book" for where in mounts.values()), mounts)
    assert not any(Path(place).exists() for place in PLACES)
    doit("down")
    doit("service_reachable")
    said = run_pod("reads", " && ".join(f"cat {where}/book" for where in mounts.values()), mounts)
    assert said.split() == ["sold"] * len(PLACES)
    doit("clean")
    doit(f"share={ON_HOST}", "service_reachable")
    for place in PLACES:
        assert shell("sh", "-c", f"[ -e {place} ] || echo gone").strip() == "gone"
        assert not Path(place).exists()


def test_a_directory_that_is_shared_is_the_hosts(sharing: None) -> None:
    run_pod("shares", "echo here > /data/file; sync", {str(ON_HOST): "/data"})
    assert (ON_HOST / "file").read_text() == "here\n"
    (ON_HOST / "back").write_text("and back\n")
    assert shell("cat", f"{ON_HOST}/back") == "and back\n"


def test_the_machine_is_up_to_date_as_it_is(sharing: None) -> None:
    assert "· machine" in doit(f"share={ON_HOST}", "machine").stdout


@pytest.mark.parametrize(
    "path", ["/nosuch", "/srv/nosuch/below", "/", "/etc", "/var", "/var/lib/docker", "/proc/sys", "/run"]
)
def test_a_directory_that_cannot_be_shared_is_refused_before_anything_changes(sharing: None, path: str) -> None:
    for asked in (f"share={path}", f"share={ON_HOST}:{path}"):
        done = doit(asked, "machine", status=1)
        assert path in done.stderr and "share=" in done.stderr, done.stderr
        assert ("no such directory" if "nosuch" in path else "the machine needs") in done.stderr
    # The machine that is on stays as it was.
    assert "· machine" in doit(f"share={ON_HOST}", "machine").stdout
