"""What the policy is told and what it answers: frozen data, nothing else.

Sizes are in bytes, times in seconds of CLOCK_MONOTONIC.  Whoever reads a sensor makes these, and only these;
a recorded trace is a sequence of them, so the policy cannot tell it from a host.
"""

from collections.abc import Mapping

import msgspec


class Room(msgspec.Struct, frozen=True):
    """One thing that memory is taken from: the host, or a memory cgroup that the disks live in.

    `free_bytes` is what may still be taken without harm (MemAvailable; a cgroup's limit less its usage that
    cannot be reclaimed), `size_bytes` all of it, `reserve_bytes` what the policy leaves free.
    """

    name: str
    free_bytes: int
    size_bytes: int
    reserve_bytes: int


class Disk(msgspec.Struct, frozen=True):
    """One disk that serves.  `ram_bytes` is what counts against its target now.

    `reads_by_age` counts pages that were read, in RAM or on disk, since the disk was made, by cache.ages'
    buckets; `live_bytes_by_age` is what lives in the same buckets, in bytes of RAM that it takes or would
    take; `missed_pages` were read from the store.  Of one that is `stuck` nothing can be had: what is dirty
    has nowhere to go, or it is frozen.  `written_bytes` is what the guest has written since the disk was
    made; only the simulator reads it, and does with 0 where a trace has none.
    """

    name: str
    ram_bytes: int
    target_bytes: int
    cap_bytes: int
    floor_bytes: int
    weight: int
    reads_by_age: tuple[int, ...]
    live_bytes_by_age: tuple[int, ...]
    missed_pages: int = 0
    stuck: bool = False
    written_bytes: int = 0


class Guest(msgspec.Struct, frozen=True):
    """One guest whose balloon may be moved.  None is what the guest does not say.

    `actual_bytes` is its logical size (QEMU's `actual`), `age_seconds` how old its own figures are; they are
    not trusted.  `swapped_in_bytes` and `swapped_out_bytes` only grow, until it boots again.
    """

    name: str
    actual_bytes: int
    min_bytes: int
    max_bytes: int
    age_seconds: float | None = None
    available_bytes: int | None = None
    swapped_in_bytes: int | None = None
    swapped_out_bytes: int | None = None


class Sample(msgspec.Struct, frozen=True):
    """Everything that is known at one moment.

    `pressed`: a pressure trigger fired since the last sample.  `held_bytes` is what reservations keep
    free beyond every room's own reserve.  `wanted_bytes` is what a reservation under way asks to be free in
    the first room, reserve not counted; None for none.  `wanted_seconds` is what is left of its time, None
    where that is not known.  `pressure_percent` is the share of the last ten seconds in which tasks
    stalled for want of memory, None where the kernel does not say.
    """

    at_seconds: float
    rooms: tuple[Room, ...]
    disks: tuple[Disk, ...]
    guests: tuple[Guest, ...] = ()
    pressed: bool = False
    held_bytes: int = 0
    wanted_bytes: int | None = None
    wanted_seconds: float | None = None
    pressure_percent: float | None = None


class Decision(msgspec.Struct, frozen=True):
    """What is to be done: targets by disk, logical sizes by guest; only what changes.

    `hurry_seconds` is how long a disk whose target falls may take, None where there is no hurry; `reason`
    is one of a few words, for the log and for metrics.
    """

    targets: Mapping[str, int]
    balloons: Mapping[str, int]
    hurry_seconds: float | None = None
    reason: str = "steady"
