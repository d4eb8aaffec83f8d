"""Pages out of one log and into another: in every tier, as they lie there, and whatever changes meanwhile."""

import contextlib
import itertools
import os
import pathlib
import random
import struct
import threading
from collections.abc import Callable, Iterator

import pytest

from swaptide.cache import geometry, parcels
from tests.unit import hands

PAGE = hands.PAGE
ROOM = 64 << 10
HEAD = struct.Struct("<IHBB")
ABSENT, SAME, PIECE, STRONG = range(4)
WHOLE = 1


@pytest.fixture
def make_hand(tmp_path: pathlib.Path) -> Iterator[Callable[..., hands.Hand]]:
    """Makes disks, whose states are on tmpfs, side by side."""
    with contextlib.ExitStack() as stack:
        made = itertools.count()

        def make(encrypt: bool = True) -> hands.Hand:
            number = next(made)
            state = pathlib.Path(f"/dev/shm/swaptide-test-parcels-{os.getpid()}-{number}")
            stack.callback(state.unlink, missing_ok=True)
            hand = hands.Hand(state, tmp_path / f"spill-{number}", encrypt=encrypt)
            stack.callback(hand.close)
            return hand

        yield make


def outgoing(hand: hands.Hand) -> parcels.Outgoing:
    return parcels.Outgoing(hand.made.log, hand.made.segments)


def incoming(hand: hands.Hand) -> parcels.Incoming:
    return parcels.Incoming(hand.made.log, hand.made.segments)


def rounds(pages: parcels.Outgoing, room: int = ROOM) -> Iterator[bytes]:
    """What is to be sent, until nothing is left."""
    buffer = bytearray(room)
    while pages.pending():
        while (got := pages.fill(buffer))[0]:
            yield bytes(buffer[: got[0]])


def split(data: bytes) -> Iterator[tuple[int, int, int]]:
    """Page and kind of each parcel, and how many bytes lie there for it, before it was packed for the way."""
    at = 0
    while at < len(data):
        page, length, kind, flags = HEAD.unpack_from(data, at)
        assert flags == 0 or (kind == PIECE and length < PAGE)
        yield page, kind, PAGE if flags else length
        at += HEAD.size + length


def move(source: hands.Hand, target: hands.Hand, room: int = ROOM) -> list[tuple[int, int, int]]:
    """Send everything; returns what was sent."""
    pages, taken = outgoing(source), incoming(target)
    sent: list[tuple[int, int, int]] = []
    assert pages.begin() == pages.stored()
    for data in rounds(pages, room):
        target.room(16)
        assert taken.take(data) == len(list(split(data)))
        sent += split(data)
    pages.end()
    assert taken.stored() == pages.stored()
    target.model = dict(source.model)
    return sent


def fill_every_tier(hand: hands.Hand) -> None:
    """Whole and packed pages of all kinds, in RAM and on disk, holes and dead space."""
    for at, strong in ((0, False), (1200, True)):
        hand.write(range(at, at + 1200), hands.mixed)
        hand.pack(strong)
        hand.ebb()
    hand.write(range(2400, 3600), hands.mixed)
    hand.pack()
    hand.strengthen()
    hand.write(range(3600, 4500), hands.mixed)
    hand.write(random.Random(4).sample(range(2400), 600), hands.mixed, version=1)


def test_every_tier_arrives(make_hand: Callable[..., hands.Hand]) -> None:
    source, target = make_hand(), make_hand()
    fill_every_tier(source)
    homes = {page: source.home(page) for page in source.model}
    states = {source.part(home.segment).state for home in homes.values() if home.kind >= PIECE}
    assert {hands.DIRTY, hands.DISK} <= states
    sent = move(source, target)
    assert sorted(page for page, _, _ in sent) == sorted(source.model)
    # As they lie there: nothing is unpacked on the way.
    assert {page: (kind, length) for page, kind, length in sent if kind != SAME} == {
        page: (home.kind, home.length) for page, home in homes.items() if home.kind != SAME
    }
    assert {kind for _, kind, _ in sent} == {SAME, PIECE, STRONG}
    target.check()
    target.again()
    target.check()
    source.check()


def test_packed_pages_stay_packed(make_hand: Callable[..., hands.Hand]) -> None:
    source, target = make_hand(), make_hand()
    source.write(range(1000), hands.text)
    assert source.pack(strong=True)
    sent = move(source, target)
    assert sum(length for _, _, length in sent) < 850 * PAGE
    packed = [page for page in source.model if target.home(page).length < PAGE]
    assert len(packed) >= 400
    assert all(target.home(page)[:2] == source.home(page)[:2] for page in packed)
    target.pack()
    target.ebb()
    target.check()


def test_whole_pages_are_packed_for_the_way(make_hand: Callable[..., hands.Hand]) -> None:
    source, target = make_hand(), make_hand()
    source.write(range(1000), hands.text)
    source.write(range(1000, 1100), hands.noise)
    pages, taken, used = outgoing(source), incoming(target), 0
    pages.begin()
    for data in rounds(pages):
        target.room(16)
        taken.take(data)
        used += len(data)
    text = [page for page in source.model if source.home(page).kind == PIECE and page < 1000]
    assert len(text) >= 400
    assert used < (100 + len(text) * 0.8) * PAGE
    assert {target.home(page).length for page in text} == {PAGE}
    target.model = source.model
    target.check()


def test_without_free_slots_they_come_in_whole(make_hand: Callable[..., hands.Hand]) -> None:
    source, target = make_hand(), make_hand()
    source.write(range(100), hands.text)
    source.pack()
    pages, taken = outgoing(source), incoming(target)
    pages.begin()
    target.made.moves.populate(2)  # one for a guest, none for packers
    for data in rounds(pages):
        taken.take(data)
    assert {target.home(page).length for page in source.model if target.home(page).kind >= PIECE} == {PAGE}
    target.model = source.model
    target.check()


def test_a_key_is_not_needed_on_the_other_side(make_hand: Callable[..., hands.Hand]) -> None:
    source, target = make_hand(encrypt=True), make_hand(encrypt=False)
    fill_every_tier(source)
    move(source, target)
    target.ebb()
    target.check()


def test_what_changes_meanwhile_is_sent_again(make_hand: Callable[..., hands.Hand]) -> None:
    source, target = make_hand(), make_hand()
    source.write(range(2000), hands.mixed)
    source.ebb()
    pages, taken, buffer = outgoing(source), incoming(target), bytearray(ROOM)
    pages.begin()
    draw = random.Random(9)
    for turn in range(40):
        got, _ = pages.fill(buffer)
        target.room(16)
        taken.take(memoryview(buffer)[:got])
        source.write(draw.sample(range(2500), 20), hands.mixed, version=turn)
        source.put(draw.randrange(2500 * PAGE), b"a part of a page" * 9)
        gone = draw.sample(sorted(source.model), 5)
        for page in gone:  # as a trim
            discard(source, page)
    for data in rounds(pages):
        target.room(16)
        taken.take(data)
    pages.end()
    assert taken.stored() == pages.stored()
    target.model = source.model
    target.check()


def discard(hand: hands.Hand, page: int) -> None:
    """A trim: one page that is absent, taken in by the log that it is a trim of."""
    assert incoming(hand).take(HEAD.pack(page, 0, ABSENT, 0)) == 1
    hand.model.pop(page)


def test_moves_are_no_changes(hand: hands.Hand) -> None:
    hand.write(range(1500), hands.text)
    pages = outgoing(hand)
    pages.begin()
    for _ in rounds(pages):
        pass
    assert pages.pending() == 0
    hand.pack()
    hand.ebb()
    while hand.made.moves.clean(True, geometry.CONTENT_BYTES, 1, False) > 0:
        hand.room(8)
    assert pages.pending() == 0
    hand.write([7], hands.noise)
    assert pages.pending() == 1
    pages.end()
    hand.write([8], hands.noise)
    assert pages.pending() == 0


def test_rounds_end_while_a_guest_writes(hand: hands.Hand) -> None:
    """A round is what had changed as it began: who writes one page again and again does not prolong it."""
    hand.write(range(500), hands.noise)
    pages, buffer = outgoing(hand), bytearray(ROOM)
    pages.begin()
    for _ in range(3):
        fills = 0
        while pages.fill(buffer)[0]:
            hand.write([3, 400], hands.noise, version=fills)
            fills += 1
            assert fills < 500 * PAGE // (ROOM - PAGE) + 3


def test_writers_race_with_the_sender(make_hand: Callable[..., hands.Hand]) -> None:
    """The map appears, rounds run and it goes again while threads write; the last round has it all."""
    source, target = make_hand(), make_hand()
    source.write(range(1000), hands.noise)
    for turn in range(5):
        stop = threading.Event()

        def write(part: int, turn: int = turn, stop: threading.Event = stop) -> None:
            draw = random.Random(turn * 10 + part)
            while not stop.is_set():
                page = draw.randrange(250) * 4 + part
                data = hands.mixed(draw.randrange(1 << 20))
                source.made.log.write_bytes(data, page * PAGE)
                source.model[page] = data

        source.room(40)
        threads = [threading.Thread(target=write, args=(part,)) for part in range(4)]
        for thread in threads:
            thread.start()
        pages, taken, buffer = outgoing(source), incoming(target), bytearray(ROOM)
        pages.begin()
        for _ in range(60):
            got, _ = pages.fill(buffer)
            target.room(24)
            taken.take(memoryview(buffer)[:got])
            source.room(40)
        stop.set()
        for thread in threads:
            thread.join()
        for data in rounds(pages):
            target.room(24)
            taken.take(data)
        pages.end()
        target.model = dict(source.model)
        target.check(turn)
        source.ebb()
        target.ebb()


def test_a_page_that_cannot_be_read_is_named(hand: hands.Hand) -> None:
    hand.write(range(1000), hands.noise)
    hand.ebb()
    home = hand.home(300)
    hand.flip(home.segment, home.offset // PAGE * hands.STRIDE)
    pages = outgoing(hand)
    pages.begin()
    with pytest.raises(OSError, match="Input/output"):
        list(rounds(pages))
    assert pages.failed_page == 300
    pages.end()


GOOD = HEAD.pack(1, PAGE, PIECE, 0) + hands.noise(1)
BAD: dict[str, Callable[[hands.Hand], bytes]] = {
    "cut header": lambda hand: GOOD[:5],
    "cut page": lambda hand: GOOD[:-1],
    "beyond the disk": lambda hand: HEAD.pack(hand.shape.pages, PAGE, PIECE, 0) + hands.noise(1),
    "whole, yet packed for the way": lambda hand: HEAD.pack(1, PAGE, PIECE, WHOLE) + hands.noise(1),
    "strong for the way": lambda hand: HEAD.pack(1, 200, STRONG, WHOLE) + hands.NOISE[:200],
    "no flag": lambda hand: HEAD.pack(1, 200, PIECE, 2) + hands.NOISE[:200],
    "a word for the way": lambda hand: HEAD.pack(1, 4, SAME, WHOLE) + b"abcd",
    "hole with content": lambda hand: HEAD.pack(1, 4, ABSENT, 0) + b"abcd",
    "same-filled of two words": lambda hand: HEAD.pack(1, 8, SAME, 0) + b"abcdefgh",
    "no kind": lambda hand: HEAD.pack(1, 100, 4, 0) + bytes(100),
    "a kind far off": lambda hand: HEAD.pack(1, 100, 255, 0) + bytes(100),
    "no content": lambda hand: HEAD.pack(1, 0, PIECE, 0),
    "packed garbage": lambda hand: HEAD.pack(1, 200, PIECE, 0) + hands.NOISE[:200],
    "strongly packed garbage": lambda hand: HEAD.pack(1, 200, STRONG, 0) + hands.NOISE[:200],
    "too long for packed": lambda hand: HEAD.pack(1, 3600, PIECE, 0) + hands.NOISE[:3600],
    "longer than a page": lambda hand: HEAD.pack(1, 5000, PIECE, 0) + hands.NOISE[:5000],
    "whole, yet strong": lambda hand: HEAD.pack(1, PAGE, STRONG, 0) + hands.noise(1),
}


@pytest.mark.parametrize("bad", BAD)
def test_what_makes_no_sense_is_refused(hand: hands.Hand, bad: str) -> None:
    hand.room(16)
    hand.write([1, 2], hands.noise)
    with pytest.raises(ValueError, match="makes no sense"):
        incoming(hand).take(GOOD + BAD[bad](hand))
    hand.model[1] = hands.noise(1)
    hand.check()
    hand.again()
    hand.check()


def test_random_bytes_are_refused_or_harmless(hand: hands.Hand) -> None:
    """Whatever comes, the log stays one that a successor takes over."""
    draw = random.Random(11)
    taken = incoming(hand)
    hand.room(40)
    for _ in range(3000):
        kind = draw.choice((0, 1, 2, 2, 3, 3, draw.randrange(256)))
        length = draw.choice((0, 4, 16, 100, 3584, PAGE, draw.randrange(1 << 16)))
        page = draw.choice((draw.randrange(hand.shape.pages), draw.randrange(1 << 32)))
        body = draw.randbytes(draw.choice((length, length, max(0, length - 1))))
        try:
            taken.take(HEAD.pack(page, length, kind, draw.choice((0, 0, 1, 2))) + body)
        except ValueError:
            continue
        hand.room(4)
    for at in range(0, hand.shape.size_bytes, 1 << 20):
        hand.made.log.read_bytes(1 << 20, at)
    hand.again()


def test_cleared(hand: hands.Hand) -> None:
    fill_every_tier(hand)
    taken = incoming(hand)
    taken.clear()
    assert taken.stored() == 0
    hand.model = {}
    hand.check()


def test_who_waits_for_room_can_be_told_to_give_up(hand: hands.Hand) -> None:
    taken = incoming(hand)
    timer = threading.Timer(0.2, taken.cancel)
    timer.start()
    with pytest.raises(OSError, match="shut"):  # there is not one slot, and nobody makes any
        taken.take(GOOD)
    timer.join()
