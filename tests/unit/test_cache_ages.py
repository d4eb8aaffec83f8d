"""Ages in the log: the core and Python agree on buckets; what is read and what lives is counted by age."""

import pathlib
import random
import subprocess
import time

import pytest

from swaptide.cache import ages, engine, geometry, planning, survey
from swaptide.cache.face import StateFace
from swaptide.cache.segments import Segments
from tests.unit.hands import (
    DIRTY,
    DISK,
    OPEN,
    PACKED_FLAG,
    PAGE,
    PAGES,
    PIECES,
    SIZE,
    SOLID_FLAG,
    Hand,
    Home,
    mixed,
    noise,
    text,
)

ROOT = pathlib.Path(__file__).parents[2]
PROGRAM = r"""
#include <inttypes.h>
#include <stdio.h>
#include "ages.h"
int main(void)
{
    uint64_t clock, born;
    while (scanf("%" SCNu64 " %" SCNu64, &clock, &born) == 2)
        printf("%u\n", age_bucket(clock, born));
    return printf("%d\n", AGE_WORDS * 8) < 0;
}
"""


def buckets_of_the_core(where: pathlib.Path, pairs: list[tuple[int, int]]) -> tuple[list[int], int]:
    """The core's own buckets of (clock, born), and the bytes of its page."""
    (where / "bucket.c").write_text(PROGRAM)
    command = ["gcc", "-O1", "-Wall", "-Werror", "-I", str(ROOT / "cache"), str(where / "bucket.c")]
    subprocess.run([*command, "-o", str(where / "bucket")], check=True)
    given = "".join(f"{clock} {born}\n" for clock, born in pairs)
    told = subprocess.run([str(where / "bucket")], input=given, capture_output=True, text=True, check=True)
    *found, size = map(int, told.stdout.split())
    return found, size


def test_core_and_python_agree_near_every_bound(tmp_path: pathlib.Path) -> None:
    draw = random.Random(5)
    bounds = [ages.youngest(index) for index in range(ages.BUCKETS + 8)]
    near = {bound + by for bound in bounds for by in (-2, -1, 0, 1, 2)}
    near |= {(1 << power) + by for power in range(64) for by in (-1, 0, 1)}
    near |= {int(2 ** draw.uniform(0, 63)) for _ in range(2000)}
    wanted = sorted(age for age in near if 0 <= age < 1 << 64)
    at_clock = [(age, 0) for age in wanted] + [((1 << 64) - 1, (1 << 64) - 1 - age) for age in wanted]
    found, size = buckets_of_the_core(tmp_path, [*at_clock, (5, 6), (0, (1 << 64) - 1)])
    expected = [ages.bucket(age) for age in wanted]
    assert found == [*expected, *expected, 0, 0]  # what is from the future is young
    assert size == ages.BYTES
    assert set(expected) == set(range(ages.BUCKETS))


def test_a_bucket_begins_with_its_youngest() -> None:
    bounds = [ages.youngest(index) for index in range(ages.BUCKETS)]
    assert bounds == sorted(set(bounds)) and bounds[:10] == [0, 1, 2, 3, 4, 5, 6, 7, 8, 10]
    for index, bound in enumerate(bounds):
        assert ages.bucket(bound) == index
        assert index == 0 or ages.bucket(bound - 1) == index - 1


def test_the_header_has_a_page_for_them() -> None:
    assert geometry.AGES_OFFSET % PAGE == 0 and ages.BYTES <= PAGE
    assert geometry.AGES_OFFSET + PAGE <= geometry.DIRECTORY_OFFSET


def told(hand: Hand) -> ages.Ages:
    """What the state file says, the living counted now."""
    assert hand.settings.state is not None
    survey.count_ages(hand.made.segments)
    with StateFace(hand.settings.state) as face:
        return face.ages()


def ages_in(hand: Hand) -> dict[int, int]:
    """The bucket of each page that lies in a segment, as the tables have it."""
    clock = hand.made.counter("log_clock")
    of_segment = {number: ages.bucket(clock - part.age) for number, part in hand.parts().items()}
    homes = {page: hand.home(page) for page in hand.model}
    return {page: of_segment[home.segment] for page, home in homes.items() if home.kind >= 2}


def check_live(hand: Hand) -> None:
    """What is told to live is what the tables say."""
    expected = [0] * ages.BUCKETS
    for page, bucket in ages_in(hand).items():
        expected[bucket] += hand.home(page).length
    assert told(hand).live_bytes == tuple(expected)


def check_reads(hand: Hand, seed: int = 0) -> None:
    """Each page that is read is counted once, by the age of its segment; others are not."""
    chooser = random.Random(seed)
    by_page, before = ages_in(hand), told(hand).reads
    expected = list(before)
    for _ in range(200):
        count = chooser.choice((1, 100, PAGE, 2 * PAGE, 8 * PAGE, 100_000))
        at = chooser.randrange(SIZE - count) // PAGE * PAGE + chooser.choice((0, 0, 5)) * 100
        count = min(count, SIZE - at)
        hand.made.log.read_bytes(count, at)
        for page in range(at // PAGE, -(-(at + count) // PAGE)):
            if page in by_page:
                expected[by_page[page]] += 1
    assert told(hand).reads == tuple(expected)
    assert sum(expected) > sum(before)


def test_what_is_read_and_what_lives_is_counted_in_every_tier(hand: Hand) -> None:
    hand.write(range(8 * PIECES), mixed)
    hand.write(range(0, 8 * PIECES, 9), noise, 1)
    check_reads(hand)
    check_live(hand)
    hand.pack(keep=3)
    check_reads(hand, 1)
    check_live(hand)
    hand.strengthen()
    check_reads(hand, 2)
    hand.ebb()
    assert {part.state for part in hand.parts().values()} >= {DISK, OPEN}
    check_reads(hand, 3)
    check_live(hand)
    hand.write(range(5, 8 * PIECES, 3), text, 2)
    hand.room(10)
    assert hand.made.moves.clean(True, planning.CLEAN_DISK_BYTES, 3, False) > 0
    check_reads(hand, 4)
    check_live(hand)
    before = told(hand)
    hand.again()
    assert told(hand).reads == before.reads
    check_reads(hand, 5)
    check_live(hand)
    assert len([count for count in told(hand).reads if count]) > 5


def test_same_filled_pages_and_holes_have_no_age(hand: Hand) -> None:
    hand.put(0, b"\x07" * (40 * PAGE))
    hand.made.log.read_bytes(200 * PAGE, 0)
    found = told(hand)
    assert sum(found.reads) == sum(found.live_bytes) == 0
    assert hand.made.counter("hits") == 200


def test_a_page_that_cannot_be_read_is_not_counted(hand: Hand) -> None:
    hand.write(range(2 * PIECES), noise)
    hand.ebb()
    segment = hand.home(0).segment
    assert hand.part(segment).state == DISK
    hand.flip(segment, 100)
    before = told(hand).reads
    with pytest.raises(OSError, match="Input/output error"):
        hand.made.log.read_bytes(PAGE, 0)
    assert told(hand).reads == before


class Origins:
    """Whence, and of what age, the pages of movers' segments came."""

    def __init__(self, hand: Hand) -> None:
        self.hand = hand
        self.sums: dict[int, list[int]] = {}
        self.look()

    def look(self) -> None:
        """Remember where every page lies, and how old that is."""
        self.parts = self.hand.parts()
        self.homes: dict[int, Home] = {page: self.hand.home(page) for page in self.hand.model}

    def moved(self) -> set[int]:
        """Account all that was moved since the last look; the segments that it lies in now."""
        into = set()
        # The number of a segment that died may be another's by now.
        self.sums = {number: sums for number, sums in self.sums.items() if number in self.parts}
        for page, old in self.homes.items():
            new = self.hand.home(page)
            if new.kind < 2 or new == old:
                continue
            of = self.sums.setdefault(new.segment, [0, 0])
            of[0] += self.parts[old.segment].age * new.length
            of[1] += new.length
            into.add(new.segment)
        self.look()
        return into

    def check(self, segments: set[int]) -> None:
        """Each of these segments is as old as what came into it is on average, by bytes."""
        for number in segments:
            total, size = self.sums[number]
            assert self.parts[number].age == int(total / size), number


def test_what_movers_move_keeps_its_age(hand: Hand) -> None:
    """Also that of the last page of a segment, and of segments that are still open, also after a restart."""
    hand.write(range(6 * PIECES), lambda key: (text if key % 2 else noise)(key))
    hand.write(range(0, 6 * PIECES, 11), noise, 1)
    origins = Origins(hand)
    hand.pack()
    packed = origins.moved()
    origins.check(packed)
    kinds = {(part.state, part.flags & (PACKED_FLAG | SOLID_FLAG)) for part in hand.parts().values()}
    assert kinds >= {(OPEN, PACKED_FLAG), (OPEN, SOLID_FLAG), (DIRTY, PACKED_FLAG), (DIRTY, SOLID_FLAG)}
    assert {origins.parts[number].age for number in packed} != {1}
    hand.strengthen()
    origins.check(origins.moved())
    hand.ebb()
    hand.write(range(0, 6 * PIECES, 2), noise, 2)
    origins.look()
    hand.room(10)
    cleaned = set()
    # One by one: in the middle of several, numbers come round.
    while hand.made.moves.clean(True, planning.CLEAN_DISK_BYTES, 1, False) == 1:
        cleaned |= origins.moved()
    origins.check(cleaned)
    clock = hand.made.counter("log_clock")
    assert all(origins.parts[number].age < clock - 3 for number in cleaned)
    still_open = {number for number in cleaned if origins.parts[number].state == OPEN}
    assert still_open
    hand.again()
    origins.look()
    origins.check(cleaned)
    hand.check()


def test_what_lives_is_told_at_most_once_a_second(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = engine.Engine.prepare(engine.Settings(size_bytes=SIZE, ram_bytes=96 << 20, spill=tmp_path / "s"))
    calls: list[float] = []
    count = survey.count_ages

    def noted(segments: Segments) -> None:
        calls.append(time.monotonic())
        count(segments)

    monkeypatch.setattr(survey, "count_ages", noted)
    disk.start()
    try:
        calls.clear()
        begun = time.monotonic()
        page = 0
        while time.monotonic() - begun < 2.5 or not calls:
            disk.log.write_bytes(noise(page), page % PAGES * PAGE)
            page += 1
        passed = time.monotonic() - begun
        assert 1 <= len(calls) <= passed + 1
        gaps = [later - earlier for earlier, later in zip(calls, calls[1:], strict=False)]
        assert min(gaps, default=1.0) >= 0.99
    finally:
        disk.stop()
