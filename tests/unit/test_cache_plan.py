"""What moves when: the pure plan of the movers."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swaptide.cache import geometry, movers

FULL = geometry.CONTENT_BYTES


def snapshot(**changes: int) -> movers.Snapshot:
    """A disk at rest in the middle of its limits."""
    rest = movers.Snapshot(
        limit=100,
        populated=50,
        free=6,
        to_punch=0,
        dirty=42,
        writing=0,
        clean=0,
        disk_free=150,
        disk_slots=200,
        waiting=0,
        cleaner_waits=0,
        raw=0,
        packed=0,
        packers_open=0,
    )
    return rest._replace(**changes)


NOTHING_WISHED = movers.Wish()
NOT_BUSY = movers.Busy()


def planned(
    wish: movers.Wish = NOTHING_WISHED,
    busy: movers.Busy = NOT_BUSY,
    emptiest: int = FULL,
    **changes: int,
) -> movers.Plan:
    """What is planned for a disk at rest but for some changes."""
    return movers.plan(snapshot(**changes), busy, wish, emptiest)


def test_a_disk_at_rest_moves_nothing() -> None:
    todo = planned()
    assert todo == movers.Plan(keep_raw=movers.RAW_LEAST)


def test_below_the_limit_free_slots_are_made_not_taken() -> None:
    todo = planned(free=1)
    assert todo.populate > 0 and todo.spill == 0 and todo.drop == 0


def test_at_the_limit_the_coldest_are_spilled_ahead_of_the_writers() -> None:
    todo = planned(limit=50, free=1)
    assert todo.spill > 0 and todo.populate == 0


def test_dead_space_in_ram_is_used_before_the_disk() -> None:
    todo = planned(limit=50, free=1, emptiest=10)
    assert todo.clean_ram and todo.spill == 0
    assert planned(limit=50, free=1, waiting=3, emptiest=10).spill == 0
    assert planned(limit=50, free=0, waiting=3, cleaner_waits=1, emptiest=10).spill == 1


def test_clean_segments_are_dropped_before_any_is_written() -> None:
    todo = planned(limit=50, free=0, clean=20)
    assert todo.drop > 0 and todo.spill == 0


def test_a_squeeze_gives_back_and_spills_with_all_hands() -> None:
    todo = planned(limit=10, clean=5)
    assert todo.punch and todo.drop == 5 and todo.spill == movers.SPILLERS and todo.populate == 0


def test_what_a_trim_freed_is_given_back() -> None:
    todo = planned(free=45, dirty=3)
    assert 0 < todo.release < 45
    assert planned(free=45, dirty=3, waiting=1).release == 0


def test_a_full_disk_is_cleaned() -> None:
    assert planned(disk_free=5).clean_disk


numbers = st.integers(0, 300)


@given(
    limit=st.integers(6, 300),
    populated=numbers,
    free=numbers,
    dirty=numbers,
    writing=st.integers(0, 4),
    clean=numbers,
    waiting=st.integers(0, 16),
    spilling=st.integers(0, 4),
    emptiest=st.integers(0, FULL),
)
def test_a_plan_never_asks_for_more_than_there_is(spilling: int, emptiest: int, **numbers: int) -> None:
    now = snapshot(**numbers)
    todo = movers.plan(now, movers.Busy(spilling), movers.Wish(), emptiest)
    assert 0 <= todo.spill <= min(movers.SPILLERS - spilling, now.dirty)
    assert 0 <= todo.drop <= now.clean
    stuck = now.free + now.writing + now.clean + spilling == 0
    assert todo.populate >= 0
    assert now.populated + todo.populate <= max(now.limit, now.populated) + stuck
    assert stuck or not (todo.populate and (todo.drop or todo.spill))


@given(limit=st.integers(6, 300), dirty=st.integers(1, 300), clean=numbers, emptiest=st.integers(0, FULL))
def test_over_the_limit_something_always_happens(limit: int, dirty: int, clean: int, emptiest: int) -> None:
    now = snapshot(limit=limit, populated=limit + 5, free=0, dirty=dirty, clean=clean)
    todo = movers.plan(now, movers.Busy(), movers.Wish(), emptiest)
    assert todo.spill or todo.drop or todo.punch or todo.clean_ram


@pytest.mark.parametrize("limit", range(6, 40))
def test_the_wish_for_free_slots_fits_the_limit(limit: int) -> None:
    todo = planned(limit=limit, populated=limit, free=0, dirty=limit - 2)
    assert 1 <= todo.spill <= movers.SPILLERS
