"""Hints that can be pasted: messages name the command `scripts/doit`, and the user may have to type more than that."""

from __future__ import annotations

import itertools
import os
import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

PWD = "CALLER_PWD"  # scripts/doit exports the caller's directory by this name, before it goes to the checkout
CALLED_AS = "CALLED_AS"  # and by this one how the caller has called it
_WRITTEN = "scripts/doit"
_NOT_YET = re.compile(rf"(?<![\w/]){_WRITTEN}(?! machine=)")  # an error can quote one whose hints are right already


def pasteable(text: str, environment: Mapping[str, str] = os.environ, argv: Sequence[str] = sys.argv) -> str:
    """Return the text with each `scripts/doit` as the caller must type it in this directory, for this machine.

    A machine other than the default must be named again if the command line named it. All other settings of the
    cluster are remembered.
    """
    elsewhere = environment.get(PWD, "") not in {"", str(Path.cwd())}
    called = shlex.quote(environment.get(CALLED_AS) or _WRITTEN) if elsewhere else _WRITTEN
    words = itertools.takewhile(lambda word: word != "--", argv[1:])
    machine = [word for word in words if word.startswith("machine=")][-1:]
    command = " ".join([called, *machine])
    return _NOT_YET.sub(lambda _: command, text)
