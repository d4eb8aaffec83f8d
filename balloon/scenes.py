"""Made-up traces, from a seed: hosts that never were, for the simulator.  Pure functions."""

import random
from collections.abc import Callable, Iterator, Mapping
from typing import Final

from swaptide.balloon import samples
from swaptide.cache import ages, geometry

MIB: Final = 1 << 20
GIB: Final = 1 << 30
TICK_SECONDS: Final = 0.5
FLOOR_BYTES: Final = 32 * MIB
# What a made-up guest remembers apart; beyond it the older half is told apart half as finely.
_CLUMPS: Final = 128


class Guestlike:
    """A guest that swaps on a made-up disk: what it writes kills what it wrote, and it reads of what lives.

    Reads find any byte that lives as likely as any other.  Rates are per second: bytes written, pages read;
    `set_bytes` is what it comes to hold.
    """

    def __init__(self, name: str, chance: random.Random, cap_bytes: int, weight: int = 100) -> None:
        self.name = name
        self.cap_bytes = cap_bytes
        self.weight = weight
        self.set_bytes = 0
        self.writes = 0.0
        self.reads = 0.0
        self.stuck = False
        self._chance = chance
        self._log: list[tuple[float, float]] = []  # clock and live bytes of what was written together
        self._clock = 0.0
        self._counts = [0] * ages.BUCKETS
        self._written = 0
        self._sizes = [0.0] * ages.BUCKETS

    def live_bytes(self) -> int:
        """What lives now."""
        return int(sum(live for _, live in self._log))

    def tick(self, seconds: float) -> None:
        """Write and read for so long."""
        wrote = self.writes * seconds * self._chance.uniform(0.8, 1.2)
        live = self.live_bytes()
        over = live + wrote - self.set_bytes
        if over > 0 and live > 0:
            kept = max(0.0, 1 - over / live)
            self._log = [(clock, size * kept) for clock, size in self._log if size * kept >= 1]
        if wrote > 0:
            self._written += int(wrote)
            self._clock += wrote / geometry.SEGMENT_BYTES
            self._log.append((self._clock, wrote))
        if len(self._log) > _CLUMPS:
            self._log = _fewer(self._log)
        sizes = self._sizes = self._by_age()
        total = sum(sizes)
        if total <= 0:
            return
        reads = self.reads * seconds
        for index, size in enumerate(sizes):
            wanted = reads * size / total
            self._counts[index] += max(0, round(self._chance.gauss(wanted, wanted**0.5)))

    def disk(self, ram_bytes: int) -> samples.Disk:
        """The disk as the policy would be told of it."""
        return samples.Disk(
            name=self.name,
            ram_bytes=ram_bytes,
            target_bytes=self.cap_bytes,
            cap_bytes=self.cap_bytes,
            floor_bytes=FLOOR_BYTES,
            weight=self.weight,
            reads_by_age=tuple(self._counts),
            live_bytes_by_age=tuple(int(size) for size in self._sizes),
            stuck=self.stuck,
            written_bytes=self._written,
        )

    def _by_age(self) -> list[float]:
        sizes = [0.0] * ages.BUCKETS
        for clock, live in self._log:
            sizes[ages.bucket(int(self._clock - clock))] += live
        return sizes


def hot_and_cold(seed: int) -> Iterator[samples.Sample]:
    """Two disks that could fill twice the RAM there is; one is read a lot, then the other."""
    chance = random.Random(seed)
    first, second = (Guestlike(name, chance, 2 * GIB) for name in ("g1", "g2"))
    for at in _times(600):
        for guest in (first, second):
            filling = guest.live_bytes() < 1800 * MIB
            hot = guest is (first if at < 300 else second)
            guest.set_bytes = 1900 * MIB
            guest.writes = 64 * MIB if filling else (24 * MIB if hot else MIB)
            guest.reads = 20 if filling or not hot else 6000
            guest.tick(TICK_SECONDS)
        yield _sample(chance, at, (first, second), free=3 * GIB, size=8 * GIB, reserve=GIB)


def eater(seed: int) -> Iterator[samples.Sample]:
    """Two full caches of 1 GiB in a memory cgroup; something takes 1400 MiB of it at 500 MB/s, and goes
    again.
    """
    chance = random.Random(seed)
    first, second = (Guestlike(name, chance, GIB) for name in ("g1", "g2"))
    for at in _times(240, 0.25):
        for guest, reads in ((first, 1500), (second, 500)):
            guest.set_bytes = 1100 * MIB
            guest.writes = (100 if guest.live_bytes() < 1090 * MIB else 16) * MIB
            guest.reads = reads
            guest.tick(0.25)
        eaten = 0 if at < 60 or at >= 120 else min(1400 * MIB, int((at - 60) * 500e6))
        limit = samples.Room("cgroup", 2816 * MIB - eaten, 2816 * MIB, 128 * MIB)
        yield _sample(
            chance, at, (first, second), free=20 * GIB - eaten, size=24 * GIB, reserve=GIB, more=(limit,)
        )


def two_guests(seed: int) -> Iterator[samples.Sample]:
    """One guest thrashes while the host has memory to spare; later it has none, and the other guest is
    idle.
    """
    chance = random.Random(seed)
    disk = Guestlike("busy", chance, GIB)
    swapped = [0, 0]
    for at in _times(420):
        thrashes = 30 <= at < 150
        disk.set_bytes = 700 * MIB
        disk.writes, disk.reads = (40 * MIB, 8000) if thrashes else (MIB, 10)
        disk.tick(TICK_SECONDS)
        swapped[0] += int(disk.reads * geometry.PAGE_BYTES * TICK_SECONDS)
        swapped[1] += int(disk.writes * TICK_SECONDS)
        eaten = 0 if not 180 <= at < 330 else min(5 * GIB, int((at - 180) * 60e6))
        said = int(at / 2) * 2.0
        busy = samples.Guest("busy", GIB, GIB, 2 * GIB, at - said, 100 * MIB, swapped[0], swapped[1])
        idle = samples.Guest("idle", 4 * GIB, GIB, 4 * GIB, at - said, 3 * GIB, 0, 0)
        yield _sample(
            chance, at, (disk,), free=6 * GIB - eaten, size=16 * GIB, reserve=GIB, guests=(busy, idle)
        )


SCENES: Final[Mapping[str, Callable[[int], Iterator[samples.Sample]]]] = {
    "hot-and-cold": hot_and_cold,
    "eater": eater,
    "two-guests": two_guests,
}


def _fewer(log: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """The older half of a log merged by twos, each two at their mean clock."""
    old, young = log[: len(log) // 4 * 2], log[len(log) // 4 * 2 :]
    merged = [
        ((one[0] * one[1] + two[0] * two[1]) / (one[1] + two[1]), one[1] + two[1])
        for one, two in zip(old[::2], old[1::2], strict=True)
    ]
    return merged + young


def _times(seconds: float, tick: float = TICK_SECONDS) -> Iterator[float]:
    return (step * tick for step in range(int(seconds / tick) + 1))


def _sample(
    chance: random.Random,
    at: float,
    disks: tuple[Guestlike, ...],
    *,
    free: int,
    size: int,
    reserve: int,
    more: tuple[samples.Room, ...] = (),
    guests: tuple[samples.Guest, ...] = (),
) -> samples.Sample:
    """One moment; the recorded caches hold their floors, and all else is free but for some noise."""
    taken = sum(FLOOR_BYTES for _ in disks)
    noise = int(chance.uniform(0, 8 * MIB))
    rooms = tuple(
        samples.Room(room.name, max(0, room.free_bytes - taken - noise), room.size_bytes, room.reserve_bytes)
        for room in (samples.Room("host", free, size, reserve), *more)
    )
    return samples.Sample(at, rooms, tuple(disk.disk(FLOOR_BYTES) for disk in disks), guests)
