"""Made-up hosts for the control law: samples by hand, and traces whose environment is given by functions of
time.
"""

import os
import random
from collections.abc import Callable, Iterator, Sequence

import hypothesis

from swaptide.balloon import policy, samples, simulator
from swaptide.cache import ages

MIB = 1 << 20
GIB = 1 << 30
SETTINGS = policy.Settings()


def ages_of(*found: tuple[int, int]) -> tuple[int, ...]:
    """Counts by bucket of age: (bucket, count) for those that are not 0."""
    counts = [0] * ages.BUCKETS
    for bucket, count in found:
        counts[bucket] += count
    return tuple(counts)


def room(free: int, size: int = 16 * GIB, reserve: int = GIB, name: str = "host") -> samples.Room:
    return samples.Room(name, free, size, reserve)


def disk(
    name: str = "g1",
    ram: int = GIB,
    target: int | None = None,
    cap: int = 2 * GIB,
    floor: int = 32 * MIB,
    weight: int = 100,
    reads: tuple[int, ...] = ages_of(),
    live: tuple[int, ...] | None = None,
    stuck: bool = False,
    written: int = 0,
) -> samples.Disk:
    live = ages_of((20, 4 * GIB)) if live is None else live
    target = ram if target is None else target
    return samples.Disk(name, ram, target, cap, floor, weight, reads, live, 0, stuck, written)


def sample(at: float, free: int, *disks: samples.Disk, reserve: int = GIB) -> samples.Sample:
    return samples.Sample(at, (room(free, reserve=reserve),), disks)


def after(found: samples.Sample, decision: samples.Decision) -> dict[str, int]:
    """All targets as they are once a decision was carried out."""
    return {each.name: decision.targets.get(each.name, each.target_bytes) for each in found.disks}


def licences(found: samples.Sample, decision: samples.Decision) -> int:
    """What the targets let disks grow by."""
    targets = after(found, decision)
    return sum(max(0, targets[each.name] - each.ram_bytes) for each in found.disks)


def debt(found: samples.Sample) -> int:
    """What disks may take whatever there is, to reach their floors."""
    return sum(max(0, min(each.floor_bytes, each.cap_bytes) - each.ram_bytes) for each in found.disks)


def examples(count: int) -> hypothesis.settings:
    """The same examples every time, or as many new ones as SWAPTIDE_FUZZ_EXAMPLES says."""
    return hypothesis.settings(
        max_examples=int(os.environ.get("SWAPTIDE_FUZZ_EXAMPLES") or count),
        deadline=None,
        derandomize="SWAPTIDE_FUZZ_EXAMPLES" not in os.environ,
        database=None,
        suppress_health_check=list(hypothesis.HealthCheck),
    )


def spare(found: samples.Sample) -> int:
    """What the tightest room has beyond what is to stay free."""
    least = []
    for index, each in enumerate(found.rooms):
        wanted = (found.wanted_bytes or 0) if index == 0 else 0
        least.append(each.free_bytes - max(each.reserve_bytes, wanted) - found.held_bytes)
    return max(0, min(least, default=0))


class Busy:
    """A disk of one kind of guest: it holds `live` bytes, reads them evenly and overwrites them at
    `writes`.
    """

    def __init__(
        self,
        name: str,
        reads: float,
        live: int = 2 * GIB,
        writes: float = 64 * MIB,
        weight: int = 100,
        cap: int = 2 * GIB,
        ram: int = 0,
    ) -> None:
        self.name = name
        self.reads = reads
        self.live = live
        self.writes = writes
        self.weight = weight
        self.cap = cap
        self.ram = ram
        self._counts = [0] * ages.BUCKETS

    def at(self, seconds: float, tick: float, chance: random.Random) -> samples.Disk:
        """The disk at that time; call it in the order of the times."""
        # Evenly over sixteen buckets, so that depth and age say the same.
        for bucket in range(20, 36):
            mean = self.reads * tick / 16
            self._counts[bucket] += max(0, round(chance.gauss(mean, mean**0.5)))
        return disk(
            self.name,
            ram=self.ram,
            target=self.ram,
            cap=self.cap,
            weight=self.weight,
            reads=tuple(self._counts),
            live=ages_of(*((bucket, self.live // 16) for bucket in range(20, 36))),
            written=1 + int(seconds * self.writes),
        )


def trace(
    disks: Sequence[Busy],
    free: Callable[[float], float],
    seconds: float,
    tick: float = 0.5,
    noise: int = 0,
    seed: int = 1,
    size: int = 16 * GIB,
    reserve: int = GIB,
) -> Iterator[samples.Sample]:
    """A host that would have `free(t)` bytes free if all caches were empty."""
    chance = random.Random(seed)
    held = sum(each.ram for each in disks)
    for step in range(int(seconds / tick) + 1):
        at = step * tick
        left = int(free(at) + chance.uniform(-noise, noise)) - held
        yield samples.Sample(
            at, (room(left, size, reserve),), tuple(each.at(at, tick, chance) for each in disks)
        )


def replay(found: Iterator[samples.Sample]) -> list[simulator.Moment]:
    return list(simulator.replay(found, SETTINGS))


def turns(moments: Sequence[simulator.Moment]) -> int:
    """How often a target changed its direction."""
    count = 0
    for name in moments[0].disks:
        targets = [moment.disks[name].target_bytes for moment in moments]
        steps = [new - old for old, new in zip(targets, targets[1:], strict=False) if new != old]
        count += sum(1 for one, two in zip(steps, steps[1:], strict=False) if (one > 0) != (two > 0))
    return count
