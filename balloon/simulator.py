"""Replays a trace of samples against the control law, faster than time: what would have come of it.

The plant is a host whose caches follow the targets: they shrink at a given speed, grow by what the trace
says that guests wrote, and hold no more than lives.  What the recorded caches did not take, or took, is
given to or taken from the free memory of every room.  Whether a read hits is told from its age and what
lived.  What cannot be replayed stays as it was recorded: how much guests read, write and swap does not
depend on what they are given.  Pure; no clock, no files.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Final

import msgspec

from swaptide.balloon import curves, policy, samples

# A cache that spills to a quick disk while packing; a slow store is tried out with a smaller one.
SHRINK_BYTES_PER_SECOND: Final = 1 << 30
# With less than this of a room free, its pressure trigger fires.
PRESSED_SHARE: Final = 1 / 64
# A balloon follows so fast.
BALLOON_BYTES_PER_SECOND: Final = 256 << 20
# What a cache takes beside what lives in it: open segments and the ones kept free.
_WORKING_BYTES: Final = 16 << 20


class DiskNow(msgspec.Struct, frozen=True):
    """One disk at one moment: pages read since the last one, and how many of them were in RAM."""

    ram_bytes: int
    target_bytes: int
    reads: float
    hits: float


class Moment(msgspec.Struct, frozen=True):
    """What was so when a decision was made.

    `free_bytes` and `spare_bytes` are the least of all rooms: what is free, and what is beyond reserve and
    reservations; both fall below 0 where a real host would have run out of memory, or into its reserve.
    """

    at_seconds: float
    free_bytes: int
    spare_bytes: int
    pressed: bool
    reason: str
    disks: Mapping[str, DiskNow]
    guests: Mapping[str, int]


class Plant:
    """The disks and guests of one replay."""

    def __init__(self, settings: policy.Settings, shrink_bytes_per_second: float) -> None:
        self._settings = settings
        self._shrink = shrink_bytes_per_second
        self._memory = policy.start(settings)
        self._last: samples.Sample | None = None
        self._ram: dict[str, int] = {}
        self._targets: dict[str, int] = {}
        self._missed: dict[str, float] = {}
        self._actual: dict[str, int] = {}
        self._asked: dict[str, int] = {}

    def step(self, recorded: samples.Sample) -> Moment:
        """Let the time pass up to this sample, and decide."""
        passed = 0.0 if self._last is None else recorded.at_seconds - self._last.at_seconds
        before = {} if self._last is None else {disk.name: disk for disk in self._last.disks}
        disks = {disk.name: disk for disk in recorded.disks}
        reads = {name: self._follow(disk, before.get(name), passed) for name, disk in disks.items()}
        for gone in self._ram.keys() - disks.keys():
            del self._ram[gone], self._targets[gone], self._missed[gone]
        guests = {guest.name: guest for guest in recorded.guests}
        for guest in guests.values():
            self._inflate(guest, passed)
        for gone in self._actual.keys() - guests.keys():
            del self._actual[gone]
        free = self._free(recorded)
        sample = self._as_it_is(recorded, free)
        self._memory, decision = policy.decide(self._settings, self._memory, sample)
        self._targets.update(decision.targets)
        self._asked.update(decision.balloons)
        self._last = recorded
        spare = [
            left - room.reserve_bytes - recorded.held_bytes
            for left, room in zip(free, recorded.rooms, strict=True)
        ]
        return Moment(
            at_seconds=recorded.at_seconds,
            free_bytes=min(free, default=0),
            spare_bytes=min(spare, default=0),
            pressed=sample.pressed,
            reason=decision.reason,
            disks={name: DiskNow(self._ram[name], self._targets[name], *reads[name]) for name in disks},
            guests=dict(self._actual),
        )

    def _follow(self, disk: samples.Disk, before: samples.Disk | None, passed: float) -> tuple[float, float]:
        """Move one cache; pages read meanwhile and how many of them hit."""
        name = disk.name
        if before is None:
            self._ram[name] = disk.ram_bytes
            self._targets[name] = disk.target_bytes
            self._missed[name] = 0.0
            return 0.0, 0.0
        came = [max(0, new - old) for new, old in zip(disk.reads_by_age, before.reads_by_age, strict=False)]
        hits = sum(came) * curves.hit_share(came, disk.live_bytes_by_age, self._ram[name])
        self._missed[name] += sum(came) - hits
        target = min(disk.cap_bytes, max(disk.floor_bytes, self._targets[name]))
        self._targets[name] = target
        ram = self._ram[name]
        if ram > target:
            fall = 0 if disk.stuck else int(self._shrink * passed)
            ram = max(target, ram - fall)
        else:
            ram = min(target, ram + _written(disk, before))
        holds = int(sum(disk.live_bytes_by_age) * curves.RAM_PER_BYTE) + _WORKING_BYTES
        self._ram[name] = min(ram, max(holds, disk.floor_bytes))
        return float(sum(came)), hits

    def _inflate(self, guest: samples.Guest, passed: float) -> None:
        actual = self._actual.setdefault(guest.name, guest.actual_bytes)
        asked = self._asked.get(guest.name, actual)
        most = int(BALLOON_BYTES_PER_SECOND * passed)
        self._actual[guest.name] = actual + max(-most, min(most, asked - actual))

    def _free(self, recorded: samples.Sample) -> list[int]:
        """What each room has free with this plant's disks and guests; below 0 where memory would have run
        out.
        """
        given = sum(disk.ram_bytes - self._ram[disk.name] for disk in recorded.disks)
        given += sum(guest.actual_bytes - self._actual[guest.name] for guest in recorded.guests)
        return [room.free_bytes + given for room in recorded.rooms]

    def _as_it_is(self, recorded: samples.Sample, free: list[int]) -> samples.Sample:
        """The recorded sample with this plant's disks, guests and free memory."""
        rooms = tuple(zip(recorded.rooms, free, strict=True))
        pressed = any(
            left < room.size_bytes * PRESSED_SHARE or (recorded.pressed and left <= room.free_bytes)
            for room, left in rooms
        )
        replace = msgspec.structs.replace
        disks = tuple(
            replace(
                disk,
                ram_bytes=self._ram[disk.name],
                target_bytes=self._targets[disk.name],
                missed_pages=int(self._missed[disk.name]),
            )
            for disk in recorded.disks
        )
        return replace(
            recorded,
            rooms=tuple(replace(room, free_bytes=max(0, left)) for room, left in rooms),
            disks=disks,
            guests=tuple(replace(guest, actual_bytes=self._actual[guest.name]) for guest in recorded.guests),
            pressed=pressed,
        )


def replay(
    trace: Iterable[samples.Sample],
    settings: policy.Settings,
    shrink_bytes_per_second: float = SHRINK_BYTES_PER_SECOND,
) -> Iterator[Moment]:
    """Every moment of a trace, whose times do not go back."""
    plant = Plant(settings, shrink_bytes_per_second)
    for recorded in trace:
        yield plant.step(recorded)


def with_reserve(trace: Iterable[samples.Sample], reserve_bytes: int | None) -> Iterator[samples.Sample]:
    """A trace whose rooms leave so much free; None: as it is."""
    for sample in trace:
        if reserve_bytes is not None:
            rooms = [msgspec.structs.replace(room, reserve_bytes=reserve_bytes) for room in sample.rooms]
            sample = msgspec.structs.replace(sample, rooms=tuple(rooms))
        yield sample


def _written(disk: samples.Disk, before: samples.Disk) -> int:
    """What a guest wrote in between; where the trace does not say, by what the disk came to hold."""
    if disk.written_bytes or before.written_bytes:
        return max(0, disk.written_bytes - before.written_bytes)
    grown = sum(disk.live_bytes_by_age) - sum(before.live_bytes_by_age)
    return max(0, grown, disk.ram_bytes - before.ram_bytes)
