"""A disk whose spill server is another disk of ours, which has spare RAM for it."""

import pathlib
import signal
import time

import nbd

from swaptide.cache import geometry
from tests.real import driver, server

SIZE = 64 << 20
SHAPE = geometry.of_size(SIZE)
RAM = SHAPE.working_minimum_bytes + (16 << 20)
# The next disk holds the header and every slot of the first one's.
NEXT_SIZE = -(-SHAPE.spill_bytes // 4096) * 4096


def test_two_of_ours_in_a_row(tmp_path: pathlib.Path) -> None:
    near, far = tmp_path / "near", tmp_path / "far"
    near.mkdir()
    far.mkdir()
    with (
        server.serving(
            far, True, size=str(NEXT_SIZE), ram="48M", spill=str(far / "spill"), compress="none"
        ) as store,
        server.serving(near, True, size=str(SIZE), ram=str(RAM), spill=store.uri, compress="lz4") as disk,
        store.face() as beyond,
        disk.face() as face,
    ):
        load = driver.Driver(disk.uri, SIZE, seed=11)
        load.run(4_000)
        load.check_all()
        # Either may die, and both.
        store.stop(signal.SIGKILL)
        store.start()
        load.run(2_000)
        load.check_all()
        load.close()
        disk.stop(signal.SIGKILL)
        store.stop(signal.SIGKILL)
        store.start()
        disk.start()
        model = load.model
        load = driver.Driver(disk.uri, SIZE, seed=12)
        load.model = model
        load.check_all()
        load.run(2_000)
        load.check_all()
        load.close()
        counters, further = server.fresh_counters(face), server.fresh_counters(beyond)
        assert counters["misses"] > 0 and counters["spill_read_errors"] == 0
        assert further["spill_written_bytes"] > 0
        # What the first one needs no more the second one forgets.
        handle = nbd.NBD()
        handle.connect_uri(disk.uri)
        handle.trim(SIZE, 0)
        handle.shutdown()
        deadline = time.monotonic() + 60
        while server.fresh_counters(beyond)["stored_pages"] * 4096 > 24 << 20:
            assert time.monotonic() < deadline, "the second disk forgets nothing"
            time.sleep(0.05)
        # The first one leaves before its store does, which would wait for it.
        disk.stop()
