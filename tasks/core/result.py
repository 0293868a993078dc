"""The result of a check: yes or no, with the reason."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Result:
    """The result of a check: `yes` if the condition holds, and `why`. Its truth value is that of `yes`.

    Where it can be told, `changes` waits until the result may be another, but at most that many seconds; it returns
    false, at once, where that cannot be told after all.
    """

    yes: bool
    why: str
    changes: Callable[[float], bool] | None = field(default=None, compare=False, repr=False)

    def __bool__(self) -> bool:
        return self.yes
