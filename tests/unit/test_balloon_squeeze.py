"""Following a limit on a state file made by hand, whose plugin is the test itself."""

import asyncio
import pathlib
from collections.abc import Callable, Iterator

import pytest

from swaptide.balloon import squeeze
from swaptide.cache import geometry, planning
from swaptide.cache.face import Limits, StateFace
from tests.unit.plugins import Plugin

MIB = 1 << 20


@pytest.fixture
def plugin(tmp_path: pathlib.Path) -> Plugin:
    return Plugin(tmp_path / "g1.state")


@pytest.fixture
def state(plugin: Plugin) -> Iterator[StateFace]:
    with StateFace(plugin.path) as opened:
        squeeze.apply(opened, Limits(64 * MIB, 64 * MIB, 16 * MIB))
        yield opened


def follow(
    state: StateFace,
    target: int,
    act: Callable[[int], None],
    limit_seconds: float = 60,
    deadline: squeeze.Deadline | None = None,
    within: bool = False,
) -> list[squeeze.Step]:
    """The steps of a squeeze by a clock that ticks a second with each look; `act` gets its time."""
    steps: list[squeeze.Step] = []
    now = iter(range(1000))

    def clock() -> float:
        tick = next(now)
        act(tick)
        return float(tick)

    async def body() -> None:
        async for step in squeeze.follow(
            state, target, limit_seconds=limit_seconds, deadline=deadline, within=within, clock=clock
        ):
            steps.append(step)

    asyncio.run(body())
    return steps


def test_holds_once_it_is_seen_and_reached(plugin: Plugin, state: StateFace) -> None:
    plugin.use(48 * MIB)
    plugin.put("target_seen_bytes", 64 * MIB)
    squeeze.apply(state, Limits(32 * MIB, 32 * MIB, 16 * MIB))

    def act(tick: int) -> None:
        if tick == 2:
            plugin.use(8 * MIB)
        if tick == 4:
            plugin.put("target_seen_bytes", 32 * MIB)

    steps = follow(state, 32 * MIB, act)
    assert [step.phase for step in steps] == ["squeezing"] * (len(steps) - 1) + ["holds"]
    assert steps[0].ram_bytes > 48 * MIB > steps[-1].ram_bytes
    assert steps[-1].elapsed_seconds >= 4
    assert state.limits() == Limits(32 * MIB, 32 * MIB, 16 * MIB)


def test_private_memory_counts(plugin: Plugin, state: StateFace) -> None:
    plugin.put("target_seen_bytes", 64 * MIB)
    plugin.put("base_bytes", 40 * MIB)
    plugin.put("private_bytes", 200 * MIB)
    steps = follow(state, 64 * MIB, lambda tick: plugin.put("private_bytes", (200 - 50 * tick) * MIB))
    assert (steps[0].phase, steps[-1].phase) == ("squeezing", "holds")


def test_late_says_how_far(plugin: Plugin, state: StateFace) -> None:
    plugin.use(96 * MIB)
    plugin.put("target_seen_bytes", 64 * MIB)
    last = follow(state, 64 * MIB, lambda tick: None, limit_seconds=5)[-1]
    assert (last.phase, last.elapsed_seconds) == ("late", 5)
    assert last.ram_bytes >= 96 * MIB


def test_another_cap_supersedes(plugin: Plugin, state: StateFace) -> None:
    plugin.use(96 * MIB)
    last = follow(state, 64 * MIB, lambda tick: state.set_limits(cap_bytes=(64 - tick) * MIB))[-1]
    assert last.phase == "superseded"


def test_a_frozen_disk_is_waited_for_only_as_long_as_it_takes_to_see_that(
    plugin: Plugin, state: StateFace
) -> None:
    plugin.use(96 * MIB)
    state.set_frozen(True)
    assert [step.phase for step in follow(state, 64 * MIB, lambda tick: None)] == ["frozen"]
    plugin.use(8 * MIB)
    steps = follow(state, 64 * MIB, lambda tick: plugin.put("target_seen_bytes", 64 * MIB))
    assert steps[-1].phase == "holds"


def test_a_squeeze_that_is_frozen_in_the_middle_ends(plugin: Plugin, state: StateFace) -> None:
    plugin.use(96 * MIB)

    def act(tick: int) -> None:
        if tick == 3:
            state.set_frozen(True)

    steps = follow(state, 64 * MIB, act)
    assert steps[-1].phase == "frozen" and len(steps) > 1


def test_the_policy_may_lower_the_target_further(plugin: Plugin, state: StateFace) -> None:
    plugin.use(96 * MIB)
    plugin.put("target_seen_bytes", 64 * MIB)

    def act(tick: int) -> None:
        state.set_limits(target_bytes=(64 - tick) * MIB)
        if tick == 5:
            plugin.use(48 * MIB)

    steps = follow(state, 64 * MIB, act)
    assert (steps[-1].phase, steps[-1].target_bytes) == ("holds", 64 * MIB)
    assert steps[-1].elapsed_seconds >= 4


def test_limits_never_cross_on_the_way(state: StateFace, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Limits] = []
    write = state.set_limits

    def watch(**values: int) -> None:
        write(**values)
        seen.append(state.limits())

    monkeypatch.setattr(state, "set_limits", watch)
    for wanted in (Limits(20, 20, 10), Limits(80, 80, 60), Limits(15, 15, 12), Limits(200, 150, 12)):
        squeeze.apply(state, wanted)
        assert state.limits() == wanted
    assert all(now.floor_bytes <= now.target_bytes <= now.cap_bytes for now in seen)


def test_a_deadline_counts_from_when_it_was_given(plugin: Plugin, state: StateFace) -> None:
    plugin.use(96 * MIB)
    plugin.put("target_seen_bytes", 64 * MIB)
    last = follow(state, 64 * MIB, lambda tick: None, deadline=squeeze.Deadline(-2.0, 5.0))[-1]
    assert (last.phase, last.elapsed_seconds) == ("late", 5)


@pytest.mark.parametrize(("reached_at", "phase"), [(3, "holds"), (7, "late")])
def test_what_holds_after_its_deadline_is_late(
    plugin: Plugin, state: StateFace, reached_at: int, phase: str
) -> None:
    plugin.put("target_seen_bytes", 64 * MIB)

    def act(tick: int) -> None:
        # The clock jumps past the deadline between two looks.
        plugin.use(8 * MIB if tick >= 1 else 96 * MIB)

    deadline = squeeze.Deadline(-float(reached_at), 5.0)
    assert follow(state, 64 * MIB, act, deadline=deadline)[-1].phase == phase


PAST = squeeze.Deadline(-0.5, 0.001)


def test_what_held_already_holds_by_any_deadline(plugin: Plugin, state: StateFace) -> None:
    plugin.use(8 * MIB)
    plugin.put("target_seen_bytes", 64 * MIB)
    steps = follow(state, 64 * MIB, lambda tick: None, deadline=PAST, within=True)
    assert [step.phase for step in steps] == ["holds"]


def test_what_held_already_has_a_moment_to_see_its_limit(plugin: Plugin, state: StateFace) -> None:
    plugin.use(8 * MIB)
    plugin.put("target_seen_bytes", 128 * MIB)

    def act(tick: int) -> None:
        if tick == 2:
            plugin.put("target_seen_bytes", 64 * MIB)

    deadline = squeeze.Deadline(0.5, 0.001)
    steps = follow(state, 64 * MIB, act, deadline=deadline, within=True)
    assert [step.phase for step in steps] == ["squeezing", "holds"]


def test_what_never_sees_its_limit_is_late(plugin: Plugin, state: StateFace) -> None:
    plugin.use(8 * MIB)
    plugin.put("target_seen_bytes", 128 * MIB)
    assert follow(state, 64 * MIB, lambda tick: None, deadline=PAST, within=True)[-1].phase == "late"


def test_what_held_and_grew_meanwhile_is_late(plugin: Plugin, state: StateFace) -> None:
    plugin.use(8 * MIB)
    plugin.put("target_seen_bytes", 128 * MIB)

    def act(tick: int) -> None:
        plugin.use((96 if tick == 1 else 8) * MIB)
        if tick == 1:
            plugin.put("target_seen_bytes", 64 * MIB)

    assert follow(state, 64 * MIB, act, deadline=PAST, within=True)[-1].phase == "late"


def test_a_deadline_is_there_before_its_target(state: StateFace, monkeypatch: pytest.MonkeyPatch) -> None:
    deadline = squeeze.Deadline(100.0, 2.5)
    seen: list[tuple[int, int]] = []
    put = state._put

    def watch(name: str, value: int) -> None:
        put(name, value)
        seen.append((state.deadline_ns(), state.limits().target_bytes))

    monkeypatch.setattr(state, "_put", watch)
    squeeze.apply(state, Limits(32 * MIB, 32 * MIB, 16 * MIB), deadline)
    assert seen[0] == (102_500_000_000, 64 * MIB) and seen[-1] == (102_500_000_000, 32 * MIB)


def test_a_deadline_is_taken_away_by_whoever_set_it(state: StateFace) -> None:
    limits = Limits(32 * MIB, 32 * MIB, 16 * MIB)
    first, second = squeeze.Deadline(100.0, 2.0), squeeze.Deadline(100.0, 3.0)
    squeeze.apply(state, limits, first)
    squeeze.apply(state, limits, second)
    squeeze.release(state, None)
    squeeze.release(state, first)
    assert state.deadline_ns() == second.ns
    squeeze.release(state, second)
    assert state.deadline_ns() == 0
    squeeze.apply(state, limits, first)
    squeeze.apply(state, limits)
    assert state.deadline_ns() == 0


def speeds(**changed: int) -> dict[str, int]:
    """Half a GiB to pack, at 300 MiB/s beside 700 MiB/s of writing out."""
    return {
        "droppable_bytes": 0,
        "packable_bytes": 512 * MIB,
        "pack_bytes_per_second": 300 * MIB,
        "spill_bytes_per_second": 700 * MIB,
        "degraded": 0,
        "usable_stores": 0,
        **changed,
    }


@pytest.mark.parametrize(
    ("changed", "used", "target", "seconds"),
    [
        ({}, 1256, 256, 1.0),
        ({}, 256, 256, 0.0),
        ({}, 100, 256, 0.0),
        ({"droppable_bytes": 500 * MIB}, 1256, 256, 0.5),
        ({"droppable_bytes": 2000 * MIB}, 1256, 256, 0.0),
        ({"packable_bytes": 300 * MIB}, 1256, 256, 1.0),
        ({"packable_bytes": 160 * MIB}, 1256, 256, 1.2),  # all of it is packed long before
        ({"packable_bytes": 0}, 956, 256, 1.0),
        ({"pack_bytes_per_second": 0}, 956, 256, 1.0),
        ({}, 1431, 31, 2.0),  # nothing is packed below 32 MiB
        ({"degraded": 1}, 856, 256, None),
        ({"degraded": 1}, 556, 256, 1.0),
        ({"degraded": 1, "usable_stores": 1}, 1256, 256, 1.0),  # of two
        ({"spill_bytes_per_second": 0, "pack_bytes_per_second": 0}, 300, 256, None),
        ({"degraded": 1, "droppable_bytes": 600 * MIB}, 856, 256, 0.0),
    ],
)
def test_the_estimate(changed: dict[str, int], used: int, target: int, seconds: float | None) -> None:
    found = squeeze.estimate_seconds(speeds(**changed), used * MIB, target * MIB)
    assert found is None if seconds is None else found == pytest.approx(seconds)


def test_the_movers_do_not_pack_below_the_same_size() -> None:
    assert squeeze.PACK_LEAST_BYTES == planning.PACK_LEAST_SLOTS * geometry.SEGMENT_BYTES
