"""Ages of a real disk: each page that is read is counted once, as old as it is, through kills and all."""

import contextlib
import pathlib
import random
import signal
import time
from collections.abc import Iterator

import nbd

from swaptide.cache import ages, geometry
from swaptide.cache.face import StateFace
from tests.real import server

PAGE = 4096
MIB = 1 << 20
SIZE = 64 * MIB
FLOOR = geometry.of_size(SIZE).working_minimum_bytes
NOISE = random.Random(3).randbytes(MIB + PAGE)


@contextlib.contextmanager
def client_of(disk: server.Server) -> Iterator[nbd.NBD]:
    handle = nbd.NBD()
    handle.connect_uri(disk.uri)
    yield handle
    handle.shutdown()


def write(handle: nbd.NBD, start: int, count: int, version: int = 0) -> None:
    """Write pages that share nothing, from page `start` on."""
    for page in range(start, start + count, 256):
        data = bytearray(NOISE[page % PAGE :][: min(256, start + count - page) * PAGE])
        for at in range(0, len(data), PAGE):
            data[at : at + 16] = (page + at // PAGE).to_bytes(8, "little") + version.to_bytes(8, "little")
        handle.pwrite(bytes(data), page * PAGE)


def read(handle: nbd.NBD, start: int, count: int, at_once: int = 8) -> None:
    """Read pages in requests of so many."""
    for page in range(start, start + count, at_once):
        handle.pread(at_once * PAGE, page * PAGE)


def gained(face: StateFace, before: ages.Ages) -> dict[int, int]:
    """Pages read since, by bucket."""
    pairs = enumerate(zip(before.reads, face.ages().reads, strict=True))
    return {bucket: now - then for bucket, (then, now) in pairs if now != then}


def test_hot_pages_are_young_and_cold_ones_old(tmp_path: pathlib.Path) -> None:
    with (
        server.serving(tmp_path, size=str(SIZE), ram="128M", compress="none") as disk,
        disk.face() as face,
        client_of(disk) as handle,
    ):
        write(handle, 0, 12 * 256)
        handle.pwrite(bytes(MIB), 60 * MIB)
        for version in range(1, 5):
            write(handle, 12 * 256, 4 * 256, version)
        before = face.ages()
        read(handle, 12 * 256, 4 * 256)
        hot = gained(face, before)
        assert sum(hot.values()) == 4 * 256
        before = face.ages()
        read(handle, 0, 12 * 256, 1)
        cold = gained(face, before)
        assert sum(cold.values()) == 12 * 256
        assert max(hot) < min(cold)
        before = face.ages()
        read(handle, 60 * 256, 256)  # one repeated word
        read(handle, 62 * 256, 256)  # never written
        assert gained(face, before) == {}
        wanted = 16 * MIB
        end = time.monotonic() + server.WAIT_SECONDS
        while sum(face.ages().live_bytes) != wanted and time.monotonic() < end:
            time.sleep(0.05)
        # Each mebibyte that was read lives, as old as it was read.
        assert sum(face.ages().live_bytes) == wanted
        assert sum(face.ages().live_bytes[bucket] for bucket in hot) == 4 * MIB


def test_on_disk_and_after_a_kill(tmp_path: pathlib.Path) -> None:
    with server.serving(tmp_path, size=str(SIZE), ram="128M") as disk, disk.face() as face:
        with client_of(disk) as handle:
            write(handle, 0, SIZE // PAGE)
            face.set_limits(cap_bytes=FLOOR, target_bytes=FLOOR)
            server.wait_until_holds(face, FLOOR)
            before, counters = face.ages(), server.fresh_counters(face)
            read(handle, 0, SIZE // PAGE, 256)
            misses = server.fresh_counters(face)["misses"] - counters["misses"]
            assert misses > SIZE // PAGE // 2
            assert sum(gained(face, before).values()) == SIZE // PAGE
        before = face.ages()
        disk.stop(signal.SIGKILL)
        assert face.ages().reads == before.reads
        disk.start()
        end = time.monotonic() + server.WAIT_SECONDS
        while sum(face.ages().live_bytes) != SIZE and time.monotonic() < end:
            time.sleep(0.05)
        assert sum(face.ages().live_bytes) == SIZE
        with client_of(disk) as handle:
            read(handle, 0, 2048)
        assert sum(gained(face, before).values()) == 2048


def test_a_small_read_that_has_to_wait_in_the_middle_is_counted_once(tmp_path: pathlib.Path) -> None:
    """Its first page is in RAM and is copied at once, its second one on disk."""
    with (
        server.serving(tmp_path, size=str(SIZE), ram="128M") as disk,
        disk.face() as face,
        client_of(disk) as handle,
    ):
        write(handle, 0, 40 * 256)
        face.set_limits(cap_bytes=FLOOR, target_bytes=FLOOR)
        server.wait_until_holds(face, FLOOR)
        # With some room nothing of what is written now has to go, however long this takes.
        face.set_limits(cap_bytes=FLOOR + 16 * MIB, target_bytes=FLOOR + 16 * MIB)
        server.fresh_counters(face)
        for page in range(0, 200, 2):
            write(handle, page, 1, 1)
        before, counters = face.ages(), server.fresh_counters(face)
        for page in range(0, 200, 2):
            data = handle.pread(2 * PAGE, page * PAGE)
            assert data[:16] == page.to_bytes(8, "little") + (1).to_bytes(8, "little")
            assert data[PAGE : PAGE + 16] == (page + 1).to_bytes(8, "little") + bytes(8)
        now = server.fresh_counters(face)
        assert now["misses"] - counters["misses"] == 100
        assert now["hits"] - counters["hits"] == 100
        assert sum(gained(face, before).values()) == 200
        assert now["reads"] - counters["reads"] == 100
