"""What disks a host has room for, and what comes of it when memory has to be freed.  Pure functions.

Who gets how much is reckoned by the control law itself (division, policy), and how long giving back takes by
the estimate that `disk set --deadline` makes.  Sizes in bytes, speeds in bytes per second.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Final

from swaptide.balloon import division, limits, policy, samples, squeeze
from swaptide.cache import geometry

MIB: Final = 1 << 20
# docs/performance.md: what the process of an empty disk takes; no cap counts it.
PROCESS_BYTES: Final = 43 * MIB
# bench/results/full.md, LZ4: guest bytes that a byte of RAM holds, of pages of real programs, and of noise.
HOLDS_REAL: Final = 3.02
HOLDS_NOISE: Final = 0.958
# docs/performance.md: the share of a disk's speed at which memory that nothing is clean of comes back.
SPILL_SHARE: Final = 0.92
# Assumed: what QEMU takes beside the memory of its guest.
QEMU_BYTES: Final = 128 * MIB
_WEIGHT: Final = 100
_SECONDS: Final = 60.0


@dataclasses.dataclass(frozen=True)
class Host:
    """`free_bytes` is what guests that are to come and caches may take of `size_bytes`, reserve included;
    `spill_bytes` is what is free for spill files, None where nobody knows; `group_bytes` what a memory cgroup
    leaves to the disks, None where there is none.
    """

    size_bytes: int
    free_bytes: int
    reserve_bytes: int
    spill_bytes: int | None = None
    group_bytes: int | None = None


@dataclasses.dataclass(frozen=True)
class Guests:
    """So many guests that are to come, all alike."""

    count: int
    memory_bytes: int
    swap_bytes: int


@dataclasses.dataclass(frozen=True)
class Plan:
    """A disk for each guest, all alike.

    `spare_bytes` is what all caches may have together, below 0 what is missing before any; `share_bytes` what
    each has while all want as much as they can get; `held_bytes` how much swap that holds, where nothing
    shrinks, and where pages shrink as those of real programs.  `most_guests` is how many of them fit.
    `lacks` says in words what there is too little of.
    """

    size_bytes: int
    cap_bytes: int
    floor_bytes: int
    reserve_bytes: int
    spare_bytes: int
    share_bytes: int
    held_bytes: tuple[int, int]
    spill_bytes: int
    spill_all_bytes: int
    most_guests: int
    lacks: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Cache:
    """One disk as it is when memory has to be freed: what it uses, and what of that is clean, and shrinks."""

    name: str
    ram_bytes: int
    cap_bytes: int
    floor_bytes: int
    droppable_bytes: int
    packable_bytes: int
    weight: int = _WEIGHT
    stuck: bool = False


@dataclasses.dataclass(frozen=True)
class Freed:
    """What comes of it: `possible_bytes` is the most that could be had.

    `dropped`, `packed` and `spilled` add up to what is freed; `seconds` is None where nothing can be written.
    `targets` are what the disks are left with.
    """

    wanted_bytes: int
    possible_bytes: int
    dropped_bytes: int
    packed_bytes: int
    spilled_bytes: int
    seconds: float | None
    targets: Mapping[str, int]

    @property
    def is_possible(self) -> bool:
        """Whether all that is wanted can be had, however long it takes."""
        return self.wanted_bytes <= self.possible_bytes and self.seconds is not None


def make(host: Host, guests: Guests) -> Plan:
    """Disks for `guests`.  Raises UsageError for a swap size that no disk can have."""
    floor = _up(limits.default_floor(guests.swap_bytes))
    shape = geometry.of_size(guests.swap_bytes)
    each = guests.memory_bytes + QEMU_BYTES + PROCESS_BYTES
    room = host.free_bytes - host.reserve_bytes
    spare = room - guests.count * each
    most = max(0, room // (each + floor))
    if host.group_bytes is not None:
        # The disks' processes are in it as well; the guests are not.
        spare = min(spare, host.group_bytes - guests.count * PROCESS_BYTES)
        most = min(most, max(0, host.group_bytes // (floor + PROCESS_BYTES)))
    full = _up(limits.default_floor(guests.swap_bytes) + _segments(shape.pages) * geometry.SEGMENT_BYTES)
    cap = max(floor, min(full, spare // MIB * MIB))
    claims = [division.Claim(floor, cap, _WEIGHT) for _ in range(guests.count)]
    share = division.divide(claims, max(0, spare))[0]
    spill_all = guests.count * shape.spill_bytes
    lacks = []
    if spare < guests.count * floor:
        lacks.append("memory")
    if host.spill_bytes is not None and spill_all > host.spill_bytes:
        lacks.append("spill space")
    pages = max(0, share - shape.metadata_bytes)
    return Plan(
        size_bytes=guests.swap_bytes,
        cap_bytes=cap,
        floor_bytes=floor,
        reserve_bytes=host.reserve_bytes,
        spare_bytes=spare,
        share_bytes=share,
        held_bytes=(
            min(guests.swap_bytes, int(pages * HOLDS_NOISE)),
            min(guests.swap_bytes, int(pages * HOLDS_REAL)),
        ),
        spill_bytes=shape.spill_bytes,
        spill_all_bytes=spill_all,
        most_guests=most,
        lacks=tuple(lacks),
    )


def full_caches(plan: Plan, count: int, *, clean_percent: int, packs: bool) -> list[Cache]:
    """The disks of `plan` when each holds its share: the worst moment to be asked for memory.

    Of each `clean_percent` is on disk as well; the rest is raw, and shrinks as pages of real programs do, or
    not at all.
    """
    clean = plan.share_bytes * clean_percent // 100
    packable = int((plan.share_bytes - clean) * (1 - 1 / HOLDS_REAL)) if packs else 0
    return [
        Cache(f"g{number}", plan.share_bytes, plan.cap_bytes, plan.floor_bytes, clean, packable)
        for number in range(1, count + 1)
    ]


def free(
    caches: Sequence[Cache],
    wanted_bytes: int,
    *,
    size_bytes: int,
    spill_speed: int,
    pack_speed: int,
    settings: policy.Settings | None = None,
) -> Freed:
    """What `caches` do when so much more than now has to be free on a host of `size_bytes`.

    The speeds are those of all together: they share the store, and the cores.
    """
    # The law counts on nothing from a disk that is stuck.
    possible = sum(max(0, each.ram_bytes - each.floor_bytes) for each in caches if not each.stuck)
    targets = _targets(caches, min(wanted_bytes, possible), size_bytes, settings or policy.Settings())
    falls = {each.name: max(0, each.ram_bytes - targets[each.name]) for each in caches}
    dropped = sum(min(falls[each.name], each.droppable_bytes) for each in caches)
    rest = sum(falls.values()) - dropped
    low = all(targets[each.name] < squeeze.PACK_LEAST_BYTES for each in caches)
    packable = 0 if low else sum(min(each.packable_bytes, falls[each.name]) for each in caches)
    speed = pack_speed if packable else 0
    seconds = squeeze.estimate_seconds(
        {
            "droppable_bytes": dropped,
            "packable_bytes": packable,
            "degraded": 0,
            "spill_bytes_per_second": spill_speed,
            "pack_bytes_per_second": speed,
        },
        sum(falls.values()) + squeeze.PACK_LEAST_BYTES,
        squeeze.PACK_LEAST_BYTES,
    )
    packed = min(packable, rest, rest * speed // max(1, speed + spill_speed))
    return Freed(wanted_bytes, possible, dropped, packed, rest - packed, seconds, targets)


def _targets(
    caches: Sequence[Cache], wanted: int, size_bytes: int, settings: policy.Settings
) -> dict[str, int]:
    """The control law's answer to who asks for `wanted`, where nothing is free beyond the reserve."""
    room = samples.Room("host", 0, size_bytes, 0)
    disks = tuple(
        samples.Disk(
            name=each.name,
            ram_bytes=each.ram_bytes,
            target_bytes=each.ram_bytes,
            cap_bytes=each.cap_bytes,
            floor_bytes=each.floor_bytes,
            weight=each.weight,
            reads_by_age=(),
            live_bytes_by_age=(),
            stuck=each.stuck,
        )
        for each in caches
    )
    sample = samples.Sample(0.0, (room,), disks, wanted_bytes=wanted, wanted_seconds=_SECONDS)
    _, decision = policy.decide(settings, policy.start(settings), sample)
    return {each.name: decision.targets.get(each.name, each.ram_bytes) for each in caches}


def _segments(pages: int) -> int:
    return -(-pages // geometry.PIECES_PER_SEGMENT)


def _up(size_bytes: int) -> int:
    """To whole MiB, as commands write it."""
    return -(-size_bytes // MIB) * MIB
