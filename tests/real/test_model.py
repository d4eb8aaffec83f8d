"""The real plugin in a real nbdkit, driven at random through libnbd, byte for byte against a model."""

import pathlib
import random

import pytest

from swaptide.cache import geometry
from tests.real import driver, server

SIZE = 96 << 20
FLOOR = geometry.of_size(SIZE).working_minimum_bytes


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


@pytest.mark.parametrize("seed", [2, 3])
def test_random_load_while_the_cap_moves(tmp_path: pathlib.Path, seed: int) -> None:
    caps = random.Random(seed)
    with server.serving(tmp_path, size=str(SIZE), ram="128M", spill=str(tmp_path / "spill")) as disk:
        with disk.face() as face:

            def move_cap(n: int) -> None:
                if n % 1500 == 1499:
                    cap = caps.choice((FLOOR, FLOOR, 32 << 20, 64 << 20, 128 << 20))
                    face.set_limits(cap_bytes=cap, target_bytes=cap)

            load = driver.Driver(disk.uri, SIZE, seed=seed, connections=3)
            load.run(25_000, move_cap)
            load.check_all()
            load.close()
            counters = server.fresh_counters(face)
        assert counters["spill_written_bytes"] > 0
        assert counters["misses"] > 0
        assert counters["cleaned_segments"] > 0
        assert counters["spill_read_errors"] == 0


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
