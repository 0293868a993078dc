"""Images in the container engines of the host: which engine has one, and how it is saved to a file."""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from .core.context import Context
from .core.errors import DmucError
from .core.machine import Host, Machine, run
from .core.progress import Progress
from .image_files.names import Name

_PAUSE = 0.1  # seconds between two looks at the file that an engine writes
_NAMESPACES = ("default", "k8s.io", "moby", "buildkit")  # of containerd
_ASKING = 20.0  # seconds in which an engine must say whether it has an image


def save(context: Context, asked: str, name: Name, file: Path, progress: Progress) -> str:
    """Save the image that the user calls `asked` to the file, from the first engine that has it; return its name.

    The engines are the host's Docker, podman and containerd, and then the machine's own engine, in which
    `doit shell` builds images.

    Raise DmucError when none of them has the image, or saving fails.
    """
    tried, seen = f"loading the image {asked}", []
    for called, machine, commands in _engines(context, asked, name):
        machine_name = "" if isinstance(machine, Host) else f" on {machine.name}"
        for ask, write in commands:
            progress.note(f"asking {called}{machine_name}")
            try:
                run(machine, *ask, timeout=_ASKING)
            except DmucError as error:
                last = (error.seen.splitlines() or ["no answer"])[-1].strip().removeprefix("exit code 1: ")
                seen.append(f"{called}{machine_name}: {last[:160]}")
                continue
            _write(machine, write, file, context.settings.deadline_of("images"), tried, progress)
            return f"{called}{machine_name}"
    if not seen:
        raise DmucError(
            tried,
            "There is no container engine on this host (docker, podman, ctr), and dmuc's own does not run.",
            "Save the image on a host that has one (docker save -o app.tar app:1.0), then: scripts/doit load app.tar",
        )
    do = "List the images there (docker images, podman images, ctr images ls); build or pull it, or load an archive."
    raise DmucError(tried, "No engine has it.\n" + "\n".join(dict.fromkeys(seen)), do)


_Commands = Sequence[tuple[Sequence[str], Sequence[str]]]  # how to ask for the image, how to save it


def _engines(context: Context, asked: str, name: Name) -> Iterator[tuple[str, Machine, _Commands]]:
    host = Host(stop=context.run.stop)
    if docker := shutil.which("docker"):
        yield "docker", host, _of_docker(docker, asked)
    if podman := shutil.which("podman"):
        yield "podman", host, _of_docker(podman, asked)
    if ctr := shutil.which("ctr"):
        yield "containerd", host, [_of_containerd(ctr, space, name) for space in _NAMESPACES]
    if context.settings.on_host or not context.machine.is_up():
        return
    for program, commands in (("docker", _of_docker), ("ctr", None)):
        own = context.bin / program
        if own.exists():
            found = commands(str(own), asked) if commands else [_of_containerd(str(own), "k8s.io", name)]
            yield "docker" if commands else "containerd", context.machine, found


def _of_docker(program: str, asked: str) -> _Commands:
    return [((program, "image", "inspect", "--format", "{{.Id}}", asked), (program, "save", asked))]


def _of_containerd(program: str, space: str, name: Name) -> tuple[Sequence[str], Sequence[str]]:
    # `ctr images ls` ends with 0 when there is no such image.
    ctr = (program, "--connect-timeout", "2s", "-n", space, "images")
    listed = f'test -n "$("$@" ls -q name=={name.full})" || {{ echo no such image >&2; exit 1; }}'
    return (("sh", "-c", listed, "sh", *ctr), (*ctr, "export", "-", name.full))


def _write(
    machine: Machine, command: Sequence[str], file: Path, deadline: float, tried: str, progress: Progress
) -> None:
    """Run the command, with its output in the file. Raise DmucError when it fails, or writes nothing for too long."""
    with file.open("wb") as out:
        process: Any = machine.command(*command).popen(
            stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.PIPE, start_new_session=True
        )
        size, since = 0, time.monotonic()
        try:
            while process.poll() is None:
                time.sleep(_PAUSE)
                now = file.stat().st_size
                if now != size:
                    size, since = now, time.monotonic()
                    progress.note(f"saving: {size >> 20} MB")
                if time.monotonic() - since > deadline:
                    raise DmucError(
                        tried, f"{command[0]} has written nothing for {deadline:g} s.", "Longer: deadline=600"
                    )
        finally:
            if process.poll() is None:
                process.kill()
            errors = process.communicate()[1]
    if process.returncode:
        raise DmucError(tried, f"{' '.join(command)}: {str(errors, 'utf-8', 'replace').strip()}")
