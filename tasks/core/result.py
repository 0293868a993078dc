"""The result of a check: yes or no, with the reason."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Result:
    """The result of a check: `yes` if the condition holds, and `why`. Its truth value is that of `yes`."""

    yes: bool
    why: str

    def __bool__(self) -> bool:
        return self.yes
