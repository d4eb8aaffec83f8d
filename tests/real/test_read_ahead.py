"""Read-ahead: it follows the log, leaves random reads alone, and stops where it does not pay."""

import contextlib
import pathlib
import random
from collections.abc import Iterator

import nbd

from swaptide.cache import geometry, layout
from tests.real import server

MIB = 1 << 20
PAGE = 4096
SIZE = 128 * MIB
PAGES = SIZE // PAGE
FLOOR = geometry.of_size(SIZE).working_minimum_bytes
READS = 4000


def content(page: int) -> bytes:
    """What a page has in it, and no other."""
    return random.Random(page).randbytes(PAGE)


@contextlib.contextmanager
def spilled(directory: pathlib.Path) -> Iterator[tuple[server.Server, "nbd.NBD"]]:
    """A disk that was written in order, nearly all of it on its store."""
    with server.serving(directory, size=str(SIZE), ram=str(2 * SIZE), compress="none") as disk:
        handle = nbd.NBD()
        handle.connect_uri(disk.uri)
        for at in range(0, PAGES, 64):
            handle.pwrite(b"".join(content(page) for page in range(at, at + 64)), at * PAGE)
        with disk.face() as face:
            face.set_limits(target_bytes=FLOOR)
            server.wait_until_holds(face, FLOOR)
        yield disk, handle
        handle.shutdown()


def read(handle: "nbd.NBD", pages: list[int]) -> None:
    """One after the other; each has to be right."""
    for page in pages:
        assert handle.pread(PAGE, page * PAGE) == content(page)


def counters(disk: server.Server) -> tuple[int, int]:
    """Pages read ahead so far, and how many reads that answered."""
    with disk.face() as face:
        found = server.fresh_counters(face)
    assert {"read_ahead_pages", "read_ahead_hits"} <= set(layout.COUNTERS)
    return found["read_ahead_pages"], found["read_ahead_hits"]


def test_it_follows_who_reads_in_order(tmp_path: pathlib.Path) -> None:
    with spilled(tmp_path) as (disk, handle):
        read(handle, list(range(READS)))
        _, hits = counters(disk)
        assert hits > READS * 3 // 4


def read_in_runs(handle: "nbd.NBD", length: int) -> None:
    """As many pages in order each time, from places that are in no order."""
    starts = random.Random(length).sample(range(0, PAGES - 8, 8), READS // length)
    read(handle, [start + step for start in starts for step in range(length)])


def test_pages_here_and_there_bring_none(tmp_path: pathlib.Path) -> None:
    with spilled(tmp_path) as (disk, handle):
        read_in_runs(handle, 1)
        assert counters(disk) == (0, 0)


def test_it_stops_where_it_does_not_pay(tmp_path: pathlib.Path) -> None:
    """Two in order each time, which only look as if more would come: each would bring two or more."""
    with spilled(tmp_path) as (disk, handle):
        read_in_runs(handle, 2)
        ahead, _ = counters(disk)
        assert 0 < ahead < READS // 4


def test_short_runs_are_worth_it_and_bring_little_beyond_them(tmp_path: pathlib.Path) -> None:
    with spilled(tmp_path) as (disk, handle):
        read_in_runs(handle, 4)
        ahead, hits = counters(disk)
        assert hits > READS // 4 and ahead < 3 * READS


def test_it_comes_back_when_it_pays_again(tmp_path: pathlib.Path) -> None:
    with spilled(tmp_path) as (disk, handle):
        starts = random.Random(3).sample(range(0, PAGES // 2, 8), READS // 8)
        read(handle, [start + step for start in starts for step in range(2)])
        _, before = counters(disk)
        read(handle, list(range(PAGES // 2, PAGES // 2 + 2 * READS)))
        _, after = counters(disk)
        assert after - before > READS
