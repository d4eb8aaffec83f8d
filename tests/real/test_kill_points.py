"""A process that dies between any two stores that matter: the next one serves every byte that was promised.

Each named place of the core (points.py) is died at, the first time it is reached and later on, in the
middle of a random load with the cap at its floor, so that every mover works.
"""

import pathlib
import signal
from typing import Any

import nbd
import pytest

from swaptide.cache import geometry
from tests.real import driver, points, server

SIZE = 64 << 20
FLOOR = geometry.of_size(SIZE).working_minimum_bytes
# Room to pack: the buffers of the second client, and some segments.
ROOMY = FLOOR + 16 * geometry.MAX_REQUEST_BYTES + (20 << 20)
COUNTS = (1, 40)
RETRIES = (1,) * 12
LOAD = 3_000


def names() -> list[str]:
    """Checked here, so that a place that was renamed cannot silently drop out."""
    found = points.names()
    assert len(found) == len(set(found)) >= 31
    return found


def some() -> list[Any]:
    """Every other one takes minutes with the rest, and stands beside the long tests."""
    return [
        pytest.param(name, marks=pytest.mark.long) if index % 2 else name
        for index, name in enumerate(names())
    ]


def die_at(disk: server.Server, place: str, count: int) -> None:
    disk.stop(signal.SIGKILL)
    disk.environment = {"SWAPTIDE_DAWDLE": "no", "SWAPTIDE_DIE_AT": f"{place}:{count}"}
    disk.start()


def move_cap(disk: server.Server, number: int) -> None:
    """The cap goes up and down, so that memory is given back as well, and what is in it packed."""
    if number % 3000 in (0, 2600):
        cap = FLOOR if number % 3000 else ROOMY
        with disk.face() as face:
            face.set_limits(cap_bytes=cap, target_bytes=cap)


def dies(disk: server.Server, load: driver.Driver, place: str, count: int) -> bool:
    """Whether the process died, at its start or under the load."""
    # Packing anew comes last of all.
    requests = LOAD * 3 if place.startswith("strengthen") else LOAD
    try:
        die_at(disk, place, count)
        load.resume(disk.uri)
    except (server.Ended, nbd.Error):
        return True
    return load.run_until_dead(requests, lambda number: move_cap(disk, number))


@pytest.mark.parametrize("place", some())
def test_every_byte_survives_a_death(place: str, tmp_path: pathlib.Path) -> None:
    died = 0
    parameters = {"size": str(SIZE), "ram": str(FLOOR), "spill": str(tmp_path / "spill")}
    parameters["compress"] = "lz4+zstd"
    with server.serving(tmp_path, True, points.plugin(), eager=True, **parameters) as disk:
        load = driver.Driver(disk.uri, SIZE, seed=len(place), connections=2)
        # The first time on an empty disk, whose tables still grow.  What a busy machine did not reach in one
        # load it reaches in the next.
        for turn, count in enumerate((*COUNTS, *RETRIES)):
            if turn >= len(COUNTS) and died:
                break
            load.close()
            if dies(disk, load, place, count):
                assert disk.process is not None and disk.process.wait(server.WAIT_SECONDS) == -signal.SIGKILL
                died += 1
                disk.process = None
            else:
                load.close()
                disk.stop(signal.SIGKILL)
            disk.environment = {}
            disk.start()
            load.resume(disk.uri)
            load.check_all()
            load.run(
                1_000, lambda number: move_cap(disk, number)
            )  # more than fits into RAM: next time there is something to lose everywhere
        load.check_all()
        load.close()
        with disk.face() as face:
            assert server.fresh_counters(face)["spill_read_errors"] == 0
    assert died > 0, f"{place} was never reached"
