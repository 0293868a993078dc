"""The user's flags come last, with their origin, and only if the program itself accepts them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tasks.core.context import Context
from tasks.core.errors import DmucError
from tasks.core.flags import Flag, refuse, users_flags
from tasks.core.settings import Settings
from tests.unit.support import a_context

# What pflag (Kubernetes), Go's package flag (etcd) and a wrapper that does not pass on --help print.
PFLAG = "Usage of kube-x:\n      --feature-gates mapStringBool   Gates:\n  Useful=true|false (ALPHA)\n  -v, --v Level\n"
GO = "Usage of etcd:\n  -quota-backend-bytes int\n    \tRaise alarms.\n"


def program(directory: Path, script: str) -> str:
    path = directory / "kube-x"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return str(path)


def with_flags(tmp_path: Path, *words: str) -> Context:
    context = a_context(tmp_path)
    sources = {"kube_x_flags": "environment"}
    return replace(context, settings=replace(context.settings, flags={"kube-x": words}, sources=sources))


def refused(tmp_path: Path, script: str, *words: str) -> DmucError:
    with pytest.raises(DmucError) as error:
        refuse(with_flags(tmp_path, *words), "kube-x", [program(tmp_path, script), "--ours", *words], "It goes on.")
    return error.value


def test_they_say_where_they_are_set_and_which_of_dmucs_they_follow() -> None:
    settings = Settings(flags={"kube-x": ("--v=6", "--burst=5", "word")}, sources={"kube_x_flags": "command line"})
    ours = [Flag("--burst=300", "why"), Flag("--other", "why")]
    assert [(flag.text, flag.why) for flag in users_flags(settings, "kube-x", ours)] == [
        ("--v=6", "Yours: kube_x_flags= (command line)."),
        ("--burst=5", "Yours: kube_x_flags= (command line); after dmuc's --burst=300."),
        ("word", "Yours: kube_x_flags= (command line)."),
    ]
    assert users_flags(settings, "etcd", ours) == []


def test_an_unknown_flag_is_said_with_the_nearest_one(tmp_path: Path) -> None:
    error = refused(tmp_path, f"echo 'Error: unknown flag: --feature-gate'; echo '{PFLAG}'", "--feature-gate=a=true")
    assert str(error).splitlines()[0] == "checking kube_x_flags=--feature-gate=a=true (environment)"
    assert "Error: unknown flag: --feature-gate" in str(error) and "It goes on." in str(error)
    assert "Did you mean --feature-gates?" in str(error)


def test_an_unknown_feature_gate_is_said_with_the_nearest_one(tmp_path: Path) -> None:
    seen = 'invalid argument "Usefull=true" for "--feature-gates" flag: unrecognized feature gate: Usefull'
    error = refused(tmp_path, f"echo '{PFLAG}'; echo '{seen}'", "--feature-gates=Usefull=true")
    assert seen in str(error) and "Did you mean Useful?" in str(error)


@pytest.mark.parametrize(
    "script",
    [
        "echo 'flag needs an argument: --quota-backend-bytes'",
        f"echo '{GO}'",  # it has taken --help for the value
        """echo 'invalid value "--help" for flag -quota-backend-bytes: parse error'""",
    ],
)
def test_a_value_that_is_missing_at_the_end_is_said(tmp_path: Path, script: str) -> None:
    assert "flag needs an argument: --quota-backend-bytes" in str(refused(tmp_path, script, "--quota-backend-bytes"))


@pytest.mark.parametrize("script", [f"echo '{PFLAG}'", "exit 3", "exec 2>&-", "echo 'unknown'; kill -9 $$"])
def test_what_the_program_does_not_refuse_is_left_to_it(tmp_path: Path, script: str) -> None:
    refuse(with_flags(tmp_path, "--hidden=1"), "kube-x", [program(tmp_path, script), "--hidden=1"], "")
