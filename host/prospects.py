"""What `swaptide plan` knows of a host and says: the figures of balloon.plan, and where they are from."""

import dataclasses
import os
from collections.abc import Sequence
from typing import Final

from swaptide.balloon import plan as plans
from swaptide.cache import geometry, layout, rates
from swaptide.cache.errors import SetupError, UsageError
from swaptide.host import config, protocol, sight, sizes

MIB: Final = 1 << 20
GIB: Final = 1 << 30
_GUEST_MEMORY: Final = 4 * GIB
_OTHER: Final = GIB
_DISK_SPEED: Final = 500 * MIB
_MOST_PACKERS: Final = 8
# More disks than this are made in a loop.
_SHOWN_COMMANDS: Final = 4


@dataclasses.dataclass(frozen=True)
class Given:
    """What the command line says; None for what it leaves open."""

    guests: int | None = None
    guest_memory_bytes: int | None = None
    swap_bytes: int | None = None
    host_memory_bytes: int | None = None
    other_bytes: int | None = None
    reserve_bytes: int | None = None
    spill_space_bytes: int | None = None
    disk_speed_bytes: int | None = None
    cores: int | None = None
    free_bytes: int | None = None


@dataclasses.dataclass(frozen=True)
class Seen:
    """A host, as it is or as it was given, and in words what of it is assumed."""

    given: Given
    host: plans.Host
    host_words: str
    spill_words: str
    spill_speed: int
    pack_speed: int
    speed_words: str
    caches: Sequence[plans.Cache] = ()

    @property
    def is_of_the_disks(self) -> bool:
        """Whether the question is what the disks that there are would do."""
        asked = (self.given.guests, self.given.guest_memory_bytes, self.given.swap_bytes)
        other = (self.given.host_memory_bytes, self.given.free_bytes)
        return asked == (None, None, None) and other[0] is None and other[1] is not None and bool(self.caches)


@dataclasses.dataclass(frozen=True)
class Prospect:
    """What is said: `lines` for people, each a name and a text, `plan` and `freed` for programs.

    `freed_when` says under which assumption each of `freed` is so; it takes one that is possible.
    """

    lines: Sequence[tuple[str, str]]
    plan: plans.Plan | None
    freed: Sequence[plans.Freed]
    freed_when: Sequence[str]
    commands: Sequence[str]

    @property
    def is_possible(self) -> bool:
        """Whether there is enough of everything, and what has to be freed can be."""
        fits = self.plan is None or not self.plan.lacks
        return fits and all(each.is_possible for each in self.freed)


def look(seen: sight.Sight, given: Given) -> Seen:
    """This host, or the one that was given.  Raises SetupError for a host that does not tell its memory."""
    spill_speed, pack_speed, words = _speeds(seen, given)
    if given.host_memory_bytes is not None:
        size = given.host_memory_bytes
        other = _OTHER if given.other_bytes is None else given.other_bytes
        mark = " (assumed; --other)" if given.other_bytes is None else ""
        usual = config.reserve("host_reserve", seen.config.host_reserve).of(size)
        reserve = _reserve(given, size, usual)
        host = plans.Host(size, size - other, reserve, given.spill_space_bytes)
        host_words = f"{sizes.show(size)}, {_show(other)} for itself{mark}, {_show(reserve)} to stay free"
        free = "" if given.spill_space_bytes is None else f", {sizes.show(given.spill_space_bytes)} there is"
        return Seen(given, host, host_words, free, spill_speed, pack_speed, words)
    return _this_host(seen, given, spill_speed, pack_speed, words)


def _this_host(seen: sight.Sight, given: Given, spill_speed: int, pack_speed: int, words: str) -> Seen:
    found = seen.rooms
    room = found[0]
    if not room.free_bytes:
        raise SetupError("this host does not tell its memory; give --host-memory")
    caches = [_cache(report) for report in seen.daemon.disks]
    back = sum(max(0, each.ram_bytes - each.floor_bytes) for each in caches)
    reserve = _reserve(given, room.size_bytes, room.reserve_bytes)
    groups = [group.free_bytes - group.reserve_bytes + back for group in found[1:]]
    space = seen.space(seen.config.spill_dir)
    spill = given.spill_space_bytes
    if spill is None and space is not None:
        spill = space.free_bytes
    host = plans.Host(room.size_bytes, room.free_bytes + back, reserve, spill, min(groups, default=None))
    there = f", {_show(back)} of it what {sizes.count(caches, 'disk')} would give back" if back else ""
    host_words = (
        f"{sizes.show(room.size_bytes)}, {_show(room.free_bytes + back)} available{there},"
        f" {_show(reserve)} to stay free"
    )
    if groups:
        host_words += f"; a memory cgroup leaves the disks {_show(min(groups))}"
    spill_words = "" if spill is None else f", {sizes.show(spill)} free"
    if given.spill_space_bytes is None and spill is not None:
        spill_words += f" in {seen.config.spill_dir}"
    return Seen(given, host, host_words, spill_words, spill_speed, pack_speed, words, caches)


def of_guests(seen: Seen) -> Prospect:
    """Disks for guests that are to come, and what freeing would take when those are full."""
    given = seen.given
    count = given.guests or 1
    memory = given.guest_memory_bytes or _GUEST_MEMORY
    swap = given.swap_bytes or memory
    made = plans.make(
        seen.host, plans.Guests(count, memory, -(-swap // geometry.PAGE_BYTES) * geometry.PAGE_BYTES)
    )
    lines = [
        ("host", seen.host_words),
        ("guests", f"{count} of {sizes.show(memory)}, and {_show(plans.QEMU_BYTES)} for each QEMU (assumed)"),
        (
            "swap",
            f"{sizes.show(swap)} each" + ("" if given.swap_bytes else " (assumed: as its memory; --swap)"),
        ),
        *_limits(made, count),
        (
            "spill space",
            f"{_show(made.spill_bytes)} for each, {_show(made.spill_all_bytes)} in all{seen.spill_words}",
        ),
        ("room for", f"{made.most_guests} such guests, as far as memory goes"),
    ]
    if made.lacks:
        lines.append(("", f"this does not fit: there is too little {' and '.join(made.lacks)}"))
    commands = [] if made.lacks else _commands(made, count, given.reserve_bytes)
    if given.free_bytes is None or made.lacks:
        return Prospect(lines, made, [], [], commands)
    lines.append(("speeds", seen.speed_words))
    percent = protocol.DEFAULT_CLEAN_AHEAD_PERCENT
    freed = [
        _free(seen, plans.full_caches(made, count, clean_percent=percent, packs=packs))
        for packs in (True, False)
    ]
    when = [f"all caches full, {percent} % clean, pages that shrink", "the same, pages that do not shrink"]
    return Prospect(lines, made, freed, when, commands)


def of_the_disks(seen: Seen) -> Prospect:
    """What freeing would take with the disks that there are, as full as they are."""
    used = sum(each.ram_bytes for each in seen.caches)
    disks = f"{len(seen.caches)}, in all {_show(used)} of RAM"
    lines = [("host", seen.host_words), ("disks", disks), ("speeds", seen.speed_words)]
    return Prospect(lines, None, [_free(seen, seen.caches)], ["as they are now"], [])


def _free(seen: Seen, caches: Sequence[plans.Cache]) -> plans.Freed:
    return plans.free(
        caches,
        seen.given.free_bytes or 0,
        size_bytes=seen.host.size_bytes,
        spill_speed=seen.spill_speed,
        pack_speed=seen.pack_speed,
    )


def _limits(made: plans.Plan, count: int) -> list[tuple[str, str]]:
    if made.spare_bytes < 0:
        return [("caches", f"nothing is left for them: {_show(-made.spare_bytes)} is missing")]
    least, most = made.held_bytes
    kept = f"each may use {_show(made.cap_bytes)} (its cap) and keeps {_show(made.floor_bytes)} (its floor)"
    share = "" if count == 1 else f", and has {_show(made.share_bytes)} while all want some"
    held = (
        f"{_show(least)} (noise) to {_show(most)} (pages of real programs, LZ4) of each guest's swap in RAM"
    )
    return [
        ("caches", f"{_show(made.spare_bytes)} for all; {kept}{share}"),
        ("holds", f"{held}, by the ratios of docs/performance.md; the rest lies on disk"),
    ]


def _commands(made: plans.Plan, count: int, reserve: int | None) -> list[str]:
    size, ram, floor = (_exact(each) for each in (made.size_bytes, made.cap_bytes, made.floor_bytes))
    options = f"--size {size} --ram {ram} --floor {floor}"
    found = [] if reserve is None else [f'# in the configuration: host_reserve = "{_exact(reserve)}"']
    if count <= _SHOWN_COMMANDS:
        return [*found, *(f"swaptide disk add g{number} {options}" for number in range(1, count + 1))]
    return [*found, f"for n in $(seq {count}); do swaptide disk add g$n {options}; done"]


def _cache(report: dict[str, object]) -> plans.Cache:
    numbers = {key: value for key, value in report.items() if isinstance(value, int)}
    frozen = bool(report["frozen"])
    return plans.Cache(
        name=str(report["name"]),
        ram_bytes=numbers["ram_bytes"],
        cap_bytes=numbers["cap_bytes"],
        # Of a disk that stands still nothing comes back.
        floor_bytes=max(numbers["ram_bytes"] if frozen else 0, numbers["floor_bytes"]),
        droppable_bytes=numbers["droppable_bytes"],
        packable_bytes=numbers["packable_bytes"],
        weight=numbers["weight"],
        stuck=not layout.can_spill(numbers),
    )


def _speeds(seen: sight.Sight, given: Given) -> tuple[int, int, str]:
    """Of writing out and of packing, and in words where they are from."""
    reports = [] if given.host_memory_bytes is not None else seen.daemon.disks
    spills = [each["spill_bytes_per_second"] for each in reports if each["spill_written_bytes"]]
    packs = [each["pack_bytes_per_second"] for each in reports if each["packed_total_pages"]]
    if given.disk_speed_bytes is not None or not spills:
        speed = given.disk_speed_bytes or _DISK_SPEED
        spill = int(speed * plans.SPILL_SHARE)
        mark = "" if given.disk_speed_bytes else " (assumed; --disk-speed)"
        words = f"the disk takes {sizes.show(speed)}/s{mark}, of which a squeeze has {plans.SPILL_SHARE:.0%}"
    else:
        spill = max(spills)
        words = f"writing out {sizes.show(spill)}/s, as measured by the disks here"
    if given.cores is None and packs:
        return spill, max(packs), f"{words}; packing {sizes.show(max(packs))}/s, as measured"
    cores = min(_MOST_PACKERS, given.cores or os.cpu_count() or 1)
    guess = rates.Rates(1, cores).pack_slots_per_second * geometry.SEGMENT_BYTES
    return spill, int(guess), f"{words}; packing {_show(int(guess))}/s on {cores} cores (a first guess)"


def _reserve(given: Given, size_bytes: int, usual_bytes: int) -> int:
    reserve = usual_bytes if given.reserve_bytes is None else given.reserve_bytes
    if reserve >= size_bytes:
        raise UsageError(f"reserve {sizes.show(reserve)} is all that the host has ({sizes.show(size_bytes)})")
    return reserve


def _show(size_bytes: int) -> str:
    return sizes.show(max(0, size_bytes))


def _exact(size_bytes: int) -> str:
    """As the command line takes it, without loss."""
    for unit, scale in (("G", GIB), ("M", MIB), ("K", 1 << 10)):
        if size_bytes % scale == 0:
            return f"{size_bytes // scale}{unit}"
    return str(size_bytes)
