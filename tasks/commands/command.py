"""`doit command NAME`: print the command line with which dmuc starts a component, to be pasted into a shell."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from doit.exceptions import InvalidCommand

from ..core.cluster import Cluster
from .base import Command


class ShowCommand(Command):
    """`doit command NAME`."""

    doc_purpose = "print the command line of a component, with its environment, to be pasted into a shell"
    doc_usage = "NAME"
    doc_description = (
        "The command line enters the machine, the component's directory and its environment, and runs the program with "
        "all its flags, in the foreground. Its files (certificates, configuration) are those of the last start. Stop "
        "the component first: scripts/doit clean NAME, which removes its data, too, or end its process."
    )

    def act(self, cluster: Cluster, arguments: list[str]) -> int:
        """Print the command line; return 0. Raise DmucError when the machine is off, or the program not found yet."""
        if len(arguments) != 1:
            raise InvalidCommand("`command` takes one name: scripts/doit command kubelet")
        for task, daemon, there in cluster.daemons_called("printing a command line", arguments):
            line = daemon.start_line(there)
            if why := daemon.disabled_because(there):
                print(f"# {task} is not part of this cluster: {why}")
            elif not (result := daemon.running(there)):
                print(f"# {task} does not run like this now: {result.why}")
            else:
                print(f"# {task} runs like this: {result.why}")
            print(" \\\n  ".join(_lines(daemon.command(there), line)))
        return 0


def _lines(command: Sequence[str], line: Sequence[str]) -> list[str]:
    """Return the command line in lines: how the machine is entered, the environment, the program, each of its flags."""
    entering, own = line[: -len(command)], [shlex.quote(word) for word in command]
    lines = [[]] if not entering else [[entering[0]]]
    for word in entering[1:]:
        if word in ("nsenter", "env") or ("env" in lines[-1] and "=" in word) or "=" in lines[-1][0]:
            lines.append([])
        lines[-1].append(word)
    text = [shlex.join(words) for words in lines if words]
    for number, word in enumerate(own):
        if number and not word.startswith("-"):  # a value
            text[-1] += f" {word}"
        else:
            text.append(word)
    return text
