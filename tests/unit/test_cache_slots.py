"""Which store a disk slot is taken of."""

import errno
import random
import time

from swaptide.cache.slots import Slots

FIRST, ALL = 5, 12


def take(slots: Slots, count: int) -> list[int]:
    found = [slots.take_now() for _ in range(count)]
    assert None not in found
    return [slot for slot in found if slot is not None]


def store_of(slot: int) -> int:
    return int(slot >= FIRST)


def wait_until_retried(slots: Slots, store: int) -> int:
    """Take slots and give them back until one of that store is tried again."""
    end = time.monotonic() + 60
    while True:
        assert time.monotonic() < end
        (slot,) = take(slots, 1)
        if store_of(slot) == store:
            return slot
        slots.give_now(slot)
        time.sleep(0.005)


def test_a_single_store_has_all() -> None:
    slots = Slots(ALL, ALL)
    assert slots.stores == 1
    assert sorted(take(slots, ALL)) == list(range(ALL)) and slots.take_now() is None
    assert slots.used() == (ALL,)


def test_a_single_store_that_fails_is_tried_all_the_same() -> None:
    slots = Slots(ALL, ALL)
    for _ in range(3):
        slots.give_now(take(slots, 1)[0], errno.EIO)
        assert slots.errors() == (errno.EIO,)
    (slot,) = take(slots, 1)
    slots.worked_now(slot)
    assert slots.errors() == (0,)


def test_the_first_is_taken_while_it_has_slots() -> None:
    slots = Slots(ALL, FIRST)
    taken = take(slots, ALL)
    assert [store_of(slot) for slot in taken] == [0] * FIRST + [1] * (ALL - FIRST)
    assert len(set(taken)) == ALL and slots.take_now() is None
    assert slots.used() == (FIRST, ALL - FIRST)
    slots.give_now(ALL - 1)
    slots.give_now(0)
    assert take(slots, 2) == [0, ALL - 1]


def test_while_the_first_fails_the_second_is_taken_and_the_first_tried_again() -> None:
    slots = Slots(ALL, FIRST)
    (slot,) = take(slots, 1)
    slots.give_now(slot, errno.ENOSPC)
    assert slots.errors() == (errno.ENOSPC, 0)
    (other,) = take(slots, 1)
    assert store_of(other) == 1
    again = wait_until_retried(slots, 0)
    # One that tries at a time: the next ones go to the second meanwhile.
    assert store_of(take(slots, 1)[0]) == 1
    slots.give_now(again, errno.EIO)
    assert store_of(take(slots, 1)[0]) == 1
    slots.worked_now(wait_until_retried(slots, 0))
    assert slots.errors() == (0, 0)
    assert store_of(take(slots, 1)[0]) == 0


def test_nobody_is_to_blame_where_a_connection_was_lost() -> None:
    slots = Slots(ALL, FIRST)
    slots.give_now(take(slots, 1)[0], errno.EAGAIN)
    assert slots.errors() == (0, 0)
    assert store_of(take(slots, 1)[0]) == 0


def test_a_store_without_a_connection_is_left_alone_until_it_has_one() -> None:
    slots = Slots(ALL, FIRST)
    slots.give_now(take(slots, 1)[0], errno.ENOTCONN)
    slots.set_down(0, True)
    assert all(store_of(slot) for slot in take(slots, ALL - FIRST))
    assert slots.take_now() is None  # the second is full, and the first is not tried in vain
    slots.set_down(0, False)
    assert slots.errors() == (0, 0)
    assert store_of(take(slots, 1)[0]) == 0


def test_where_both_fail_writes_are_tried_as_with_a_single_one() -> None:
    slots = Slots(ALL, FIRST)
    slots.give_now(take(slots, 1)[0], errno.EIO)
    slots.give_now(take(slots, 1)[0], errno.EIO)
    assert slots.errors() == (errno.EIO, errno.EIO)
    assert len(set(take(slots, ALL))) == ALL


def test_the_slots_of_a_dead_process_are_adopted() -> None:
    slots = Slots(ALL, FIRST)
    slots.adopt({1, 3, FIRST + 2})
    assert slots.used() == (2, 1)
    assert sorted(take(slots, ALL - 3)) == sorted(set(range(ALL)) - {1, 3, FIRST + 2})
    assert slots.take_now() is None


def test_no_slot_is_ever_had_twice() -> None:
    """At random, against a set."""
    for seed in range(20):
        chance, slots, had = random.Random(seed), Slots(ALL, FIRST), set[int]()
        for _ in range(2000):
            what = chance.random()
            if what < 0.5:
                slot = slots.take_now()
                if slot is not None:
                    assert slot not in had and 0 <= slot < ALL
                    had.add(slot)
            elif what < 0.9 and had:
                slot = chance.choice(sorted(had))
                had.remove(slot)
                error = chance.choice((0, 0, 0, errno.EIO, errno.EAGAIN))
                if not error:
                    slots.worked_now(slot)
                slots.give_now(slot, error)
            else:
                slots.set_down(chance.randrange(2), chance.random() < 0.3)
            assert sum(slots.used()) == len(had)
            assert slots.used()[0] == sum(1 for slot in had if slot < FIRST)
