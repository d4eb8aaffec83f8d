"""What holds for every trace: properties of the control law, on random samples and on random hosts."""

import random
from collections.abc import Callable

import hypothesis
import msgspec
import pytest
from hypothesis import strategies as st

from swaptide.balloon import outlook, policy, samples, simulator
from tests.unit import hosts
from tests.unit.hosts import GIB, MIB, SETTINGS, Busy

# Anything that a sensor could say, and more.
NUMBERS = st.one_of(st.integers(), st.integers(0, 8 * GIB), st.sampled_from([0, 1, 2**63, 10**400]))
NAMES = st.sampled_from(["a", "b", "c", ""])
COUNTS = st.one_of(st.just(()), st.lists(NUMBERS, max_size=70).map(tuple))
MAYBE = st.one_of(st.none(), NUMBERS)
ROOMS = st.builds(samples.Room, NAMES, NUMBERS, NUMBERS, NUMBERS)
DISKS = st.builds(
    samples.Disk, NAMES, NUMBERS, NUMBERS, NUMBERS, NUMBERS, NUMBERS, COUNTS, COUNTS, NUMBERS, st.booleans()
)
GUESTS = st.builds(
    samples.Guest, NAMES, NUMBERS, NUMBERS, NUMBERS, st.one_of(st.none(), st.floats()), MAYBE, MAYBE, MAYBE
)
SAMPLES = st.builds(
    samples.Sample,
    st.floats(),
    st.lists(ROOMS, max_size=3).map(tuple),
    st.lists(DISKS, max_size=3).map(tuple),
    st.lists(GUESTS, max_size=2).map(tuple),
    st.booleans(),
    NUMBERS,
    MAYBE,
    st.one_of(st.none(), st.floats()),
)


@hypothesis.given(st.lists(SAMPLES, max_size=5))
@hosts.examples(60)
def test_no_sample_makes_it_raise_or_leave_the_bounds(trace: list[samples.Sample]) -> None:
    memory = policy.start(SETTINGS)
    for seen in trace:
        memory, found = policy.decide(SETTINGS, memory, seen)
        disks = {disk.name: disk for disk in seen.disks}
        for name, target in found.targets.items():
            cap = outlook.bounded(disks[name].cap_bytes)
            assert min(cap, outlook.bounded(disks[name].floor_bytes)) <= target <= cap
        guests = {guest.name: guest for guest in seen.guests}
        for name, size in found.balloons.items():
            assert size >= outlook.bounded(guests[name].min_bytes)
        assert found.hurry_seconds is None or found.hurry_seconds > 0


# Hosts that could be: up to four disks, one to two rooms, memory that others take and give back.
SIZES = st.integers(0, 4 * GIB)
REAL_DISKS = st.lists(
    st.builds(
        lambda cap, floor, weight, reads, writes, live, ram, bad: (
            max(cap, 64 * MIB),
            floor,
            weight,
            reads,
            writes,
            live,
            ram,
            bad,
        ),
        SIZES,
        st.integers(16 * MIB, 64 * MIB),
        st.integers(0, 1000),
        st.sampled_from([0, 10, 1000, 20_000]),
        st.sampled_from([0, 16 * MIB, 512 * MIB]),
        SIZES,
        SIZES,
        st.sampled_from([False, False, False, True]),
    ),
    max_size=4,
)
LEVELS = st.lists(
    st.tuples(st.integers(1, 24), st.integers(0, 6 * GIB), st.booleans(), st.integers(0, 2 * GIB)),
    min_size=1,
    max_size=6,
)


class Recorded:
    """A random trace: levels of memory that others leave, each for some ticks, with triggers and
    reservations.
    """

    def __init__(self, disks: list[tuple[int, ...]], levels: list[tuple[int, int, bool, int]], seed: int):
        self.chance = random.Random(seed)
        self.disks = [
            Busy(f"g{number}", reads, live, writes, weight, cap, min(ram, cap))
            for number, (cap, _, weight, reads, writes, live, ram, _) in enumerate(disks)
        ]
        self.floors = [min(floor, cap) for cap, floor, *_ in disks]
        self.bad = [bool(row[-1]) for row in disks]
        self.levels = levels

    def samples(self) -> list[samples.Sample]:
        found: list[samples.Sample] = []
        at = 0.0
        for ticks, free, pressed, wanted in self.levels:
            for _ in range(ticks):
                tick = self.chance.choice((0.1, 0.25, 0.25, 1.0))
                at += tick
                disks = tuple(
                    msgspec.structs.replace(each.at(at, tick, self.chance), floor_bytes=floor, stuck=bad)
                    for each, floor, bad in zip(self.disks, self.floors, self.bad, strict=True)
                )
                rooms = (hosts.room(free), hosts.room(free // 2 + GIB, 8 * GIB, 256 * MIB, "cgroup"))
                found.append(
                    samples.Sample(
                        at,
                        rooms,
                        disks,
                        (),
                        pressed and self.chance.random() < 0.2,
                        wanted // 3 if wanted % 3 == 0 else 0,
                        wanted if wanted % 2 else None,
                    )
                )
        return found


TRACES = st.builds(Recorded, REAL_DISKS, LEVELS, st.integers(0, 1 << 16))
Watch = Callable[[policy.Memory, samples.Sample, policy.Memory, samples.Decision], None]


def closed(trace: Recorded, watch: Watch, speed: float = 256 * MIB) -> None:
    """Run a trace against the simulator's plant, and look at every decision."""
    decide = policy.decide

    def seen(
        settings: policy.Settings, memory: policy.Memory, sample: samples.Sample
    ) -> tuple[policy.Memory, samples.Decision]:
        after, found = decide(settings, memory, sample)
        watch(memory, sample, after, found)
        return after, found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(policy, "decide", seen)
        for _ in simulator.replay(trace.samples(), SETTINGS, speed):
            pass


@hypothesis.given(TRACES)
@hosts.examples(40)
def test_bounds_and_licences(trace: Recorded) -> None:
    """floor <= target <= cap, and what targets let disks grow by is spare, at every moment."""

    def watch(
        before: policy.Memory, seen: samples.Sample, after: policy.Memory, found: samples.Decision
    ) -> None:
        targets = hosts.after(seen, found)
        for each in seen.disks:
            assert each.floor_bytes <= targets[each.name] <= each.cap_bytes
        assert hosts.licences(seen, found) <= max(hosts.spare(seen), hosts.debt(seen))

    closed(trace, watch)


@hypothesis.given(TRACES)
@hosts.examples(40)
def test_what_is_missing_is_asked_for_at_once(trace: Recorded) -> None:
    """Whatever is short, disks that can fall are told to, by all of it, or to their floors."""

    def watch(
        before: policy.Memory, seen: samples.Sample, after: policy.Memory, found: samples.Decision
    ) -> None:
        short = -min(
            room.free_bytes
            - max(room.reserve_bytes, (seen.wanted_bytes or 0) if not index else 0)
            - seen.held_bytes
            for index, room in enumerate(seen.rooms)
        )
        targets = hosts.after(seen, found)
        able = [each for each in seen.disks if each.name in after.movable]
        given = sum(max(0, each.ram_bytes - targets[each.name]) for each in able)
        most = sum(max(0, each.ram_bytes - each.floor_bytes) for each in able)
        assert given >= min(short, most)

    closed(trace, watch)


@hypothesis.given(TRACES)
@hosts.examples(40)
def test_the_same_again(trace: Recorded) -> None:
    def watch(
        before: policy.Memory, seen: samples.Sample, after: policy.Memory, found: samples.Decision
    ) -> None:
        again = decide(SETTINGS, before, seen)
        assert again == (after, found)

    decide = policy.decide
    closed(trace, watch)


@hypothesis.given(
    TRACES, st.integers(1, GIB), st.sampled_from(["free", "reserve", "held", "pressed", "wanted"])
)
@hosts.examples(40)
def test_less_memory_is_never_more_for_the_disks(trace: Recorded, less: int, how: str) -> None:
    """All targets together never rise where less is left, more is asked, or a trigger fires."""
    decide = policy.decide

    def poorer(seen: samples.Sample) -> samples.Sample:
        replace = msgspec.structs.replace
        if how == "pressed":
            return replace(seen, pressed=True)
        if how == "held":
            return replace(seen, held_bytes=seen.held_bytes + less)
        if how == "wanted":
            return replace(seen, wanted_bytes=max(seen.wanted_bytes or 0, less))
        rooms = [
            replace(room, free_bytes=max(0, room.free_bytes - less))
            if how == "free"
            else replace(room, reserve_bytes=room.reserve_bytes + less)
            for room in seen.rooms
        ]
        return replace(seen, rooms=tuple(rooms))

    def watch(
        before: policy.Memory, seen: samples.Sample, after: policy.Memory, found: samples.Decision
    ) -> None:
        worse = poorer(seen)
        # A step that moves RAM from one disk to another comes down on one side first.
        before = msgspec.structs.replace(before, moved_at=seen.at_seconds)
        rich = hosts.after(seen, decide(SETTINGS, before, seen)[1])
        poor = hosts.after(worse, decide(SETTINGS, before, worse)[1])
        assert sum(poor.values()) <= sum(rich.values()) + 4 * len(poor)

    closed(trace, watch)


STEADY = st.tuples(
    st.integers(3 * GIB // 2, 4 * GIB),  # what all caches and their reserve have
    st.lists(st.tuples(st.sampled_from([0, 20, 500, 5000]), st.integers(1, 400)), min_size=1, max_size=4),
    st.integers(0, 1 << 16),
)


@hypothesis.given(STEADY)
@hypothesis.example((3 * GIB // 2, [(20, 1), (20, 1)], 0))
@hosts.examples(12)
def test_a_steady_host_comes_to_rest(steady: tuple[int, list[tuple[int, int]], int]) -> None:
    """Noise in free memory and in the curves: few turns on the way, none in the last minute."""
    free, rates, seed = steady
    disks = [Busy(f"g{number}", reads, weight=weight) for number, (reads, weight) in enumerate(rates)]
    noise = SETTINGS.band_least_bytes // 2
    found = hosts.replay(
        hosts.trace(disks, lambda at: free, 300, noise=noise, seed=seed, size=2 * GIB, reserve=GIB)
    )
    assert hosts.turns(found) <= 4 * len(disks)
    assert hosts.turns([moment for moment in found if moment.at_seconds > 240]) == 0
    last = found[-1]
    used = sum(each.ram_bytes for each in last.disks.values())
    wants = sum(min(each.cap, int(each.live * 8 / 7)) for each in disks)
    assert used >= min(wants, free - GIB) * 0.9 - 64 * MIB, "what there is, is used"


@pytest.mark.parametrize(("hot", "cold"), [(5000, 0), (5000, 100), (500, 10)])
@pytest.mark.parametrize("first", [True, False])
def test_the_hot_disk_ends_with_most(hot: int, cold: int, first: bool) -> None:
    """Whoever had the RAM before: both full at the start, and 2 GiB for caches that would fill 4."""
    names = ("a", "b") if first else ("b", "a")
    warm = Busy(names[0], hot, ram=GIB // 8)
    idle = Busy(names[1], cold, writes=MIB, ram=15 * GIB // 8)
    found = hosts.replay(hosts.trace([warm, idle], lambda at: 3 * GIB, 180))
    ram = {name: each.ram_bytes for name, each in found[-1].disks.items()}
    assert ram[warm.name] > 1.5 * GIB > 3 * ram[idle.name]


def test_the_heat_goes_over_and_the_ram_follows() -> None:
    first, second = Busy("a", 4000), Busy("b", 40)

    def swap() -> list[simulator.Moment]:
        chance = random.Random(1)
        trace = []
        for step in range(1200):
            at = step / 2
            first.reads, second.reads = (4000, 40) if at < 300 else (40, 4000)
            ram = (each.at(at, 0.5, chance) for each in (first, second))
            trace.append(samples.Sample(at, (hosts.room(3 * GIB),), tuple(ram)))
        return hosts.replay(iter(trace))

    found = swap()
    assert found[590].disks["a"].ram_bytes > 1.5 * GIB
    assert found[-1].disks["b"].ram_bytes > 1.5 * GIB
    assert hosts.turns(found) <= 12


def test_equal_disks_share_by_weight() -> None:
    """Without reads to tell them apart, from whatever they had."""
    one = Busy("one", 0, weight=100, ram=GIB)
    two = Busy("two", 0, weight=200, ram=128 * MIB)
    last = hosts.replay(hosts.trace([one, two], lambda at: 5 * GIB // 2, 180))[-1]
    assert last.disks["two"].ram_bytes == pytest.approx(2 * last.disks["one"].ram_bytes, rel=0.15)


def test_an_idle_licence_keeps_nobody_small() -> None:
    """A disk that writes nothing and has nothing leaves the RAM to the one that does."""
    idle, busy = Busy("idle", 0, live=0, writes=0), Busy("busy", 0)
    last = hosts.replay(hosts.trace([idle, busy], lambda at: 5 * GIB // 2, 120))[-1]
    assert last.disks["busy"].ram_bytes > 1.2 * GIB


def test_an_eater_at_500_mb_per_second_is_met() -> None:
    """It never gets into half of the reserve, and the caches are back when it is gone."""
    disks = [Busy(name, 1000, cap=GIB, live=GIB) for name in ("a", "b")]

    def free(at: float) -> float:
        return 3 * GIB - (min(5 * GIB // 4, (at - 60) * 500e6) if 60 <= at < 90 else 0)

    found = hosts.replay(hosts.trace(disks, free, 180, tick=0.25, size=4 * GIB, reserve=256 * MIB))
    assert min(moment.free_bytes for moment in found) > 128 * MIB
    eaten = next(moment for moment in found if moment.at_seconds >= 80)
    assert sum(each.ram_bytes for each in eaten.disks.values()) < 1.6 * GIB
    assert sum(each.ram_bytes for each in found[-1].disks.values()) > 1.9 * GIB


def test_many_disks_are_decided_quickly() -> None:
    """Far from any deadline: 64 disks, everything new; a guard against something that goes wild."""
    import time

    chance = random.Random(1)
    disks = [Busy(f"g{number:02}", 1000, live=GIB, weight=number) for number in range(64)]
    memory = policy.start(SETTINGS)
    begun = time.process_time()
    for step in range(20):
        found = tuple(each.at(float(step), 1.0, chance) for each in disks)
        memory, _ = policy.decide(
            SETTINGS, memory, samples.Sample(float(step), (hosts.room(8 * GIB),), found)
        )
    assert time.process_time() - begun < 10
