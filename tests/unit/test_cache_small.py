"""The small pure parts of the cache: geometry, words, swap label, memory meter, cgroup headroom."""

import pathlib
import re
import struct

import pytest

from swaptide.cache import cgroup, geometry, layout, memory, spillfile, swaplabel
from swaptide.cache.errors import UsageError

ROOT = pathlib.Path(__file__).parents[2]


def words_of(section: str) -> list[str]:
    """Names in the order of the compiled core's declaration."""
    text = (ROOT / "cache" / "words.pxd").read_text()
    control, counters = re.findall(r"cdef enum:\n((?:    [A-Z_]+\n)+)", text)
    return [line.strip().lower() for line in (control if section == "control" else counters).splitlines()]


def test_python_and_the_compiled_core_have_the_same_words() -> None:
    control = ["control_" + name.removesuffix("_bytes") for name in layout.CONTROL]
    assert words_of("control") == [*control, "control_words"]
    counters = [{"target_seen_bytes": "target_seen"}.get(name, name) for name in layout.COUNTERS]
    assert words_of("counters") == [*counters, "counter_words"]


def test_header_pages_have_room_for_their_words() -> None:
    assert layout.IDENTITY.size <= geometry.CONTROL_OFFSET
    assert len(layout.CONTROL) * 8 <= geometry.COUNTERS_OFFSET - geometry.CONTROL_OFFSET
    assert len(layout.COUNTERS) * 8 <= geometry.DIRECTORY_OFFSET - geometry.COUNTERS_OFFSET


@pytest.mark.parametrize("size", [4096, 1 << 20, 64 << 20, 1 << 30, 2 << 30, 1 << 40, 16 << 40])
def test_geometry_holds_every_page_and_the_slack(size: int) -> None:
    shape = geometry.of_size(size)
    assert shape.pages * 4096 == size
    needed = -(-shape.pages // geometry.PIECES_PER_SEGMENT)
    assert shape.disk_slots >= needed * 9 // 8 + 16
    assert shape.segments >= shape.disk_slots + shape.ram_slots
    assert shape.directory_bytes >= (shape.tables_end - shape.segment_table_offset) // 4096
    assert shape.segment_table_offset % 4096 == 0 and shape.page_table_offset % 4096 == 0
    assert shape.pool_offset % geometry.SEGMENT_BYTES == 0 and shape.pool_offset >= shape.tables_end


def test_floor_of_disks_up_to_2_gib_is_at_most_24_mib() -> None:
    for size in range(1 << 26, (2 << 30) + 1, 1 << 26):
        assert geometry.of_size(size).working_minimum_bytes <= 24 << 20


@pytest.mark.parametrize("size", [0, -4096, 1, 4097, (16 << 40) + 4096])
def test_impossible_sizes_are_refused(size: int) -> None:
    with pytest.raises(ValueError):
        geometry.of_size(size)


def test_an_image_has_room_for_pieces_tags_and_reverse_map() -> None:
    assert geometry.PIECES_PER_SEGMENT * (geometry.PAGE_BYTES + 4) <= geometry.CONTENT_BYTES
    image = geometry.CHUNKS_PER_SEGMENT * (geometry.PAGE_BYTES + geometry.TAG_BYTES)
    assert image + 24 <= geometry.SEGMENT_BYTES


def test_swap_label_page() -> None:
    page = swaplabel.header(1 << 30, "tide")
    assert len(page) == 4096 and page.endswith(b"SWAPSPACE2")
    assert struct.unpack_from("<II", page, 1024) == (1, (1 << 18) - 1)
    with pytest.raises(UsageError):
        swaplabel.header(1 << 30, "x" * 17)


def proc_of(where: pathlib.Path, anonymous_kib: int) -> pathlib.Path:
    """A made-up /proc/self: the state file and pages of programs must not count; RssAnon is a little off."""
    where.mkdir(exist_ok=True)
    (where / "status").write_text(f"Name:\tx\nRssAnon:\t{anonymous_kib + 100} kB\nRssFile:\t900 kB\n")
    rollup = "1000-9000 ---p 00000000 00:00 0 [rollup]\nPrivate_Clean: 700 kB\nPrivate_Dirty: 5300 kB\n"
    (where / "smaps_rollup").write_text(f"{rollup}Anonymous: {anonymous_kib} kB\nAnonHugePages: 0 kB\n")
    return where


def test_private_memory_leaves_the_state_file_out(tmp_path: pathlib.Path) -> None:
    meter = memory.Meter(proc_of(tmp_path / "p", 300))
    assert meter.start_bytes == 300 * 1024
    proc_of(tmp_path / "p", 1300)
    assert meter.now_bytes() == 1300 * 1024


def group_of(where: pathlib.Path, limit: str, used: int, cache: int) -> None:
    """A made-up v1 memory cgroup."""
    where.mkdir(parents=True, exist_ok=True)
    (where / "memory.limit_in_bytes").write_text(limit)
    (where / "memory.usage_in_bytes").write_text(str(used))
    (where / "memory.stat").write_text(f"active_file 1\ntotal_active_file {cache}\ntotal_inactive_file 0\n")


def test_headroom_is_the_least_of_all_ancestors(tmp_path: pathlib.Path) -> None:
    mount = tmp_path / "memory"
    group_of(mount, str(1 << 63), 0, 0)
    group_of(mount / "a", "1000", 900, 50)
    group_of(mount / "a" / "b", "800", 100, 0)
    proc = tmp_path / "proc"
    proc.mkdir()
    (proc / "cgroup").write_text("5:memory:/a/b\n0::/\n")
    (proc / "mountinfo").write_text(f"1 1 0:1 / {mount} rw - cgroup cgroup rw,memory\n")
    assert cgroup.Headroom(proc).bytes() == 150
    (mount / "a" / "memory.limit_in_bytes").write_text(str(1 << 63))
    assert cgroup.Headroom(proc).bytes() == 700


def test_blank_and_foreign_spill_headers(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"")
    assert spillfile.read_header(path) is None
    path.write_bytes(b"tidespil" + bytes(4096))
    header = spillfile.read_header(path)
    assert header is not None and header.state_path == ""
