"""The real plugin in a real nbdkit, driven at random through libnbd, byte for byte against a model."""

import pathlib
import random
import threading
import time

import pytest

from swaptide.cache import geometry, layout
from swaptide.cache.face import StateFace
from tests.real import driver, remotes, server

SIZE = 96 << 20
FLOOR = geometry.of_size(SIZE).working_minimum_bytes
CLIENTS = 3
# The request buffers of the first client are in the base; those of the others count.
LOW = FLOOR + (CLIENTS - 1) * 16 * geometry.MAX_REQUEST_BYTES
LONG = [pytest.mark.long, pytest.mark.timeout(3600)]
# What has to have happened, by the counters.
MOVED = {
    "misses",
    "read_ahead_pages",
    "read_ahead_hits",
    "same_filled_pages",
    "spill_written_bytes",
    "dropped_segments",
    "written_ahead_segments",
    "cleaned_segments",
    "cleaned_disk_segments",
}
AHEAD = {"written_ahead_segments"}
PACKED = {"packed_hits", "pack_tried_pages", "packed_total_pages", "packed_total_bytes"}


def test_random_load_with_plenty_of_ram(tmp_path: pathlib.Path) -> None:
    spill = str(tmp_path / "spill")
    # Nothing is written ahead of need, which an idle disk is used for.
    with server.serving(tmp_path, size=str(SIZE), ram="256M", spill=spill, clean_ahead="0%") as disk:
        load = driver.Driver(disk.uri, SIZE, seed=1)
        load.run(15_000)
        load.check_all()
        load.close()
        with disk.face() as face:
            counters = server.fresh_counters(face)
        assert counters["spill_written_bytes"] == 0
        assert counters["same_filled_pages"] > 0


@pytest.mark.parametrize("requests", [25_000, pytest.param(260_000, marks=LONG)])
@pytest.mark.parametrize(
    ("store", "compress"),
    [*(("file", each) for each in layout.COMPRESS), ("nbd", "none"), ("nbd", "lz4+zstd"), ("pair", "lz4")],
)
def test_random_load_while_the_cap_moves(
    tmp_path: pathlib.Path, store: str, compress: str, requests: int
) -> None:
    """Through all tiers, there and back; the long ones make a million operations in all."""
    seed = layout.COMPRESS.index(compress)
    caps = random.Random(seed)
    with (
        remotes.place(tmp_path, SIZE, store) as spill,
        server.serving(
            tmp_path, eager=True, size=str(SIZE), ram="128M", spill=spill, compress=compress
        ) as disk,
    ):
        with disk.face() as face:

            def move_cap(n: int) -> None:
                if n % 1500 == 1499:
                    # At the lowest there is no room to pack.
                    cap = LOW + caps.choice((0, 0, 20 << 20, 32 << 20, 44 << 20, 96 << 20))
                    face.set_limits(cap_bytes=cap, target_bytes=cap)

            load = driver.Driver(disk.uri, SIZE, seed=seed, connections=CLIENTS)
            load.run(requests, move_cap)
            load.check_all()
            rest(face, load, AHEAD | ({"strengthened_segments"} if compress == "lz4+zstd" else set()))
            face.set_limits(cap_bytes=LOW, target_bytes=LOW)
            server.wait_until_holds(face, LOW)
            load.check_all()
            load.run(2_000)
            load.check_all()
            load.close()
            counters = server.fresh_counters(face)
        assert sum(load.counts.values()) >= requests
        happened = MOVED | (PACKED if compress != "none" else set())
        happened |= {"strengthened_segments"} if compress == "lz4+zstd" else set()
        print({name: counters[name] for name in sorted(happened)})
        assert {name for name in happened if counters[name] == 0} == set()
        assert counters["cleaned_segments"] > counters["cleaned_disk_segments"]
        assert counters["spill_read_errors"] == 0
        if compress == "none":
            assert {name for name in PACKED if counters[name]} == set()


def rest(face: StateFace, load: driver.Driver, wanted: set[str]) -> None:
    """Leave room, and pause now and then, until all of that is done ahead of need and some may be dropped."""
    face.set_limits(cap_bytes=LOW + (60 << 20), target_bytes=LOW + (60 << 20))
    for _ in range(60):
        load.run(300)
        time.sleep(0.3)
        counters = server.fresh_counters(face)
        if all(counters[name] for name in wanted) and counters["clean_bytes"]:
            return
    raise TimeoutError(f"not all of {wanted} is done ahead: {counters}")


@pytest.mark.parametrize("compress", ["none", "lz4+zstd"])
def test_random_load_with_freezes_while_the_cap_moves(tmp_path: pathlib.Path, compress: str) -> None:
    """Each time that the disk is to stand still it does, and the load goes on after it."""
    caps, spill = random.Random(9), tmp_path / "spill"
    with (
        server.serving(
            tmp_path, eager=True, size=str(SIZE), ram="128M", spill=str(spill), compress=compress
        ) as disk,
        disk.face() as face,
    ):

        def move_cap(n: int) -> None:
            if n % 1000 == 999:
                cap = LOW + caps.choice((0, 20 << 20, 44 << 20, 96 << 20))
                face.set_limits(cap_bytes=cap, target_bytes=cap)

        load = driver.Driver(disk.uri, SIZE, seed=21, connections=CLIENTS)
        with Freezer(disk, spill) as freezer:
            load.run(12_000, move_cap)
            for _ in range(60):  # an idle host is done with these before it was frozen often
                if freezer.freezes > 5:
                    break
                load.run(2_000, move_cap)
        load.check_all()
        load.close()
        assert freezer.moved == 0 and freezer.freezes > 5
        counters = server.fresh_counters(face)
        assert counters["frozen_waits"] > freezer.freezes // 2 and counters["misses"] > 0
        assert counters["spill_read_errors"] == 0


class Freezer:
    """Has a disk stand still now and then; `moved` is how often it did not."""

    def __init__(self, disk: server.Server, spill: pathlib.Path) -> None:
        self._disk = disk
        self._spill = spill
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._turn)
        self.freezes = 0
        self.moved = 0

    def __enter__(self) -> "Freezer":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _turn(self) -> None:
        chooser = random.Random(4)
        with self._disk.face() as face:
            while not self._done.wait(chooser.random() * 0.3):
                server.freeze(face)
                before = self._standing(face)
                time.sleep(chooser.random() * 0.05)
                self.moved += self._standing(face) != before
                server.thaw(face)
                self.freezes += 1

    def _standing(self, face: StateFace) -> tuple[bytes, int, int]:
        """What may not change: where each page lies, memory, the spill file."""
        shape = geometry.of_size(SIZE)
        assert self._disk.state is not None
        with open(self._disk.state, "rb") as file:
            file.seek(shape.page_table_offset)
            table = file.read(shape.tables_end - shape.page_table_offset)
        return table, face.state_blocks_bytes(), self._spill.stat().st_mtime_ns


def test_state_is_taken_over_after_a_clean_end_and_after_a_kill(tmp_path: pathlib.Path) -> None:
    import signal

    with server.serving(
        tmp_path, size=str(SIZE), ram=str(FLOOR + (16 << 20)), spill=str(tmp_path / "spill")
    ) as disk:
        load = driver.Driver(disk.uri, SIZE, seed=4, connections=1)
        for how in (signal.SIGTERM, signal.SIGKILL):
            load.run(4_000)
            load.close()
            disk.stop(how)
            disk.start()
            model, counts = load.model, load.counts
            load = driver.Driver(disk.uri, SIZE, seed=5, connections=1)
            load.model, load.counts = model, counts
            load.check_all()
        load.close()
