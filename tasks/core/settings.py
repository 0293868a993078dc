"""Settings: one frozen dataclass, read once.

In rising precedence: what the cluster was created with, `cluster.toml`, the environment (`DMUC_NAME`),
`doit name=value`.
"""

from __future__ import annotations

import ipaddress
import itertools
import json
import os
import re
import shlex
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from . import caller
from .errors import DmucError
from .files import read_json, write_atomic

AUTO = "auto"
HOST = "host"  # the machine name that means: the host itself; host.NAME: one of several clusters on the host
_NAME = re.compile(r"[a-z]([a-z0-9-]{0,11}[a-z0-9])?\Z")  # a host name, and short enough to name a network link


def _default_cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dmuc"


DOC = "doc"  # in a field's metadata: the text that README shows


def _setting(default: str | float, doc: str) -> Any:
    return field(default=default, metadata={DOC: doc})


@dataclass(frozen=True)
class Settings:
    """All settings that a user can choose. README shows the text of each."""

    machine: str = _setting(
        "dmuc1", 'name of the machine; "host": the host itself; "host.NAME": one of several on the host'
    )
    kubernetes: str = _setting(
        "auto", 'the release: minor ("1.20") or patch ("1.20.2"), or "auto": the newest that can be had'
    )
    bin_dir: str = _setting("", "a directory of programs to use before all others, such as your own build")
    obtain: str = _setting(
        "auto", 'where to get missing programs: "download", "debian", or "auto": download if the site answers'
    )
    kubernetes_site: str = _setting(
        "https://dl.k8s.io", "download site of Kubernetes, or a mirror with the same layout"
    )
    github_site: str = _setting(
        "https://github.com", "download site of etcd, containerd, runc and the rest, or such a mirror"
    )
    registry: str = _setting("auto", 'images: "local" (built from Debian\'s packages), a registry\'s URL, or "auto"')
    link_range: str = _setting(
        "10.95.0.0/30",
        "the link between host and machine: the host has the address .1, the machine .2; "
        "where it is in use, the next free one",
    )
    service_range: str = _setting("10.96.0.0/16", "range of the ClusterIPs; likewise")
    pod_range: str = _setting("10.244.0.0/24", "range of the Pods' addresses; likewise")
    share: str = _setting(
        "", "directories of the host that the machine shares, separated by colons; all others are the machine's own"
    )
    engine: str = _setting(
        "auto", 'container engine: "docker" (up to 1.23), "containerd", or "auto": the release\'s default'
    )
    security: str = _setting("auto", '"rbac", "none" (as in the walk-through), or "auto": the release\'s default')
    proxy_mode: str = _setting("iptables", 'how kube-proxy implements Services: "iptables", "nftables" or "ipvs"')
    service_account: str = _setting("keys", 'the way past the missing token of Pods: "keys", "no-mount" or "disabled"')
    scheduling: str = _setting("scheduler", '"scheduler", or "manual": no scheduler, dmuc creates the Bindings')
    insecure_port: str = _setting(
        "off", '"on": plain HTTP on localhost:8080 in the machine, and the flags of the walk-through'
    )
    deadline: float = _setting(120.0, "seconds that a task may wait for its condition")
    patience: float = _setting(1.0, "factor by which dmuc waits longer for each answer: 5 on a very slow host")
    cache: Path = field(
        default_factory=_default_cache, metadata={DOC: "directory of downloads and builds, shared by all machines"}
    )
    programs: Mapping[str, str] = field(
        default_factory=dict, metadata={DOC: "`etcd_bin=PATH` and so on: the path of one program"}
    )
    flags: Mapping[str, Sequence[str]] = field(
        default_factory=dict,
        metadata={DOC: '`etcd_flags="--FLAG=VALUE …"` and so on: flags of your own, quoted as for a shell'},
    )
    deadlines: Mapping[str, float] = field(
        default_factory=dict, metadata={DOC: "`deadline_kubelet=SECONDS` and so on: the deadline of one task"}
    )

    # What is set, and not by default: name -> text. Relative paths are absolute here.
    given: Mapping[str, str] = field(default_factory=dict, compare=False)
    sources: Mapping[str, str] = field(default_factory=dict, compare=False)  # where each of these is set, in words

    @property
    def on_host(self) -> bool:
        """Whether the cluster runs on the host itself, not on a machine of its own."""
        return self.machine.partition(".")[0] == HOST

    @property
    def shares_host(self) -> bool:
        """Whether the cluster is one of several on this host, or that of a user without root: it uses free ports, and
        goes no further than the scheduler.
        """
        return self.on_host and (self.machine != HOST or os.geteuid() != 0)

    @property
    def uses_insecure_port(self) -> bool:
        """Whether the API is served as plain HTTP on the machine's localhost:8080."""
        return self.insecure_port == "on"

    @property
    def host_address(self) -> str:
        """The address of the host's end of the link."""
        return "127.0.0.1" if self.on_host else str(ipaddress.ip_network(self.link_range)[1])

    @property
    def address(self) -> str:
        """The machine's address: that of the API server, and the Node's InternalIP."""
        return "127.0.0.1" if self.on_host else str(ipaddress.ip_network(self.link_range)[2])

    def service_address(self, number: int) -> str:
        """Return address number `number` of the ClusterIP range; 1 is the `kubernetes` Service."""
        return str(ipaddress.ip_network(self.service_range)[number])

    def deadline_of(self, task: str) -> float:
        """Return the seconds that the task `task` may wait."""
        return self.deadlines.get(task, self.deadline)


_REMEMBERED = "settings.json"
_TAKEN = {
    "all": "the kernel has settings of all network links by this name",
    "default": "the kernel has settings of new network links by this name",
    "lo": "every machine has a network link called lo",
    "localhost": "every machine has this name for itself",
}
RENAMED = {"front_door": "insecure_port"}  # old names of settings, which still work -> new names
_PLAIN = {f.name for f in fields(Settings)} - {"programs", "flags", "deadlines", "given", "sources"}
_OF_ONE_RUN = re.compile("machine|deadline.*")  # settings that a cluster does not remember
_PATHS = {"bin_dir", "share"}
_CHOICES = {
    "obtain": ("auto", "download", "debian"),
    "service_account": ("keys", "no-mount", "disabled"),
    "scheduling": ("scheduler", "manual"),
    "insecure_port": ("off", "on"),
    "engine": ("auto", "docker", "containerd"),
    "security": ("auto", "rbac", "none"),
    "proxy_mode": ("iptables", "nftables", "ipvs"),
}


def _bad(source: str, what: str, do: str = "") -> DmucError:
    return DmucError(f"reading the settings ({source})", what, do)


def _number(source: str, name: str, value: object) -> float:
    try:
        seconds = float(str(value))
    except ValueError:
        seconds = -1.0
    if not 0 < seconds < 1e6:
        what = "a number" if name == "patience" else "a number of seconds"
        raise _bad(source, f"{name}={value}: this must be {what} above 0")
    return seconds


def _range(source: str, name: str, value: str, shortest: int) -> str:
    try:
        network = ipaddress.IPv4Network(value)
    except ValueError as error:
        raise _bad(source, f"{name}={value}: {error}", "Give an IPv4 range such as 10.96.0.0/16.") from None
    if network.prefixlen > shortest:
        raise _bad(source, f"{name}={value}: too small; a /{shortest} or larger is needed")
    return value


def _from_file(path: Path) -> dict[str, object]:
    if not path.exists():
        return {}
    import tomllib

    try:
        return tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise _bad(str(path), f"it cannot be read: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise _bad(str(path), f"not valid TOML: {error}", "Correct or remove the file.") from None


def load(
    path: Path,
    environment: Mapping[str, str],
    arguments: Mapping[str, str],
    *,
    programs: Collection[str],
    daemons: Collection[str] = (),
    tasks: Collection[str],
    remembered: Mapping[str, str] | None = None,
    warn: Callable[[str], None] = lambda line: None,
) -> Settings:
    """Read the settings from the TOML file at `path` (may be missing), the environment and the command line.

    `remembered` are the settings that the cluster was created with: they apply where none of these sets a value. An
    empty value means the default. For each setting that is given by its old name, `warn` is called with a line; the
    setting applies all the same.

    `programs`, `daemons` and `tasks` are the names for which `<program>_bin`, `<program>_flags` and `deadline_<task>`
    settings exist (with `-` written `_`). Raise DmucError for an unknown name or an invalid value.
    """
    by_setting = {p.replace("-", "_") + "_bin": p for p in programs}
    by_flags = {flags_setting(p): p for p in daemons}
    by_deadline = {f"deadline_{task}": task for task in tasks}
    known = _PLAIN | by_setting.keys() | by_flags.keys() | by_deadline.keys()
    values: dict[str, object] = {}
    sources: dict[str, str] = {}
    here = caller.directory(environment)
    # Each with the directory in which its relative paths begin.
    layers: Sequence[tuple[str, Mapping[str, object], Path]] = (
        ("an earlier run", remembered or {}, here),
        (str(path), _from_file(path), path.parent),
        ("environment", {k[5:].lower(): v for k, v in environment.items() if k.startswith("DMUC_")}, here),
        ("command line", arguments, here),
    )
    for source, layer, begin in layers:
        for given, value in layer.items():
            name = RENAMED.get(given, given)
            if name != given and layer is not remembered:
                warn(f"deprecated: the setting {given} is now called {name} ({source})")
            if name not in known:
                raise _unknown(source, name, known)
            if value == "":
                values.pop(name, None)  # the default again
                continue
            _refuse_type(source, name, value)
            sources[name] = source
            if name in by_flags:
                values[name] = shlex.join(_words(source, name, str(value)))
            elif name in by_setting:
                values[name] = str(_path(source, name, str(value), begin))
            elif name in by_deadline:
                values[name] = _number(source, name, value)
            else:
                values[name] = _value(source, name, value, begin)
    settings = Settings(
        **{name: value for name, value in values.items() if name in _PLAIN},  # type: ignore[arg-type]
        programs={program: str(values[name]) for name, program in by_setting.items() if name in values},
        flags={p: tuple(shlex.split(str(values[name]))) for name, p in by_flags.items() if name in values},
        deadlines={task: float(str(values[name])) for name, task in by_deadline.items() if name in values},
        given={name: str(value) for name, value in values.items()},
        sources={name: sources[name] for name in values},
    )
    if settings.on_host and settings.uses_insecure_port:
        raise _bad(
            "insecure_port=on",
            "on the host, every process could do everything in the cluster through localhost:8080",
            "Use a machine of its own: machine=NAME.",
        )
    if settings.security == "rbac" and settings.uses_insecure_port:
        raise _bad(
            "security=rbac, insecure_port=on",
            "every client of the insecure port is the administrator, so RBAC has no effect",
            "Leave out one of them.",
        )
    return settings


def _unknown(source: str, name: str, known: Collection[str]) -> DmucError:
    import difflib

    near = difflib.get_close_matches(name, sorted(known), 1)
    every = f"Settings: {', '.join(sorted(_PLAIN))}, PROGRAM_bin, PROGRAM_flags and deadline_TASK."
    return _bad(source, f"there is no setting called {name!r}", f"Did you mean {near[0]}?" if near else every)


def _refuse_type(source: str, name: str, value: object) -> None:
    """Raise DmucError for a value that no setting can have."""
    if isinstance(value, dict | list | bool) or not str(value).strip():
        raise _bad(source, f"{name}={value!r}: must be a plain value")
    if name == "kubernetes" and not isinstance(value, str):
        raise _bad(source, f"{name}={value}: this is a number, not a release", 'Put it in quotes: kubernetes = "1.20".')


def flags_setting(program: str) -> str:
    """Return the name of the setting with the user's flags of a program."""
    return program.replace("-", "_") + "_flags"


def _words(source: str, name: str, text: str) -> list[str]:
    """Return the words of the text as a shell would. Raise DmucError for open quotes, and where a flag has no dash."""
    do = f"For example: {name}=\"--FLAG=VALUE --OTHER='two words'\""
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise _bad(source, f"{name}={text}: {str(error).lower()}", do) from None
    for before, word in itertools.pairwise(["=", *words]):
        if not word.startswith("-") and ("=" in before or not before.startswith("-")):
            raise _bad(source, f"{name}={text}: {word!r} is not a flag: a flag begins with a dash", do)
    return words


def _value(source: str, name: str, value: object, begin: Path) -> object:
    """Return the value of a setting; relative paths in it begin at `begin`. Raise DmucError when it is wrong."""
    if name == "cache":
        return _path(source, name, str(value), begin)
    if name in _PATHS:
        places = str(value).split(os.pathsep) if name == "share" else [str(value)]
        return os.pathsep.join(str(_path(source, name, place, begin)) for place in places if place)
    return _checked(source, name, value)


def _path(source: str, name: str, text: str, begin: Path) -> Path:
    """Return the absolute path of a file or directory that the user has named; a relative one begins at `begin`."""
    try:
        return begin.absolute() / Path(text).expanduser()
    except RuntimeError as error:  # ~USER: there is no such user
        raise _bad(source, f"{name}={text}: {error}") from None


def _checked(source: str, name: str, value: object) -> object:
    text = str(value)
    if name in {"deadline", "patience"}:
        return _number(source, name, value)
    if name == "machine" and not _NAME.match(text.removeprefix(f"{HOST}.")):
        do = "Use up to 13 lower-case letters, digits and dashes, with a letter first and no dash last."
        raise _bad(source, f"machine={text}: not a valid name", do)
    if name == "machine" and text in _TAKEN:
        raise _bad(source, f"machine={text}: {_TAKEN[text]}", "Choose another name.")
    if name == "link_range":
        return _range(source, name, text, 30)
    if name in {"service_range", "pod_range"}:
        return _range(source, name, text, 24)
    if name in _CHOICES and text not in _CHOICES[name]:
        raise _bad(source, f"{name}={text}: must be one of {', '.join(_CHOICES[name])}")
    if name in {"kubernetes_site", "github_site"}:
        if not re.match(r"https?://[^/\s?#]+(/[^\s?#]*)?\Z", text):
            raise _bad(source, f"{name}={text}: must be the URL of a site such as https://mirror.example/kubernetes")
        return text.rstrip("/")
    if name == "registry" and text not in {"auto", "local"} and not re.match(r"https?://[^/\s]+/?\Z", text):
        raise _bad(
            source, f"registry={text}: must be auto, local, or a registry's URL such as https://registry.example"
        )
    return text


def remembered(state: Path) -> dict[str, str]:
    """Return the settings that the cluster in the directory `state` was created with; see `remember`."""
    return read_json(state / _REMEMBERED)


def remember(state: Path, values: Mapping[str, str]) -> None:
    """Store settings for the cluster in the directory `state`: until clean they apply where the user sets no other."""
    write_atomic(state / _REMEMBERED, json.dumps({**remembered(state), **values}, indent=1))


def remember_given(state: Path, settings: Settings) -> list[str]:
    """Store what is set of these settings for the cluster in `state`; return a line for each that it had otherwise.

    Those of one run (the machine's name, deadlines) are not stored.
    """
    first, before = not (state / _REMEMBERED).exists(), remembered(state)
    now = {name: value for name, value in settings.given.items() if not _OF_ONE_RUN.fullmatch(name)}
    if first or now != before:
        write_atomic(state / _REMEMBERED, json.dumps(now, indent=1))
    changes = {
        name: [values.get(name) or str(getattr(Settings, name, "")) or "not set" for values in (now, before)]
        for name in ([] if first else sorted(now.keys() | before.keys()))
    }
    return [f"{name}: {new} from now on (before: {old})" for name, (new, old) in changes.items() if new != old]


def arguments(argv: Sequence[str], own: Mapping[str, Collection[str]] | None = None) -> dict[str, str]:
    """Return the settings (NAME=VALUE) on a command line up to `--`, after which words belong to other programs.

    `own` are NAMEs that are arguments of a command, not settings: the command's name -> these NAMEs.
    """
    words = [word for word in itertools.takewhile(lambda word: word != "--", argv) if not word.startswith("-")]
    command = next((word for word in words if "=" not in word), "")
    pairs = dict(word.split("=", 1) for word in words if "=" in word)
    return {name: value for name, value in pairs.items() if name not in (own or {}).get(command, ())}
