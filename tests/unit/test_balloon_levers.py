"""Guests' balloons: given to who thrashes, taken from who is idle, and never from who does not answer."""

import msgspec
import pytest

from swaptide.balloon import levers, policy, samples
from tests.unit import hosts
from tests.unit.hosts import GIB, MIB, SETTINGS, disk, room

HARD = 2 * levers.HARD_BYTES_PER_SECOND


class Host:
    """One guest on a host, whose balloon follows by `speed` bytes per second."""

    def __init__(self, free: int, *disks: samples.Disk, speed: float = 1e12) -> None:
        self.free = free
        self.disks = disks
        self.speed = speed
        self.guest = samples.Guest("g", 2 * GIB, GIB, 4 * GIB, 1.0, GIB, 0, 0)
        self.asked: list[int] = []
        self.asked_at: list[float] = []
        self._memory = policy.start(SETTINGS)
        self._at = 0.0

    def run(self, seconds: float, swaps_in: float = 0.0, swaps_out: float = 0.0, tick: float = 1.0) -> None:
        """Let time pass."""
        for _ in range(int(seconds / tick)):
            self._at += tick
            guest = self.guest
            if guest.swapped_in_bytes is not None and guest.swapped_out_bytes is not None:
                guest = msgspec.structs.replace(
                    guest,
                    swapped_in_bytes=guest.swapped_in_bytes + int(swaps_in * tick),
                    swapped_out_bytes=guest.swapped_out_bytes + int(swaps_out * tick),
                )
            if self.asked:
                most = self.speed * tick
                step = max(-most, min(most, self.asked[-1] - guest.actual_bytes))
                guest = msgspec.structs.replace(guest, actual_bytes=guest.actual_bytes + int(step))
            self.free -= guest.actual_bytes - self.guest.actual_bytes
            self.guest = guest
            seen = samples.Sample(self._at, (room(self.free),), self.disks, (guest,))
            self._memory, found = policy.decide(SETTINGS, self._memory, seen)
            if "g" in found.balloons:
                self.asked.append(found.balloons["g"])
                self.asked_at.append(self._at)


def floor_disk() -> samples.Disk:
    return disk(ram=32 * MIB, target=32 * MIB, cap=GIB)


def test_a_guest_that_thrashes_gets_its_memory_back_in_steps() -> None:
    host = Host(8 * GIB)
    host.run(60, swaps_in=HARD)
    assert host.guest.actual_bytes == 4 * GIB
    steps = [new - old for old, new in zip([2 * GIB, *host.asked], host.asked, strict=False)]
    assert len(steps) > 2 and all(0 < step <= 3 * GIB // 8 for step in steps)
    waits = [new - old for old, new in zip(host.asked_at, host.asked_at[1:], strict=False)]
    assert min(waits) >= levers.SETTLE_SECONDS, "each step is looked at before the next"


def test_nothing_is_given_that_the_host_does_not_have() -> None:
    host = Host(GIB + 400 * MIB)
    host.run(120, swaps_in=HARD)
    assert host.free >= GIB, "the reserve stays"


def test_a_guest_that_swaps_a_little_is_left_alone() -> None:
    host = Host(8 * GIB)
    host.run(60, swaps_in=levers.HARD_BYTES_PER_SECOND / 2)
    assert not host.asked


def test_idle_memory_is_taken_when_the_floors_are_not_enough() -> None:
    host = Host(512 * MIB, floor_disk())
    host.run(60)
    assert host.free >= GIB
    assert GIB <= host.guest.actual_bytes < 2 * GIB


def test_no_guest_is_taken_below_its_least_nor_of_its_last() -> None:
    host = Host(0, floor_disk())
    host.guest = msgspec.structs.replace(host.guest, available_bytes=2 * GIB)
    host.run(300)
    assert host.guest.actual_bytes >= GIB and min(host.asked) >= GIB
    poor = Host(0, floor_disk())
    poor.guest = msgspec.structs.replace(poor.guest, available_bytes=levers.KEEP_BYTES)
    poor.run(300)
    assert not poor.asked


def test_caches_come_first() -> None:
    host = Host(512 * MIB, disk(ram=GIB, target=GIB, cap=GIB))
    host.run(60)
    assert not host.asked, "the cache is not at its floor"


@pytest.mark.parametrize(
    "silent",
    [
        {"age_seconds": None},
        {"age_seconds": levers.OLD_SECONDS + 1},
        {"age_seconds": float("nan")},
        {"available_bytes": None},
        {"swapped_in_bytes": None},
    ],
)
def test_nothing_is_taken_from_who_does_not_say(silent: dict[str, float | None]) -> None:
    host = Host(512 * MIB, floor_disk())
    host.guest = msgspec.structs.replace(host.guest, **silent)
    host.run(60)
    assert not host.asked


def test_nothing_is_taken_from_who_swaps() -> None:
    for rates in ({"swaps_in": HARD}, {"swaps_out": HARD}):
        host = Host(512 * MIB, floor_disk())
        host.run(60, **rates)
        assert not host.asked


def test_a_balloon_that_does_not_answer_is_left_alone_longer_and_longer() -> None:
    host = Host(8 * GIB, speed=0)
    host.run(600, swaps_in=HARD)
    steps = [asked for asked in host.asked if asked != 2 * GIB]
    withdrawn = [asked for asked in host.asked if asked == 2 * GIB]
    assert 2 <= len(steps) <= 5, "not pushed for ever"
    assert len(steps) - len(withdrawn) in (0, 1), "no old wish is left standing"


def test_a_slow_balloon_is_waited_for() -> None:
    host = Host(8 * GIB, speed=8 * MIB)
    host.run(40, swaps_in=HARD)
    assert len(host.asked) == 1


def test_a_guest_that_boots_again_does_not_thrash() -> None:
    """Its counters begin anew, from anywhere."""
    host = Host(8 * GIB)
    host.guest = msgspec.structs.replace(host.guest, swapped_in_bytes=10**12, swapped_out_bytes=10**12)
    host.run(4)
    host.guest = msgspec.structs.replace(host.guest, swapped_in_bytes=0, swapped_out_bytes=0)
    host.run(30)
    assert not host.asked


def test_limits_that_make_no_sense_move_nothing() -> None:
    host = Host(8 * GIB)
    host.guest = msgspec.structs.replace(host.guest, min_bytes=4 * GIB, max_bytes=GIB)
    host.run(60, swaps_in=HARD)
    assert not host.asked


def test_caches_leave_what_a_guest_was_promised() -> None:
    """While a guest grows, its step is not licensed to a cache as well."""
    host = Host(
        3 * GIB, disk(ram=0, target=32 * MIB, cap=8 * GIB, live=hosts.ages_of((20, 16 * GIB))), speed=0
    )
    host.run(4)
    before = host._memory.budget_bytes or 0
    host.run(3, swaps_in=HARD)
    assert host.asked and (host._memory.budget_bytes or 0) <= before - 200 * MIB
