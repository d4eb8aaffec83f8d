"""Change a disk's limits and follow it until they hold, whatever the policy makes of its target meanwhile.

Runs on the loop of whoever calls it; polls the state file, which is memory, and never waits for the
disk or its store.
"""

import asyncio
import dataclasses
import enum
import time
from collections.abc import AsyncIterator, Callable, Mapping

from swaptide.balloon.limits import clamp
from swaptide.cache import face, geometry, layout

# Below so much a disk does not pack: it has no segments to spare to pack into (movers.PACK_LEAST_SLOTS).
PACK_LEAST_BYTES = 16 * geometry.SEGMENT_BYTES
LIMIT_SECONDS = 60.0
_POLL_SECONDS = 0.01
_STEP_SECONDS = 0.2
# What the plugin may take to see an order that needs nothing to be moved.
_SEEN_SECONDS = 2.0


class Phase(enum.StrEnum):
    """Where a squeeze stands; all but SQUEEZING are final."""

    SQUEEZING = "squeezing"
    HOLDS = "holds"
    LATE = "late"  # the time is over; the limit stays in force and the disk goes on towards it
    FROZEN = "frozen"  # nothing moves before it is thawed; the limit stays in force
    SUPERSEDED = "superseded"  # somebody set other limits, or the disk is gone


@dataclasses.dataclass(frozen=True)
class Step:
    """How far a squeeze has got; `target_bytes` is what was asked for."""

    phase: Phase
    elapsed_seconds: float
    ram_bytes: int
    target_bytes: int


@dataclasses.dataclass(frozen=True)
class Deadline:
    """So many seconds from `begun`, which is a time.monotonic()."""

    begun: float
    seconds: float

    @property
    def ns(self) -> int:
        """The same as a word of the state file: of CLOCK_MONOTONIC, and not 0."""
        return max(1, round((self.begun + self.seconds) * 1e9))


def estimate_seconds(counters: Mapping[str, int], ram_bytes: int, target_bytes: int) -> float | None:
    """How long a disk that uses `ram_bytes` takes to its target, at the speeds measured on its host.

    What is clean goes at once; the rest is packed, as far as there is something to pack, and written out,
    side by side.  None where it has no speed: its store fails, perhaps.
    """
    rest = ram_bytes - target_bytes - counters["droppable_bytes"]
    if rest <= 0:
        return 0.0
    spill = counters["spill_bytes_per_second"] if layout.can_spill(counters) else 0
    pack = counters["pack_bytes_per_second"] if target_bytes >= PACK_LEAST_BYTES else 0
    if not spill:
        return rest / pack if pack and rest <= counters["packable_bytes"] else None
    both = rest / (pack + spill)
    return max(both, (rest - counters["packable_bytes"]) / spill) if pack else both


def keeping_target(state: face.StateFace, limits: face.Limits) -> face.Limits:
    """`limits` with the target that is in force, as far as it fits."""
    return dataclasses.replace(limits, target_bytes=clamp(state.limits().target_bytes, limits))


def apply(state: face.StateFace, limits: face.Limits, deadline: Deadline | None = None) -> None:
    """Write when `limits` have to hold, then `limits`: floor <= target <= cap at every moment in between."""
    state.set_limits(deadline_ns=0 if deadline is None else deadline.ns)
    state.set_limits(floor_bytes=min(limits.floor_bytes, state.limits().floor_bytes))
    if limits.target_bytes <= state.limits().cap_bytes:
        state.set_limits(target_bytes=limits.target_bytes)
        state.set_limits(cap_bytes=limits.cap_bytes)
    else:
        state.set_limits(cap_bytes=limits.cap_bytes)
        state.set_limits(target_bytes=limits.target_bytes)
    state.set_limits(floor_bytes=limits.floor_bytes)


def release(state: face.StateFace, deadline: Deadline | None) -> None:
    """Take a deadline away that was applied, unless another one was set meanwhile."""
    if deadline is not None and state.deadline_ns() == deadline.ns:
        state.set_limits(deadline_ns=0)


async def follow(
    state: face.StateFace,
    cap_bytes: int,
    *,
    limit_seconds: float = LIMIT_SECONDS,
    deadline: Deadline | None = None,
    within: bool = False,
    gone: Callable[[], bool] = lambda: False,
    clock: Callable[[], float] = time.monotonic,
) -> AsyncIterator[Step]:
    """Yield steps until the disk is within `cap_bytes`, and its target too, or is frozen; the last is final.

    With a `deadline` it is LATE unless it was seen to hold in time; else it has `limit_seconds`.  `within`
    says that the disk did not use more when it was asked: that is in time however soon it had to be, unless
    it grows before it has seen its limit.  `gone` tells that the disk is no more.  Raises StateError if the
    state file was truncated.
    """
    start = last = clock()
    if deadline is not None:
        start, limit_seconds = deadline.begun, deadline.seconds
    while True:
        now = clock()
        phase = _phase(state, cap_bytes, gone())
        within = within and state.ram_bytes() <= cap_bytes
        in_time = now - start < limit_seconds
        if phase is Phase.SQUEEZING and not in_time:
            if not within or now - start >= limit_seconds + _SEEN_SECONDS:
                phase = Phase.LATE
        elif phase is Phase.HOLDS and deadline is not None and not (in_time or within):
            phase = Phase.LATE
        if phase is not Phase.SQUEEZING or now - last >= _STEP_SECONDS:
            last = now
            yield Step(phase, now - start, state.ram_bytes(), cap_bytes)
        if phase is not Phase.SQUEEZING:
            return
        state.request_publish()
        await asyncio.sleep(_POLL_SECONDS)


def _phase(state: face.StateFace, cap_bytes: int, gone: bool) -> Phase:
    # The policy moves the target below the cap as it likes; only another cap is somebody else's order.
    if gone or state.limits().cap_bytes != cap_bytes:
        return Phase.SUPERSEDED
    counters = state.counters()
    if state.ram_bytes(counters) > cap_bytes:
        return Phase.FROZEN if state.is_frozen() else Phase.SQUEEZING
    if counters["target_seen_bytes"] > cap_bytes:
        return Phase.SQUEEZING
    return Phase.HOLDS
