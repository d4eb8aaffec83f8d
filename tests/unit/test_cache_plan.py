"""What moves when: the pure plan of the movers."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swaptide.cache import geometry, planning

FULL = geometry.CONTENT_BYTES


def snapshot(**changes: int) -> planning.Snapshot:
    """A disk at rest in the middle of its limits."""
    rest = planning.Snapshot(
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
        guest_fill=0,
    )
    return rest._replace(**changes)


NOTHING = planning.Busy()
NO_WISH = planning.Wish()


def planned(wish: planning.Wish = NO_WISH, busy: planning.Busy = NOTHING, /, **changes: int) -> planning.Plan:
    """What is planned for a disk at rest but for some changes, `emptiest` among them."""
    emptiest = changes.pop("emptiest", FULL)
    return planning.plan(snapshot(**changes), busy, wish, emptiest)


def test_a_disk_at_rest_moves_nothing() -> None:
    todo = planned()
    assert todo == planning.Plan()


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
    assert todo.punch and todo.drop == 5 and todo.spill == planning.SPILLERS and todo.populate == 0


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
    todo = planning.plan(now, planning.Busy(spilling), planning.Wish(), emptiest)
    assert 0 <= todo.spill <= min(planning.SPILLERS - spilling, now.dirty)
    assert 0 <= todo.drop <= now.clean
    stuck = now.free + now.writing + now.clean + spilling == 0
    assert todo.populate >= 0
    assert now.populated + todo.populate <= max(now.limit, now.populated) + stuck
    assert stuck or not (todo.populate and (todo.drop or todo.spill))


@given(limit=st.integers(6, 300), dirty=st.integers(1, 300), clean=numbers, emptiest=st.integers(0, FULL))
def test_over_the_limit_something_always_happens(limit: int, dirty: int, clean: int, emptiest: int) -> None:
    now = snapshot(limit=limit, populated=limit + 5, free=0, dirty=dirty, clean=clean)
    todo = planning.plan(now, planning.Busy(), planning.Wish(), emptiest)
    assert todo.spill or todo.drop or todo.punch or todo.clean_ram


# With packing.

LZ4 = planning.Wish(compress=True, demand=160.0, recent=160)
QUIET = planning.Wish(compress=True)
IDLE = planning.Wish(compress=True, clean=25, demand=160.0, recent=160, idle_core=True, idle_disk=True)


def full(wish: planning.Wish = LZ4, busy: planning.Busy = NOTHING, /, **changes: int) -> planning.Plan:
    """What is planned for a disk that is at its limit, with nothing packed yet."""
    at_limit = {"limit": 50, "populated": 50, "free": 4, "dirty": 44, "raw": 44, **changes}
    return planned(wish, busy, **at_limit)


def test_what_shrinks_is_packed_before_anything_is_written_out() -> None:
    todo = full()
    assert todo.pack > 0 and todo.spill == 0
    squeezed = full(limit=20)
    assert squeezed.pack > 0 and squeezed.spill == 0
    without = full(LZ4._replace(compress=False))
    assert without.pack == 0 and without.spill > 0


def test_what_does_not_shrink_is_written_out_beside_the_packing() -> None:
    todo = full(limit=20, raw=40)
    assert todo.pack > 0 and todo.spill == 4
    assert full(limit=20, raw=43).spill == 1


def test_in_a_hurry_there_is_packing_and_writing_out() -> None:
    todo = full(LZ4._replace(hurry=True), limit=20)
    assert todo.pack > 0 and todo.spill == planning.SPILLERS


def test_while_writers_wait_there_is_packing_and_writing_out() -> None:
    todo = full(waiting=4, free=1)
    assert todo.pack == max(1, planning.CORES - 1) and todo.spill > 0


def test_where_packers_have_no_slot_one_segment_is_written_out() -> None:
    assert full(free=2).spill == 1
    assert full(free=2, writing=1).spill == 0
    assert full(free=3).spill == 0


def test_packers_that_are_all_busy_are_not_given_more() -> None:
    todo = full(LZ4, planning.Busy(packing=planning.PACKERS))
    assert todo.pack == 0


def test_the_youngest_are_not_packed() -> None:
    assert full(limit=48, raw=6, free=1).pack == 0
    assert full(limit=48, raw=6, free=1).spill > 0
    assert full(limit=48, raw=7, free=1).pack == 1
    assert full(limit=48).keep_raw == 6


@given(
    populated=st.integers(0, 74),
    free=st.integers(0, 20),
    share=st.integers(0, 100),
    clean=st.integers(0, 40),
    strengthen=st.booleans(),
)
def test_nothing_is_packed_while_ram_is_plentiful(
    populated: int, free: int, share: int, clean: int, strengthen: bool
) -> None:
    dirty = max(0, populated - free)
    raw = dirty * share // 100
    wish = IDLE._replace(strengthen=strengthen)
    changes = {"populated": populated, "free": free, "dirty": dirty, "clean": clean}
    todo = planned(wish, raw=raw, packed=dirty - raw, **changes)
    assert todo.pack == 0 and not todo.strengthen


def test_from_three_quarters_on_an_idle_core_packs_ahead() -> None:
    changes = {"populated": 75, "free": 10, "dirty": 60, "raw": 60}
    assert planned(IDLE, **changes).pack == 1
    assert planned(IDLE, planning.Busy(packing=1), **changes).pack == 0
    busy = planned(IDLE._replace(idle_core=False), **changes)
    assert busy.pack == 0 and busy.ahead  # it looks again soon


def test_only_an_idle_disk_is_written_to_ahead() -> None:
    changes = {"populated": 60, "free": 10, "dirty": 50, "packed": 50}
    assert planned(IDLE, **changes).spill == planning.AHEAD_WRITES
    assert planned(IDLE, planning.Busy(spilling=1), **changes).spill == planning.AHEAD_WRITES - 1
    waits = planned(IDLE._replace(idle_disk=False), **changes)
    assert waits.spill == 0 and waits.ahead
    assert planned(IDLE, clean=25, **changes).spill == 0
    assert planned(IDLE, clean=20, writing=5, **changes).spill == 0
    assert planned(IDLE._replace(clean=0), **changes).spill == 0
    assert planned(IDLE, **{**changes, "populated": 49}).spill == 0


def test_what_could_be_packed_is_packed_before_it_is_written_ahead() -> None:
    todo = planned(IDLE, populated=80, free=10, dirty=70, raw=40, packed=30)
    assert todo.pack == 1 and todo.spill == 0


def test_packing_anew_is_for_idle_cores_and_a_wish() -> None:
    changes = {"populated": 80, "free": 10, "dirty": 45, "packed": 45, "clean": 25}
    assert planned(IDLE._replace(strengthen=True), **changes).strengthen
    assert not planned(IDLE, **changes).strengthen
    assert not planned(IDLE._replace(strengthen=True, idle_core=False), **changes).strengthen
    assert not planned(IDLE._replace(strengthen=True), planning.Busy(packing=1), **changes).strengthen


def test_what_is_kept_raw_is_what_the_guest_wrote_in_the_last_seconds() -> None:
    assert planned(QUIET, limit=50, free=2, raw=40).keep_raw == 0
    assert planned(QUIET._replace(recent=2), limit=50, raw=40).keep_raw == 2
    assert planned(QUIET._replace(recent=200), limit=50, raw=40).keep_raw == 6


def test_free_slots_are_given_back_before_anything_is_written_out() -> None:
    todo = planned(limit=47, populated=50, free=6)
    assert todo.punch and todo.spill == todo.drop == 0 and todo.keep_free == 1
    assert planned(limit=44, populated=50, free=6).spill == 1
    packs = planned(QUIET, limit=47, populated=50, free=6, raw=42)
    assert packs.keep_free == planning.PACK_FREE_SLOTS and packs.pack and packs.spill == 0
    assert planned(limit=47, populated=50, free=6, waiting=1).spill > 0


def test_what_the_guest_overwrites_is_kept_for_its_next_writes() -> None:
    assert planned(free=40).release > 0
    assert planned(planning.Wish(recent=40), free=40).release == 0


def test_nothing_is_packed_anew_while_there_are_slots_to_give_back() -> None:
    wish = planning.Wish(strengthen=True, idle_core=True)
    slots = {"limit": 6, "populated": 7, "free": 2, "dirty": 13, "raw": 0, "packed": 1}
    assert not planned(wish, **slots).strengthen and planned(wish, **slots).punch


def test_a_disk_that_rested_keeps_two_free_slots() -> None:
    assert planned(free=6).release == 0
    assert planned(planning.Wish(resting=True), free=6).release == 4
    assert planned(planning.Wish(resting=True), free=2).release == 0
    assert planned(planning.Wish(resting=True), free=6, waiting=1).release == 0


def test_the_guests_segment_is_closed_where_all_else_is_packed_and_ram_is_scarce() -> None:
    changes = {"populated": 80, "free": 4, "dirty": 70, "packed": 70, "guest_fill": 4096}
    assert planned(QUIET, **changes).seal_guest
    assert not planned(QUIET, **{**changes, "guest_fill": 0}).seal_guest
    assert not planned(QUIET, **{**changes, "raw": 20, "packed": 50}).seal_guest
    assert not planned(QUIET, **{**changes, "populated": 70}).seal_guest
    assert not planned(planning.Wish(), **changes).seal_guest


@pytest.mark.parametrize("limit", range(6, 20))
def test_below_sixteen_slots_packers_hold_none(limit: int) -> None:
    todo = planned(LZ4, limit=limit, populated=limit, free=0, dirty=limit - 2, raw=limit - 2, packers_open=1)
    assert todo.seal_packers == (limit < 16)
    assert limit >= 16 or (todo.pack == 0 and todo.spill > 0)
    assert not planned(LZ4, limit=limit).seal_packers


def test_packers_hold_none_once_packing_is_switched_off() -> None:
    assert planned(planning.Wish(), packers_open=1).seal_packers


@given(
    limit=st.integers(6, 300),
    above=st.integers(1, 300),
    free=st.integers(0, 20),
    shares=st.tuples(st.integers(0, 100), st.integers(0, 100)),
    dirty=st.integers(1, 300),
    wish=st.builds(
        planning.Wish,
        *[st.booleans()] * 3,
        st.integers(0, 80),
        st.floats(0, 1000),
        st.integers(0, 1000),
        *[st.booleans()] * 2,
    ),
    emptiest=st.integers(0, FULL),
    waiting=st.integers(0, 16),
)
def test_over_the_limit_something_always_happens_with_packing_too(
    limit: int,
    above: int,
    free: int,
    shares: tuple[int, int],
    dirty: int,
    wish: planning.Wish,
    emptiest: int,
    waiting: int,
) -> None:
    raw = dirty * shares[0] // 100
    packed = (dirty - raw) * shares[1] // 100
    changes = {"limit": limit, "populated": limit + above, "dirty": dirty, "raw": raw, "packed": packed}
    todo = planned(wish, emptiest=emptiest, free=free, waiting=waiting, **changes)
    assert todo.spill or todo.drop or todo.punch or todo.clean_ram or todo.pack
    assert 0 <= todo.pack <= min(planning.PACKERS, raw)
    assert 0 <= todo.spill <= min(planning.SPILLERS, dirty)
    if (wish.hurry and above >= free) or waiting:
        assert todo.spill or todo.clean_ram
    assert not todo.strengthen


@pytest.mark.parametrize("limit", range(6, 40))
def test_the_wish_for_free_slots_fits_the_limit(limit: int) -> None:
    todo = planned(limit=limit, populated=limit, free=0, dirty=limit - 2)
    assert 1 <= todo.spill <= planning.SPILLERS
