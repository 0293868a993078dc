"""`doit env`: what a shell evaluates is right wherever the checkout is, or fails."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from doit.exceptions import InvalidCommand

from tasks.api_client import administrators
from tasks.commands import env
from tasks.core.cluster import Cluster
from tasks.core.context import Context
from tasks.core.result import Result
from tests.unit.support import a_context


@pytest.fixture
def context(tmp_path: Path) -> Context:
    context = a_context(tmp_path / "it's $(false) ; \\n" / "here", machine="host.one")
    context.pki.mkdir()
    for name in ("ca.crt", "admin.crt", "admin.key"):
        (context.pki / name).write_text(name)
    return context


def env_of(context: Context, *arguments: str) -> int:
    cluster = Cluster(context, ())
    ours: Any = None  # `act` needs nothing of doit's
    return env.Env.act(ours, cluster, [*arguments])


def in_a_shell(text: str) -> subprocess.CompletedProcess[str]:
    script = 'eval "$1" && printf "%s\\n" "$KUBECONFIG" "$KUBEBUILDER_ASSETS" "$DMUC_MACHINE"'
    return subprocess.run(["sh", "-c", script, "sh", text], capture_output=True, text=True, check=False, env={})


def test_a_shell_reads_it_as_it_is_meant(context: Context, capsys: pytest.CaptureFixture[str]) -> None:
    with mock.patch.object(env, "APISERVER") as server:
        server.ready.return_value = Result(True, "it answers")
        assert env_of(context) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert in_a_shell(out).stdout == f"{context.state}/kubeconfig\n{context.state}/bin\nhost.one\n"
    assert administrators(context).exists()  # the API server was started alone, which does not need it


def test_the_default_machine_is_not_said(tmp_path: Path) -> None:
    assert "DMUC_MACHINE" not in env.variables(a_context(tmp_path, machine="dmuc1"))


def test_without_an_api_server_a_shell_that_evaluates_it_fails(
    context: Context, capsys: pytest.CaptureFixture[str]
) -> None:
    assert env_of(context) == 1
    out, err = capsys.readouterr()
    assert err.startswith("✗ ")
    assert "\nRun: scripts/doit apiserver\n" in err
    done = in_a_shell(out)
    assert (done.returncode, done.stdout, done.stderr) == (1, "", "")
    assert in_a_shell("").returncode == 0  # what printing nothing would come to


def test_it_takes_no_arguments(context: Context) -> None:
    with pytest.raises(InvalidCommand):
        env_of(context, "web")
