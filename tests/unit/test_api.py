"""Changes to the cluster's objects go to the machine, or nowhere."""

from __future__ import annotations

import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tasks.core import api
from tasks.core.errors import DmucError
from tasks.core.machine import Host
from tests.unit.support import a_context


@dataclass(frozen=True)
class Off(Host):
    def down(self) -> str | None:
        return "the host has no route through the link dmuc1"


def test_nothing_is_sent_when_the_machine_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def connect(*_: Any) -> None:
        raise AssertionError("somebody was asked")

    monkeypatch.setattr(socket.socket, "connect", connect)
    with pytest.raises(DmucError) as error:
        api.send(a_context(tmp_path, Off()), "PATCH", "/api/v1/nodes/dmuc1", {})
    assert error.value.tried == "PATCH /api/v1/nodes/dmuc1"
    assert "no route through the link dmuc1" in error.value.seen
    assert error.value.do == "Run: scripts/doit machine"
