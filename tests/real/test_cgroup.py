"""Inside a memory cgroup that is smaller than the cap: no OOM kill, no wrong byte."""

import contextlib
import errno
import os
import pathlib
import random
import subprocess
import sys
from collections.abc import Iterator

import pytest

from swaptide.cache import geometry
from tests.real import daemons, driver, server, test_cap

V1 = pathlib.Path("/sys/fs/cgroup/memory")
SIZE = 128 << 20
FLOOR = geometry.of_size(SIZE).working_minimum_bytes
# Takes its megabytes one by one, says so, and holds them until its input ends.
HOLDER = """
import sys, time
held = []
for _ in range(int(sys.argv[1])):
    held.append(b"x" * (1 << 20))
    time.sleep(0.1)
print(len(held), flush=True)
sys.stdin.read()
"""


@contextlib.contextmanager
def limited(limit_bytes: int, name: str | None = None) -> Iterator[pathlib.Path]:
    """A v1 memory cgroup of our own."""
    group = V1 / (name or f"swaptide-test-{os.getpid()}")
    try:
        group.mkdir()
        (group / "memory.limit_in_bytes").write_text(str(limit_bytes))
    except OSError as error:
        pytest.skip(f"no writable v1 memory cgroup: {error}")
    try:
        yield group
    finally:
        daemons.wait_for(lambda: _is_removed(group))


def _is_removed(group: pathlib.Path) -> bool:
    """Who has just ended is in a group for a moment longer."""
    try:
        group.rmdir()
    except OSError as error:
        if error.errno != errno.EBUSY:
            raise
        return False
    return True


@contextlib.contextmanager
def entered(group: pathlib.Path) -> Iterator[None]:
    """What is started meanwhile is born in the group."""
    (group / "cgroup.procs").write_text(str(os.getpid()))
    try:
        yield
    finally:
        (V1 / "cgroup.procs").write_text(str(os.getpid()))


@contextlib.contextmanager
def confined(directory: pathlib.Path, group: pathlib.Path, ram: str) -> Iterator[server.Server]:
    """A disk served from inside the group; it ends with nobody killed."""
    with contextlib.ExitStack() as stack:
        with entered(group):
            spill = str(directory / "spill")
            disk = stack.enter_context(server.serving(directory, size=str(SIZE), ram=ram, spill=spill))
        yield disk
        assert oom_kills(group) == 0


@contextlib.contextmanager
def neighbour(group: pathlib.Path, mib: int) -> Iterator[None]:
    """Another process in the group that holds `mib` MiB."""
    with entered(group):
        held = subprocess.Popen(
            [sys.executable, "-c", HOLDER, str(mib)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
    try:
        assert held.stdout is not None and int(held.stdout.readline()) == mib
        yield
    finally:
        held.communicate()


def oom_kills(group: pathlib.Path) -> int:
    """Processes that the kernel killed in this cgroup."""
    lines = (group / "memory.oom_control").read_text().splitlines()
    return int(dict(line.split() for line in lines)["oom_kill"])


def loaded(disk: server.Server, seed: int) -> driver.Driver:
    """A load on a disk that was filled already."""
    load = driver.Driver(disk.uri, SIZE, seed=seed, connections=1)
    load.model[:] = test_cap.read_all(disk.uri)
    return load


def test_a_cgroup_smaller_than_the_cap_is_respected(tmp_path: pathlib.Path) -> None:
    with limited(128 << 20) as group, confined(tmp_path, group, "512M") as disk:
        test_cap.fill(disk.uri, SIZE)
        load = loaded(disk, 21)
        load.run(5_000)
        load.check_all()
        load.close()
        with disk.face() as face:
            assert server.fresh_counters(face)["spill_written_bytes"] > 0


def test_squeezes_where_nothing_is_to_spare(tmp_path: pathlib.Path) -> None:
    """The cache has filled the group; then it has to move everything out through what it has."""
    caps = random.Random(5)
    with limited(128 << 20) as group, confined(tmp_path, group, "512M") as disk, disk.face() as face:
        test_cap.fill(disk.uri, SIZE)

        def move_cap(number: int) -> None:
            if number % 500 == 499:
                cap = caps.choice((FLOOR, FLOOR, 48 << 20, 512 << 20))
                face.set_limits(cap_bytes=cap, target_bytes=cap)

        load = loaded(disk, 22)
        load.run(6_000, move_cap)
        face.set_limits(cap_bytes=FLOOR, target_bytes=FLOOR)
        server.wait_until_holds(face, FLOOR)
        load.check_all()
        load.close()


def test_a_neighbour_that_takes_the_room_gets_it(tmp_path: pathlib.Path) -> None:
    with limited(192 << 20) as group, confined(tmp_path, group, "512M") as disk, disk.face() as face:
        test_cap.fill(disk.uri, SIZE)
        load = loaded(disk, 23)
        before = face.ram_bytes()
        with neighbour(group, 48):
            load.run(3_000)
            assert face.ram_bytes() < before
        load.run(1_000)
        load.check_all()
        load.close()
