"""The control law, one decision or a few at a time, by hand."""

import msgspec
import pytest

from swaptide.balloon import curves, policy, samples, targets
from tests.unit import hosts
from tests.unit.hosts import GIB, MIB, SETTINGS, ages_of, disk, room, sample


def decide(*seen: samples.Sample) -> samples.Decision:
    """The decision after the last one of these."""
    return decisions(*seen)[-1]


def decisions(*seen: samples.Sample) -> list[samples.Decision]:
    memory, found = policy.start(SETTINGS), []
    for each in seen:
        memory, decision = policy.decide(SETTINGS, memory, each)
        found.append(decision)
    return found


def test_an_idle_host_throttles_nobody() -> None:
    found = decide(sample(0, 8 * GIB, disk(ram=0, target=32 * MIB)))
    assert (found.targets, found.reason, found.hurry_seconds) == ({"g1": 2 * GIB}, "grow", None)


def test_steady_says_nothing() -> None:
    found = decide(sample(0, 8 * GIB, disk(ram=GIB, target=2 * GIB)))
    assert (found.targets, found.balloons, found.reason) == ({}, {}, "steady")


def test_no_disks_no_targets() -> None:
    assert decide(sample(0, 8 * GIB)) == samples.Decision({}, {})


def test_what_is_missing_is_given_back_at_once() -> None:
    seen = sample(0, GIB - 300 * MIB, disk("a"), disk("b"))
    found = decide(seen)
    assert sum(found.targets.values()) == pytest.approx(2 * GIB - 300 * MIB, abs=2)
    assert found.reason == "shrink" and found.hurry_seconds == policy.HURRY_SECONDS


def test_the_tightest_room_rules() -> None:
    wide = room(8 * GIB)
    tight = room(0, size=GIB, reserve=100 * MIB, name="cgroup")
    found = decide(samples.Sample(0, (wide, tight), (disk(),)))
    assert found.targets == {"g1": GIB - 100 * MIB}


def test_floors_that_are_more_than_the_host() -> None:
    seen = sample(0, 0, disk("a", ram=GIB, floor=GIB), disk("b", ram=2 * GIB, floor=GIB))
    found = decide(seen)
    assert hosts.after(seen, found) == {"a": GIB, "b": GIB}
    assert found.reason == "floors"


def test_nothing_known_about_the_host_is_the_floors() -> None:
    found = decide(samples.Sample(0, (), (disk(),)))
    assert found.targets == {"g1": 32 * MIB} and found.reason == "floors"


def test_a_fall_is_met_before_it_arrives() -> None:
    """500 MB/s: what will be missing in a second is given back now, though nothing is missing yet."""
    falling = [sample(at / 4, 3 * GIB - int(at / 4 * 500e6), disk(target=2 * GIB)) for at in range(17)]
    found = decisions(*falling)
    assert falling[-1].rooms[0].free_bytes > GIB, "still above the reserve"
    assert found[-1].targets["g1"] < GIB and found[-1].reason == "shrink"
    still = decisions(*(msgspec.structs.replace(falling[-1], at_seconds=at / 4) for at in range(17)))
    assert all(each.targets.get("g1", GIB) >= GIB for each in still), "the level alone is no reason"


def test_what_disks_take_themselves_is_no_fall() -> None:
    growing = [
        sample(at / 4, 4 * GIB - at * 100 * MIB, disk(ram=at * 100 * MIB, target=2 * GIB)) for at in range(20)
    ]
    assert all(not each.targets for each in decisions(*growing))


def test_a_disk_that_restarts_is_no_fall() -> None:
    """It is not in the sample while it starts, and its memory stays where it is."""
    both = (disk("a", target=2 * GIB), disk("b", target=2 * GIB))
    seen = [sample(at / 4, 5 * GIB, *(both if at % 4 else both[:1])) for at in range(12)]
    assert all(not each.targets for each in decisions(*seen))


def test_a_disk_that_restarts_finds_its_ram_and_takes_nobody_elses() -> None:
    """Nothing is spare, so each has what it has; that one comes back with all it had changes nothing."""
    both = (disk("a"), disk("b"))
    seen = [sample(at / 4, GIB + 8 * MIB, *(both if at not in (8, 9, 10) else both[:1])) for at in range(40)]
    assert all(abs(target - GIB) <= 8 * MIB for each in decisions(*seen) for target in each.targets.values())


def test_a_new_disk_gets_its_floor_from_the_others() -> None:
    seen = sample(0, GIB, disk("old"), disk("new", ram=0, target=32 * MIB))
    assert hosts.after(seen, decide(seen)) == {"old": GIB - 32 * MIB, "new": 32 * MIB}


def test_floors_that_are_still_to_be_filled_are_covered_as_well() -> None:
    """While one disk comes down the budget has room, but what is spare now is all that may be taken now."""
    low, flat = 32 * MIB, curves.FLAT
    new = targets.Part("new", 64 * MIB, GIB, 0, 64 * MIB, 64 * MIB, 100.0, flat)
    late = targets.Part("late", low, GIB, GIB, 512 * MIB, 512 * MIB, 100.0, flat)
    eager = targets.Part("eager", low, GIB, 100 * MIB, GIB, GIB, 100.0, flat)
    found = targets.plan(
        SETTINGS,
        (new, late, eager),
        (64 * MIB, 512 * MIB, GIB),
        budget=1224 * MIB,
        spare=100 * MIB,
        may_grow=True,
        may_move=False,
    )
    assert found.targets == {"new": 64 * MIB, "late": 512 * MIB, "eager": (100 + 36) * MIB}


def test_pressure_is_one_step_more() -> None:
    calm = sample(0, GIB, disk())
    pressed = msgspec.structs.replace(calm, pressed=True)
    found = decide(pressed)
    assert found.reason == "pressure"
    assert found.targets["g1"] <= hosts.after(calm, decide(calm))["g1"] - GIB // 17


def test_pressure_with_plenty_free_is_not_ours() -> None:
    """A container at its own limit presses the host as well."""
    seen = msgspec.structs.replace(sample(0, 8 * GIB, disk(target=2 * GIB)), pressed=True)
    assert not decide(seen).targets


def test_a_reservation_leaves_what_it_wants_and_no_reserve_on_top() -> None:
    seen = msgspec.structs.replace(
        sample(0, GIB, disk(ram=2 * GIB)), wanted_bytes=2 * GIB, wanted_seconds=10.0, held_bytes=256 * MIB
    )
    found = decide(seen)
    assert found.targets == {"g1": 2 * GIB - (GIB + 256 * MIB)}
    assert found.reason == "reserve"
    assert found.hurry_seconds == pytest.approx(8.0)
    unknown = msgspec.structs.replace(seen, wanted_seconds=None)
    assert decide(unknown).hurry_seconds == policy.HURRY_SECONDS


def test_a_reservation_that_is_there_already_takes_nothing() -> None:
    seen = msgspec.structs.replace(sample(0, 4 * GIB, disk()), wanted_bytes=2 * GIB)
    assert decide(seen).reason != "reserve"
    assert hosts.after(seen, decide(seen))["g1"] >= GIB


def test_what_is_held_is_not_grown_into() -> None:
    seen = msgspec.structs.replace(sample(0, 3 * GIB, disk(ram=0, target=32 * MIB)), held_bytes=2 * GIB)
    assert hosts.licences(seen, decide(seen)) == hosts.debt(seen)


def test_a_stuck_disk_is_not_counted_on() -> None:
    seen = sample(0, GIB - 400 * MIB, disk("bad", stuck=True), disk("good"))
    assert hosts.after(seen, decide(seen)) == {"bad": GIB, "good": GIB - 400 * MIB}


def test_a_stuck_disk_does_not_grow_but_keeps_what_it_may() -> None:
    calm = sample(0, 8 * GIB, disk("bad", target=3 * GIB // 2, stuck=True))
    assert not decide(calm).targets
    short = sample(0, GIB, disk("bad", target=3 * GIB // 2, stuck=True))
    assert decide(short).targets == {"bad": GIB}


def test_a_disk_that_does_not_come_down_is_not_counted_on() -> None:
    """Others give what it owes, from two seconds on."""
    memory = policy.start(SETTINGS)
    targets = {"stuck": GIB, "good": GIB}
    ram = dict(targets)
    free = GIB - 400 * MIB
    for step in range(20):
        seen = sample(
            step / 4, free, *(disk(name, ram=ram[name], target=targets[name]) for name in ("good", "stuck"))
        )
        memory, decision = policy.decide(SETTINGS, memory, seen)
        targets = hosts.after(seen, decision)
        free += max(0, ram["good"] - targets["good"])
        ram["good"] = min(ram["good"], targets["good"])
    assert ram == {"stuck": GIB, "good": pytest.approx(GIB - 400 * MIB, abs=4)}


def test_growth_waits_for_quiet_and_is_slow() -> None:
    memory = policy.start(SETTINGS)
    memory, first = policy.decide(SETTINGS, memory, sample(0, GIB - 500 * MIB, disk()))
    now = first.targets["g1"]
    grown = []
    for step in range(1, 60):
        # Others gave a GiB back at once; the disk is where it was told to be.
        seen = sample(step / 4, GIB + 700 * MIB, disk(ram=524 * MIB, target=now))
        memory, found = policy.decide(SETTINGS, memory, seen)
        later = hosts.after(seen, found)["g1"]
        if later != now:
            grown.append((step / 4, later - now))
            now = later
    assert grown and grown[0][0] >= SETTINGS.quiet_seconds
    least = 16 * GIB * SETTINGS.grow_share / 4
    assert all(0 < size <= 3 * least for _, size in grown)
    assert now <= 524 * MIB + 700 * MIB


def test_a_disk_that_came_takes_only_what_is_spare() -> None:
    old = disk("old", ram=2 * GIB)
    new = disk("new", ram=0, target=32 * MIB)
    seen = [sample(0, GIB + 100 * MIB, old), sample(0.25, GIB + 100 * MIB, old, new)]
    assert hosts.licences(seen[1], decide(*seen)) <= 100 * MIB


def test_clocks_that_go_back_and_nonsense() -> None:
    seen = [sample(at, GIB, disk()) for at in (100.0, 50.0, float("nan"), float("-inf"), 51.0, 1e300)]
    for each, found in zip(seen, decisions(*seen), strict=True):
        assert 32 * MIB <= hosts.after(each, found)["g1"] <= 2 * GIB


def test_a_cleared_disk_is_a_new_one() -> None:
    """Its counters begin anew; nothing is made of the fall."""
    seen = [
        sample(0, 4 * GIB, disk(reads=ages_of((20, 10**6)), target=2 * GIB)),
        sample(1, 5 * GIB, disk(reads=ages_of(), ram=32 * MIB, target=2 * GIB)),
        sample(2, 5 * GIB, disk(reads=ages_of((3, 50)), ram=64 * MIB, target=2 * GIB)),
    ]
    assert all(not each.targets for each in decisions(*seen))


def test_weights_of_nothing_are_safe() -> None:
    seen = sample(0, GIB + 512 * MIB, disk("a", ram=0, weight=0), disk("b", ram=0, weight=0))
    assert hosts.licences(seen, decide(seen)) <= 512 * MIB


def test_memory_is_not_changed() -> None:
    memory = policy.start(SETTINGS)
    memory, _ = policy.decide(SETTINGS, memory, sample(0, GIB, disk()))
    before = msgspec.json.encode(memory)
    policy.decide(SETTINGS, memory, sample(1, 0, disk()))
    assert msgspec.json.encode(memory) == before


@pytest.mark.parametrize(
    "given", [{"nope": 1.0}, {"quiet_seconds": -1.0}, {"band_share": 1.5}, {"ahead_seconds": float("nan")}]
)
def test_settings_that_are_none_are_refused(given: dict[str, float]) -> None:
    from swaptide.balloon import settings
    from swaptide.cache.errors import UsageError

    with pytest.raises(UsageError, match=next(iter(given))):
        settings.of(given)
