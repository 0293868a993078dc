from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from plumbum import local

from tasks.core import debian
from tasks.core.errors import DmucError, Interrupted
from tasks.core.progress import Silent
from tests.unit.support import ending_the_run

# From Debian 12's docker.io.postinst, as debhelper 13.11.4 writes it into the postinst of every service.
DOCKER_POSTINST = r"""
set -e
if [ "$1" = "configure" ] || [ "$1" = "abort-upgrade" ] || [ "$1" = "abort-deconfigure" ] || [ "$1" = "abort-remove" ] ; then
	if [ -z "${DPKG_ROOT:-}" ] && [ -x "/etc/init.d/docker" ]; then
		update-rc.d docker defaults >/dev/null
		invoke-rc.d --skip-systemd-native docker start || exit 1
	fi
fi
if [ "$1" = "configure" ] || [ "$1" = "abort-upgrade" ] || [ "$1" = "abort-deconfigure" ] || [ "$1" = "abort-remove" ] ; then
	# The following line should be removed in trixie or trixie+1
	deb-systemd-helper unmask 'docker.service' >/dev/null || true

	# was-enabled defaults to true, so new installations run enable.
	if deb-systemd-helper --quiet was-enabled 'docker.service'; then
		# Enables the unit on first installation, creates new
		# symlinks on upgrades if the unit file has changed.
		deb-systemd-helper enable 'docker.service' >/dev/null || true
	else
		# Update the statefile to add new symlinks (if any), which need to be
		# cleaned up on purge. Also remove old symlinks.
		deb-systemd-helper update-state 'docker.service' >/dev/null || true
	fi
fi
if [ "$1" = "configure" ] || [ "$1" = "abort-upgrade" ] || [ "$1" = "abort-deconfigure" ] || [ "$1" = "abort-remove" ] ; then
	if [ -z "${DPKG_ROOT:-}" ] && [ -d /run/systemd/system ]; then
		systemctl --system daemon-reload >/dev/null || true
		deb-systemd-invoke start 'docker.service' 'docker.socket' >/dev/null || true
	fi
fi
"""  # noqa: E501
# The end of etcd-server.postinst; it is called with the old version when it is an upgrade.
ETCD_POSTINST = r"""
set -e
if [ "$1" = "configure" ]; then
	if [ -d /run/systemd/system ]; then
		systemctl --system daemon-reload >/dev/null || true
		if [ -n "$2" ]; then
			_dh_action=restart
		else
			_dh_action=start
		fi
		deb-systemd-invoke $_dh_action 'etcd.service' >/dev/null || true
	fi
fi
"""
HELPER = Path("/usr/bin/deb-systemd-helper")


@pytest.fixture
def stand_ins(tmp_path: Path) -> Path:
    directory = tmp_path / "stand-ins"
    directory.mkdir()
    debian.write_replacements(directory)
    return directory


def programs(directory: Path, **scripts: str) -> Path:
    directory.mkdir(exist_ok=True)
    for name, text in scripts.items():
        script = directory / name.replace("_", "-")
        script.write_text(f"#!/bin/sh\n{text}\n")
        script.chmod(0o755)
    return directory


def run_script(script: str, path: str, tmp_path: Path, *arguments: str, **environment: str) -> None:
    """Run a maintainer script as on a machine with systemd, where the package's init script is installed."""
    (tmp_path / "docker").touch(0o755)
    script = script.replace("/run/systemd/system", str(tmp_path)).replace("/etc/init.d/docker", f"{tmp_path}/docker")
    subprocess.run(["/bin/sh", "-c", script, "postinst", *arguments], env={"PATH": path, **environment}, check=True)


@pytest.fixture
def machine(tmp_path: Path) -> tuple[str, Path]:
    """A PATH of programs that only note that they were called, and where they note it."""
    calls = tmp_path / "calls"
    calls.touch()
    note = f'echo "${{0##*/}} $*" >> {calls}'
    names = ("deb_systemd_helper", "deb_systemd_invoke", "invoke_rc.d", "systemctl", "update_rc.d")
    return f"{programs(tmp_path / 'real', **dict.fromkeys(names, note))}:/usr/bin:/bin", calls


@pytest.mark.parametrize("script", [DOCKER_POSTINST, ETCD_POSTINST])
@pytest.mark.parametrize("arguments", [("configure", ""), ("configure", "1.0-1")], ids=["new", "upgrade"])
def test_nothing_is_started_or_enabled(
    script: str, arguments: tuple[str, str], stand_ins: Path, machine: tuple[str, Path], tmp_path: Path
) -> None:
    path, calls = machine
    run_script(script, path, tmp_path, *arguments)
    without = calls.read_text()
    assert "deb-systemd-invoke" in without  # the script does what we want to keep it from

    calls.write_text("")
    run_script(script, f"{stand_ins}:{path}", tmp_path, *arguments)
    assert calls.read_text() == ""


@pytest.mark.skipif(not HELPER.exists(), reason="needs Debian's deb-systemd-helper")
def test_the_next_upgrade_does_not_enable_it_either(stand_ins: Path, tmp_path: Path) -> None:
    root = tmp_path / "root"
    units = root / "lib/systemd/system"
    units.mkdir(parents=True)
    (units / "docker.service").write_text("[Install]\nWantedBy=multi-user.target\n")
    environment = {"DPKG_ROOT": str(root), "DPKG_MAINTSCRIPT_PACKAGE": "docker.io"}
    path = "/usr/sbin:/usr/bin:/sbin:/bin"

    def enabled() -> list[Path]:
        return list((root / "etc").rglob("docker.service"))

    run_script(DOCKER_POSTINST, f"{stand_ins}:{path}", tmp_path, "configure", "", **environment)
    assert enabled() == []
    run_script(DOCKER_POSTINST, path, tmp_path, "configure", "1.0-1", **environment)
    assert enabled() == []


class Told(Silent):
    def __init__(self, heard: Callable[[str], None] = lambda text: None) -> None:
        self.heard = heard

    def note(self, text: str) -> None:
        self.heard(text)


AptGet = Callable[[str], Path]


@pytest.fixture
def apt_get(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[AptGet]:
    """Replace apt-get by a shell script; return the file with the arguments of its calls."""
    called = tmp_path / "called"
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(debian, "_DPKG", tmp_path / "dpkg")
    (tmp_path / "dpkg").mkdir()
    path = f"{tmp_path / 'bin'}:/usr/bin:/bin"
    monkeypatch.setenv("PATH", path)
    split = "for word; do case $word in DPkg::Path=*) stand_ins=${word#*=}; stand_ins=${stand_ins%%:*} ;; esac; done"

    def make(script: str) -> Path:
        programs(tmp_path / "bin", apt_get=f'echo "$*" >> {called}\n{split}\n{script}')
        return called

    with local.env(PATH=path):
        yield make


def commands(called: Path) -> list[str]:
    """What apt-get was asked to do, without its options."""
    return [
        next(word for word in line.split() if word in {"install", "update", "download", "source"})
        for line in called.read_text().splitlines()
    ]


def test_only_root_installs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(debian, "available", lambda: True)
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(DmucError, match=r"sudo apt-get install --no-install-recommends etcd-server docker\.io"):
        debian.install(["etcd-server", "docker.io"], Silent())


def test_a_machine_without_apt_get_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert not debian.available()
    with pytest.raises(DmucError, match="not a Debian system"):
        debian.install(["etcd-server"], Silent())


def test_install_gives_dpkg_the_stand_ins_first(apt_get: AptGet, tmp_path: Path) -> None:
    called = apt_get('[ -x "$stand_ins/systemctl" ] && [ "$DEBIAN_FRONTEND" = noninteractive ] && ! read line')
    debian.install(["etcd-server", "docker.io"], Silent())
    assert called.read_text().rstrip().endswith("install -y --no-install-recommends etcd-server docker.io")
    assert list((tmp_path / "dpkg").iterdir()) == []


def test_old_lists_are_updated_once(apt_get: AptGet, tmp_path: Path) -> None:
    called = apt_get(
        f'case "$*" in *" update") touch {tmp_path}/lists ;; esac\n'
        f'[ -e {tmp_path}/lists ] || {{ echo "E: Unable to locate package etcd-server"; exit 100; }}'
    )
    debian.install(["etcd-server"], Silent())
    assert commands(called) == ["install", "update", "install"]


def test_a_package_that_does_not_exist_is_said(apt_get: AptGet, tmp_path: Path) -> None:
    called = apt_get('case "$*" in *install*) echo "E: Unable to locate package nonesuch"; exit 100 ;; esac')
    with pytest.raises(DmucError, match="exit code 100\nE: Unable to locate package nonesuch"):
        debian.install(["nonesuch"], Silent())
    assert commands(called) == ["install", "update", "install"]
    assert list((tmp_path / "dpkg").iterdir()) == []


def test_a_failed_install_shows_the_end_of_what_was_said(apt_get: AptGet) -> None:
    called = apt_get("seq 100; echo 'E: Sub-process dpkg returned an error' >&2; exit 100")
    with pytest.raises(DmucError) as error:
        debian.install(["etcd-server"], Silent())
    assert error.value.tried == "apt-get install -y --no-install-recommends etcd-server"
    assert error.value.seen.startswith("exit code 100\n92\n")
    assert error.value.seen.endswith("\n100\nE: Sub-process dpkg returned an error")
    assert commands(called) == ["install"]


def test_an_ended_run_waits_for_dpkg(apt_get: AptGet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    end = f"trap '[ -x \"$stand_ins/systemctl\" ] && touch {tmp_path}/ended; exit 130' INT"
    apt_get(f"{end}\necho 'Setting up etcd-server'\nwhile :; do sleep 0.05; done")
    with pytest.raises(Interrupted):
        debian.install(["etcd-server"], ending_the_run(lambda text: text.startswith("Setting up")))
    assert (tmp_path / "ended").exists()


def test_fetch_debs_gives_the_files_of_the_candidates(apt_get: AptGet, tmp_path: Path) -> None:
    called = apt_get(
        'case "$*" in *--print-uris*)\n'
        "echo \"'http://deb.debian.org/g_1.19_amd64.deb' golang-go_2%3a1.19~1_amd64.deb 44956 SHA256:e3b0\"\n"
        "echo \"'http://deb.debian.org/j_1.6_amd64.deb' jq_1.6-2.1_amd64.deb 64 SHA256:af15\" ;;\n"
        "*) touch golang-go_2%3a1.19~1_amd64.deb jq_1.6-2.1_amd64.deb; echo 'W: unsandboxed' ;; esac"
    )
    debs = debian.fetch_debs(["golang-go", "jq"], tmp_path / "debs", Silent())
    assert [deb.name for deb in debs] == ["golang-go_2%3a1.19~1_amd64.deb", "jq_1.6-2.1_amd64.deb"]
    assert all(deb.is_file() for deb in debs)
    assert commands(called) == ["download", "download"]


@pytest.mark.skipif(not shutil.which("dpkg-deb"), reason="needs dpkg-deb")
def test_a_broken_deb_is_said(tmp_path: Path) -> None:
    deb = tmp_path / "broken.deb"
    deb.write_text("This is not a package.\n")
    with pytest.raises(DmucError, match="not a Debian format archive"):
        debian.extract(deb, tmp_path / "out")


@pytest.mark.parametrize(
    ("name", "text", "found"),
    [
        ("debian.sources", "Types: deb\nURIs: http://mirror/debian\nSuites: trixie\n", "http://mirror/debian"),
        (
            "x.list",
            "deb-src [arch=amd64 signed-by=/k.gpg] https://m.example/debian/ sid main\n",
            "https://m.example/debian",
        ),
        ("x.list", "deb\thttp://mirror/debian-security trixie-security main\n", "http://deb.debian.org/debian"),
        ("ubuntu.sources", "Types: deb\nURIs: http://archive.ubuntu.com/ubuntu\n", "http://deb.debian.org/debian"),
        ("old.list.disabled", "deb http://old/debian x main\n", "http://deb.debian.org/debian"),
        ("x.list", "# deb http://old/debian x main\n", "http://deb.debian.org/debian"),
    ],
)
def test_the_mirror_is_the_hosts_or_debians(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, text: str, found: str
) -> None:
    (tmp_path / "sources.list.d").mkdir()
    (tmp_path / "sources.list.d" / name).write_text(text)
    monkeypatch.setattr(debian, "_SOURCES", tmp_path)
    assert debian.mirror() == found


def test_an_archive_leaves_the_hosts_configuration_alone(
    apt_get: AptGet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = tmp_path / "etc-apt"
    (host / "sources.list.d").mkdir(parents=True)
    (host / "sources.list.d/debian.sources").write_text("Types: deb\nURIs: http://mirror/debian\nSuites: trixie\n")
    monkeypatch.setattr(debian, "_SOURCES", host)
    apt_get(
        "for word; do case $word in Dir::Etc::sourceparts=*) parts=${word#*=} ;; esac; done\n"
        f'case "$*" in *" update") cat $parts/* > {tmp_path}/asked ;;\n'
        '*) mkdir hello-2.10; echo "dpkg-source: info: extracting hello in hello-2.10" ;; esac'
    )
    into = tmp_path / "src"
    with debian.archive("bookworm", into, Silent()) as options:
        assert debian.fetch_source("hello", into, Silent(), options) == into / "hello-2.10"
    assert list(into.iterdir()) == [into / "hello-2.10"]
    deb, source = (tmp_path / "asked").read_text().splitlines()
    assert deb.startswith("deb [") and source.startswith("deb-src [")
    assert deb.endswith("] http://mirror/debian bookworm main")


def test_an_unknown_source_package_is_said(apt_get: AptGet, tmp_path: Path) -> None:
    apt_get('case "$*" in *source\\ none*) echo "E: Unable to find a source package for nonesuch"; exit 100 ;; esac')
    with pytest.raises(DmucError, match="Unable to find a source package for nonesuch"):
        debian.fetch_source("nonesuch", tmp_path / "src", Silent())
    assert list((tmp_path / "src").iterdir()) == []
