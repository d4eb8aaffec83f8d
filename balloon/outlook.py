"""What the rooms leave: the memory that may still be taken now, and how fast others take it.  Pure functions.

Sizes in bytes, times in seconds.  The least spare of all rooms rules: a page of a disk comes out of each of
them.
"""

import math
from collections.abc import Iterable, Mapping
from typing import Final

import msgspec

from swaptide.balloon import samples

# Every figure is moved into 0 .. this, so that nothing that a sensor says can make the arithmetic fail.
MOST_BYTES: Final = 1 << 60
# Two looks closer than this, as when several triggers fire at once, tell no speed.
_LEAST_SECONDS: Final = 0.005


class Falls(msgspec.Struct, frozen=True):
    """How fast each room loses memory to others than the disks, in bytes per second, smoothed; what was
    seen last.
    """

    per_second: Mapping[str, float] = {}
    free: Mapping[str, int] = {}
    ram: Mapping[str, int] = {}


class Outlook(msgspec.Struct, frozen=True):
    """What the tightest room leaves beyond reserve, reservations and what is asked for, below 0 what is
    missing.

    `spare_bytes` is now, `soon_bytes` after the look ahead; `tight` where some room has little enough to
    spare that a pressure trigger is believed; `least_size_bytes` is the size of the smallest room.
    """

    spare_bytes: int
    soon_bytes: int
    tight: bool
    least_size_bytes: int


def bounded(value: int) -> int:
    """A size that can be reckoned with."""
    return min(MOST_BYTES, max(0, int(value)))


def dead_band(size_bytes: int, share: float, least_bytes: int) -> int:
    """What comes and goes in a room of this size without meaning anything."""
    return max(least_bytes, int(size_bytes * share))


def follow(
    last: Falls, rooms: Iterable[samples.Room], ram: Mapping[str, int], passed: float, smooth_seconds: float
) -> Falls:
    """`last` and one look more, `passed` seconds later.

    What a disk takes or gives back is no fall; a disk that came or went since the last look is left out,
    for its memory may or may not be in the rooms still.
    """
    if last.free and passed < _LEAST_SECONDS:
        return last
    taken = sum(ram[name] - last.ram[name] for name in ram.keys() & last.ram.keys())
    weight = 1 - math.exp(-passed / smooth_seconds) if smooth_seconds > 0 else 1.0
    falls: dict[str, float] = {}
    free: dict[str, int] = {}
    for room in rooms:
        now = free[room.name] = bounded(room.free_bytes)
        fall = last.per_second.get(room.name, 0.0)
        if passed > 0 and room.name in last.free:
            fall += ((last.free[room.name] - now - taken) / passed - fall) * weight
        falls[room.name] = fall
    return Falls(falls, free, dict(ram))


def look(
    sample: samples.Sample,
    falls: Falls,
    *,
    ahead_seconds: float,
    ahead_share: float,
    plenty_share: float,
    band_share: float,
    band_least_bytes: int,
) -> Outlook | None:
    """What is spare; None where no room is known, so that nothing can be said.

    Of what a room will have lost, half the dead band is taken for noise, which looking ahead makes louder.
    """
    spares: list[int] = []
    soons: list[int] = []
    tight = False
    held = bounded(sample.held_bytes)
    for index, room in enumerate(sample.rooms):
        size, kept = bounded(room.size_bytes), bounded(room.reserve_bytes)
        if index == 0 and sample.wanted_bytes is not None:
            kept = max(kept, bounded(sample.wanted_bytes))
        spare = bounded(room.free_bytes) - kept - held
        fall = max(0.0, falls.per_second.get(room.name, 0.0))
        noise = dead_band(size, band_share, band_least_bytes) / 2
        soon = spare - int(max(0.0, min(fall * ahead_seconds, size * ahead_share) - noise))
        tight = tight or soon < size * plenty_share
        spares.append(spare)
        soons.append(soon)
    if not spares:
        return None
    sizes = [bounded(room.size_bytes) for room in sample.rooms]
    return Outlook(min(spares), min(soons), tight, min(sizes))
