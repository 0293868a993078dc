"""What a process inherits from its caller besides its arguments, reset once, at the start, to what a login has.

Daemons outlive the shell that started them, so nothing of that shell may decide how they run: no umask, priority,
limit, ignored or blocked signal, closed input or output, or proxy. `reset` sets right what the whole process has;
`directory`, `proxies` and `owner` tell what dmuc asks of the caller on purpose. The daemons' own environment is made
from nothing (Context.environment).
"""

from __future__ import annotations

import codecs
import contextlib
import io
import locale
import os
import pwd
import resource
import signal
import sys
from collections.abc import Mapping
from pathlib import Path

from .hints import PWD
from .machine import SYSTEM_PATH

_PROXIES = ("http_proxy", "https_proxy", "ftp_proxy", "all_proxy")
_NO_PROXY = "no_proxy"
# Characters that dmuc prints, for output whose encoding lacks them.
_PLAIN = {"✓": "+", "✗": "x", "·": "-", "…": "...", "▶": ">", "█": "#", "→": "->", "←": "<-", "—": "-"}
_PLAIN |= dict(zip("─│├└┌┐┘┤┬┴┼━┃╭╮╰╯", "-|+`++'+++++|++``", strict=True))
_PLAIN |= {"╸": "-", "╺": "-"}
_FILES = 65536  # open files: containerd and the API server's watches need more than a shell's 1024
FEWEST_FILES = 4096  # with fewer open files components fail under load


def reset(environment: dict[str, str] | os._Environ[str] = os.environ) -> None:
    """Set right what this process has inherited, and its environment; do nothing where that is not allowed.

    An `environment` other than the process's own is for tests.
    """
    _open_standard_streams()
    _set_encodings(environment)
    os.umask(0o022)
    _reset_signals()
    _reset_priority()
    _raise_limits()
    set_right(environment)


def set_right(environment: dict[str, str] | os._Environ[str]) -> None:
    """Set right the variables on which programs depend that dmuc runs: PATH, HOME, TMPDIR."""
    here = directory(environment)
    path = [os.path.join(here, d) for d in environment.get("PATH", "").split(os.pathsep) if d]  # noqa: PTH118
    environment["PATH"] = os.pathsep.join(dict.fromkeys([*path, *SYSTEM_PATH.split(os.pathsep)]))
    home = environment.get("HOME", "")
    if not Path(home).is_absolute() or not Path(home).is_dir():
        with contextlib.suppress(KeyError):  # a user without an entry
            environment["HOME"] = pwd.getpwuid(os.geteuid()).pw_dir
    for name in ("XDG_CACHE_HOME", "XDG_STATE_HOME"):  # "all paths must be absolute": XDG base directories
        if not Path(environment.get(name, "/")).is_absolute():
            del environment[name]
    for name in ("TMPDIR", "TEMP", "TMP"):
        where = environment.get(name)
        if where is not None and not (Path(where).is_absolute() and os.access(where, os.W_OK | os.X_OK)):
            del environment[name]


def directory(environment: Mapping[str, str]) -> Path:
    """Return the caller's directory: relative paths in arguments and variables begin there."""
    told = environment.get(PWD, "")
    return Path(told) if Path(told).is_absolute() else Path.cwd()


def proxies(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the caller's proxy variables under both names, such as http_proxy and HTTP_PROXY; empty without a proxy.

    Where both are set, the lower-case one counts, as for curl and Python.
    """
    found: dict[str, str] = {}
    for name in (*_PROXIES, _NO_PROXY):
        if value := environment.get(name) or environment.get(name.upper()):
            found |= {name: value, name.upper(): value}
    return found if any(name in found for name in _PROXIES) else {}


def no_proxy(environment: Mapping[str, str], *ours: str) -> str:
    """Return a value for NO_PROXY: what the caller has there, and `ours` (hosts, addresses, ranges)."""
    theirs = ",".join(environment.get(name, "") for name in (_NO_PROXY, _NO_PROXY.upper()))
    return ",".join(dict.fromkeys(filter(None, (*(word.strip() for word in theirs.split(",")), *ours))))


def owner(environment: Mapping[str, str]) -> tuple[int, int] | None:
    """Return the user and group ids of the person who has called sudo(8); None without sudo."""
    with contextlib.suppress(ValueError):
        user, group = int(environment.get("SUDO_UID", "")), int(environment.get("SUDO_GID", ""))
        if os.geteuid() == 0 and user:
            return user, group
    return None


def hand_over(path: Path, environment: Mapping[str, str]) -> None:
    """Give a file with a key to the person who has called sudo, so that she can read the file, and no other user."""
    if ids := owner(environment):
        os.chown(path, *ids)


def let_in(directory: Path, environment: Mapping[str, str], *, list_it: bool = False) -> None:
    """Let the person who has called sudo use the files in the directory that she may read; to `list_it`, or not."""
    if owner(environment):
        directory.chmod(0o755 if list_it else 0o711)


def too_few_files() -> str:
    """Return why the limit of open files is too low for a cluster; empty when it is not."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= FEWEST_FILES:
        return ""
    return f"A process may open {soft} files (hard limit {hard}), and components need {FEWEST_FILES}."


def _open_standard_streams() -> None:
    """Open /dev/null in the place of a closed standard stream: the next file that is opened would get its number."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest free number, which is this one
    for name, number, mode in (("stdin", 0, "r"), ("stdout", 1, "w"), ("stderr", 2, "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, mode, encoding="utf-8", closefd=False))  # noqa: SIM115


def _set_encodings(environment: Mapping[str, str]) -> None:
    """Print what the encoding of the output lacks in plain characters.

    scripts/doit sets Python's UTF-8 mode, so that file names are UTF-8 in every locale; only the output follows the
    locale. An ASCII locale says nothing about the terminal (PEP 540), so there the output is UTF-8, too.
    """
    codecs.register_error("plain", _in_plain_characters)
    named = codecs.lookup(locale.getencoding()).name
    own = None if environment.get("PYTHONIOENCODING") or named in {"utf-8", "ascii"} else named
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(encoding=own if sys.flags.utf8_mode else None, errors="plain")


def _in_plain_characters(error: UnicodeError) -> tuple[str | bytes, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text = "".join(_PLAIN.get(c, "?") for c in error.object[error.start : error.end])
    return text, error.end


def _reset_signals() -> None:
    """Unblock every signal, and ignore none in the processes that dmuc starts.

    What the caller ignores (`nohup`) dmuc ignores too, but with a handler: exec(2) resets handlers, not "ignored".
    """
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    for number in signal.valid_signals():
        if number in {signal.SIGKILL, signal.SIGSTOP, signal.SIGPIPE, getattr(signal, "SIGXFSZ", 0)}:
            continue  # the last two are ignored by Python itself, which resets them in its children
        if signal.getsignal(number) is signal.SIG_IGN:
            kept = number in {signal.SIGHUP, signal.SIGINT, signal.SIGTERM, signal.SIGQUIT}
            signal.signal(number, (lambda *_: None) if kept else signal.SIG_DFL)


def _reset_priority() -> None:
    with contextlib.suppress(OSError):
        if os.getpriority(os.PRIO_PROCESS, 0):
            os.setpriority(os.PRIO_PROCESS, 0, 0)


def _raise_limits() -> None:
    """Raise each soft limit to its hard limit; and the number of open files to _FILES where root may."""
    for name in ("AS", "DATA", "FSIZE", "MEMLOCK", "NPROC", "SIGPENDING", "CPU"):
        which = getattr(resource, f"RLIMIT_{name}")
        _, hard = resource.getrlimit(which)
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(which, (hard, hard))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = max(hard, _FILES) if hard != resource.RLIM_INFINITY else hard
    for limit in (most, hard):
        wanted = limit if limit == resource.RLIM_INFINITY else max(soft, min(limit, max(hard, _FILES)))
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, limit))
            break
