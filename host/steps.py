"""How far a long call is, for whoever asked for it: what it is at, and how many bytes of it are done.

Used by the daemon's loop alone.  Told where something begins and then a few times a second.
"""

import dataclasses
import time
from collections.abc import Callable
from typing import Any, Final

TELL_SECONDS: Final = 0.2

Tell = Callable[[dict[str, Any]], None]


@dataclasses.dataclass(frozen=True)
class Step:
    """One of them; `total_bytes` is 0 where nobody knows how much there is to do."""

    doing: str
    elapsed_seconds: float
    done_bytes: int = 0
    total_bytes: int = 0


class Steps:
    """Tells of one call, from when this is made."""

    def __init__(self, tell: Tell = lambda step: None) -> None:
        self._tell = tell
        self._begun = time.monotonic()

    def at(self, doing: str, done_bytes: int = 0, total_bytes: int = 0) -> None:
        """It is at this now."""
        passed = time.monotonic() - self._begun
        self._tell(dataclasses.asdict(Step(doing, passed, done_bytes, total_bytes)))
