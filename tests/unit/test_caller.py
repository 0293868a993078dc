"""What a process inherits from its caller: each of these tests starts a process with something odd, and asks it."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tasks.core import caller, hints
from tasks.core.machine import SYSTEM_PATH
from tests.unit.support import CHECKOUT

RESET = "from tasks.core import caller; caller.reset();"


def said(code: str, *, before: Callable[[], object] = lambda: None, **environment: str) -> str:
    """What a Python process prints that is reset and then runs `code`; `before` is called in it first of all."""
    done = subprocess.run(
        [sys.executable, "-c", f"{RESET}\n{code}"],
        cwd=CHECKOUT,
        env={**os.environ, **environment},
        preexec_fn=lambda: before() and None,
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


STATUS = "import subprocess; print(subprocess.run(['cat', '/proc/self/status'], capture_output=True, text=True).stdout)"


@pytest.mark.parametrize("mask", [0o077, 0o777, 0o027, 0])
def test_the_umask_is_that_of_a_login(mask: int) -> None:
    assert "Umask:\t0022" in said(STATUS, before=lambda: os.umask(mask))


def test_no_signal_is_blocked_or_ignored_in_what_dmuc_starts() -> None:
    def odd() -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGCHLD, signal.SIGUSR1})
        for number in (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGCHLD, signal.SIGTSTP):
            signal.signal(number, signal.SIG_IGN)

    lines = dict(line.split(":\t") for line in said(STATUS, before=odd).splitlines() if line.startswith("Sig"))
    assert int(lines["SigBlk"], 16) == int(lines["SigIgn"], 16) == 0


def test_dmuc_itself_goes_on_where_the_caller_ignores_the_end_of_the_terminal() -> None:
    code = "import os, signal\nfrom tasks.core import signals\nsignals.raise_on_end()\n"
    code += "os.kill(os.getpid(), signal.SIGHUP)\nprint('on')"
    assert said(code, before=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN)) == "on"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may raise a priority")
@pytest.mark.parametrize("nice", [19, 7])
def test_the_priority_is_the_usual_one(nice: int) -> None:
    assert said("import os; print(os.getpriority(os.PRIO_PROCESS, 0))", before=lambda: os.nice(nice)) == "0"


def test_limits_are_raised_as_far_as_they_may_be() -> None:
    def low() -> None:
        for which in (resource.RLIMIT_NOFILE, resource.RLIMIT_FSIZE):
            resource.setrlimit(which, (200 if which == resource.RLIMIT_NOFILE else 10**6, resource.getrlimit(which)[1]))

    code = "import resource as r; print(*r.getrlimit(r.RLIMIT_NOFILE), *r.getrlimit(r.RLIMIT_FSIZE))"
    files, most, size, largest = map(int, said(code, before=low).split())
    assert files == most or files >= caller.FEWEST_FILES
    assert size == largest


def test_a_limit_that_cannot_be_raised_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda which: (256, 256))
    assert "256" in caller.too_few_files()
    monkeypatch.setattr(resource, "getrlimit", lambda which: (4096, 4096))
    assert caller.too_few_files() == ""


@pytest.mark.parametrize("closed", [(0,), (1,), (2,), (0, 1, 2)])
def test_closed_standard_streams_are_opened(tmp_path: Path, closed: tuple[int, ...]) -> None:
    file = tmp_path / "said"
    code = f"import os; h = os.open({str(file)!r}, os.O_CREAT | os.O_WRONLY); print(1); os.write(h, str(h).encode())"

    def close() -> None:
        for number in closed:
            with contextlib.suppress(OSError):
                os.close(number)

    command = [sys.executable, "-c", f"{RESET}\n{code}"]
    assert subprocess.Popen(command, cwd=CHECKOUT, preexec_fn=close).wait(60) == 0  # noqa: PLW1509
    assert int(file.read_text()) > 2  # no file of ours gets the number of a standard stream


@pytest.mark.parametrize("encoding", ["ascii", "ascii:strict", "latin-1", "cp437", "utf-8"])
def test_what_an_encoding_lacks_is_printed_in_plain_characters(encoding: str) -> None:
    text = said("print('✓ a … b ▶ ─ é 漢')", PYTHONIOENCODING=encoding)
    assert "a" in text and ("?" in text) == (encoding != "utf-8")
    assert "\\" not in text
    if encoding.startswith("ascii"):
        assert text == "+ a ... b > - ? ?"


@pytest.mark.parametrize("name", ["http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"])
def test_a_proxy_has_both_spellings(name: str) -> None:
    found = caller.proxies({name: "http://p:3128", "NO_PROXY": "corp.example"})
    assert found[name.lower()] == found[name.upper()] == "http://p:3128"
    assert found["no_proxy"] == found["NO_PROXY"] == "corp.example"


def test_without_a_proxy_there_are_no_proxy_variables() -> None:
    assert caller.proxies({"NO_PROXY": "x", "http_proxy": "", "PATH": "/bin"}) == {}


def test_what_the_caller_has_in_no_proxy_is_kept() -> None:
    assert caller.no_proxy({"NO_PROXY": "a, b", "no_proxy": "b,c"}, "10.0.0.1", "a") == "b,c,a,10.0.0.1"
    assert caller.no_proxy({}, "10.0.0.1") == "10.0.0.1"


def test_relative_paths_begin_in_the_callers_directory(tmp_path: Path) -> None:
    assert caller.directory({hints.PWD: "/home/ada"}) == Path("/home/ada")
    assert caller.directory({hints.PWD: "somewhere"}) == caller.directory({}) == Path.cwd()


@pytest.mark.parametrize("path", [None, "", "/usr/bin:/bin", "bin:.", "/nonexistent::"])
def test_programs_of_root_are_on_every_path(path: str | None) -> None:
    environment = {hints.PWD: "/home/ada"} | ({} if path is None else {"PATH": path})
    caller.set_right(environment)
    found = environment["PATH"].split(":")
    assert {*SYSTEM_PATH.split(":")} <= {*found}
    assert all(Path(directory).is_absolute() for directory in found)


@pytest.mark.parametrize("home", [None, "", "relative", "/nonexistent/home"])
def test_a_home_that_is_none_is_that_of_the_user(home: str | None) -> None:
    environment = {} if home is None else {"HOME": home}
    caller.set_right(environment)
    assert Path(environment["HOME"]).is_dir()


@pytest.mark.parametrize("name", ["TMPDIR", "TMP", "TEMP"])
def test_a_directory_for_temporary_files_that_cannot_be_used_is_not(name: str, tmp_path: Path) -> None:
    for where in ("/nonexistent", "", "relative", "/proc"):
        environment = {name: where}
        caller.set_right(environment)
        assert name not in environment or os.access(environment[name], os.W_OK)
    environment = {name: str(tmp_path)}
    caller.set_right(environment)
    assert environment[name] == str(tmp_path)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root runs for another user")
def test_a_file_with_a_key_is_the_callers_of_sudo_alone(tmp_path: Path) -> None:
    file, sudo = tmp_path / "kubeconfig", {"SUDO_UID": "65534", "SUDO_GID": "65534"}
    file.touch(0o600)
    caller.hand_over(file, {})
    assert file.stat().st_uid == 0
    caller.hand_over(file, sudo)
    caller.let_in(tmp_path, sudo)
    assert (file.stat().st_uid, file.stat().st_mode & 0o777) == (65534, 0o600)
    assert tmp_path.stat().st_mode & 0o777 == 0o711
    assert caller.owner({"SUDO_UID": "no"}) is caller.owner({"SUDO_UID": "0", "SUDO_GID": "0"}) is None
