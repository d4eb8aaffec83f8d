"""Pages for the memory rows: cores taken apart, corpora made, zram's figures judged."""

import io
import pathlib
import struct

import pytest

from bench import core, measure, pages, rows_memory
from tests.vm import report

PAGE = core.PAGE_BYTES
LOW = 0x1000
HIGH = 0x10_0000
NOTE, LOAD = 4, 1


def page_of(number: int) -> bytes:
    """A page that names itself."""
    return struct.pack("<Q", number) + bytes([number]) * (PAGE - 8)


def made_up_core(*runs: tuple[int, int, bytes]) -> io.BytesIO:
    """An ELF core of (segment type, physical address, content), laid out as QEMU does."""
    start = 64 + 56 * len(runs)
    headers, content = b"", b""
    for kind, address, held in runs:
        offset = start + len(content)
        headers += struct.pack("<IIQQQQQQ", kind, 0, offset, 0, address, len(held), len(held), 0)
        content += held
    ident = b"\x7fELF\x02\x01\x01".ljust(16, b"\0")
    head = struct.pack("<16sHHIQQQIHHHHHH", ident, 4, 62, 1, 0, 64, 0, 0, 64, 56, len(runs), 0, 0, 0)
    return io.BytesIO(head + headers + content)


def two_runs() -> io.BytesIO:
    """Frames 1 and 2, then 256, with a note before them as in real cores."""
    return made_up_core((NOTE, 0, b"note"), (LOAD, LOW, page_of(1) + page_of(2)), (LOAD, HIGH, page_of(3)))


def test_core_finds_frames_in_each_segment() -> None:
    source = two_runs()
    layout = core.segments(source)
    assert [(each.address, each.size_bytes) for each in layout] == [(LOW, 2 * PAGE), (HIGH, PAGE)]
    assert [core.page(source, layout, frame) for frame in (256, 2, 1)] == [page_of(3), page_of(2), page_of(1)]


@pytest.mark.parametrize("frame", (0, 3, 255, 257))
def test_core_refuses_frames_between_segments(frame: int) -> None:
    source = two_runs()
    with pytest.raises(core.CoreError, match=str(frame)):
        core.page(source, core.segments(source), frame)


def test_core_cut_short_is_an_error() -> None:
    whole = two_runs().getvalue()
    source = io.BytesIO(whole[:-1])
    layout = core.segments(source)
    with pytest.raises(core.CoreError, match="256"):
        core.page(source, layout, 256)
    with pytest.raises(core.CoreError, match="headers"):
        core.segments(io.BytesIO(whole[:100]))


@pytest.mark.parametrize("content", (b"", b"\x7fELF", b"\x7fELF\x01\x01" + bytes(100), bytes(100)))
def test_what_is_no_core_is_refused(content: bytes) -> None:
    with pytest.raises(core.CoreError):
        core.segments(io.BytesIO(content))


def test_frames_are_the_bits_that_are_set() -> None:
    assert list(core.frames(bytes((0b1000_0001, 0, 0b0000_0100)))) == [0, 7, 18]


def test_kinds_of_pages() -> None:
    word = b"swaptide"
    almost = word * (PAGE // 8 - 1) + b"swaptidE"
    assert core.is_zero(bytes(PAGE)) and core.is_same_filled(bytes(PAGE))
    assert core.is_same_filled(word * (PAGE // 8)) and not core.is_zero(word * (PAGE // 8))
    assert not core.is_same_filled(almost)
    assert pages.count_kinds(io.BytesIO(bytes(2 * PAGE) + word * (PAGE // 8) + almost)) == (2, 1)


def test_spread_takes_whole_pieces_from_all_over() -> None:
    source = io.BytesIO(b"".join(bytes([number]) * pages.PIECE_BYTES for number in range(8)) + b"rest")
    target = io.BytesIO()
    pages.spread(source, target, 4 * pages.PIECE_BYTES)
    taken = target.getvalue()
    assert len(taken) == 4 * pages.PIECE_BYTES
    assert list(taken[:: pages.PIECE_BYTES]) == [0, 2, 4, 6]


def test_spread_refuses_more_than_there_is() -> None:
    with pytest.raises(ValueError, match="1 MiB of pages, 2 MiB wanted"):
        pages.spread(io.BytesIO(bytes(pages.PIECE_BYTES)), io.BytesIO(), 2 * pages.PIECE_BYTES)


def test_random_pages_have_the_size_and_differ() -> None:
    target = io.BytesIO()
    pages.random(target, 2 * pages.PIECE_BYTES)
    assert len(target.getvalue()) == 2 * pages.PIECE_BYTES
    assert len(distinct(target.getvalue())) == 2 * pages.PIECE_BYTES // PAGE


def test_text_repeats_without_repeating_a_page(tmp_path: pathlib.Path) -> None:
    lines = "".join(f"line {number} of a module\n" for number in range(4000))
    (tmp_path / "b.py").write_text(lines[1000:])
    (tmp_path / "a.py").write_text(lines[:1000])
    (tmp_path / "site-packages").mkdir()
    (tmp_path / "site-packages" / "other.py").write_text("not of the library")
    target = io.BytesIO()
    pages.text(target, pages.PIECE_BYTES, tmp_path)
    made = target.getvalue()
    assert len(made) == pages.PIECE_BYTES
    assert made.startswith(lines.encode()[:50_000])
    assert b"not of the library" not in made
    assert len(distinct(made)) == pages.PIECE_BYTES // PAGE


def test_text_without_sources_is_an_error(tmp_path: pathlib.Path) -> None:
    with pytest.raises(ValueError, match="no sources"):
        pages.text(io.BytesIO(), pages.PIECE_BYTES, tmp_path)


def distinct(made: bytes) -> set[bytes]:
    """The pages that differ."""
    return {made[offset : offset + PAGE] for offset in range(0, len(made), PAGE)}


def zram_line(orig: int, same: int) -> report.Report:
    """What the guest prints for one algorithm."""
    found = report.parse(
        f"GUEST-ZRAM algorithm=lzo-rle orig={orig} compr=300000 used=400000 same={same} huge=3"
        " memfree_kib_before=20480 memfree_kib_after=10240 ms=340"
    )
    assert found is not None and found.kind == "ZRAM"
    return found


@pytest.mark.parametrize(("orig", "same"), ((1 << 20, 0), (1 << 20, 9), ((1 << 20) - 9 * PAGE, 9)))
def test_zram_is_charged_for_its_table(orig: int, same: int) -> None:
    held = rows_memory.held_by_zram(zram_line(orig, same), 1 << 20)
    assert held.host_bytes == 400_000 + 256 * 16
    assert "10.0 MiB" in held.note


@pytest.mark.parametrize("orig", (0, (1 << 20) - PAGE, (1 << 20) + PAGE))
def test_zram_that_holds_another_amount_counts_for_nothing(orig: int) -> None:
    with pytest.raises(measure.ContenderError, match="zram holds"):
        rows_memory.held_by_zram(zram_line(orig, 0), 1 << 20)


def test_sizes_follow_the_plan_and_the_dump() -> None:
    mib = 1 << 20
    full, quick = measure.Plan(5, 1.5, quick=False), measure.Plan(2, 0.5, quick=True)
    assert rows_memory.wanted_bytes(full, 2000 * mib) == 1024 * mib
    assert rows_memory.wanted_bytes(full, 200 * mib + 5000) == 200 * mib
    assert rows_memory.wanted_bytes(quick, 200 * mib) == 64 * mib


def test_the_note_says_what_was_left_out() -> None:
    manifest = {
        "programs": ["perl 5.36.0-7", "redis-server 5:7.0.15-1"],
        "selection": "anonymous pages, all-zero ones left out",
        "zero_pages_left_out": 12,
        "anonymous_pages": 40,
        "guest_memory_mib": 512,
    }
    note = rows_memory.dump_note(manifest)
    assert "all-zero ones left out (12 of 40)" in note and "perl, redis-server" in note


def test_rows_have_distinct_names_of_the_group() -> None:
    assert [row.name for row in rows_memory.ROWS] == ["held-guest", "held-text", "held-random"]
    assert {row.group for row in rows_memory.ROWS} == {"memory"}
