"""The tour: its chapters as they are, and, with chapters of shell commands on this very host, how it is played."""

from __future__ import annotations

import contextlib
import os
import pty
import re
import select
import signal
import subprocess
import time
from functools import partial
from pathlib import Path

import pytest

from tasks.core.errors import DmucError
from tasks.tour.steps import CHAPTERS, CURRENT, Command, chosen, facts, load
from tests.unit.checkout import DOIT, Checkout, is_told
from tests.unit.support import a_context, eventually

CTRL_C = "\x03"

TWO = """
title = "Shell"

[[step]]
name = "hello"
title = "Say hello"
about = "We say hello."
notice = "It says hello."
means = "There is a shell."
[[step.command]]
run = "echo hello world"
shows = ["^hello"]

[[step]]
name = "file"
title = "Make a file"
about = "We make a file."
[[step.command]]
run = "touch made; ls"
shows = ["^made$"]
hides = ["unmade"]
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    checkout = Checkout(tmp_path)
    # On the host, and of all runs on this host alone: of several clusters each has a lock of its own.
    checkout.machine = f"host.{checkout.machine}"
    checkout.state = checkout.root / "var" / checkout.machine
    checkout.environment["DMUC_MACHINE"] = checkout.machine
    return checkout


def write(checkout: Checkout, text: str) -> str:
    """Make `text` the only chapter; return the option that names it."""
    (checkout.root / "own").mkdir(exist_ok=True)
    (checkout.root / "own" / "1.toml").write_text(text)
    return f"--chapters={checkout.root / 'own'}"


def tour(checkout: Checkout, text: str, *words: str) -> subprocess.CompletedProcess[str]:
    return checkout.doit("tour", write(checkout, text), *words)


# The chapters as they are


def test_every_step_tells_what_why_and_what_it_means() -> None:
    steps = [step for chapter in load() for step in chapter.step]
    assert len(steps) > 25
    for step in steps:
        assert step.command, step.name
        for text in (step.about, step.notice, step.means):
            assert len(text.split()) > 2 and re.search(r"[.!?)`]\s*\Z", text), (step.name, text)
        assert any(c.shows or c.hides or c.until or c.doit for c in step.command), f"{step.name} can turn out anyhow"


def test_the_steps_of_the_walk_through_are_there_in_its_order() -> None:
    assert [step.name for chapter in load() for step in chapter.step] == [
        *("machine", "versions", "apiserver-refused", "etcd", "apiserver", "front-door", "first-look", "deployment"),
        *("controller-manager-refused", "controller-manager", "no-token"),
        *("token-disabled", "token-no-mount", "token-keys"),
        *("pending", "container-engine", "kubelet-alone", "kubeconfig", "kubelet", "still-pending"),
        *("binding", "scheduler", "pod-answers", "service", "kube-proxy", "chains", "kubernetes-service", "the-end"),
    ]


def test_every_fact_has_a_name_that_is_known(tmp_path: Path) -> None:
    known = facts(a_context(tmp_path))
    for value in (True, False):
        assert chosen(load(), dict.fromkeys(known, value), {})


def test_a_choice_leaves_the_other_ways_out(tmp_path: Path) -> None:
    def names(**choices: str) -> set[str]:
        chapters = chosen(load(), facts(a_context(tmp_path)), choices)
        return {step.name for chapter in chapters for step in chapter.step}

    everything = names()
    assert everything - names(service_account="no-mount") == {"token-disabled", "token-keys"}
    assert everything - names(service_account="disabled") == {"token-no-mount", "token-keys"}
    assert everything - names(scheduling="manual") == {"scheduler"}


def test_it_is_listed_without_doing_anything(checkout: Checkout) -> None:
    done = checkout.doit("tour", "--list")
    assert (done.returncode, done.stderr) == (0, "")
    assert re.search(r"^  +apiserver-refused +Start the API server alone$", done.stdout, re.MULTILINE)
    assert checkout.made() == set()


# Playing


def test_each_step_is_told_typed_shown_and_explained(checkout: Checkout) -> None:
    done = tour(checkout, TWO, "--yes")
    assert (done.returncode, done.stderr) == (0, "")
    told = [
        *(
            "━━ Shell ━━",
            "1/2 Say hello [hello]",
            "We say hello.",
            f"{checkout.machine}# echo hello world",
            "| hello world",
        ),
        *("Notice: It says hello.", "Which means: There is a shell.", "2/2 Make a file [file]", "| made"),
    ]
    places = [done.stdout.index(text) for text in told]
    assert places == sorted(places)
    assert "\x1b" not in done.stdout  # plain text where there is no terminal


@pytest.mark.parametrize(
    ("expectation", "said"),
    [
        ('shows = ["^goodbye"]', "its output matches /^goodbye/"),
        ('hides = ["world"]', "its output does not match /world/"),
        ("fails = true", "it fails"),
        ('shows = ["^goodbye"]\nwithin = 1', "within 1 s"),
    ],
)
def test_a_step_that_turns_out_otherwise_ends_it(checkout: Checkout, expectation: str, said: str) -> None:
    done = tour(checkout, TWO.replace('shows = ["^hello"]', expectation), "--yes")
    assert done.returncode == 1
    assert "✗ the step hello did not end as expected: echo hello world\nexpected: " in done.stderr
    assert said in done.stderr
    assert "seen: exit status 0, with this output:\n  hello world\n" in done.stderr
    assert "Say hello" in done.stdout and "Make a file" not in done.stdout


def test_a_command_is_repeated_until_it_is_as_expected(checkout: Checkout) -> None:
    text = TWO.replace("echo hello world", "ls first && echo hello; touch first").replace(
        'shows = ["^hello"]', 'shows = ["^hello"]\nwithin = 20'
    )
    done = tour(checkout, text, "--yes")
    assert done.returncode == 0, done.stderr
    assert "cannot access" not in done.stdout  # what counts is how it turned out


def test_a_command_that_goes_on_for_ever_is_ended(checkout: Checkout) -> None:
    text = TWO.replace("echo hello world", "echo $$ > pid; echo hello; sleep 1000").replace("shows", "until", 1)
    text = text.replace('until = ["^hello"]', 'until = "^hello"')
    done = tour(checkout, text, "--yes")
    assert done.returncode == 0, done.stderr
    pid = (checkout.state / "home/pid").read_text().strip()
    assert not Path(f"/proc/{pid}").exists() or "Z" in Path(f"/proc/{pid}/stat").read_text().split()[2]


def test_one_that_should_go_on_and_ends_is_otherwise(checkout: Checkout) -> None:
    done = tour(checkout, TWO.replace('shows = ["^hello"]', 'until = "goodbye"'), "--yes")
    assert done.returncode == 1
    assert "expected: it keeps running, its output matches /goodbye/\nseen: exit status 0" in done.stderr


def test_it_stops_where_it_is_told_and_goes_on_from_there(checkout: Checkout) -> None:
    first = tour(checkout, TWO, "--yes", "--to", "hello")
    assert first.returncode == 0 and "Make a file" not in first.stdout
    assert "✓ hello" in tour(checkout, TWO, "--list").stdout
    second = tour(checkout, TWO, "--yes")
    assert second.returncode == 0 and "Say hello" not in second.stdout and "| made" in second.stdout
    third = tour(checkout, TWO, "--yes")
    assert (third.returncode, third.stdout.count("\n")) == (0, 1) and "The tour is complete" in third.stdout


def test_what_comes_before_is_done_without_a_word(checkout: Checkout) -> None:
    done = tour(checkout, TWO, "--yes", "--from", "file")
    assert done.returncode == 0
    assert "1/2 hello: done, not shown" in done.stdout
    assert "We say hello" not in done.stdout and "| made" in done.stdout


# Bad input


def test_an_unknown_step_is_said_and_nothing_is_done(checkout: Checkout) -> None:
    option = write(checkout, TWO)
    for words in (("--from", "nix"), ("--to", "nix")):
        is_told(checkout.doit("tour", option, "--yes", *words), "'nix'", "tour --list")
    is_told(checkout.doit("tour", option, "nix"), "does not know 'nix'")
    is_told(
        checkout.doit("tour", option, "--yes", "--from", "file", "--to", "hello"),
        "The step hello comes before the step file",
    )
    assert checkout.made() == {"own"}


def test_without_a_terminal_it_wants_to_be_told_not_to_wait(checkout: Checkout) -> None:
    is_told(checkout.doit("tour", write(checkout, TWO)), "no terminal", "--yes")
    assert checkout.made() == {"own"}


def test_it_does_not_go_backwards(checkout: Checkout) -> None:
    tour(checkout, TWO, "--yes", "--to", "hello")
    is_told(tour(checkout, TWO, "--yes", "--from", "hello"), "cannot go back", "clean")


def test_it_does_not_begin_on_a_cluster_that_is_there(checkout: Checkout) -> None:
    logs = checkout.state / "logs"
    logs.mkdir(parents=True)
    (logs / "etcd.log").write_text("--- it has run here\n")
    is_told(tour(checkout, TWO, "--yes"), "starts with an empty machine", "clean", "machine=NAME")
    assert not (checkout.state / "tour.json").exists()


def test_the_walk_through_takes_a_machine_of_its_own(checkout: Checkout) -> None:
    is_told(checkout.doit("tour", "--yes"), "a machine of its own")


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ("title = 3 = 4", "TOMLDecodeError"),
        (TWO.replace('title = "Say hello"', 'titel = "Say hello"'), "titel"),
        (TWO.replace('"^hello"', '"(hello"'), "not a regular expression"),
        (TWO.replace('run = "echo hello world"', ""), "either `doit` or `run`"),
        (TWO.replace('name = "file"', 'name = "hello"'), "Two steps are called hello"),
        (TWO.replace('about = "We make a file."', 'about = "We."\nwhen = "moonlight"'), "no fact called 'moonlight'"),
        ("", "KeyError"),
    ],
)
def test_a_chapter_that_cannot_be_is_said(checkout: Checkout, wrong: str, said: str) -> None:
    is_told(tour(checkout, wrong, "--yes"), said)


def test_a_directory_without_chapters_is_said(tmp_path: Path) -> None:
    with pytest.raises(DmucError, match="There are no steps"):
        load(tmp_path)
    assert load(CHAPTERS)


def test_a_command_says_in_words_what_must_come_of_it() -> None:
    command = Command(run="x", fails=True, shows=["a"], hides=["b"], within=5)
    assert command.expected() == "it fails, its output matches /a/, its output does not match /b/, within 5 s"


# With a person


def sleeps(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "S"


def at_a_terminal(checkout: Checkout, keys: list[tuple[str, str]]) -> tuple[int, str]:
    """Take the tour at a terminal: wait for each text, then type its keys. Return the exit status and the output."""
    leader, follower = pty.openpty()
    with subprocess.Popen(
        [*DOIT, "tour", write(checkout, TWO)],
        cwd=checkout.root,
        env=checkout.environment,
        stdin=follower,
        stdout=follower,
        stderr=follower,
        start_new_session=True,
    ) as process:
        os.close(follower)
        shown, seen, end = "", 0, time.monotonic() + 30
        with os.fdopen(leader, "rb+", buffering=0) as terminal:
            for text, typed in keys:
                while text not in shown[seen:]:
                    assert select.select([terminal], [], [], end - time.monotonic())[0], f"{text!r} not in {shown}"
                    shown += os.read(leader, 4096).decode(errors="replace")
                seen = shown.index(text, seen) + len(text)
                if typed == CTRL_C:  # which a terminal sends to those only whose own it is
                    # Not before it waits for a key: a signal between the prompt and that is noted only after the key.
                    eventually(partial(sleeps, process.pid), "it waits for a key")
                    process.send_signal(signal.SIGINT)
                else:
                    terminal.write(typed.encode())
            with contextlib.suppress(OSError):  # which says that the other end is closed: it has ended
                while select.select([terminal], [], [], end - time.monotonic())[0]:
                    shown += os.read(leader, 4096).decode(errors="replace")
            return process.wait(10), shown


def test_enter_goes_on_and_q_leaves(checkout: Checkout) -> None:
    status, shown = at_a_terminal(checkout, [("q: leave]", "\n"), ("There is a shell", ""), ("q: leave]", "q\n")])
    assert status == 0
    assert "The cluster stays as it is" in shown
    assert not (checkout.state / "home/made").exists()
    assert "✓ hello" in tour(checkout, TWO, "--list").stdout


def test_ctrl_c_leaves_as_well(checkout: Checkout) -> None:
    status, shown = at_a_terminal(checkout, [("q: leave]", CTRL_C)])
    assert status == 130
    assert "continues from here" in shown and "Traceback" not in shown


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (("kubernetes=1.24", "security=none"), "it needs RBAC, and security=none"),
        (("kubernetes=1.20", "engine=containerd"), "it needs Docker, and engine=containerd was set"),
    ],
)
def test_without_what_its_steps_need_there_is_no_tour(checkout: Checkout, words: tuple[str, ...], why: str) -> None:
    is_told(checkout.doit("tour", "--yes", *words), "starting the tour", why, "Leave that setting out")
    assert checkout.made() == set()
    done = tour(checkout, TWO, "--yes", *words)  # chapters of one's own may not need it
    assert (done.returncode, done.stderr) == (0, "")


def test_of_current_releases_there_is_a_tour_of_its_own(checkout: Checkout) -> None:
    shown = [
        checkout.doit("tour", "--list", f"kubernetes={release}").stdout for release in ("1.20", "1.23", "1.24", "1.37")
    ]
    assert shown[0] == shown[1] != shown[2] == shown[3]
    assert "token-keys" in shown[0] and "token-keys" not in shown[2] and "token-in-the-pod" in shown[2]
    names = [step.name for chapter in load(CURRENT) for step in chapter.step]
    assert len(names) == len({*names}) == 26
