"""A frozen disk, move by move: what changes it waits and holds nothing, moves end early, reads go on."""

import contextlib
import errno
import os
import pathlib
import random
import threading
import time
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swaptide.cache import engine, geometry, layout, planning
from tests.unit.hands import PAGE, PIECES, Hand, Maker, noise, text

# However busy the machine is; what is waited for comes within milliseconds.
WAIT_SECONDS = 60.0
SIZE = 64 << 20
FLOOR = geometry.of_size(SIZE).working_minimum_bytes
# What reads change, and what the process's own memory does.
READING = {"reads", "read_bytes", "hits", "packed_hits", "publish_answer", "private_bytes", "ram_slots_limit"}
STILL = tuple(name for name in layout.COUNTERS if name not in READING)


@given(word=st.integers(0, layout.FROZEN_MOST - 2), frozen=st.booleans())
def test_each_freeze_and_thaw_has_a_word_of_its_own(word: int, frozen: bool) -> None:
    wanted = layout.after(word, frozen)
    assert layout.is_frozen(wanted) == frozen
    assert wanted == word + (layout.is_frozen(word) != frozen)
    assert layout.after(wanted, frozen) == wanted


@given(word=st.integers(layout.FROZEN_MOST, (1 << 64) - 1), frozen=st.booleans())
def test_garbage_freezes_nothing(word: int, frozen: bool) -> None:
    assert not layout.is_frozen(word)
    assert layout.is_frozen(layout.after(word, frozen)) == frozen


def wait_for(condition: Callable[[], object]) -> None:
    """Wait until it holds."""
    end = time.monotonic() + WAIT_SECONDS
    while not condition():
        assert time.monotonic() < end, "it does not come to that"
        time.sleep(0.002)


class Call(threading.Thread):
    """Something that may wait, in a thread of its own; `error` is how it ended, None for well."""

    def __init__(self, body: Callable[[], object]) -> None:
        super().__init__(daemon=True)
        self._body = body
        self.result: object = None
        self.error: OSError | None = None
        self.start()

    def run(self) -> None:
        try:
            self.result = self._body()
        except OSError as error:
            self.error = error

    def end(self) -> object:
        """Wait until it is over; its result."""
        self.join(WAIT_SECONDS)
        assert not self.is_alive()
        return self.result


def tables(hand: Hand) -> bytes:
    """Everything that says what lies where."""
    shape = hand.shape
    return hand._table(shape.segment_table_offset, shape.tables_end - shape.segment_table_offset)


def test_writes_wait_for_the_thaw_and_reads_do_not(hand: Hand) -> None:
    hand.write(range(20), text)
    hand.room()
    segments = hand.made.segments
    segments.turnstile.set_frozen(True)
    assert segments.turnstile.is_still()
    before = tables(hand)
    whole = Call(lambda: hand.made.log.write_bytes(noise(1) * 3, 4 * PAGE))
    wait_for(lambda: hand.made.counter("frozen_waits") == 1)
    part = Call(lambda: hand.made.log.write_bytes(b"part", 9 * PAGE + 77))
    same = Call(lambda: hand.made.log.write_bytes(bytes(PAGE), 11 * PAGE))
    wait_for(lambda: hand.made.counter("frozen_waits") == 3)
    assert segments.turnstile.is_still()  # whoever waits holds nothing
    hand.check()
    assert whole.is_alive() and part.is_alive() and same.is_alive()
    assert tables(hand) == before
    segments.turnstile.set_frozen(False)
    for call in (whole, part, same):
        call.end()
        assert call.error is None
    assert hand.made.log.read_bytes(3 * PAGE, 4 * PAGE) == noise(1) * 3
    assert hand.made.log.read_bytes(PAGE, 9 * PAGE) == text(9)[:77] + b"part" + text(9)[81:]
    assert hand.made.log.read_bytes(PAGE, 11 * PAGE) == bytes(PAGE)
    assert hand.made.counter("stalls") == 0


def test_no_move_begins(hand: Hand) -> None:
    hand.write(range(4 * PIECES), lambda key: (text if key % 3 else noise)(key))
    hand.write(range(0, 2 * PIECES, 2), noise, 1)
    moves = hand.made.moves
    hand.pack(keep=2)
    hand.made.segments.seal_packers()
    hand.write(range(2 * PIECES, 4 * PIECES, 4), noise, 2)
    hand.room(10)
    assert moves.spill(0, 2, False) == 1  # clean, to be dropped
    hand.made.segments.turnstile.set_frozen(True)
    before = tables(hand)
    assert moves.pack(0, 0, False) == 0
    assert moves.strengthen(0) == 0
    assert moves.spill(0, 4, True) == 0
    assert moves.drop(4) == 0
    assert moves.clean(False, planning.CLEAN_DISK_BYTES, 4, False) == 0
    assert moves.populate(4) == 0
    assert moves.punch(4) == 0
    assert tables(hand) == before
    hand.check()
    hand.made.segments.turnstile.set_frozen(False)
    assert moves.drop(4) == 1
    assert moves.populate(4) == 4
    assert moves.punch(4) > 0
    assert moves.strengthen(0) == 1
    assert moves.clean(False, planning.CLEAN_DISK_BYTES, 4, False) > 0
    assert moves.pack(0, 0, False) > 0
    assert moves.spill(0, 4, True) > 0
    hand.check(1)


@contextlib.contextmanager
def without_a_slot(hand: Hand) -> Iterator[None]:
    """Nothing free, and nothing comes free."""
    free = planning.Snapshot(*hand.made.segments.snapshot()).free
    hand.made.segments.ram.set_budget(0, 0)
    hand.made.segments.ram.set_keep_free(0)
    assert hand.made.moves.punch(free) == free
    yield
    hand.made.segments.ram.set_budget(1 << 40, 0)
    hand.made.segments.ram.set_keep_free(1)


def test_who_waits_for_ram_waits_for_the_thaw_as_well_and_is_no_obstacle(hand: Hand) -> None:
    hand.write(range(PIECES), noise)
    with without_a_slot(hand):
        write = Call(lambda: hand.made.log.write_bytes(text(5), 0))
        wait_for(lambda: planning.Snapshot(*hand.made.segments.snapshot()).waiting)
        hand.made.segments.turnstile.set_frozen(True)
        wait_for(hand.made.segments.turnstile.is_still)
        wait_for(lambda: hand.made.counter("frozen_waits") == 1)
    hand.made.moves.populate(4)
    assert write.is_alive()
    hand.check()
    hand.made.segments.turnstile.set_frozen(False)
    hand.made.moves.populate(4)
    write.end()
    assert hand.made.log.read_bytes(PAGE, 0) == text(5)


def test_the_cleaner_that_waits_for_a_slot_gives_up(hand: Hand) -> None:
    hand.write(range(3 * PIECES), noise)
    hand.write(range(0, 2 * PIECES, 2), noise, 1)
    with without_a_slot(hand):
        clean = Call(lambda: hand.made.moves.clean(False, planning.CLEAN_DISK_BYTES, 8, False))
        wait_for(lambda: planning.Snapshot(*hand.made.segments.snapshot()).cleaner_waits)
        hand.made.segments.turnstile.set_frozen(True)
        assert clean.end() == 0
        hand.check()
        hand.made.segments.turnstile.set_frozen(False)
    hand.room(10)
    assert hand.made.moves.clean(False, planning.CLEAN_DISK_BYTES, 8, False) > 0
    hand.check()


def test_the_end_lets_waiting_writers_go(disks: Maker) -> None:
    hand = disks()
    hand.write(range(3), noise)
    hand.made.segments.turnstile.set_frozen(True)
    write = Call(lambda: hand.made.log.write_bytes(text(1), 0))
    wait_for(lambda: hand.made.counter("frozen_waits") == 1)
    hand.made.segments.turnstile.stop()
    write.end()
    assert write.error is not None and write.error.errno == errno.ESHUTDOWN
    hand.again()
    hand.check()


# With the movers.


@pytest.fixture()
def disk(tmp_path: pathlib.Path) -> Iterator[engine.Engine]:
    """A disk that is full of what shrinks and what does not, most of it in RAM."""
    made = engine.Engine.prepare(
        engine.Settings(size_bytes=SIZE, ram_bytes=128 << 20, spill=tmp_path / "spill", compress="lz4+zstd")
    )
    made.start()
    try:
        chooser = random.Random(1)
        for page in range(SIZE // PAGE):
            made.log.write_bytes(contents(page), page * PAGE)
        for _ in range(4000):
            page = chooser.randrange(SIZE // PAGE)
            made.log.write_bytes(contents(page), page * PAGE)
        yield made
    finally:
        made.stop()


def contents(page: int) -> bytes:
    return (text if page % 3 else noise)(page)


def freeze(disk: engine.Engine) -> None:
    """Freeze it and wait until it stands still."""
    disk.set_frozen(True)
    wait_for(lambda: disk.counter("frozen_seen") == word(disk))


def word(disk: engine.Engine) -> int:
    return disk._state.mapping.control_word(layout.CONTROL.index("frozen"))


def standing(disk: engine.Engine) -> tuple[object, ...]:
    """Everything that may not change: counters, tables, memory."""
    shape, fd = disk._state.shape, disk._state.fd
    size = shape.tables_end - shape.segment_table_offset
    counters = [disk.counter(name) for name in STILL]
    return counters, os.pread(fd, size, shape.segment_table_offset), os.fstat(fd).st_blocks


def test_nothing_moves_however_low_the_target_is(disk: engine.Engine) -> None:
    freeze(disk)
    disk.set_target(FLOOR)
    disk.segments.ram.set_budget(FLOOR, 0)
    wait_for(lambda: disk.counter("target_seen_bytes") == FLOOR)
    # The limit that follows from the target is published with the next counters.
    wait_for(lambda: disk.counter("ram_slots_limit") < disk.counter("ram_slots_used") - 10)
    before = standing(disk)
    begun = time.monotonic()
    for page in range(0, SIZE // PAGE, 3):
        assert disk.log.read_bytes(PAGE, page * PAGE) == contents(page)
    time.sleep(max(0.0, begun + 1.5 - time.monotonic()))
    assert named(before, standing(disk)) == []
    disk.set_frozen(False)
    wait_for(lambda: disk.counter("ram_slots_used") <= disk.counter("ram_slots_limit"))
    assert disk.counter("spill_written_bytes") > 0
    for page in range(SIZE // PAGE):
        assert disk.log.read_bytes(PAGE, page * PAGE) == contents(page)


def named(before: tuple[object, ...], after: tuple[object, ...]) -> list[str]:
    """What differs, by name."""
    pairs = zip(STILL, before[0], after[0], strict=True)  # type: ignore[call-overload]
    found = [f"{name}: {old} then {new}" for name, old, new in pairs if old != new]
    return found + [what for what, at in (("tables", 1), ("blocks", 2)) if before[at] != after[at]]


def test_a_squeeze_that_is_under_way_comes_to_rest(disk: engine.Engine) -> None:
    """Frozen in the middle, again and again: still each time, and right in the end."""
    disk.set_target(FLOOR)
    rounds = 0
    while disk.counter("ram_slots_used") > disk.counter("ram_slots_limit") or not rounds:
        freeze(disk)
        before = standing(disk)
        time.sleep(0.05)
        assert named(before, standing(disk)) == []
        disk.set_frozen(False)
        time.sleep(0.01)
        rounds += 1
    for page in range(SIZE // PAGE):
        assert disk.log.read_bytes(PAGE, page * PAGE) == contents(page)


def test_a_thaw_and_a_freeze_in_one_breath_are_not_taken_for_none(disk: engine.Engine) -> None:
    freeze(disk)
    first = word(disk)
    write = Call(lambda: disk.log.write_bytes(noise(1), 0))
    wait_for(lambda: disk.counter("frozen_waits") == 1)
    disk.set_frozen(False)
    disk.set_frozen(True)
    assert word(disk) == first + 2
    wait_for(lambda: disk.counter("frozen_seen") == first + 2)
    before = disk.log.read_bytes(PAGE, 0)
    assert before == (contents(0) if write.is_alive() else noise(1))
    disk.set_frozen(False)
    write.end()
    assert disk.log.read_bytes(PAGE, 0) == noise(1)
