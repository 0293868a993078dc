"""The commands, as people type them: the real dodo.py in a copy of this checkout, with machines that are never on."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from tasks.core.lock import only_one
from tests.unit.checkout import DOIT, Checkout, is_told
from tests.unit.support import a_context

PUBLIC = [
    *("machine", "binaries", "pki", "etcd", "apiserver", "kubeconfig", "controller_manager", "service_account"),
    *("deployment", "container_engine", "images", "kubelet", "scheduler", "service", "kube_proxy"),
    *("service_reachable", "dns"),
]


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    return Checkout(tmp_path)


# list, help


def test_list_shows_what_people_see_in_the_order_of_the_walk_through(checkout: Checkout) -> None:
    done = checkout.doit("list")
    assert (done.returncode, done.stderr) == (0, "")
    assert [line.split()[0] for line in done.stdout.splitlines()] == PUBLIC
    assert all(re.fullmatch(r"\w+ +\S.*", line) and len(line) < 120 for line in done.stdout.splitlines())
    assert checkout.made() == set()


def test_help_shows_our_own_commands(checkout: Checkout) -> None:
    done = checkout.doit("help")
    assert (done.returncode, done.stderr) == (0, "")
    for command in ("down", "logs", "shell", "status", "tour", "trace", "why"):
        assert re.search(rf"\b{command} +\w", done.stdout)
        own = checkout.doit("help", command)
        assert own.returncode == 0 and own.stdout and "Traceback" not in own.stderr


@pytest.mark.parametrize("encoding", ["ascii", "latin-1:strict"])
@pytest.mark.parametrize("word", ["list", "info", "status", "preflight", "why", "help", "pki"])
def test_what_an_encoding_does_not_have_is_printed_otherwise(checkout: Checkout, word: str, encoding: str) -> None:
    done = checkout.doit(word, *(["kubelet"] if word == "info" else []), PYTHONIOENCODING=encoding)
    assert "Traceback" not in done.stderr and "codec" not in done.stderr
    assert done.stdout and done.stdout.isascii() >= (encoding == "ascii")


@pytest.mark.parametrize("words", [("list", "--all", "--status"), ("info", "kubelet"), ("status",), ("why",)])
def test_a_reader_may_stop_reading(checkout: Checkout, words: Sequence[str]) -> None:
    with subprocess.Popen(
        [*DOIT, *words], cwd=checkout.root, env=checkout.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""


# Settings


@pytest.mark.parametrize("words", [("",), ("list", ""), ("shell", "--", "sh", "-c", "")])
def test_an_empty_word_is_said(checkout: Checkout, words: tuple[str, ...]) -> None:
    is_told(checkout.doit(*words), "reading the command line", "One of its words is empty.", "Leave the word out")


def test_an_unknown_setting_is_said(checkout: Checkout) -> None:
    is_told(checkout.doit("list", "kubernets=1.20"), "command line", "'kubernets'", "Did you mean kubernetes?")
    is_told(checkout.doit("list", DMUC_MASHINE="x"), "environment", "'mashine'", "Did you mean machine?")
    (checkout.root / "cluster.toml").write_text('pod_rage = "10.1.0.0/24"\n')
    is_told(checkout.doit("list"), "cluster.toml", "'pod_rage'", "Did you mean pod_range?")
    assert checkout.made() == {"cluster.toml"}


@pytest.mark.parametrize(
    ("word", "parts"),
    [
        ("kubernetes=1.99", ("'1.99'", "It knows ")),
        ("machine=Not_A_Name", ("machine=Not_A_Name: not a valid name",)),
        ("pod_range=10.0.0.0/30", ("pod_range=10.0.0.0/30: too small",)),
        ("deadline_etcd=soon", ("deadline_etcd=soon: this must be a number",)),
        ("deadline_etc=5", ("'deadline_etc'", "Did you mean deadline_etcd?")),
        ("=", ("there is no setting called ''",)),
    ],
)
def test_a_setting_that_cannot_be_is_said(checkout: Checkout, word: str, parts: Sequence[str]) -> None:
    is_told(checkout.doit(word), *parts)
    assert checkout.made() == set()


def test_a_malformed_file_of_settings_is_said(checkout: Checkout) -> None:
    (checkout.root / "cluster.toml").write_text("machine = dmuc2\n")
    is_told(checkout.doit("list"), "cluster.toml", "not valid TOML")


def test_each_task_can_have_its_own_deadline_and_each_program_its_own_path(checkout: Checkout) -> None:
    words = [f"deadline_{name}=5" for name in (*PUBLIC, "registry", "pull_through")]
    programs = ("etcd", "kube_apiserver", "kubelet", "kubectl", "dockerd", "runc")
    done = checkout.doit("list", *words, *(f"{name}_bin=/x" for name in programs))
    assert (done.returncode, done.stderr) == (0, "")


# What is asked for


@pytest.mark.parametrize(
    "words",
    [
        ("nosuch",),
        ("run", "nosuch"),
        ("info", "nosuch"),
        ("clean", "nosuch"),
    ],
)
def test_a_task_that_there_is_not_is_said(checkout: Checkout, words: Sequence[str]) -> None:
    is_told(checkout.doit(*words), "nosuch", lines=5)


def test_a_slip_leaves_nothing_behind(checkout: Checkout) -> None:
    checkout.doit("nosuch")
    assert checkout.made() == set()


@pytest.mark.parametrize(
    "words", [("logs", "--nosuch"), ("status", "surplus"), ("why", "a", "b"), ("down", "-x"), ("down", "etcd")]
)
def test_a_command_with_what_it_does_not_take_is_said(checkout: Checkout, words: Sequence[str]) -> None:
    is_told(checkout.doit(*words), "")


# Running


def test_a_task_is_done_and_then_up_to_date(checkout: Checkout) -> None:
    first = checkout.doit("pki")
    assert (first.returncode, first.stderr) == (0, "")
    assert re.search(r"✓ pki +ready, \d+\.\d s", first.stdout)
    made = {path: path.read_bytes() for path in (checkout.state / "pki").iterdir()}
    second = checkout.doit("pki")
    assert (second.returncode, second.stderr) == (0, "")
    assert re.fullmatch(r"· pki +up to date: valid until 20\d\d-\d\d-\d\d\n", second.stdout)
    assert {path: path.read_bytes() for path in (checkout.state / "pki").iterdir()} == made
    assert checkout.made() == {"var"}
    assert checkout.state.stat().st_mode & 0o777 == 0o700


def test_info_says_why_something_is_not_up_to_date(checkout: Checkout) -> None:
    done = checkout.doit("info", "etcd")
    assert "Traceback" not in done.stderr
    assert " * not started" in done.stdout.splitlines()
    assert checkout.made() == set()


def test_a_state_directory_that_cannot_be_made_is_said(checkout: Checkout) -> None:
    (checkout.root / "var").write_text("a file")
    is_told(checkout.doit("pki"), "var")


@pytest.mark.parametrize("text", ["", "{", "[]", '{"pki": 3}', None])
def test_what_a_killed_run_left_of_doits_database_does_no_harm(checkout: Checkout, text: str | None) -> None:
    assert checkout.doit("pki").returncode == 0
    database = checkout.state / "doit.json"
    if text is None:
        database.unlink()
        database.mkdir()
    else:
        database.write_text(text)
    for words in (["pki"], ["info", "pki"], ["clean"]):
        done = checkout.doit(*words)
        assert "Traceback" not in done.stderr
        assert done.returncode == 0


# Only one

USER = ("user", "name=ada")


@pytest.mark.parametrize("words", [("pki",), ("run", "pki"), ("clean",), ("clean", "pki"), ("down",), USER])
def test_a_second_doit_is_told_of_the_first(checkout: Checkout, words: Sequence[str]) -> None:
    with only_one(a_context(checkout.root, machine=checkout.machine)):
        made = checkout.made()
        done = checkout.doit(*words)
        is_told(done, f"machine {checkout.machine}", f"(pid {os.getpid()})", "machine=NAME")
        assert checkout.made() == made


def test_users_are_made_by_one_at_a_time_however_long_the_path(tmp_path: Path) -> None:
    root = tmp_path / ("long " * 30)
    root.mkdir()
    checkout = Checkout(root)
    with only_one(a_context(root, machine="host.one")):
        is_told(checkout.doit("user", "name=ada", DMUC_MACHINE="host.one"), "Another doit", f"(pid {os.getpid()})")
    assert "Another doit" not in checkout.doit("user", "name=ada", DMUC_MACHINE="host.one").stderr


@pytest.mark.parametrize("words", [("list",), ("info", "pki"), ("status",), ("why",), ("logs",)])
def test_looking_is_possible_while_another_is_at_work(checkout: Checkout, words: Sequence[str]) -> None:
    with only_one(a_context(checkout.root, machine=checkout.machine)):
        assert "Another doit" not in checkout.doit(*words).stderr


# The machine is off


def test_a_shell_in_a_machine_that_is_off_is_refused(checkout: Checkout) -> None:
    for words in (["shell"], ["shell", "--", "true"], ["shell", "ls"]):
        is_told(checkout.doit(*words), f"entering {checkout.machine}", "not powered on", "Run: scripts/doit machine")


def test_a_shell_on_the_host_runs_the_words_as_they_are(checkout: Checkout) -> None:
    done = checkout.doit(
        "shell",
        "--",
        "sh",
        "-c",
        'echo "$1|$2|$X|$KEEP|$HOME"; exit 7',
        "sh",
        "a=b",
        "two  words",
        DMUC_MACHINE="host",
        KEEP="not this",
    )
    assert done.returncode == 7
    assert done.stdout == f"a=b|two  words|||{checkout.root}/var/host/home\n"


def test_a_way_through_a_machine_that_is_off_is_not_traced(checkout: Checkout) -> None:
    for words in (["trace"], ["trace", "web"], ["trace", "web", "surplus"]):
        is_told(checkout.doit(*words), "tracing", "not powered on", "scripts/doit status")
    assert checkout.made() == set()


def test_status_of_a_machine_that_is_off_says_so(checkout: Checkout) -> None:
    done = checkout.doit("status")
    assert (done.returncode, done.stderr) == (1, "")
    assert f"{checkout.machine} was never powered on" in done.stdout
    assert re.search(r"^etcd +- +- +- +not ready: not started$", done.stdout, re.MULTILINE)
    assert checkout.made() == set()


def test_why_begins_with_the_machine(checkout: Checkout) -> None:
    for words in (
        ["why"],
        ["why", "web"],
        ["why", "anything/else"],
    ):  # whether that exists is unknown without the API server
        done = checkout.doit(*words)
        assert (done.returncode, done.stderr) == (1, "")
        assert f"\ncause: machine: {checkout.machine} was never powered on\n" in done.stdout
        assert done.stdout.endswith("\nnext: scripts/doit machine\n")
        assert "✗ etcd               (because of machine) not started\n" in done.stdout
        assert "cannot be asked" in done.stdout
    assert checkout.made() == set()


def test_down_and_clean_of_nothing_are_nothing(checkout: Checkout) -> None:
    for words in (["down"], ["clean"], ["clean", "--dry-run"], ["clean", "etcd"], ["clean", *PUBLIC]):
        done = checkout.doit(*words)
        assert (done.returncode, done.stderr) == (0, ""), words
    assert checkout.made() == set()


def test_clean_removes_all_state_and_keeps_the_cache(checkout: Checkout) -> None:
    assert checkout.doit("pki").returncode == 0
    (checkout.root / "cache").mkdir()
    (checkout.state / "etcd/default.etcd").mkdir(parents=True)
    (checkout.root / "var/other").mkdir()
    done = checkout.doit("clean")
    assert (done.returncode, done.stderr) == (0, "")
    assert checkout.made() == {"var", "cache"}
    assert [path.name for path in (checkout.root / "var").iterdir()] == ["other"]
    (checkout.root / "var/other").rmdir()
    assert checkout.doit("clean").returncode == 0
    assert not (checkout.root / "var").exists() or list((checkout.root / "var").iterdir()) == []


@pytest.mark.parametrize("setting", ["proxy_mode=nftables", "engine=docker kubernetes=1.36"])
def test_settings_that_do_not_go_together_are_no_obstacle_to_clean(checkout: Checkout, setting: str) -> None:
    words = setting.split()
    assert checkout.doit("list", *words).returncode
    for command in ("down", "clean"):
        done = checkout.doit(command, *words)
        assert (done.returncode, done.stderr) == (0, "")


def test_clean_with_a_name_undoes_that_task(checkout: Checkout) -> None:
    assert checkout.doit("kubeconfig").returncode == 0
    assert checkout.doit("clean", "--dry-run", "kubeconfig").returncode == 0
    assert (checkout.state / "kubeconfig").exists()
    assert checkout.doit("clean", "kubeconfig").returncode == 0
    assert not (checkout.state / "kubeconfig").exists()
    assert (checkout.state / "pki/ca.crt").exists()


# Logs


def test_logs_without_a_log_say_which_there_are(checkout: Checkout) -> None:
    is_told(checkout.doit("logs"), "the name of one log is needed", "none yet")
    is_told(checkout.doit("logs", "etcd"), "no log called 'etcd'", "none yet")
    (checkout.state / "logs").mkdir(parents=True)
    (checkout.state / "logs/etcd.log").write_text("one\ntwo \xe9\n", encoding="latin-1")
    (checkout.state / "logs/kubelet.log").touch()
    is_told(checkout.doit("logs", "apiserver"), "no log called 'apiserver'", "Logs: etcd, kubelet.")
    is_told(checkout.doit("logs", "../logs/etcd"), "Logs: etcd, kubelet.")
    done = checkout.doit("logs", "etcd")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("one\ntwo ")


@pytest.mark.parametrize("words", [("--follow", "etcd"), ("etcd", "-f"), ("-f", "etcd"), ("etcd", "--follow")])
def test_a_followed_log_goes_on_as_it_grows(checkout: Checkout, words: Sequence[str]) -> None:
    log = checkout.state / "logs/etcd.log"
    log.parent.mkdir(parents=True)
    log.write_text("".join(f"line {n}\n" for n in range(100)))
    with subprocess.Popen(
        # Whoever runs the tests in the background of a shell has SIGINT ignored, and so would doit.
        ["env", "--default-signal=INT", *DOIT, "logs", *words],
        cwd=checkout.root,
        env=checkout.environment,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "line 80\n"  # else it has ended, and said why
        with log.open("a") as file:
            file.write("one more\n")
        assert next(line for line in process.stdout if "line" not in line) == "one more\n"
        os.killpg(process.pid, 2)  # as Ctrl-C in a terminal does
        process.wait(20)
    assert process.returncode == 0


def test_on_a_host_that_is_shared_only_what_can_be_there_is_listed(checkout: Checkout) -> None:
    done = checkout.doit("list", "machine=host.one")
    shown = [line.split()[0] for line in done.stdout.splitlines()]
    node = {"container_engine", "images", "kubelet", "kube_proxy", "service_reachable", "dns"}
    assert shown == [name for name in PUBLIC if name not in node]
    why = checkout.doit("why", "machine=host.one").stdout
    assert "etcd" in why and not re.search(r"\b(kubelet|container_engine|page|node|images)\b", why), why
    # Named, such a task says why it cannot be.
    refused = checkout.doit("kubelet", "machine=host.one")
    assert refused.returncode and "a machine of its own" in refused.stderr and "Traceback" not in refused.stderr
