"""How fast this host packs and writes out, as measured; what a deadline allows follows from it."""

import collections
from typing import Final

from swaptide.cache import geometry

# Weight of the newest measurement in the mean.
NEWEST: Final = 0.1
# Until something was measured: a quarter of a second for 64 MiB packed to a third, and 1 GB/s written.
FIRST_PACK_SECONDS: Final = 0.004
FIRST_GAIN: Final = 0.6
FIRST_SPILL_SECONDS: Final = 0.008
# Of what packing could do in the time left, what is relied upon.
RELIED_SHARE: Final = 0.7
# How often the demand is measured, and how long until half of it is forgotten.
DEMAND_LOOK_SECONDS: Final = 0.02
DEMAND_HALF_SECONDS: Final = 1.0
# How far back what was filled is remembered.
RECENT_SECONDS: Final = 2.0


class Rates:
    """Means over the last few dozen moves; `spillers` writes and `packers` packings run side by side."""

    def __init__(self, spillers: int, packers: int) -> None:
        self._spillers = spillers
        self._packers = packers
        self._spill_seconds = FIRST_SPILL_SECONDS
        self._pack_seconds = FIRST_PACK_SECONDS
        self._gain = FIRST_GAIN
        self._opened = 0
        self._opened_at = 0.0
        self._demand = 0.0
        self._looks: collections.deque[tuple[float, int]] = collections.deque()

    def demand(self, opened: int, now: float) -> float:
        """Segments filled per second, by how many were opened so far; falls slowly, rises at once."""
        passed = now - self._opened_at
        if passed >= DEMAND_LOOK_SECONDS:
            rate = (opened - self._opened) / passed
            self._demand = max(rate, self._demand * 0.5 ** (passed / DEMAND_HALF_SECONDS))
            self._opened, self._opened_at = opened, now
        return self._demand

    def recent(self, opened: int, now: float) -> int:
        """Segments filled in the last RECENT_SECONDS, by how many were opened so far."""
        if not self._looks or now - self._looks[-1][0] >= DEMAND_LOOK_SECONDS:
            self._looks.append((now, opened))
        # The last look before that time stays: it says how many there were then.
        while len(self._looks) > 1 and now - self._looks[1][0] >= RECENT_SECONDS:
            self._looks.popleft()
        return opened - self._looks[0][1]

    def spilled(self, seconds: float) -> None:
        """One segment was written out in this time, beside the others."""
        self._spill_seconds += (seconds - self._spill_seconds) * NEWEST

    def packed(self, seconds: float, to_bytes: int) -> None:
        """One segment was packed in this time, to so many bytes of packed segments."""
        self._pack_seconds += (seconds - self._pack_seconds) * NEWEST
        gain = max(0.0, 1 - to_bytes / geometry.CONTENT_BYTES)
        self._gain += (gain - self._gain) * NEWEST

    def packed_in(self, seconds: float) -> float:
        """RAM slots that packing can be relied upon to free within this time."""
        return max(0.0, seconds) * self.pack_slots_per_second * RELIED_SHARE

    @property
    def gain(self) -> float:
        """The share of its RAM that packing a segment gives back."""
        return self._gain

    @property
    def pack_slots_per_second(self) -> float:
        """RAM slots that packing frees in a second with all packers."""
        return self._packers * self._gain / self._pack_seconds

    @property
    def spill_slots_per_second(self) -> float:
        """RAM slots that writing out frees in a second with all spillers."""
        return self._spillers / self._spill_seconds
