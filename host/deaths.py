"""How often a disk's process died lately, and whether that is too often.  Owned by the disk's keeper."""

import collections
import time
from collections.abc import Callable
from typing import Final

# So many deaths within the window are a disk that keeps dying, until one process has outlived the window.
TOO_MANY: Final = 3
WINDOW_SECONDS: Final = 60.0
_LEAST_PAUSE_SECONDS: Final = 0.5
_LONGEST_PAUSE_SECONDS: Final = 30.0


class Deaths:
    """The deaths of one disk's processes that nobody asked for."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.total = 0
        self.unstable = False
        self._clock = clock
        self._recent: collections.deque[float] = collections.deque()

    def note(self) -> None:
        """One more."""
        now = self._clock()
        self.total += 1
        self._recent.append(now)
        while self._recent[0] < now - WINDOW_SECONDS:
            self._recent.popleft()
        self.unstable = self.unstable or len(self._recent) >= TOO_MANY

    def forget(self) -> None:
        """A process has outlived the window: the disk is steady again."""
        self.unstable = False
        self._recent.clear()

    def __str__(self) -> str:
        """What is said of an unstable disk."""
        return f"nbdkit died {len(self._recent)} times within {WINDOW_SECONDS:.0f} s"


def pause_seconds(failures: int) -> float:
    """How long to wait before the next attempt after so many that came to nothing."""
    return min(_LEAST_PAUSE_SECONDS * 2.0 ** min(failures, 10), _LONGEST_PAUSE_SECONDS)
