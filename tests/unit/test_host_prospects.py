"""`swaptide plan` on hosts made up: where its figures are from, what is assumed, what does not fit."""

import shlex

import pytest

from swaptide.balloon import samples
from swaptide.cache.errors import SetupError, UsageError
from swaptide.host import prospects, sight, sizes
from tests.unit import sights

GIB, MIB = sights.GIB, sights.MIB
BUSY = {
    **sights.DISK,
    "ram_bytes": 500 * MIB,
    "droppable_bytes": 100 * MIB,
    "packable_bytes": 50 * MIB,
    "spill_bytes_per_second": 40 * MIB,
    "pack_bytes_per_second": 10 * MIB,
    "spill_written_bytes": 1,
    "packed_total_pages": 1,
}


def of(made: sight.Sight, **given: int) -> prospects.Prospect:
    seen = prospects.look(made, prospects.Given(**given))
    return prospects.of_the_disks(seen) if seen.is_of_the_disks else prospects.of_guests(seen)


def text(found: prospects.Prospect) -> str:
    return "\n".join(f"{name}: {words}" for name, words in found.lines)


def test_this_host() -> None:
    found = of(sights.Made(cores=2), guests=2, guest_memory_bytes=2 * GIB)
    assert found.is_possible and found.plan is not None and found.freed == []
    assert found.plan.spare_bytes == 19 * GIB - 2 * (2 * GIB + 171 * MIB)
    said = text(found)
    assert "24G, 20G available, 1G to stay free" in said
    assert "2G each (assumed: as its memory; --swap)" in said
    assert "100G free in /var/lib/swaptide" in said
    assert len(found.commands) == 2
    words = shlex.split(found.commands[1])
    assert words[:4] == ["swaptide", "disk", "add", "g2"]
    given = dict(zip(words[4::2], words[5::2], strict=True))
    assert sizes.parse(given["--size"]) == 2 * GIB
    assert sizes.parse(given["--ram"]) == found.plan.cap_bytes
    assert sizes.parse(given["--floor"]) == found.plan.floor_bytes


def test_another_host_is_not_mixed_with_this_one() -> None:
    made = sights.Made(daemon=sights.daemon(BUSY), rooms=())
    found = of(made, host_memory_bytes=64 * GIB, guests=20, guest_memory_bytes=2 * GIB, free_bytes=12 * GIB)
    said = text(found)
    assert "64G, 1G for itself (assumed; --other), 3.2G to stay free" in said
    assert "500M/s (assumed; --disk-speed)" in said and "a first guess" in said
    assert "free in" not in said
    assert found.commands[0].startswith("for n in $(seq 20); do swaptide disk add g$n --size 2G")
    shrinking, noise = found.freed
    assert shrinking.is_possible and noise.is_possible and noise.packed_bytes == 0
    assert shrinking.seconds is not None and noise.seconds is not None
    assert shrinking.seconds < noise.seconds
    given = of(made, host_memory_bytes=64 * GIB, other_bytes=2 * GIB, reserve_bytes=GIB, disk_speed_bytes=GIB)
    assert "2G for itself, 1G to stay free" in text(given)
    assert given.commands[0] == '# in the configuration: host_reserve = "1G"'


def test_what_does_not_fit() -> None:
    found = of(sights.Made(), guests=20, guest_memory_bytes=8 * GIB, free_bytes=GIB)
    assert not found.is_possible and found.commands == [] and found.freed == []
    assert "too little memory and spill space" in text(found)
    assert "room for: 2 such guests" in text(found)
    small = of(sights.Made(), guests=1, guest_memory_bytes=GIB, free_bytes=60 * GIB)
    assert not small.is_possible and all(not freed.is_possible for freed in small.freed)


def test_the_disks_that_there_are() -> None:
    frozen = {**BUSY, "name": "g2", "frozen": True}
    found = of(sights.Made(daemon=sights.daemon(BUSY, frozen)), free_bytes=300 * MIB)
    (freed,) = found.freed
    assert found.plan is None and found.is_possible
    assert freed.possible_bytes == (500 - 32) * MIB
    assert freed.targets["g2"] == 500 * MIB and freed.targets["g1"] <= 200 * MIB
    assert freed.dropped_bytes == 100 * MIB and freed.seconds is not None and freed.seconds >= 200 / 50
    assert "40M/s, as measured" in text(found) and "packing 10M/s, as measured" in text(found)
    assert not of(sights.Made(daemon=sights.daemon(BUSY, frozen)), free_bytes=469 * MIB).is_possible
    # Guests that are to come are asked about where they are named, and disks give way to them.
    coming = of(sights.Made(daemon=sights.daemon(BUSY)), guests=1, free_bytes=GIB)
    assert coming.plan is not None
    assert "20.5G available, 468M of it what 1 disk would give back" in text(coming)


def test_a_cgroup() -> None:
    rooms = (sights.HOST, samples.Room("cgroup:/x", 300 * MIB, 512 * MIB, 64 * MIB))
    found = of(sights.Made(rooms=rooms))
    assert found.plan is not None and found.plan.spare_bytes == (236 - 43) * MIB
    assert "a memory cgroup leaves the disks 236M" in text(found)


def test_mistakes() -> None:
    with pytest.raises(SetupError, match="--host-memory"):
        of(sights.Made(rooms=(samples.Room("host", 0, GIB, 0),)))
    with pytest.raises(UsageError, match="reserve 4G is all"):
        of(sights.Made(), host_memory_bytes=4 * GIB, reserve_bytes=4 * GIB)
