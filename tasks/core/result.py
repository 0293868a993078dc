"""The result of a check: yes or no, and what was seen."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Result:
    """Whether a condition holds, and what that was seen by; true or false like a bool."""

    yes: bool
    why: str

    def __bool__(self) -> bool:
        return self.yes
