"""The real plugin in a real nbdkit, driven at random through libnbd, byte for byte against a model."""

import pathlib
import random
import time

import pytest

from swaptide.cache import geometry, layout
from swaptide.cache.face import StateFace
from tests.real import driver, server

SIZE = 96 << 20
FLOOR = geometry.of_size(SIZE).working_minimum_bytes
CLIENTS = 3
# The request buffers of the first client are in the base; those of the others count.
LOW = FLOOR + (CLIENTS - 1) * 16 * geometry.MAX_REQUEST_BYTES
LONG = [pytest.mark.long, pytest.mark.timeout(3600)]
# What has to have happened, by the counters.
MOVED = {
    "misses",
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
    with server.serving(tmp_path, size=str(SIZE), ram="256M", spill=str(tmp_path / "spill")) as disk:
        load = driver.Driver(disk.uri, SIZE, seed=1)
        load.run(15_000)
        load.check_all()
        load.close()
        with disk.face() as face:
            counters = server.fresh_counters(face)
        assert counters["spill_written_bytes"] == 0
        assert counters["same_filled_pages"] > 0


@pytest.mark.parametrize("requests", [25_000, pytest.param(260_000, marks=LONG)])
@pytest.mark.parametrize("compress", layout.COMPRESS)
def test_random_load_while_the_cap_moves(tmp_path: pathlib.Path, compress: str, requests: int) -> None:
    """Through all tiers, there and back; the long ones make a million operations in all."""
    seed = layout.COMPRESS.index(compress)
    caps = random.Random(seed)
    spill = str(tmp_path / "spill")
    with server.serving(
        tmp_path, eager=True, size=str(SIZE), ram="128M", spill=spill, compress=compress
    ) as disk:
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
        assert {name for name in happened if counters[name] == 0} == set()
        assert counters["cleaned_segments"] > counters["cleaned_disk_segments"]
        assert counters["spill_read_errors"] == 0
        if compress == "none":
            assert {name for name in PACKED if counters[name]} == set()


def rest(face: StateFace, load: driver.Driver, wanted: set[str]) -> None:
    """Leave room, and pause now and then, until all of that was done ahead of need."""
    face.set_limits(cap_bytes=LOW + (60 << 20), target_bytes=LOW + (60 << 20))
    for _ in range(60):
        load.run(300)
        time.sleep(0.3)
        counters = server.fresh_counters(face)
        if all(counters[name] for name in wanted):
            return
    raise TimeoutError(f"not all of {wanted} is done ahead: {counters}")


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
