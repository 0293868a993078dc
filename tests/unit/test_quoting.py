"""Wherever the checkout is: what is written in another language is read there as it was meant."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from tasks import container_engine, kubeconfig, pki, registry
from tasks.api_client import administrators
from tasks.cluster import load
from tasks.core.context import Context
from tasks.core.errors import DmucError
from tasks.core.files import quoted
from tasks.core.first_process import setup_script
from tasks.core.machine import Host
from tasks.core.mounts import Plan, layer
from tasks.core.namespaces import Namespaces
from tasks.core.process import marks, members
from tasks.core.progress import Silent
from tests.unit.support import NASTY, a_context, a_host, a_program, eventually


@pytest.fixture
def context(tmp_path: Path) -> Context:
    return a_context(tmp_path / NASTY, machine="one", engine="containerd")


def written(context: Context) -> dict[str, str]:
    """What the container engine is given, by the file's path below the state."""
    files = container_engine.CONTAINER_ENGINE.writes(context)
    return {str(path.relative_to(context.state)): text for path, text in files.items()}


# TOML and YAML


EVERY = "".join(map(chr, [*range(0x300), *range(0x2000, 0x2070), 0xFEFF, 0xFFFD, 0xFFFE, 0x1F600, 0x10FFFF]))


@pytest.mark.parametrize("text", ["", "plain", NASTY, EVERY, "no", "123", "1e3", "~", "{$HOME}"])
def test_a_quoted_text_is_that_text_in_toml_and_in_yaml(text: str) -> None:
    assert tomllib.loads(f"a = {quoted(text)}\n[b.{quoted(text)}]\n") == {"a": text, "b": {text: {}}}
    assert yaml.safe_load(f"a: {quoted(text)}\n") == {"a": text}
    quoted(text).encode().decode()  # without surrogates


def test_containerd_finds_its_directories(context: Context) -> None:
    config: dict[str, Any] = tomllib.loads(written(context)["containerd.toml"])
    cri, state = config["plugins"]["io.containerd.grpc.v1.cri"], context.state
    assert cri["cni"] == {"bin_dir": f"{state}/cni/bin", "conf_dir": f"{state}/cni/net.d"}
    assert cri["registry"] == {"config_path": f"{state}/registries"}


def test_the_registries_find_theirs(context: Context, tmp_path: Path) -> None:
    there = replace(context, settings=replace(context.settings, cache=tmp_path / NASTY / "cache"))
    context.decide("registry", 'https://registry.example/"quoted"\\')
    places = ((registry.REGISTRY, there.state / "registry"), (registry.PULL_THROUGH, there.settings.cache / "pulled"))
    for daemon, directory in places:
        (text,) = daemon.writes(there).values()
        config: dict[str, Any] = yaml.safe_load(text)
        assert config["storage"]["filesystem"]["rootdirectory"] == str(directory)
    assert config["proxy"]["remoteurl"] == 'https://registry.example/"quoted"\\'


@pytest.mark.parametrize(("name", "user", "namespace"), [("no", "123", "1e3"), ("null", "0x10", "on"), ("y", "1", "2")])
def test_a_kubeconfig_has_names_and_not_numbers(tmp_path: Path, name: str, user: str, namespace: str) -> None:
    context = a_context(tmp_path, machine=name)
    pki.PKI.make(context, Silent())
    for end in ("crt", "key"):
        (context.pki / "users").mkdir(exist_ok=True)
        (context.pki / f"users/{user}.{end}").write_bytes((context.pki / f"admin.{end}").read_bytes())
    config = yaml.safe_load(kubeconfig.text(context, f"users/{user}", namespace))
    (entry,), (cluster,), (who,) = config["contexts"], config["clusters"], config["users"]
    assert config["current-context"] == entry["name"] == entry["context"]["cluster"] == cluster["name"] == name
    assert (entry["context"]["user"], who["name"], entry["context"]["namespace"]) == (user, user, namespace)


# The shell


def test_the_adapter_runs_runc_with_its_arguments(context: Context) -> None:
    host = a_host(lacking_capabilities=["sys_resource", "mknod"])
    with_docker = replace(context, settings=replace(context.settings, engine="docker"), facts=host)
    a_program(context.bin / "runc", 'printf "%s\\n" "$@"; exit 7')
    adapter = a_program(context.state / "runc-adapter", "")
    adapter.write_text(written(with_docker)["runc-adapter"])
    (bundle := context.state / "bundle").mkdir()
    sets = [["CAP_MKNOD", "CAP_KILL", "CAP_SYS_RESOURCE"], ["CAP_SYS_RESOURCE", "CAP_MKNOD"], ["CAP_KILL"]]
    asked = {"oomScoreAdj": -998, "capabilities": sets}
    (bundle / "config.json").write_text(json.dumps(asked, separators=(",", ":")))
    done = subprocess.run(
        [adapter, "--log", "a  b", "create", "--bundle", bundle, "it's"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (7, "")
    assert done.stdout.splitlines() == ["--log", "a  b", "create", "--bundle", str(bundle), "it's"]
    assert json.loads((bundle / "config.json").read_text()) == {
        "oomScoreAdj": 0,
        "capabilities": [["CAP_KILL"], [], ["CAP_KILL"]],
    }


def test_the_machines_script_mounts_its_state(context: Context) -> None:
    one = Namespaces("one", context.state, "10.0.0.0/30", "10.1.0.0/16", "10.2.0.0/24", {"/var/lib/x": "x"})
    script = setup_script(one, [], Plan(overlays=[context.state / "home"]))
    lines = [shlex.split(line, comments=True) for line in script.splitlines() if "chéck" in line]
    assert lines == [
        ["cd", str(context.state)],
        ["overlay", str(context.state / "home"), layer(context.state / "home")],
        ["mount", "--bind", f"{context.state}/x", "/sys/new/var/lib/x"],
    ]


def test_how_kubectl_is_used_can_be_typed(context: Context) -> None:
    context.home.mkdir()
    pki.PKI.make(context, Silent())
    kubeconfig.KUBECONFIG.make(context, Silent())
    command = kubeconfig.KUBECONFIG.holds(context).why
    assert shlex.split(command) == ["kubectl", "--kubeconfig", str(administrators(context))]


def test_a_process_is_started_there_and_found_again(context: Context) -> None:
    for directory in (context.pidfiles, context.logs):
        directory.mkdir()
    record, log = context.pidfiles / "x.pid", context.logs / "x.log"
    program = a_program(context.bin / "x", 'pwd; echo "$1"; exec sleep 60')
    environment = context.environment() | marks(record)
    spawned = Host().spawn([str(program), NASTY], log=log, cwd=context.pidfiles, environment=environment)
    try:
        eventually(lambda: members(record), "it is found")
        assert [*members(record)] == [spawned.pid]
        assert log.read_text() == f"{context.pidfiles}\n{NASTY}\n"
    finally:
        spawned.handle.kill()
        spawned.handle.wait()


# Where no quotes help


def of_checkout(directory: Path) -> Context:
    return load(directory, {}, ["machine=one"], []).context


def test_a_checkout_may_have_any_name_but_some(tmp_path: Path) -> None:
    nasty = NASTY.replace('"', "")
    (tmp_path / nasty).mkdir()
    assert of_checkout(tmp_path / nasty).state == tmp_path / nasty / "var" / "one"
    for name, why in (("a:b", "colon"), ('"', "quotation mark"), (os.fsdecode(b"caf\xe9"), "UTF-8")):
        (tmp_path / name).mkdir()
        with pytest.raises(DmucError, match=why) as error:
            of_checkout(tmp_path / name)
        assert error.value.do == "Use a checkout in another directory."


def test_the_state_of_another_user_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "var/one").mkdir(parents=True)
    real = os.scandir

    def refuse(path: Path) -> object:  # root may read everything
        if path == tmp_path / "var/one":
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(DmucError, match="Permission denied") as error:
        of_checkout(tmp_path)
    assert "Run as the user who owns this directory" in error.value.do
