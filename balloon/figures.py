"""What QEMU says about a guest's memory, checked.  Pure functions.

Neither QEMU nor the guest is trusted: what is absurd is as good as not said.  Sizes in bytes.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Annotated, Any

import msgspec

# Above any guest; what QEMU has for "unsupported" (-1 as an unsigned word) is far above.
MAX_BYTES = 1 << 50
# A clock that was set back a little is no lie.
_FUTURE_SECONDS = 5.0

_Bytes = Annotated[int, msgspec.Meta(ge=0, le=MAX_BYTES)]


class Balloon(msgspec.Struct):
    """Of query-balloon: the guest's logical size."""

    actual: _Bytes


class MemorySize(msgspec.Struct, rename="kebab"):
    """Of query-memory-size-summary."""

    base_memory: _Bytes
    plugged_memory: _Bytes = 0


class Status(msgspec.Struct):
    """Of query-status: `status` is running, paused, shutdown, io-error, ..."""

    running: bool
    status: str


class GuestStats(msgspec.Struct, rename="kebab"):
    """The guest-stats property of a balloon: values as they come, and when the guest last sent some."""

    last_update: Any = 0
    stats: Any = None


@dataclasses.dataclass(frozen=True)
class Statistics:
    """The guest's own figures; None is what it does not say.

    `at_seconds` is when QEMU got them, of the host's wall clock.
    """

    at_seconds: float | None = None
    total_bytes: int | None = None
    free_bytes: int | None = None
    available_bytes: int | None = None
    swapped_in_bytes: int | None = None
    swapped_out_bytes: int | None = None

    def age_seconds(self, now_seconds: float) -> float | None:
        """How old they are; None if there are none, or they claim to come from the future."""
        if self.at_seconds is None or self.at_seconds > now_seconds + _FUTURE_SECONDS:
            return None
        return max(0.0, now_seconds - self.at_seconds)


def statistics(answer: GuestStats) -> Statistics:
    """The figures of a balloon's guest-stats property."""
    stats = answer.stats if isinstance(answer.stats, Mapping) else {}
    at = _number(answer.last_update)
    if not at:
        return Statistics()
    return Statistics(
        at_seconds=at,
        total_bytes=_figure(stats, "stat-total-memory"),
        free_bytes=_figure(stats, "stat-free-memory"),
        available_bytes=_figure(stats, "stat-available-memory"),
        # Since boot, so far beyond the guest's size.
        swapped_in_bytes=_figure(stats, "stat-swap-in"),
        swapped_out_bytes=_figure(stats, "stat-swap-out"),
    )


def _figure(stats: Mapping[Any, Any], name: str) -> int | None:
    value = stats.get(name)
    return value if type(value) is int and 0 <= value <= MAX_BYTES else None


def _number(value: Any) -> float | None:
    if type(value) not in (int, float) or not 0 < value < 1e12 or math.isnan(value):
        return None
    return float(value)
