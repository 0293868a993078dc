"""What the world may be like: another registry within reach, a full disk."""

from __future__ import annotations

import json
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from tasks.image_files.recipes import registry_config, registry_root
from tests.e2e import host_picture
from tests.e2e.conftest import ENVIRONMENT, ROOT, STATE, doit, kubectl, pid_of

UPSTREAM = "http://127.0.0.1:5055"


@pytest.fixture
def upstream(before: host_picture.Picture, tmp_path: Path) -> Iterator[Path]:
    """Run a registry on the host's loopback, in place of the one on the Internet; return its log."""
    cache = Path(ENVIRONMENT.get("DMUC_CACHE", Path.home() / ".cache" / "dmuc"))
    config, log = tmp_path / "upstream.yml", tmp_path / "upstream.log"
    config.write_text(registry_config(registry_root(cache), UPSTREAM.partition("://")[2], None))
    with log.open("wb") as out:
        registry = subprocess.Popen(["docker-registry", "serve", config], stdout=out, stderr=out)
    try:
        deadline = time.monotonic() + 20
        while True:
            try:
                urllib.request.urlopen(f"{UPSTREAM}/v2/", timeout=1).close()
                break
            except urllib.error.URLError:
                assert time.monotonic() < deadline, log.read_text()
        yield log
    finally:
        registry.terminate()
        registry.wait(20)


def test_images_come_through_the_cache_at_the_hosts_end(upstream: Path, before: host_picture.Picture) -> None:
    setting = f"registry={UPSTREAM}"
    doit("clean")  # Pods that an earlier test has deleted can still be there
    try:
        assert "Welcome to nginx!" in doit(setting, "service_reachable").stdout
        assert "/v2/library/nginx/manifests/latest" in upstream.read_text()
        pod = json.loads(kubectl("get", "pods", "-o", "json"))["items"][0]
        assert pod["status"]["containerStatuses"][0]["imageID"].startswith("docker-pullable://nginx@sha256:")
        pid = pid_of("pull_through")
        inside = doit("shell", "--", "ps", "-e", "-o", "args=").stdout
        assert "registry.yml" in inside
        assert "pull-through.yml" not in inside  # it runs on the host, which has a way out
        doit("clean")
        host_picture.wait_gone(pid)
    finally:
        doit("clean")


@pytest.mark.parametrize("size", ["4k", "1m"])
def test_a_full_disk_is_said_and_can_be_cleaned(before: host_picture.Picture, size: str) -> None:
    script = f"""
        mkdir -p var; mount -t tmpfs -o size={size} tmpfs var
        scripts/doit service_reachable; echo "status $?"
        scripts/doit clean; echo "clean $?"; ls -A var
    """
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", script],
        cwd=ROOT,
        env=ENVIRONMENT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert "Traceback" not in done.stderr
    assert "o space left on device" in done.stderr
    assert "Free some space on the disk" in done.stderr or "The disk is full." in done.stderr
    assert done.stdout.splitlines()[-2:] == ["status 1", "clean 0"] or "status 1\nclean 0" in done.stdout, done
    assert not STATE.exists()
