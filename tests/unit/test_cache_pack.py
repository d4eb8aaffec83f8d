"""The packed tier by hand: each move alone, and in orders that the movers would take long to find."""

import errno
import pathlib
import random
from collections.abc import Callable

import hypothesis
import pytest
from hypothesis import strategies as st

from swaptide.cache import geometry, planning, survey
from tests.unit.hands import (
    CLEAN,
    DIRTY,
    DISK,
    FOOTER,
    FREE,
    OPEN,
    PACKED_FLAG,
    PAGE,
    PAGES,
    PIECES,
    SIZE,
    SOLID_FLAG,
    STRIDE,
    Hand,
    Home,
    Maker,
    digits,
    half,
    mixed,
    noise,
    sparse,
    text,
)


@pytest.mark.parametrize("strong", [False, True])
def test_packed_pages_read_as_they_were_written(hand: Hand, strong: bool) -> None:
    hand.write(range(4 * PIECES), mixed)
    assert hand.pack(strong) >= 3
    hand.check()
    made = hand.made
    assert made.counter("packed_total_pages") > PIECES
    assert made.counter("packed_total_bytes") < made.counter("packed_total_pages") * PAGE * 0.7
    assert made.counter("packed_hits") > PIECES
    kinds = {hand.home(page).kind for page in range(PIECES) if hand.home(page).length < PAGE}
    assert kinds >= {3 if strong else 2}
    assert any(hand.home(page).length < 64 for page in range(PIECES))
    hand.again()
    hand.check()


def test_packed_pages_are_overwritten_trimmed_and_written_in_part(hand: Hand) -> None:
    hand.write(range(2 * PIECES), mixed)
    hand.pack()
    hand.write(range(0, 2 * PIECES, 5), half, 1)
    for page in range(1, 2 * PIECES, 5):
        hand.put(page * PAGE + 100, b"\x55" * 700)
    for page in range(2, 2 * PIECES, 5):
        hand.put(page * PAGE, bytes(PAGE))
    hand.put(3 * PAGE + 4000, noise(9) * 3)  # the end of one, two whole ones, the beginning of another
    hand.check()
    hand.pack()
    hand.check(1)
    hand.ebb()
    for page in range(3, 2 * PIECES, 5):
        hand.put(page * PAGE + 4095, b"\x99")  # a part of what is packed and on disk
    hand.check(2)
    hand.again()
    hand.check(3)


def test_what_does_not_shrink_goes_to_disk_first_and_by_itself(hand: Hand) -> None:
    hand.write(range(PIECES), noise)
    hand.write(range(PIECES, 2 * PIECES), text)
    hand.write(range(2 * PIECES, 4 * PIECES), lambda key: (text if key % 2 else noise)(key))
    before = hand.made.counter("pack_tried_pages")
    assert hand.made.moves.pack(0, 0, False) == 2
    assert hand.made.counter("pack_tried_pages") == before
    stiff = hand.home(0).segment
    assert hand.part(stiff).flags & SOLID_FLAG
    assert hand.pack() >= 3
    hand.check()
    made_solid = {hand.home(page).segment for page in range(2 * PIECES, 4 * PIECES) if page % 2 == 0}
    made_packed = {hand.home(page).segment for page in range(PIECES, 4 * PIECES) if page % 2}
    assert not made_solid & made_packed
    hand.made.segments.seal_packers()
    for segment in sorted(made_solid | {stiff}):
        assert hand.part(segment).flags & SOLID_FLAG
        assert hand.part(segment).state == DIRTY
    for _ in made_solid | {stiff}:
        assert hand.made.moves.spill(0, 1, False) == 1
    assert {hand.part(segment).state for segment in made_solid | {stiff}} == {CLEAN}
    assert {hand.part(segment).state for segment in made_packed} == {DIRTY}
    hand.check()


def test_the_odd_page_that_does_not_shrink_stays_with_the_others(hand: Hand) -> None:
    odd = PIECES // 2 + 1  # not one of those that are tried beforehand
    hand.write(range(PIECES), lambda key: (noise if key == odd else text)(key))
    assert hand.pack() == 1
    assert hand.home(odd).segment == hand.home(0).segment and hand.home(odd).length == PAGE
    hand.check()
    hand.ebb()
    hand.check()
    hand.again()
    hand.check()


@pytest.mark.parametrize("encrypt", [True, False])
@pytest.mark.parametrize("strong", [False, True])
def test_packed_pages_come_back_from_disk(disks: Maker, strong: bool, encrypt: bool) -> None:
    hand = disks(encrypt=encrypt)
    hand.write(range(5 * PIECES), mixed)
    hand.pack(strong)
    hand.ebb()
    spilled = [page for page in hand.model if hand.part(hand.home(page).segment).state == DISK]
    assert len([page for page in spilled if hand.home(page).length < PAGE]) > PIECES
    assert any(len(hand.home(page).chunks) == 2 for page in spilled)
    before = hand.made.counter("misses")
    hand.check()
    assert hand.made.counter("misses") > before + len(spilled)
    hand.again()
    hand.check()
    assert hand.made.counter("spill_read_errors") == 0


def test_runs_of_tiny_pieces_are_read_in_one_go(hand: Hand) -> None:
    """A hundred pages in one chunk: as many as a request may ask for."""
    hand.write(range(3 * PIECES), sparse)
    hand.pack()
    hand.ebb()
    before = hand.made.counter("spill_read_bytes")
    hand.made.log.read_bytes(1 << 20, 0)
    assert hand.made.counter("spill_read_bytes") - before < 64 * STRIDE
    hand.check()


@pytest.mark.parametrize("on_disk", [False, True])
def test_packed_segments_are_cleaned(hand: Hand, on_disk: bool) -> None:
    hand.write(range(6 * PIECES), mixed)
    hand.pack()
    hand.made.segments.seal_packers()
    if on_disk:
        hand.ebb()
    sources = {number for number, part in hand.parts().items() if part.state in (DIRTY, DISK)}
    hand.write((page for page in range(6 * PIECES) if page % 4), noise, 1)
    hand.room(10)
    done = hand.made.moves.clean(on_disk, planning.CLEAN_DISK_BYTES, 50, False)
    assert done >= len(sources) and hand.made.counter("cleaned_pages") > 0
    assert bool(hand.made.counter("cleaned_disk_segments")) == on_disk
    hand.check()
    assert any(hand.home(page).length < PAGE for page in range(0, 6 * PIECES, 4))
    hand.pack()
    hand.ebb()
    hand.check(1)
    hand.again()
    hand.check(2)


def settle_on_disk(hand: Hand) -> int:
    """Packed pages on disk; returns a full segment of them."""
    hand.write(range(5 * PIECES), mixed)
    hand.pack()
    hand.ebb()
    parts = hand.parts()
    return max(
        (number for number, part in parts.items() if part.flags & PACKED_FLAG and part.state == DISK),
        key=lambda number: parts[number].pieces,
    )


def pages_in(hand: Hand, segment: int) -> dict[int, Home]:
    """The pages that lie in a segment."""
    homes = {page: hand.home(page) for page in hand.model}
    return {page: home for page, home in homes.items() if home.kind >= 2 and home.segment == segment}


@pytest.mark.parametrize("encrypt", [True, False])
def test_a_damaged_chunk_costs_exactly_the_pages_that_touch_it(disks: Maker, encrypt: bool) -> None:
    hand = disks(encrypt=encrypt)
    segment = settle_on_disk(hand)
    inside = pages_in(hand, segment)
    across = next(home for home in inside.values() if len(home.chunks) == 2)
    hurt = {min(across.chunks), 100, 102}
    for chunk, within in zip(sorted(hurt), (0, PAGE + 3, 2000), strict=True):  # a byte, a tag, a byte
        hand.flip(segment, chunk * STRIDE + within)
    lost = {page for page, home in inside.items() if home.chunks & hurt}
    assert 3 < len(lost) < len(inside)
    assert hand.unreadable() == lost
    hand.again()
    assert hand.unreadable() == lost
    # A request is one answer; each page of it reads right alone (above).
    with pytest.raises(OSError, match="Input/output error"):
        hand.made.log.read_bytes(1 << 20, min(lost) * PAGE // (1 << 20) * (1 << 20))
    page = min(lost)
    hand.room(10)
    with pytest.raises(OSError, match="Input/output error"):
        hand.made.log.write_bytes(b"x", page * PAGE + 5)
    # The cleaner takes along what is whole, and leaves the rest where it is.
    hand.write((page for page in inside if page not in lost and page % 3), sparse, 1)
    hand.room(10)
    for _ in range(2):
        hand.made.moves.clean(True, planning.CLEAN_DISK_BYTES, 50, False)
    assert hand.unreadable() == lost
    assert set(pages_in(hand, segment)) == lost
    for page in lost:
        hand.put(page * PAGE, text(page + 5))
    hand.check()


@pytest.mark.parametrize("where", ["last chunk", "chunk before", "both", "footer", "all of them"])
def test_a_damaged_reverse_map_costs_nothing(hand: Hand, where: str) -> None:
    """The cleaner finds the pages in the page table, also those that lie in one chunk with the map."""
    segment = settle_on_disk(hand)
    inside = pages_in(hand, segment)
    last = geometry.CHUNKS_PER_SEGMENT - 1
    damages = {
        "last chunk": [last * STRIDE + PAGE - 1],
        "chunk before": [(last - 1) * STRIDE + PAGE + 1],
        "both": [last * STRIDE + 5, (last - 1) * STRIDE + 5],
        "footer": [FOOTER + 9],
        "all of them": [last * STRIDE + 5, (last - 1) * STRIDE + 5, FOOTER + 9],
    }[where]
    for within in damages:
        hand.flip(segment, within)
    hurt = {within // STRIDE for within in damages if within < FOOTER}
    lost = {page for page, home in inside.items() if home.chunks & hurt}
    assert hand.unreadable() == lost
    hand.write((page for page in inside if page not in lost and page % 3 == 0), sparse, 1)
    hand.room(10)
    for _ in range(2):  # it stops at what it cannot read
        hand.made.moves.clean(True, planning.CLEAN_DISK_BYTES, 50, False)
    assert {page for page, home in inside.items() if hand.home(page) == home} == lost
    assert hand.unreadable() == lost


@pytest.mark.parametrize("slots", [2, 3])
def test_a_packer_with_no_slot_gives_up_and_loses_nothing(hand: Hand, slots: int) -> None:
    """With two there is none for it, with three none for what does not shrink, in the middle of a segment."""
    hand.write(range(6 * PIECES), lambda key: (text if key % 2 else noise)(key))
    hand.made.segments.ram.set_keep_free(slots)
    hand.made.segments.ram.set_budget(0, 0)
    hand.made.moves.punch(0)
    assert planning.Snapshot(*hand.made.segments.snapshot()).free == slots
    hand.made.segments.ram.set_budget(1 << 40, 0)
    for _ in range(3):
        assert hand.made.moves.pack(0, 0, False) == -errno.EAGAIN
    assert bool(hand.made.counter("packed_total_pages")) == (slots > 2)
    hand.check()
    assert hand.pack() >= 6
    hand.check()


def test_strengthening_makes_what_is_packed_smaller(hand: Hand) -> None:
    hand.write(range(6 * PIECES), lambda key: (half, text, sparse)[key % 3](key))
    hand.pack()
    hand.made.segments.seal_packers()
    before = sum(hand.home(page).length for page in hand.model)
    assert hand.strengthen() >= 2
    after = sum(hand.home(page).length for page in hand.model)
    assert after < before * 0.95
    assert hand.made.counter("strengthened_segments") >= 2
    assert {hand.home(page).kind for page in hand.model} == {2, 3}
    hand.check()
    hand.again()
    hand.check()
    hand.ebb()
    hand.check()


def test_what_only_zstd_shrinks_is_packed_with_zstd(hand: Hand) -> None:
    hand.write(range(2 * PIECES), digits)
    assert hand.pack(strong=True) >= 2
    assert hand.made.counter("packed_total_pages") >= PIECES
    hand.check()


def test_every_state_of_a_segment_is_taken_over(hand: Hand) -> None:
    hand.write(range(8 * PIECES), mixed)
    for turn in range(4):
        hand.room(10)
        assert hand.made.moves.pack(0, 0, False) == 1
        if turn == 1:
            hand.made.segments.seal_packers()
    hand.made.moves.strengthen(0)
    hand.made.moves.spill(0, 1, False)
    hand.made.moves.spill(0, 1, False)
    hand.made.moves.drop(1)
    hand.write(range(0, 3 * PIECES, 2), text, 1)
    hand.made.moves.clean(False, planning.CLEAN_DISK_BYTES, 1, False)
    parts = hand.parts().values()
    assert {part.state for part in parts} >= {OPEN, DIRTY, CLEAN, DISK}
    assert len([part for part in parts if part.state == OPEN]) >= 4
    assert any(part.state == OPEN and part.flags & PACKED_FLAG for part in parts)
    hand.again()
    assert OPEN not in {part.state for part in hand.parts().values()}
    hand.check()
    for strong in (False, True):
        hand.pack(strong)
        hand.check()
        hand.again()
    hand.strengthen()
    hand.ebb()
    hand.again()
    hand.check()


@pytest.mark.parametrize(("make", "size"), [(sparse, 288 << 20), (half, SIZE)])
@pytest.mark.parametrize("strong", [False, True])
def test_nothing_is_gained_by_cleaning_what_is_full(
    disks: Maker, make: Callable[[int], bytes], size: int, strong: bool
) -> None:
    """However many pieces it holds: bytes alone would say that a segment of 65535 tiny ones is half empty."""
    hand = disks(size)
    pages = geometry.of_size(size).pages
    for first in range(0, pages, 2048):
        for page in range(first, min(pages, first + 2048)):
            hand.room(10)
            hand.made.log.write_bytes(make(page), page * PAGE)
        hand.pack(strong)
    hand.made.segments.seal_packers()
    full, weight = 0, survey.emptiest_in_ram(hand.made.segments)
    for segment in {hand.home(page).segment for page in range(0, pages, 97)}:
        part = hand.part(segment)
        room = geometry.CONTENT_BYTES - part.fill - 4 * part.pieces
        full += room < PAGE or part.pieces == 65535
    assert full >= 1
    # What was sealed early is the only one to gain from: once.
    hand.room(20)
    assert hand.made.moves.clean(False, planning.CLEAN_DISK_BYTES, 50, False) <= 4
    hand.ebb()
    hand.room(20)
    assert hand.made.moves.clean(True, planning.CLEAN_DISK_BYTES, 50, False) <= 4
    assert weight <= geometry.CONTENT_BYTES
    for page in range(0, pages, 31):
        assert hand.made.log.read_bytes(PAGE, page * PAGE) == make(page)


def test_what_died_while_it_was_open_is_free_when_it_is_closed(hand: Hand) -> None:
    hand.write(range(PIECES), text)
    hand.write(range(PIECES, PIECES + 10), noise)
    hand.pack()
    packed = hand.home(0).segment
    assert hand.part(packed).state == OPEN and hand.part(packed).flags & PACKED_FLAG
    hand.write(range(PIECES), noise, 1)
    assert hand.part(packed).state == OPEN
    before = planning.Snapshot(*hand.made.segments.snapshot())
    hand.made.segments.seal_packers()
    assert hand.part(packed).state == FREE
    assert planning.Snapshot(*hand.made.segments.snapshot()).free == before.free + 1


def test_a_segment_that_the_guest_left_half_full_is_closed_and_packs(hand: Hand) -> None:
    hand.write(range(PIECES // 2), text)
    left = hand.home(0).segment
    fill = planning.Snapshot(*hand.made.segments.snapshot()).guest_fill
    assert fill == PIECES // 2 * PAGE == hand.part(left).fill
    hand.made.segments.seal_guest(fill - PAGE)  # it was written to since
    assert hand.part(left).state == OPEN and hand.pack() == 0
    hand.made.segments.seal_guest(fill)
    assert planning.Snapshot(*hand.made.segments.snapshot()).guest_fill == 0
    assert hand.part(left).state == DIRTY and hand.pack() == 1
    assert hand.part(left).state == FREE
    hand.check()
    hand.write(range(10), text, 1)  # the next write begins another
    hand.check()
    hand.again()
    hand.check()


def test_every_head_of_the_packers_is_seen_and_closed(hand: Hand) -> None:
    def is_open() -> bool:
        return bool(planning.Snapshot(*hand.made.segments.snapshot()).packers_open)

    hand.write(range(2 * PIECES), text)
    assert not is_open()
    hand.pack()
    assert is_open()
    hand.made.segments.seal_packers()
    assert not is_open()
    hand.strengthen()
    assert is_open()  # what is packed anew is open as well
    hand.made.segments.seal_packers()
    assert not is_open()
    hand.check()


def test_data_written_ahead_is_dropped_without_a_write(hand: Hand) -> None:
    hand.write(range(2 * PIECES), noise)
    assert hand.made.moves.spill(0, 1, False) == 1
    assert hand.made.counter("written_ahead_segments") == 1
    written = hand.made.counter("spill_written_bytes")
    assert hand.made.moves.drop(5) == 1
    assert hand.made.counter("dropped_segments") == 1
    assert hand.made.counter("spill_written_bytes") == written
    hand.check()


# Everything at random, against the model.


class Chance:
    """One operation or move each; `key` decides what it does it to."""

    def __init__(self, hand: Hand) -> None:
        self.hand = hand

    def write(self, key: int) -> None:
        chooser = random.Random(key)
        first, make = chooser.randrange(PAGES - 300), chooser.choice((mixed, text, noise, half, sparse))
        self.hand.write(range(first, first + chooser.randint(1, 300)), make, key % 50)

    def part(self, key: int) -> None:
        chooser = random.Random(key)
        for _ in range(20):
            count = chooser.choice((1, 511, 4096, 9000))
            at = chooser.randrange(SIZE - count)
            self.hand.put(at, noise(key)[:1] * count if key % 3 else (noise(key) * 3)[:count])

    def zero(self, key: int) -> None:
        at = random.Random(key).randrange(PAGES - 200)
        self.hand.put(at * PAGE, bytes(random.Random(key).randint(1, 200) * PAGE))

    def pack(self, key: int) -> None:
        for _ in range(1 + key % 3):
            self.hand.room(key % 4 + 2)
            self.hand.made.moves.pack(key % planning.PACKERS, key % 2, bool(key % 5 == 0))

    def strengthen(self, key: int) -> None:
        self.hand.room(4)
        self.hand.made.moves.strengthen(key % planning.PACKERS)

    def seal(self, key: int) -> None:
        segments = self.hand.made.segments
        if key % 2:
            segments.seal_packers()
        else:
            segments.seal_guest(planning.Snapshot(*segments.snapshot()).guest_fill)

    def spill(self, key: int) -> None:
        for _ in range(1 + key % 4):
            self.hand.made.moves.spill(key % planning.SPILLERS, 1, False)

    def drop(self, key: int) -> None:
        self.hand.made.moves.drop(1 + key % 4)

    def clean(self, key: int) -> None:
        self.hand.room(10)
        below = planning.CLEAN_DISK_BYTES if key & 4 else planning.CLEAN_RAM_BYTES
        self.hand.made.moves.clean(bool(key & 1), below, 1 + key % 3, bool(key & 2))

    def restart(self, _key: int) -> None:
        self.hand.again()

    def read(self, key: int) -> None:
        chooser = random.Random(key)
        for _ in range(50):
            count = chooser.choice((1, 4096, 20000, 300_000))
            at = chooser.randrange(SIZE - count)
            assert self.hand.made.log.read_bytes(count, at) == self.hand.expected(at, count)


# What makes other work possible comes more often.
STEPS = [
    *["write", "pack", "clean"] * 3,
    *["spill", "drop", "read"] * 2,
    "part",
    "zero",
    "strengthen",
    "seal",
]
STEPS.append("restart")
SCRIPT = st.lists(st.tuples(st.sampled_from(STEPS), st.integers(0, 1 << 16)), min_size=10, max_size=60)


@pytest.mark.parametrize(
    "examples", [25, pytest.param(500, marks=[pytest.mark.long, pytest.mark.timeout(3600)])]
)
def test_anything_in_any_order(disks: Maker, examples: int) -> None:
    @hypothesis.settings(
        max_examples=examples,
        deadline=None,
        derandomize=examples < 100,
        database=None,
        suppress_health_check=list(hypothesis.HealthCheck),
        phases=[hypothesis.Phase.explicit, hypothesis.Phase.generate],
    )
    @hypothesis.given(script=SCRIPT)
    def body(script: list[tuple[str, int]]) -> None:
        hand = disks()
        chance = Chance(hand)
        for _ in range(3):
            chance.write(len(script))
        try:
            for step, key in script:
                getattr(chance, step)(key)
            hand.check()
            hand.again()
            hand.check()
            assert hand.made.counter("spill_read_errors") == 0
        finally:
            forget(hand)

    body()


def forget(hand: Hand) -> None:
    """Make room for the next disk."""
    hand.close()
    for path in (hand.settings.state, hand.settings.spill):
        assert isinstance(path, pathlib.Path)
        path.unlink()
