"""Where the checkout, the cache and programs may be: in any path, below hidden directories, on disks of their own."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from tests.e2e import own_host
from tests.e2e.conftest import ENVIRONMENT, doit, make_checkout, nothing_left

CACHE = own_host.CACHE
PROGRAMS = ("kube-apiserver", "kube-scheduler", "kubelet")


@pytest.fixture(scope="module", autouse=True)
def alone(prepared: None) -> Iterator[None]:
    with nothing_left():
        yield


@pytest.fixture(scope="module")
def disks(alone: None) -> Iterator[Path]:
    """A directory with file systems of their own in it, which is removed at the end."""
    top = Path("/srv/disks")
    points = [top / name for name in ("one", "two")]
    for point in points:
        point.mkdir(parents=True)
        subprocess.run(["mount", "-t", "tmpfs", "tmpfs", point], check=True)
    yield top
    for point in points:
        subprocess.run(["umount", point], check=True)
    shutil.rmtree(top)


def a_cluster_from(checkout: Path, *settings: str, script: Path | None = None, task: str = "service_reachable") -> str:
    """Make a checkout there, start a cluster, look that it is whole, and remove it; return what was printed."""
    make_checkout(checkout)
    run = partial(doit, *settings, checkout=checkout, script=script)
    try:
        done = run(task)
        again = run(task)
        assert all(line.startswith("·") for line in again.stdout.splitlines()), again.stdout
        assert "dodo.py" in run("shell", "--", "ls", str(checkout)).stdout
        return str(done.stdout)
    finally:
        run("clean")
        shutil.rmtree(checkout)


ODD = ["with a blank", "it's, here", "back\\slash é 漢", "$HOME `x`", "a%sb=c", "-n [x]"]


@pytest.mark.parametrize("name", ODD[:3])
def test_a_checkout_in_a_directory_of_any_name_serves_the_page(name: str) -> None:
    assert "answers: Welcome to nginx!" in a_cluster_from(Path("/opt") / name)


@pytest.mark.parametrize("name", ODD[3:])
def test_in_others_the_control_plane_and_the_node_start(name: str) -> None:
    a_cluster_from(Path("/opt") / name, task="schedulable")


@pytest.mark.parametrize(
    "where", ["/run/dmuc-checkout", "/var/lib/checkout", "/home/ada/dmuc", "/tmp/there/dmuc", "/root/dmuc"]
)
def test_a_checkout_may_be_anywhere(where: str) -> None:
    top = Path(where)
    top.parent.mkdir(exist_ok=True)
    try:
        a_cluster_from(top, task="schedulable")
    finally:
        if top.parent.name in {"ada", "there"}:
            top.parent.rmdir()


def test_a_checkout_on_a_disk_of_its_own_with_programs_on_another(disks: Path) -> None:
    programs, cache = disks / "two" / "my programs", disks / "two" / "cache"
    programs.mkdir()
    cache.mkdir()
    for name in ("images", "versions"):
        if (CACHE / name).exists():
            shutil.copytree(CACHE / name, cache / name)
    for directory in CACHE.glob("kubernetes/v1.20.2-debian*"):
        for program in directory.iterdir():
            shutil.copy2(program, programs)
    try:
        said = a_cluster_from(disks / "one" / "dmuc", f"bin_dir={programs}", f"cache={cache}")
        assert f"({'named in the settings'})" in said and "answers: Welcome to nginx!" in said
    finally:
        for path in (programs, cache):
            shutil.rmtree(path)


@pytest.mark.parametrize("disk", ["/home/ada", "/srv/team/ada", "/media"])
def test_a_disk_with_other_things_beside_the_checkout(alone: None, disk: str) -> None:
    point = Path(disk)
    missing = [path for path in (point, *point.parents) if not path.exists()]
    point.mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", point], check=True)
    try:
        (point / "my documents").mkdir()
        (point / "my documents" / "letter").write_text("dear\n")
        (point / ".profile").write_text("hello\n")
        checkout = point / "src" / "dmuc"
        checkout.parent.mkdir()
        make_checkout(checkout)
        run = partial(doit, checkout=checkout)
        try:
            run("etcd")
            change = (
                f"cd {disk}; cat '.profile' 'my documents/letter'; echo more | tee 'my documents/letter' .profile new"
            )
            assert run("shell", "--", "sh", "-c", change).stdout == "hello\ndear\nmore\n"
            assert (point / "my documents" / "letter").read_text() == "dear\n"
            assert (point / ".profile").read_text() == "hello\n" and not (point / "new").exists()
            run("down")
            run("machine")
            kept = run("shell", "--", "cat", f"{disk}/my documents/letter", f"{disk}/.profile", f"{disk}/new").stdout
            assert kept == "more\n" * 3
        finally:
            run("clean")
    finally:
        subprocess.run(["umount", point], check=True)
        for path in missing:
            path.rmdir()


@pytest.mark.parametrize("var", ["/srv/disks/two/dmuc-var", "/opt/it's var", "/tmp/var"])
def test_the_state_may_be_elsewhere_through_a_link(disks: Path, var: str) -> None:
    checkout, place = Path("/opt/linked"), Path(var)
    make_checkout(checkout)
    place.mkdir()
    (place.parent / "beside").write_text("beside\n")
    (checkout / "var").symlink_to(place)
    run = partial(doit, checkout=checkout)
    try:
        run("schedulable")
        run("shell", "--", "touch", f"{place.parent}/written")
        assert not (place.parent / "written").exists()
        assert all(line.startswith("·") for line in run("schedulable").stdout.splitlines())
        run("clean")
        assert not list(place.iterdir())
    finally:
        run("clean")
        shutil.rmtree(checkout)
        (place.parent / "beside").unlink()
        shutil.rmtree(place)


def test_a_checkout_that_is_read_only(alone: None) -> None:
    checkout, states = Path("/opt/read-only"), Path("/srv/states")
    make_checkout(checkout)
    states.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", states], check=True)
    subprocess.run(["mount", "--bind", checkout, checkout], check=True)
    subprocess.run(["mount", "-o", "remount,bind,ro", checkout], check=True)
    run = partial(doit, checkout=checkout, environment={**ENVIRONMENT, "XDG_STATE_HOME": f"{states}/my state"})
    try:
        run("schedulable")
        assert run("shell", "--", "printenv", "HOME").stdout == f"{states}/my state/dmuc/e2e/home\n"
    finally:
        run("clean")
        for path in (checkout, states):
            subprocess.run(["umount", path], check=True)
        states.rmdir()
        shutil.rmtree(checkout)


def test_paths_through_links(disks: Path) -> None:
    checkout, link, commands = disks / "one" / "real", Path("/tmp/link"), disks / "two" / "bin"
    link.symlink_to(checkout)
    commands.mkdir()
    (commands / "dmuc").symlink_to(link / "scripts" / "doit")
    kubelet = Path("/tmp/my-kubelet")
    kubelet.symlink_to(next(CACHE.glob("kubernetes/v1.20.2-debian/kubelet")))
    try:
        a_cluster_from(checkout, f"kubelet_bin={kubelet}", script=commands / "dmuc", task="schedulable")
    finally:
        link.unlink()
        kubelet.unlink()
        shutil.rmtree(commands)


def test_other_programs_on_a_running_machine_are_seen_there() -> None:
    one = Path("/tmp/one/scheduler")
    one.parent.mkdir()
    real = next(CACHE.glob("kubernetes/v1.20.2-debian/kube-scheduler"))
    try:
        doit("scheduler")
        begun = Path("/proc/uptime").read_text()
        for _ in range(2):  # the second one takes the place of the first, as a build does
            shutil.copy2(real, one)
            os.utime(one)
            done = doit(f"kube_scheduler_bin={one}", "scheduler")
            assert "✓ scheduler" in done.stdout and "✓ apiserver" not in done.stdout
            one.unlink()
        assert begun
    finally:
        doit("clean")
        shutil.rmtree(one.parent)


def test_relative_paths_begin_where_the_caller_is(tmp_path: Path) -> None:
    here = tmp_path / "k8s"
    (here / "_output" / "bin").mkdir(parents=True)
    for name in PROGRAMS:
        (here / "_output" / "bin" / name).symlink_to(next(CACHE.glob(f"kubernetes/v1.20.2-debian/{name}")))
    script = tmp_path / "dmuc"
    script.symlink_to(own_host.ROOT / "scripts" / "doit")
    try:
        for words, environment in (
            (["bin_dir=_output/bin"], {}),
            (["bin_dir=./_output/../_output/bin"], {}),
            (["kube_scheduler_bin=_output/bin/kube-scheduler"], {}),
            ([], {"DMUC_BIN_DIR": "_output/bin"}),
        ):
            done = doit(
                *words, "binaries", cwd=here, script=Path("../dmuc"), environment={**ENVIRONMENT, **environment}
            )
            link = own_host.VAR / "e2e" / "bin" / "kube-scheduler"
            assert str(link.readlink()).startswith(f"{here}/"), done.stdout
        done = doit("bin_dir=nosuch", "binaries", cwd=here, script=script, status=1)
        assert f"bin_dir={here}/nosuch" in done.stderr
    finally:
        doit("clean")


def test_a_file_that_cannot_be_shown_is_named() -> None:
    file, other = Path("/tmp/a file"), Path("/proc/self/environ")
    file.touch()
    try:
        for path in (file, other):
            done = doit(f"share={path}", "machine", status=None)
            assert done.returncode == 0 or str(path) in done.stdout + done.stderr
            doit("clean")
    finally:
        file.unlink()
