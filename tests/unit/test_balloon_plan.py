"""What is planned fits, and what is freed adds up, on random hosts; and what the law says on some by hand."""

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as some

from swaptide.balloon import limits, plan, squeeze
from swaptide.cache import geometry
from swaptide.cache.errors import UsageError

MIB, GIB = 1 << 20, 1 << 30
HOST = plan.Host(64 * GIB, 63 * GIB, 3 * GIB, 500 * GIB)
SIX = plan.Guests(6, 8 * GIB, 8 * GIB)

hosts = some.builds(
    plan.Host,
    size_bytes=some.integers(GIB, 1 << 42),
    free_bytes=some.integers(0, 1 << 42),
    reserve_bytes=some.integers(0, 8 * GIB),
    spill_bytes=some.none() | some.integers(0, 1 << 44),
    group_bytes=some.none() | some.integers(-GIB, 1 << 40),
)
guests = some.builds(
    plan.Guests,
    count=some.integers(1, 200),
    memory_bytes=some.integers(MIB, 1 << 38),
    swap_bytes=some.integers(1, 1 << 26).map(lambda pages: pages * 4096),
)


@given(hosts, guests)
def test_what_is_planned_fits(host: plan.Host, wanted: plan.Guests) -> None:
    made = plan.make(host, wanted)
    # What the command would say to these limits.
    limits.check(made.size_bytes, made.cap_bytes, made.floor_bytes)
    assert made.floor_bytes % MIB == made.cap_bytes % MIB == 0
    assert made.spill_all_bytes == wanted.count * geometry.of_size(wanted.swap_bytes).spill_bytes
    assert ("memory" in made.lacks) == (wanted.count > made.most_guests)
    assert ("spill space" in made.lacks) == (
        host.spill_bytes is not None and host.spill_bytes < made.spill_all_bytes
    )
    least, most = made.held_bytes
    assert 0 <= least <= most <= made.size_bytes
    if "memory" not in made.lacks:
        assert made.floor_bytes <= made.share_bytes <= made.cap_bytes
        taken = wanted.count * (made.share_bytes + wanted.memory_bytes + plan.QEMU_BYTES + plan.PROCESS_BYTES)
        assert taken <= host.free_bytes - host.reserve_bytes
        processes = wanted.count * (made.share_bytes + plan.PROCESS_BYTES)
        assert host.group_bytes is None or processes <= host.group_bytes


def test_a_host_by_hand() -> None:
    made = plan.make(HOST, SIX)
    assert made.spare_bytes == 60 * GIB - 6 * (8 * GIB + (128 + 43) * MIB)
    assert made.share_bytes == pytest.approx(made.spare_bytes / 6, abs=4096)
    assert made.floor_bytes == 33 * MIB and made.lacks == () and made.most_guests == 7
    # As much as a cap can use: the pages, their reverse map, the tables and what works.
    assert 8 * GIB < made.cap_bytes < 8.1 * GIB
    assert plan.make(HOST, dataclasses.replace(SIX, count=7)).lacks == ()
    assert plan.make(HOST, dataclasses.replace(SIX, count=8)).lacks == ("memory",)
    assert plan.make(dataclasses.replace(HOST, spill_bytes=9 * GIB), SIX).lacks == ("spill space",)
    group = plan.make(dataclasses.replace(HOST, group_bytes=GIB), SIX)
    assert group.spare_bytes == group.cap_bytes == GIB - 6 * 43 * MIB


def test_a_swap_that_cannot_be() -> None:
    with pytest.raises(UsageError):
        plan.make(HOST, dataclasses.replace(SIX, swap_bytes=32 << 40))


caches = some.lists(
    some.builds(
        lambda floor, above, clean, packs, weight, stuck: (
            floor,
            floor + above,
            int(clean * (floor + above)),
            int(packs * (1 - clean) * (floor + above)),
            weight,
            stuck,
        ),
        some.integers(17 * MIB, 100 * MIB),
        some.integers(0, 1 << 36),
        some.floats(0, 1),
        some.floats(0, 0.9),
        some.integers(1, 10000),
        some.booleans(),
    ),
    min_size=1,
    max_size=8,
).map(
    lambda rows: [
        plan.Cache(f"g{at}", ram, ram, floor, clean, packs, weight, stuck)
        for at, (floor, ram, clean, packs, weight, stuck) in enumerate(rows)
    ]
)


@given(caches, some.integers(1, 1 << 40), some.integers(1, 1 << 34), some.integers(0, 1 << 34))
def test_what_is_freed_adds_up(found: list[plan.Cache], wanted: int, disk: int, pack: int) -> None:
    freed = plan.free(found, wanted, size_bytes=1 << 40, spill_speed=disk, pack_speed=pack)
    given_back = sum(each.ram_bytes - freed.targets[each.name] for each in found)
    parts = (freed.dropped_bytes, freed.packed_bytes, freed.spilled_bytes)
    assert min(parts) >= 0 and sum(parts) == given_back
    assert all(each.floor_bytes <= freed.targets[each.name] <= each.ram_bytes for each in found)
    assert given_back >= min(wanted, freed.possible_bytes)
    assert freed.is_possible == (wanted <= freed.possible_bytes)
    assert freed.seconds is not None and freed.seconds >= 0
    if freed.spilled_bytes + freed.packed_bytes == 0:
        assert freed.seconds == 0
    quicker = plan.free(found, wanted, size_bytes=1 << 40, spill_speed=2 * disk, pack_speed=pack)
    assert quicker.seconds is not None and quicker.seconds <= freed.seconds * (1 + 1e-9)


def test_full_caches_by_hand() -> None:
    made = plan.make(HOST, SIX)
    noise = plan.full_caches(made, 6, clean_percent=25, packs=False)
    assert [each.packable_bytes for each in noise] == [0] * 6
    freed = plan.free(noise, 8 * GIB, size_bytes=64 * GIB, spill_speed=GIB, pack_speed=GIB)
    clean = 6 * (made.share_bytes // 4)
    assert freed.dropped_bytes == clean and freed.packed_bytes == 0
    assert freed.spilled_bytes == pytest.approx(8 * GIB - clean, abs=4096)
    assert freed.seconds == pytest.approx((8 * GIB - clean) / GIB, rel=1e-6)
    # Side by side it takes half, where pages shrink.
    real = plan.full_caches(made, 6, clean_percent=25, packs=True)
    both = plan.free(real, 8 * GIB, size_bytes=64 * GIB, spill_speed=GIB, pack_speed=GIB)
    assert freed.seconds is not None and both.seconds == pytest.approx(freed.seconds / 2, rel=1e-6)
    assert both.packed_bytes == pytest.approx(both.spilled_bytes, abs=4096)
    # More than there is above the floors cannot be had.
    most = 6 * (made.share_bytes - made.floor_bytes)
    assert plan.free(noise, most, size_bytes=64 * GIB, spill_speed=GIB, pack_speed=0).is_possible
    over = plan.free(noise, most + 1, size_bytes=64 * GIB, spill_speed=GIB, pack_speed=0)
    assert not over.is_possible and over.possible_bytes == most
    dead = plan.free(noise, 8 * GIB, size_bytes=64 * GIB, spill_speed=0, pack_speed=0)
    assert dead.seconds is None and not dead.is_possible


def test_the_estimate_is_that_of_a_deadline() -> None:
    counters = {
        "droppable_bytes": 100 * MIB,
        "packable_bytes": 300 * MIB,
        "degraded": 0,
        "spill_bytes_per_second": 50 * MIB,
        "pack_bytes_per_second": 200 * MIB,
    }
    one = plan.Cache("g1", GIB, GIB, 64 * MIB, 100 * MIB, 300 * MIB)
    freed = plan.free([one], 800 * MIB, size_bytes=8 * GIB, spill_speed=50 * MIB, pack_speed=200 * MIB)
    assert freed.seconds == squeeze.estimate_seconds(counters, GIB, freed.targets["g1"])
    # Packing has nothing left to do after a while: the rest is written alone.
    assert freed.packed_bytes == 300 * MIB and freed.seconds == pytest.approx(400 / 50)
