"""A disk with two spill stores, moved by hand."""

import contextlib
import errno
import os
import pathlib
import random
import time
from collections.abc import Callable, Iterator

import pytest

from swaptide.cache import engine, geometry, layout, pairs, places, spillfile
from swaptide.cache.errors import BusyError, SetupError, UsageError
from swaptide.cache.pair import PairStore
from swaptide.cache.store import FileStore
from tests.unit import hands

SEGMENT = geometry.SEGMENT_BYTES
SLOTS = hands.SHAPE.disk_slots
FIRST = 9


def pair_of(tmp_path: pathlib.Path, slots: int = FIRST) -> places.Pair:
    return places.Pair(
        places.Part(tmp_path / "first", geometry.store_bytes(slots)), places.Part(tmp_path / "second")
    )


@contextlib.contextmanager
def refusing(hand: hands.Hand) -> Iterator[None]:
    """Writes to the first store fail meanwhile, reads do not."""
    assert isinstance(hand.settings.spill, places.Pair)
    assert isinstance(hand.settings.spill.first.place, pathlib.Path)
    fd = hand.made.spill_fd
    real, blind = os.dup(fd), os.open(hand.settings.spill.first.place, os.O_RDONLY | os.O_DIRECT)
    try:
        os.dup2(blind, fd)
        yield
    finally:
        os.dup2(real, fd)
        os.close(real)
        os.close(blind)


def fill(hand: hands.Hand, version: int) -> None:
    """Everything anew, with pages that do not shrink, out to disk as far as that takes it."""
    for start in range(0, hands.PAGES, 400):
        hand.write(range(start, min(start + 400, hands.PAGES)), hands.noise, version)
        hand.ebb()


def test_offsets_belong_to_one_store_each(tmp_path: pathlib.Path) -> None:
    fds = [os.open(tmp_path / name, os.O_RDWR | os.O_CREAT, 0o600) for name in ("one", "other")]
    base, first = 8192, 4 * 4096
    for fd in fds:
        os.truncate(fd, base + 8 * 4096)
    stores = [FileStore(fd, 512, False) for fd in fds]
    store = PairStore(stores[0], stores[1], base, first)
    for page in range(10):
        store.write_bytes(bytes([page + 1]) * 4096, base + page * 4096)
    for page in range(10):
        assert store.read_bytes(4096, base + page * 4096) == bytes([page + 1]) * 4096
        fd, at = (fds[0], page) if page < 4 else (fds[1], page - 4)
        assert os.pread(fd, 4096, base + at * 4096) == bytes([page + 1]) * 4096
    for fd in fds:
        assert os.pread(fd, base, 0) == bytes(base)  # headers are nobody's
        os.close(fd)


def test_the_second_is_used_when_the_first_is_full(disks: hands.Maker, tmp_path: pathlib.Path) -> None:
    hand = disks(spill=pair_of(tmp_path))
    assert hand.made.identity.slots == (FIRST, SLOTS)
    hand.write(range(0, 4 * hands.PIECES), hands.noise)
    hand.ebb()
    first, second = hand.made.segments.disk_use()
    assert first and second == 0
    fill(hand, 1)
    first, second = hand.made.segments.disk_use()
    assert first == FIRST and second
    hand.check()
    hand.again()
    assert hand.made.segments.disk_use() == (first, second)
    hand.check()
    assert hand.made.counter("spill_read_errors") == 0


def test_the_second_is_used_while_the_first_fails(disks: hands.Maker, tmp_path: pathlib.Path) -> None:
    hand = disks(spill=pair_of(tmp_path))
    hand.write(range(2 * hands.PIECES), hands.noise)
    hand.ebb()
    before = hand.made.segments.disk_use()
    with refusing(hand):
        hand.write(range(2 * hands.PIECES, 4 * hands.PIECES), hands.noise)
        assert hand.made.moves.spill(0, 1, False) == -errno.EBADF
        assert hand.made.segments.store_errors() == (errno.EBADF, 0)
        hand.ebb()
        first, second = hand.made.segments.disk_use()
        assert first == before[0] and second
        hand.check()
    deadline = time.monotonic() + 60
    version = 0
    while hand.made.segments.store_errors() != (0, 0):
        assert time.monotonic() < deadline
        version += 1
        hand.write(range(4 * hands.PIECES, 5 * hands.PIECES), hands.noise, version)
        hand.ebb()
    # And it is preferred again.
    before = hand.made.segments.disk_use()
    hand.write(range(5 * hands.PIECES, 6 * hands.PIECES), hands.noise)
    hand.ebb()
    assert hand.made.segments.disk_use()[0] > before[0]
    hand.check()
    hand.again()
    hand.check()


def test_what_a_failing_store_keeps_stays_in_ram_for_the_other(
    disks: hands.Maker, tmp_path: pathlib.Path
) -> None:
    hand = disks(spill=pair_of(tmp_path))
    hand.write(range(3 * hands.PIECES), hands.noise)
    while hand.made.moves.spill(0, 1, False) == 1:
        pass
    clean = [number for number, part in hand.parts().items() if part.state == hands.CLEAN]
    assert len(clean) == 3
    hand.made.segments.set_store_down(0, True)
    assert hand.made.moves.drop(2) == 0
    assert sorted(hand.part(number).state for number in clean) == [hands.DIRTY, hands.DIRTY, hands.CLEAN]
    assert hand.made.moves.drop(10) == 0
    assert {hand.part(number).state for number in clean} == {hands.DIRTY}
    assert hand.made.segments.disk_use() == (0, 0)
    hand.ebb()
    assert hand.made.segments.disk_use() == (0, 3)
    hand.check()
    # Where the other one is no better it is dropped, as with one store.
    hand.made.segments.set_store_down(0, False)
    hand.write(range(3 * hands.PIECES, 4 * hands.PIECES), hands.noise)
    assert hand.made.moves.spill(0, 1, False) == 1
    hand.made.segments.set_store_down(0, True)
    hand.made.segments.set_store_down(1, True)
    assert hand.made.moves.drop(10) == 1
    hand.check()
    hand.again()
    hand.check()


def test_nothing_is_cleaned_on_a_store_that_does_not_answer(
    disks: hands.Maker, tmp_path: pathlib.Path
) -> None:
    hand = disks(spill=pair_of(tmp_path))
    hand.write(range(2 * hands.PIECES), hands.noise)
    hand.ebb()
    hand.write(range(0, hands.PIECES, 2), hands.noise, 1)
    hand.made.segments.set_store_down(0, True)
    assert hand.made.moves.clean(True, geometry.CONTENT_BYTES, 1, False) == 0
    hand.made.segments.set_store_down(0, False)
    hand.room()
    assert hand.made.moves.clean(True, geometry.CONTENT_BYTES, 1, False) == 1
    hand.check()


def test_at_random_with_a_store_that_comes_and_goes(disks: hands.Maker, tmp_path: pathlib.Path) -> None:
    hand = disks(spill=pair_of(tmp_path))
    chance = random.Random(5)
    for turn in range(60):
        start = chance.randrange(hands.PAGES - 600)
        hand.write(range(start, start + 600), hands.mixed, turn)
        with refusing(hand) if chance.random() < 0.3 else contextlib.nullcontext():
            hand.made.segments.set_store_down(0, chance.random() < 0.2)
            hand.made.moves.spill(0, chance.randrange(1, 5), False)
            hand.made.moves.drop(chance.randrange(4))
            hand.room()
            if not turn % 3:
                hand.pack()
            hand.made.moves.clean(True, geometry.CONTENT_BYTES, 1, chance.random() < 0.5)
        if turn % 20 == 19:
            hand.made.segments.set_store_down(0, False)
            hand.again()
            hand.check(turn)
    assert hand.made.counter("spill_read_errors") == 0


def prepare(spill: places.Spill | None, state: pathlib.Path) -> None:
    engine.Engine.prepare(engine.Settings(hands.SIZE, 1 << 30, state=state, spill=spill)).stop()


def test_a_successor_refuses_other_stores(disks: hands.Maker, tmp_path: pathlib.Path) -> None:
    pair = pair_of(tmp_path)
    hand = disks(spill=pair)
    hand.write(range(hands.PIECES * 2), hands.noise)
    hand.ebb()
    state = hand.settings.state
    assert state is not None
    hand.made.stop()
    swapped = places.Pair(places.Part(tmp_path / "second"), places.Part(tmp_path / "first"))
    for spill, why in (
        (swapped, "second: the second store of this disk, named as the first one"),
        (tmp_path / "first", "has two stores; name both"),
        (None, "has two stores; name both"),
        (places.Pair(pair.first, places.Part(tmp_path / "gone")), "gone: No such file.*put it back"),
        (places.Pair(pair.first, places.Part(tmp_path / "first")), "in use by another disk"),
    ):
        with pytest.raises((SetupError, UsageError, BusyError), match=why):
            prepare(spill, state)
    hand.made = hand._open()
    hand.check()


def test_a_disk_with_one_store_gets_no_second(disks: hands.Maker, tmp_path: pathlib.Path) -> None:
    hand = disks()
    state = hand.settings.state
    assert state is not None
    hand.made.stop()
    with pytest.raises(UsageError, match="has one store; name that one"):
        prepare(places.Pair(places.Part(tmp_path / "spill"), places.Part(tmp_path / "more")), state)
    assert not (tmp_path / "more").exists()
    hand.made = hand._open()


def test_too_small_together_is_refused_with_the_numbers(tmp_path: pathlib.Path) -> None:
    sizes = [geometry.store_bytes(each) for each in (FIRST, SLOTS - FIRST - 1)]
    pair = places.Pair(places.Part(tmp_path / "a", sizes[0]), places.Part(tmp_path / "b", sizes[1]))
    needed = geometry.store_bytes(SLOTS) + geometry.SPILL_HEADER_BYTES
    why = f"{sizes[0]} and {sizes[1]} bytes, together {sum(sizes)}, {needed} are needed"
    with pytest.raises(SetupError, match=why):
        pairs.divide(pair, hands.SIZE)
    enough = places.Pair(pair.first, places.Part(tmp_path / "b", sizes[1] + SEGMENT))
    assert pairs.divide(enough, hands.SIZE) == (FIRST, SLOTS - FIRST)
    tiny = places.Pair(places.Part(tmp_path / "a", 4096), places.Part(tmp_path / "b"))
    with pytest.raises(SetupError, match=f"a: 4096 bytes, at least {geometry.store_bytes(1)} are needed"):
        pairs.divide(tiny, hands.SIZE)


def test_neither_is_claimed_where_the_second_cannot_be(tmp_path: pathlib.Path) -> None:
    (tmp_path / "second").write_bytes(b"somebody's" * 1000)
    state = tmp_path / "state"
    with pytest.raises(UsageError, match="second: holds something that is not swaptide's"):
        prepare(pair_of(tmp_path), state)
    assert not (tmp_path / "first").exists() and not state.exists()
    assert (tmp_path / "second").read_bytes() == b"somebody's" * 1000


@pytest.mark.parametrize("link", [os.link, os.symlink])
def test_the_first_under_another_name_is_not_the_second(
    tmp_path: pathlib.Path, link: Callable[[pathlib.Path, pathlib.Path], None]
) -> None:
    (tmp_path / "first").touch()
    link(tmp_path / "first", tmp_path / "second")
    with pytest.raises(UsageError, match="second: the same store as the first one"):
        prepare(pair_of(tmp_path), tmp_path / "state")


def test_each_header_says_which_it_is(disks: hands.Maker, tmp_path: pathlib.Path) -> None:
    hand = disks(spill=pair_of(tmp_path))
    for part, name in ((1, "first"), (2, "second")):
        header = spillfile.read_header(tmp_path / name)
        assert header is not None and (header.part, header.disk_id) == (part, hand.made.identity.disk_id)
    assert (tmp_path / "first").stat().st_size == geometry.store_bytes(FIRST)
    assert hand.made.counter("owner_pid") == 0


def test_numbers_go_round_with_two_stores() -> None:
    one = geometry.of_size(hands.SIZE)
    for slots in ((one.disk_slots, one.disk_slots), (1, one.disk_slots), (FIRST, one.disk_slots - FIRST)):
        two = geometry.of_size(hands.SIZE, slots)
        assert (two.first_slots, two.disk_slots) == (slots[0], sum(slots))
        # Every segment on disk and in RAM has a number, and the tables are those of one store.
        assert two.segments == two.disk_slots + two.ram_slots == one.segments
        assert one.disk_slots <= two.ram_slots <= one.ram_slots
        assert (two.tables_end, two.pool_offset) == (one.tables_end, one.pool_offset)
        assert layout.slots_of(layout.flags_of(True, slots)) == slots
    for bad in ((0, 99), (5, one.disk_slots + 1), (5, one.disk_slots - 6)):
        with pytest.raises(ValueError, match="do not make"):
            geometry.of_size(hands.SIZE, bad)
    assert layout.slots_of(layout.flags_of(True, None)) is None
    most = geometry.of_size(geometry.MAX_SIZE_BYTES).disk_slots
    assert layout.slots_of(layout.flags_of(False, (most, most))) == (most, most)
    assert 2 * most < 1 << 28  # what a place has bits for
