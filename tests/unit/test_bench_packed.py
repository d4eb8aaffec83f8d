"""The rows of packed pages, of metadata and of the squeeze: what is computed from counters."""

import pathlib

import pytest

from bench import fio, held, measure, rows_cost, rows_memory, rows_packed, rows_reclaim, servers, squeezing
from swaptide.cache import geometry

MIB = 1 << 20


def counters(**changed: int) -> dict[str, int]:
    names = ("packed_hits", "hits", "misses", "spilled_bytes", "packed_bytes", "packed_pages")
    return {**dict.fromkeys(names, 0), **changed}


def test_steps_are_a_share_and_at_least_a_segment() -> None:
    assert squeezing.lower(1024 * MIB) == 1016 * MIB
    assert squeezing.lower(64 * MIB) == 62 * MIB


def test_a_stray_segment_is_not_the_edge() -> None:
    few, many = counters(stored_pages=1000, spilled_bytes=10 * 4096), counters(stored_pages=1000)
    many["spilled_bytes"] = 11 * 4096
    assert squeezing.is_in_ram(few) and not squeezing.is_in_ram(many)


def test_strays_are_not_held() -> None:
    taken = held.Held(host_bytes=90, whole_bytes=180, note="", strays_bytes=20)
    assert rows_memory.per_byte(taken, 200, whole=False) == 2.0
    assert rows_memory.per_byte(taken, 200, whole=True) == 1.0


def test_reads_count_only_if_what_they_read_was_packed() -> None:
    empty = counters()
    assert rows_packed.unpacked(empty, counters(packed_hits=99, hits=100)) is None
    assert rows_packed.unpacked(empty, counters(packed_hits=97, hits=100)) is not None
    assert rows_packed.unpacked(empty, counters(packed_hits=50, hits=50, misses=50)) is not None
    assert rows_packed.unpacked(empty, empty) is not None
    assert rows_packed.unpacked({}, {}) is None  # ours is out, and its own reason is told


def test_what_is_read_is_of_what_is_packed() -> None:
    assert rows_packed.READ_SHARE < rows_packed.PACKED_SHARE
    assert rows_packed.read_bytes(512 * MIB) == 384 * MIB
    names = [each.name for each in rows_packed.contenders(MIB)]
    assert len(set(names)) == len(names) and measure.OURS in names


def test_data_that_packs_does_so_in_each_page() -> None:
    options = fio._options(fio.Pattern("write", 128 << 10, 8, 60), MIB)
    assert {"--buffer_compress_percentage=60", "--buffer_compress_chunk=4096"} <= set(options)
    assert "--scramble_buffers=1" not in options


def test_random_data_is_made_once() -> None:
    assert "--scramble_buffers=1" in fio._options(fio.Pattern("write", 4096, 1), MIB)


def test_metadata_is_all_but_the_slots() -> None:
    state = 10 * geometry.SEGMENT_BYTES + 9000
    found = rows_cost.cost(
        counters(stored_pages=1000, spilled_bytes=0, ram_slots_used=10), state, process_bytes=1000
    )
    assert (found.tables, found.reverse_maps, found.arrays) == (9000, 4000, 1000)
    assert found.per_page == 14.0
    assert found.told == "tables 9.00, reverse maps 4.00, arrays 1.00"


def test_spilled_pages_have_no_reverse_map_in_ram() -> None:
    spilled = counters(stored_pages=1000, spilled_bytes=400 * 4096, ram_slots_used=0)
    assert rows_cost.cost(spilled, 9000, 0).reverse_maps == 2400


def test_a_disk_without_pages_has_no_cost_for_each() -> None:
    with pytest.raises(measure.ContenderError, match="no page"):
        rows_cost.cost(counters(stored_pages=0, ram_slots_used=0), 9000, 0)


def test_arrays_are_those_of_the_core() -> None:
    core = pathlib.Path(__file__).parents[2] / "cache"
    sizes = {"n": 0, "map.ram_slots": 0, "slots": 0}
    rooms = ("segments.pyx", "agelists.pyx", "ramslots.pyx", "slots.pyx")
    for line in "".join((core / name).read_text() for name in rooms).splitlines():
        if "> calloc(" in line:
            count, size = line.partition("calloc(")[2].rstrip(")").split(", ")
            sizes[count] += int(size)
    assert tuple(sizes.values()) == rows_cost.ARRAYS_BYTES


def test_private_memory_counts_from_where_it_was_empty_and_the_state_file_from_nothing() -> None:
    empty, full = held.Taken(30, 4, 0), held.Taken(33, 104, 50)
    assert full.beyond(empty) == 3 + 104 + 50
    assert full.whole_bytes == 187


def test_zstd_is_compared_with_zstd() -> None:
    taken = [held.Held(50, 100, "")]
    names = ("swaptide", "swaptide again", "swaptide, zstd", "swaptide, zstd again")
    others = ("nbdkit file", "nbdkit memory zstd", "zram lz4 (in guest)", "zram zstd (in guest)")
    found = rows_memory.measurements("guest", "pages", 200, dict.fromkeys((*names, *others), taken), {}, ())
    by_metric = {each.metric: each for each in found}
    quick, strong = by_metric["guest bytes held"], by_metric["guest bytes held, zstd"]
    assert quick.reference == ("zram lz4 (in guest)",) and set(quick.values) == {*names, *others}
    assert strong.reference == ("zram zstd (in guest)",)
    assert set(strong.values) == {*names[:2], "nbdkit memory zstd", "zram zstd (in guest)"}
    assert quick.values[measure.OURS] == [4.0]
    assert by_metric["guest bytes held, whole process"].values[measure.OURS] == [2.0]


def test_ours_has_what_zstd_took_in_the_comparison_with_zstd() -> None:
    by_name = {"swaptide": 1, "swaptide, zstd": 2, "swaptide, zstd again": 3, "zram zstd (in guest)": 4}
    assert rows_memory.ours_is("swaptide, zstd", by_name) == {
        "swaptide": 2,
        "swaptide again": 3,
        "zram zstd (in guest)": 4,
    }


def test_half_clean_is_half_of_the_disk() -> None:
    sizes = rows_reclaim.Sizes(2048 * MIB, 256 * MIB, 64 * MIB)
    assert 0.49 < sizes.cap * sizes.half_percent / 100 / sizes.disk <= 0.5
    half, nothing = rows_reclaim.Kind("half", True), rows_reclaim.Kind("none", False)
    assert half.tuning(sizes).clean_ahead_percent == sizes.half_percent
    assert nothing.tuning(sizes).clean_ahead_percent == 0
    assert half.title("squeeze", sizes) == "squeeze: cap 2048 to 256 MiB, half of it clean"


def test_parameters_of_ours() -> None:
    assert servers.USUAL.arguments() == ("encrypt=yes",)
    tuned = servers.Tuning(encrypt=False, compress="zstd", clean_ahead_percent=0)
    assert tuned.arguments() == ("encrypt=no", "compress=zstd", "clean-ahead=0%")
