from __future__ import annotations

import pytest

from tasks.core.errors import DmucError
from tasks.core.release import RELEASES, find, fits


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
    assert "It knows: " in error.value.do and "1.20" in error.value.do
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
