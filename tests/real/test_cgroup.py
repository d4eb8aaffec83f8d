"""Inside a memory cgroup that is smaller than the cap: no OOM kill, no wrong byte."""

import contextlib
import os
import pathlib
from collections.abc import Iterator

import pytest

from tests.real import driver, server, test_cap

V1 = pathlib.Path("/sys/fs/cgroup/memory")
SIZE = 128 << 20


@contextlib.contextmanager
def limited(limit_bytes: int) -> Iterator[pathlib.Path]:
    """A v1 memory cgroup of our own."""
    group = V1 / f"swaptide-test-{os.getpid()}"
    try:
        group.mkdir()
        (group / "memory.limit_in_bytes").write_text(str(limit_bytes))
    except OSError as error:
        pytest.skip(f"no writable v1 memory cgroup: {error}")
    try:
        yield group
    finally:
        group.rmdir()


def oom_kills(group: pathlib.Path) -> int:
    """Processes that the kernel killed in this cgroup."""
    lines = (group / "memory.oom_control").read_text().splitlines()
    return int(dict(line.split() for line in lines)["oom_kill"])


def test_a_cgroup_smaller_than_the_cap_is_respected(tmp_path: pathlib.Path) -> None:
    with limited(128 << 20) as group:
        before = (V1 / "cgroup.procs", group / "cgroup.procs")
        before[1].write_text(str(os.getpid()))  # nbdkit inherits it
        try:
            running = server.serving(tmp_path, size=str(SIZE), ram="512M", spill=str(tmp_path / "spill"))
            disk = running.__enter__()
        finally:
            before[0].write_text(str(os.getpid()))
        try:
            test_cap.fill(disk.uri, SIZE)
            load = driver.Driver(disk.uri, SIZE, seed=21, connections=1)
            load.model[:] = test_cap.read_all(disk.uri)
            load.run(5_000)
            load.check_all()
            load.close()
            with disk.face() as face:
                counters = server.fresh_counters(face)
            assert counters["spill_written_bytes"] > 0
            assert oom_kills(group) == 0
        finally:
            running.__exit__(None, None, None)
