"""Change a disk's limits and follow it until they hold.

Runs on the loop of whoever calls it; polls the state file, which is memory, and never waits for the
disk or its store.
"""

import asyncio
import dataclasses
import enum
import time
from collections.abc import AsyncIterator, Callable

from swaptide.cache import face

LIMIT_SECONDS = 60.0
_POLL_SECONDS = 0.01
_STEP_SECONDS = 0.2


class Phase(enum.StrEnum):
    """Where a squeeze stands; all but SQUEEZING are final."""

    SQUEEZING = "squeezing"
    HOLDS = "holds"
    LATE = "late"  # the time is over; the limit stays in force and the disk goes on towards it
    SUPERSEDED = "superseded"  # somebody set other limits, or the disk is gone


@dataclasses.dataclass(frozen=True)
class Step:
    """How far a squeeze has got."""

    phase: Phase
    elapsed_seconds: float
    ram_bytes: int
    target_bytes: int


def apply(state: face.StateFace, limits: face.Limits) -> None:
    """Write `limits` so that floor <= target <= cap holds at every moment in between."""
    state.set_limits(floor_bytes=min(limits.floor_bytes, state.limits().floor_bytes))
    if limits.target_bytes <= state.limits().cap_bytes:
        state.set_limits(target_bytes=limits.target_bytes)
        state.set_limits(cap_bytes=limits.cap_bytes)
    else:
        state.set_limits(cap_bytes=limits.cap_bytes)
        state.set_limits(target_bytes=limits.target_bytes)
    state.set_limits(floor_bytes=limits.floor_bytes)


async def follow(
    state: face.StateFace,
    target_bytes: int,
    *,
    limit_seconds: float = LIMIT_SECONDS,
    gone: Callable[[], bool] = lambda: False,
    clock: Callable[[], float] = time.monotonic,
) -> AsyncIterator[Step]:
    """Yield steps until the disk has seen `target_bytes` and is within it; the last one is final.

    `gone` tells that the disk is no more.  Raises StateError if the state file was truncated.
    """
    start = last = clock()
    while True:
        now = clock()
        phase = _phase(state, target_bytes, gone())
        if phase is Phase.SQUEEZING and now - start >= limit_seconds:
            phase = Phase.LATE
        if phase is not Phase.SQUEEZING or now - last >= _STEP_SECONDS:
            last = now
            yield Step(phase, now - start, state.ram_bytes(), target_bytes)
        if phase is not Phase.SQUEEZING:
            return
        state.request_publish()
        await asyncio.sleep(_POLL_SECONDS)


def _phase(state: face.StateFace, target_bytes: int, gone: bool) -> Phase:
    if gone or state.limits().target_bytes != target_bytes:
        return Phase.SUPERSEDED
    if state.counters()["target_seen_bytes"] != target_bytes or state.ram_bytes() > target_bytes:
        return Phase.SQUEEZING
    return Phase.HOLDS
