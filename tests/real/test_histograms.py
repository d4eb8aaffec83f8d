"""Latency and size histograms of a real server: each request counted once, under what happened to it."""

import pathlib
import random
import threading
import time

import nbd

from swaptide.cache import geometry, histogram
from tests.real import server

MIB = 1 << 20
NOISE = random.Random(3).randbytes(2 * MIB)


def fresh_bytes(number: int, count: int) -> bytes:
    """Pages that share nothing with each other or with those of another number."""
    data = bytearray(NOISE[number * 7 % MIB :][:count])
    for page in range(0, count, 4096):
        data[page : page + 16] = number.to_bytes(8, "little") + page.to_bytes(8, "little")
    return bytes(data)


def connected(disk: server.Server) -> nbd.NBD:
    handle = nbd.NBD()
    handle.connect_uri(disk.uri)
    return handle


def size_counts(found: histogram.Histogram) -> dict[int, int]:
    """Requests by the upper bound of their size's bucket."""
    return {histogram.size_bound_bytes(i): n for i, n in enumerate(found.size) if n}


def test_hits_and_writes_by_size(tmp_path: pathlib.Path) -> None:
    with server.serving(tmp_path, size="64M", ram="96M") as disk, disk.face() as face:
        handle = connected(disk)
        handle.pwrite(fresh_bytes(1, MIB), 0)
        for page in range(8):
            handle.pwrite(fresh_bytes(page, 4096), 2 * MIB + page * 4096)
        for count in (512, 4096, 4096, 32768, MIB):
            handle.pread(count, 0)
        handle.pread(4096, 32 * MIB)  # a hole needs nothing from the disk either
        handle.shutdown()
        found = face.histograms()
        assert size_counts(found["write"]) == {MIB: 1, 4096: 8}
        assert size_counts(found["hit"]) == {512: 1, 4096: 3, 32768: 1, MIB: 1}
        assert found["hit"].size_sum_bytes == 512 + 3 * 4096 + 32768 + MIB
        assert found["miss"].count == found["stall"].count == 0
        assert 0 < found["hit"].latency_sum_ns < 60 * 10**9
        assert sum(found["write"].latency) == 9


def test_reads_from_the_disk_are_misses(tmp_path: pathlib.Path) -> None:
    with server.serving(tmp_path, size="64M", ram="96M") as disk, disk.face() as face:
        handle = connected(disk)
        for start in range(0, 64, 1):
            handle.pwrite(fresh_bytes(start, MIB), start * MIB)
        floor = face.limits().floor_bytes
        face.set_limits(cap_bytes=floor, target_bytes=floor)
        server.wait_until_holds(face, floor)
        before = face.histograms()
        counters = server.fresh_counters(face)
        for start in range(0, 64, 4):
            assert handle.pread(MIB, start * MIB) == fresh_bytes(start, MIB)
        handle.shutdown()
        after = face.histograms()
        hits, misses = after["hit"] - before["hit"], after["miss"] - before["miss"]
        assert hits.count + misses.count == 16
        assert misses.count >= 8 and misses.size_sum_bytes == misses.count * MIB
        # Requests here, pages there: whatever is a miss had a page from the disk.
        now = server.fresh_counters(face)
        assert now["misses"] - counters["misses"] >= misses.count


def test_writers_that_wait_at_the_cap_are_stalls(tmp_path: pathlib.Path) -> None:
    floor = geometry.of_size(64 * MIB).working_minimum_bytes
    with server.serving(tmp_path, size="64M", ram=str(floor)) as disk, disk.face() as face:
        stop = threading.Event()

        def write() -> None:
            handle, number = connected(disk), 0
            while not stop.is_set():
                handle.pwrite(fresh_bytes(number, MIB), number % 64 * MIB)
                number += 1
            handle.shutdown()

        thread = threading.Thread(target=write)
        thread.start()
        end = time.monotonic() + server.WAIT_SECONDS
        while not face.histograms()["stall"].count and time.monotonic() < end:
            time.sleep(0.05)
        stop.set()
        thread.join()
        found = face.histograms()
        assert found["stall"].count > 0
        # A stalled write's whole time holds the time that it waited.
        assert found["stall"].count <= found["write"].count
        assert found["stall"].latency_sum_ns <= found["write"].latency_sum_ns
        assert set(size_counts(found["stall"])) == {MIB}
        assert server.fresh_counters(face)["stalls"] == found["stall"].count


def test_histograms_outlive_the_process(tmp_path: pathlib.Path) -> None:
    with server.serving(tmp_path, size="64M", ram="96M") as disk, disk.face() as face:
        handle = connected(disk)
        handle.pwrite(fresh_bytes(1, 4096), 0)
        handle.pread(4096, 0)
        handle.shutdown()
        before = face.histograms()
        disk.stop()
        disk.start()
        assert face.histograms() == before
        handle = connected(disk)
        handle.pread(4096, 0)
        handle.shutdown()
        assert face.histograms()["hit"].count == before["hit"].count + 1
