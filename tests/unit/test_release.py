from __future__ import annotations

import json
from pathlib import Path

import pytest

from tasks.core.errors import DmucError
from tasks.core.release import RELEASES, doubts, find, fits, of, skew, step
from tests.unit.support import a_context


@pytest.mark.parametrize("release", RELEASES)
def test_a_release_is_found_by_its_minor_or_its_full_version(release: str) -> None:
    for text in (release, f"v{release}", f"{release}.2", f"v{release}.2"):
        assert find(text) is RELEASES[release]


@pytest.mark.parametrize("release", RELEASES)
def test_what_is_downloaded_for_a_release_is_of_that_release(release: str) -> None:
    assert fits(release, f"v{RELEASES[release].default}")
    assert find(RELEASES[release].default).minor == release


@pytest.mark.parametrize(
    "text",
    [
        "1.99",
        "1.2",
        "1.200",
        "2",
        "",
        "latest",
        "1.20.x",
        "1.20.2.3",
        "1.20 ",
        "1.20\n",
        "x1.20",
    ],
)
def test_a_release_that_is_not_known_is_answered_with_those_that_are(text: str) -> None:
    with pytest.raises(DmucError) as error:
        find(text)
    assert repr(text) in error.value.tried
    assert "It knows 1.19 to 1.37:" in error.value.do
    assert "kubernetes=" in error.value.do


@pytest.mark.parametrize(
    ("wanted", "version", "yes"),
    [
        ("1.20", "v1.20.2", True),
        ("1.20", "1.20.15", True),
        ("v1.20", "v1.20.2", True),
        ("1.20", "v1.20.2-dirty", True),
        ("1.20", "v1.20.0-alpha.1+0123abc", True),
        ("1.20.2", "v1.20.2", True),
        ("v1.20.2", "1.20.2", True),
        ("1.20.2", "v1.20.15", False),
        ("1.20.2", "v1.20.20", False),
        ("1.20.1", "v1.20.15", False),
        ("1.20", "v1.2.0", False),
        ("1.2", "v1.20.2", False),
        ("1.20", "v1.21.0", False),
        ("1.20", "v0.0.0-master", False),
    ],
)
def test_any_patch_fits_a_minor_release_and_one_alone_a_full_one(wanted: str, version: str, yes: bool) -> None:
    assert fits(wanted, version) is yes


@pytest.mark.parametrize(
    ("version", "minor"),
    [
        ("v1.19.0", "1.19"),
        ("v1.20.2", "1.20"),
        ("v1.36.3+7b29fb0", "1.36"),
        ("v1.37.0-alpha.1", "1.37"),
        ("v2.0.0", "1.37"),
        ("v1.9.11", "1.19"),
        ("v0.0.0-master", "1.19"),
    ],
)
def test_a_program_of_its_own_is_run_as_the_nearest_release(version: str, minor: str) -> None:
    assert of(version).minor == minor


def test_every_release_from_first_to_last_is_there() -> None:
    assert list(RELEASES) == [f"1.{minor}" for minor in range(19, 38)]


@pytest.mark.parametrize(
    ("versions", "said"),
    [
        ({}, []),
        ({"kubelet": "v1.20.2"}, []),
        ({"kube-apiserver": "v1.24.1", "kubelet": "v1.22.17", "kube-proxy": "v1.24.17"}, []),
        ({"kube-apiserver": "v1.24.1", "kubelet": "v1.21.14"}, ["kubelet v1.21.14", "at most 2 minor releases older"]),
        ({"kube-apiserver": "v1.31.1", "kubelet": "v1.28.15"}, []),
        ({"kube-apiserver": "v1.31.1", "kube-proxy": "v1.27.1"}, ["kube-proxy", "at most 3 minor releases older"]),
        ({"kube-apiserver": "v1.20.2", "kubelet": "v1.21.0"}, ["kubelet v1.21.0", "never newer"]),
        ({"kube-apiserver": "v1.20.2", "kube-scheduler": "v1.18.0"}, ["at most 1 minor release older"]),
        ({"kube-apiserver": "v1.20.2", "kube-controller-manager": "v1.21.0"}, ["never newer"]),
        ({"kube-apiserver": "v1.20.2", "kubectl": "v1.21.0"}, []),
        ({"kube-apiserver": "v1.20.2", "kubectl": "v1.22.0"}, ["kubectl", "at most 1 minor releases newer"]),
    ],
)
def test_skew_that_is_not_supported_is_said(versions: dict[str, str], said: list[str]) -> None:
    found = "\n".join(skew(versions))
    assert bool(found) == bool(said)
    for text in said:
        assert text in found


@pytest.mark.parametrize(
    ("before", "now", "said"),
    [
        ("v1.20.2", "v1.20.2", ""),
        ("v1.20.2", "v1.20.15", ""),
        ("v1.20.15", "v1.20.2", ""),
        ("v1.19.16", "v1.20.2", ""),
        ("v1.19.16", "v1.21.0", "one minor release at a time"),
        ("v1.31.14", "v1.36.3", "one minor release at a time"),
        ("v1.20.2", "v1.19.16", "downgrades"),
    ],
)
def test_a_step_that_is_not_supported_is_said(before: str, now: str, said: str) -> None:
    text = step(before, now)
    assert bool(text) == bool(said)
    assert said in text and (not text or (before in text and now in text))


def test_a_program_without_a_row_is_said_with_what_it_counts_as() -> None:
    versions = {
        "kube-apiserver": "v1.20.2",
        "kubelet": "v0.0.0-master+$Format:%h$",
        "kube-proxy": "v1.99.0-alpha.1",
        "kube-scheduler": "v1.9.0",
        "kubectl": "",
    }
    said = doubts(versions, "1.20")
    assert [line.split()[0] for line in said] == ["kubelet", "kube-proxy", "kube-scheduler", "kubectl"]
    assert "counts as 1.20, the cluster's" in said[0] and "counts as 1.37" in said[1] and "counts as 1.19" in said[2]
    assert doubts({"kubelet": "v1.37.0"}, "1.20") == []
    assert skew({"kube-apiserver": "v1.20.2", "kubelet": "v0.0.0-master"}) == []
    assert skew({"kube-apiserver": "v0.0.0-master", "kubelet": "v1.20.2"}) == []


def test_a_build_without_its_version_counts_as_one_of_the_clusters_release(tmp_path: Path) -> None:
    context = a_context(tmp_path, kubernetes="1.36")
    for version in ("v0.0.0-master+$Format:%h$", "", "dev"):
        context.programs_file.write_text(json.dumps({"kubelet": {"path": "/k", "version": version}}))
        assert context.release_of("kubelet").minor == "1.36"
