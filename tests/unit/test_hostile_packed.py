"""As test_hostile_state.py, for a disk with packed segments: there an entry names any byte, of any length.

The reverse map does not know where a packed piece begins, so a damaged entry may open garbage; it is unpacked
within its bounds, or is an error.  No page whose own entry is whole is another for it.
"""

import os
import pathlib
import random
import signal
import struct
import uuid
from collections.abc import Iterator

import hypothesis
import pytest
from hypothesis import strategies as st

from swaptide.cache import engine, geometry, keys
from tests.unit import test_hostile_state as hostile

PAGE = hostile.PAGE
PAGES = hostile.PAGES
SHAPE = hostile.SHAPE
SERVED, REFUSED = hostile.SERVED, hostile.REFUSED
# place, write, age, fill, count, flags (cache/mapping.pxd); the states of a place (cache/entry.pxd)
SEGMENT_ENTRY = struct.Struct("<QQQIHH")
OPEN, DIRTY, CLEAN, DISK = 1, 2, 4, 5
ALIGNED, PACKED, STRONG = 8, 16, 64


class PackedDisk(hostile.Disk):
    """Packed segments open, clean and on disk, of both kinds, beside raw ones; half of them overwritten."""

    def _make(self) -> int:
        made = engine.Engine.prepare(self.settings)
        made.segments.ram.set_budget(1 << 40, 0)
        made.moves.populate(24)
        self._write(made, range(700), 0)
        assert made.moves.pack(0, 0, False) == 1
        made.segments.seal_packers()
        assert made.moves.spill(0, 1, False) == 1 and made.moves.drop(1) == 1
        self._write(made, range(700, 1300), 0)
        assert made.moves.pack(0, 0, True) == 1
        made.segments.seal_packers()
        assert made.moves.spill(0, 1, False) == 1
        self._write(made, range(1300, PAGES - 100), 0)
        assert made.moves.pack(0, 0, False) == 1
        self._write(made, range(0, PAGES - 100, 2), 1)
        os.kill(os.getpid(), signal.SIGKILL)
        return hostile.WRONG

    @staticmethod
    def _write(made: engine.Engine, pages: range, version: int) -> None:
        for page in pages:
            made.log.write_bytes(hostile.stamp(page, version), page * PAGE)


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[hostile.Disk]:
    """One killed disk for all examples, its state on tmpfs."""
    state = pathlib.Path(f"/dev/shm/swaptide-test-hostile-packed-{os.getpid()}")
    made = PackedDisk(state, tmp_path_factory.mktemp("hostile") / "disk.spill")
    yield made
    keys.erase(str(uuid.UUID(bytes=made.tables[32:48])))
    state.unlink(missing_ok=True)


def segment_at(disk: hostile.Disk, number: int) -> tuple[int, ...]:
    """place, write, age, fill, count, flags."""
    return SEGMENT_ENTRY.unpack_from(disk.tables, SHAPE.segment_table_offset + number * 32)


def packed_in(disk: hostile.Disk, state: int) -> tuple[int, list[int]]:
    """A packed segment in this state, and the pages in it."""
    pages: dict[int, list[int]] = {}
    for page in range(PAGES):
        entry = hostile.entry_at(disk, page)
        if entry & 3 >= 2:
            pages.setdefault(entry >> 36, []).append(page)
    for number, inside in pages.items():
        place, *_, flags = segment_at(disk, number)
        if place & 15 == state and flags & PACKED:
            return number, inside
    raise AssertionError(f"no packed segment in the state {state}")


def changed(disk: hostile.Disk, number: int, **fields: int) -> hostile.Damage:
    """The damage that gives a segment other numbers."""
    names = ("place", "write", "age", "fill", "count", "flags")
    values = {**dict(zip(names, segment_at(disk, number), strict=True)), **fields}
    return ("bytes", SHAPE.segment_table_offset + number * 32, SEGMENT_ENTRY.pack(*values.values()))


def entry_of(kind: int, segment: int, offset: int, length: int) -> int:
    return kind | length << 2 | offset << 15 | segment << 36


def set_entry(page: int, entry: int) -> hostile.Damage:
    return ("word", SHAPE.page_table_offset + page * 8, entry)


def test_the_disk_has_packed_segments_of_every_kind(disk: hostile.Disk) -> None:
    for state in (OPEN, CLEAN, DISK):
        assert len(packed_in(disk, state)[1]) > 50
    kinds = {hostile.entry_at(disk, page) & 3 for page in range(PAGES)}
    assert kinds == {0, 1, 2, 3}
    assert hostile.judge(disk, []) == SERVED


@pytest.mark.parametrize("state", [OPEN, CLEAN, DISK])
def test_damaged_numbers_of_a_packed_segment(disk: hostile.Disk, state: int) -> None:
    number, inside = packed_in(disk, state)
    _, _, _, fill, count, flags = segment_at(disk, number)
    refused = {
        "fill": [0, 16, fill // 2, geometry.CONTENT_BYTES, (1 << 32) - 1],
        "count": [0, len(inside) - 1],
        "flags": [flags | ALIGNED],
    }
    for field, values in refused.items():
        for value in values:
            assert hostile.judge(disk, [changed(disk, number, **{field: value})]) == REFUSED, (field, value)
    # More than there was is as good as what died: the cleaner does not find it, and asks the page table.
    larger: list[dict[str, int]] = [{"fill": fill + 5000}, {"count": count + 300}, {"count": 65535}]
    for fields in (*larger, {"flags": flags ^ PACKED}, {"flags": flags ^ STRONG}):
        assert hostile.judge(disk, [changed(disk, number, **fields)]) == SERVED, fields


@pytest.mark.parametrize("state", [OPEN, CLEAN, DISK])
def test_damaged_entries_of_packed_pages(disk: hostile.Disk, state: int) -> None:
    number, inside = packed_in(disk, state)
    page = inside[len(inside) // 2]
    entry = hostile.entry_at(disk, page)
    kind, length, offset = entry & 3, entry >> 2 & 0x1FFF, entry >> 15 & 0x1FFFFF
    fill = segment_at(disk, number)[3]
    for broken in (
        entry_of(kind, number, offset, 0),
        entry_of(kind, number, offset, 15),
        entry_of(kind, number, offset, 8191),
        entry_of(kind, number, fill - length + 1, length),
        entry_of(kind, number, (1 << 21) - 1, length),
        entry_of(3, number, 0, PAGE),
        entry_of(kind, number + 4000, offset, length),
    ):
        assert hostile.judge(disk, [set_entry(page, broken)]) == REFUSED, hex(broken)
    for broken in (
        entry_of(kind, number, offset + 1, length),
        entry_of(kind, number, offset, length - 1),
        entry_of(kind, number, offset, length + 1),
        entry_of(kind ^ 1, number, offset, length),
    ):
        hostile.judge(disk, [set_entry(page, broken)])


@pytest.mark.parametrize("state", [OPEN, CLEAN])
def test_two_pages_with_one_packed_piece_are_refused(disk: hostile.Disk, state: int) -> None:
    _, inside = packed_in(disk, state)
    entry = hostile.entry_at(disk, inside[3])
    for other in (inside[4], PAGES - 50):
        assert hostile.judge(disk, [set_entry(other, entry)]) == REFUSED


def test_garbage_where_packed_pages_lie_is_an_error_or_a_page(disk: hostile.Disk) -> None:
    """The host's memory is trusted; still nothing is written or read out of bounds."""
    number, inside = packed_in(disk, OPEN)
    slot = (segment_at(disk, number)[0] >> 4 & 0xFFFFFFF) - 1
    at, fill = SHAPE.pool_offset + slot * geometry.SEGMENT_BYTES, segment_at(disk, number)[3]
    for seed in range(5):
        disk.restore()
        with open(disk.state, "r+b") as file:
            os.pwrite(file.fileno(), random.Random(seed).randbytes(fill), at)
        disk.hurt_tables = disk.tables
        assert disk.take_over(set(inside)) == SERVED


SEGMENTS = st.integers(0, 14)
ENTRIES = st.builds(
    entry_of,
    st.sampled_from((2, 2, 3)),
    st.one_of(SEGMENTS, st.integers(0, (1 << 28) - 1)),
    st.one_of(st.integers(0, 60_000), st.integers(0, (1 << 21) - 1)),
    st.one_of(st.integers(16, 64), st.sampled_from((PAGE, 0, 8191, 3584)), st.integers(0, 8191)),
)
FIELDS = st.one_of(
    st.tuples(st.just(24), st.just("<I"), st.integers(0, (1 << 32) - 1)),
    st.tuples(st.just(24), st.just("<I"), st.integers(0, geometry.CONTENT_BYTES)),
    st.tuples(st.just(28), st.just("<H"), st.integers(0, 65535)),
    st.tuples(st.just(30), st.just("<H"), st.integers(0, 127)),
)
NUMBERS = st.builds(
    lambda number, field: (
        "bytes",
        SHAPE.segment_table_offset + number * 32 + field[0],
        struct.pack(field[1], field[2]),
    ),
    SEGMENTS,
    FIELDS,
)
DAMAGE = st.one_of(st.builds(set_entry, st.integers(0, PAGES - 1), ENTRIES), NUMBERS, hostile.DAMAGE)


@hostile.EXAMPLES
@hypothesis.given(damages=st.lists(DAMAGE, min_size=1, max_size=4))
def test_damages_at_random(disk: hostile.Disk, damages: list[hostile.Damage]) -> None:
    hostile.judge(disk, damages)
