"""Rooms of a made-up /proc: the host, cgroups of both kinds with their ancestors, and what cannot be read."""

import logging
import pathlib

import pytest

from swaptide.balloon import rooms, samples
from swaptide.cache import cgroup

MIB = 1 << 20
GIB = 1 << 30


class Host:
    """A /proc and two cgroup hierarchies below `root`."""

    def __init__(self, root: pathlib.Path) -> None:
        self.proc, self.v1, self.v2 = root / "proc", root / "v1", root / "v2"
        for directory in (self.proc / "self", self.proc / "pressure", self.v1, self.v2):
            directory.mkdir(parents=True)
        self.meminfo(8 * GIB, 3 * GIB)
        (self.proc / "self/mountinfo").write_text(
            f"35 31 0:32 / {self.v1} rw - cgroup cgroup rw,memory\n"
            f"41 31 0:38 / {self.v2} rw - cgroup2 cgroup2 rw\n"
        )
        self.enter("/", "/")

    def meminfo(self, total: int, available: int) -> None:
        (self.proc / "meminfo").write_text(
            f"MemTotal: {total >> 10} kB\nMemAvailable: {available >> 10} kB\n"
        )

    def enter(self, v1: str, v2: str) -> None:
        (self.proc / "self/cgroup").write_text(f"9:name=systemd:/\n4:memory:{v1}\n0::{v2}\n")

    def group_v1(self, name: str, limit: int, used: int, cached: int = 0) -> pathlib.Path:
        group = self.v1 / name
        group.mkdir(parents=True, exist_ok=True)
        (group / "memory.limit_in_bytes").write_text(f"{limit}\n")
        (group / "memory.usage_in_bytes").write_text(f"{used}\n")
        (group / "memory.stat").write_text(f"total_active_file {cached}\ntotal_inactive_file 0\n")
        return group

    def group_v2(self, name: str, limit: str, used: int, high: str = "max") -> pathlib.Path:
        group = self.v2 / name
        group.mkdir(parents=True, exist_ok=True)
        (group / "memory.max").write_text(f"{limit}\n")
        (group / "memory.high").write_text(f"{high}\n")
        (group / "memory.current").write_text(f"{used}\n")
        (group / "memory.stat").write_text("active_file 0\ninactive_file 0\n")
        return group


@pytest.fixture
def host(tmp_path: pathlib.Path) -> Host:
    return Host(tmp_path)


def read(host: Host) -> tuple[samples.Room, ...]:
    return rooms.Rooms(proc=host.proc).read()


def test_the_host_alone(host: Host) -> None:
    assert read(host) == (samples.Room("host", 3 * GIB, 8 * GIB, 512 * MIB),)


def test_cgroups_of_both_kinds_with_all_ancestors(host: Host) -> None:
    outer = host.group_v1("a", 4 * GIB, 3 * GIB, cached=GIB)
    inner = host.group_v1("a/b", 2 * GIB, GIB)
    slice_ = host.group_v2("s", str(3 * GIB), GIB)
    host.group_v2("s/unlimited", "max", GIB)
    host.enter("/a/b", "/s/unlimited")
    reserve = rooms.CGROUP_RESERVE.of
    assert read(host)[1:] == (
        samples.Room(f"cgroup:{inner}", GIB, 2 * GIB, reserve(2 * GIB)),
        samples.Room(f"cgroup:{outer}", 2 * GIB, 4 * GIB, reserve(4 * GIB)),
        samples.Room(f"cgroup:{slice_}", 2 * GIB, 3 * GIB, reserve(3 * GIB)),
    )


def test_where_allocating_stops_is_a_limit_too(host: Host) -> None:
    group = host.group_v2("s", str(3 * GIB), GIB, high=str(2 * GIB))
    host.enter("/", "/s")
    assert read(host)[1].size_bytes == 2 * GIB
    (group / "memory.high").write_text("max\n")
    assert read(host)[1].size_bytes == 3 * GIB


def test_limits_change_and_processes_are_moved(host: Host) -> None:
    host.group_v1("a", 4 * GIB, GIB)
    host.group_v1("b", GIB, GIB)
    host.enter("/a", "/")
    found = rooms.Rooms(proc=host.proc)
    assert found.read()[1].size_bytes == 4 * GIB
    host.group_v1("a", 2 * GIB, GIB)
    assert [group.limit_bytes for group in found.groups] == [4 * GIB]
    assert found.read()[1].size_bytes == 2 * GIB
    assert [group.limit_bytes for group in found.groups] == [2 * GIB]
    host.enter("/b", "/")
    assert found.read()[1].free_bytes == 0
    host.group_v1("b", 1 << 62, GIB)
    assert len(found.read()) == 1


def test_without_cgroups_only_the_host_counts(host: Host, caplog: pytest.LogCaptureFixture) -> None:
    (host.proc / "self/cgroup").unlink()
    found = rooms.Rooms(proc=host.proc)
    for _ in range(3):
        assert [room.name for room in found.read()] == ["host"]
    assert [record.getMessage().split()[2] for record in caplog.records] == ["what=cgroups"]


@pytest.mark.parametrize("text", [None, "", "MemTotal: 8 kB\n", "MemTotal: x\nMemAvailable: y\n", "\0\0"])
def test_a_host_that_does_not_tell_counts_as_full(
    host: Host, text: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    found = rooms.Rooms(proc=host.proc)
    found.read()
    assert found.host_known
    if text is None:
        (host.proc / "meminfo").unlink()
    else:
        (host.proc / "meminfo").write_text(text)
    for _ in range(3):
        room = found.read()[0]
        assert (room.free_bytes, room.size_bytes) == (0, 8 * GIB)
        assert not found.host_known
    host.meminfo(8 * GIB, GIB)
    caplog.set_level(logging.INFO)
    assert found.read()[0].free_bytes == GIB
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 2 and "floors" in said[0] and "works again what=meminfo" in said[1]


@pytest.mark.parametrize(
    ("name", "text"),
    [("memory.limit_in_bytes", "much"), ("memory.usage_in_bytes", "?"), ("memory.stat", "a b c")],
)
def test_a_cgroup_that_tells_nonsense_counts_as_full(
    host: Host, name: str, text: str, caplog: pytest.LogCaptureFixture
) -> None:
    group = host.group_v1("a", 4 * GIB, GIB)
    host.enter("/a", "/")
    (group / name).write_text(text)
    found = rooms.Rooms(proc=host.proc)
    assert [found.read()[1].free_bytes for _ in range(3)] == [0, 0, 0]
    assert len(caplog.records) == 1 and "counts as full" in caplog.text


def test_a_usage_that_is_gone_counts_as_full(host: Host) -> None:
    group = host.group_v1("a", 4 * GIB, GIB)
    host.enter("/a", "/")
    (group / "memory.usage_in_bytes").unlink()
    assert read(host)[1].free_bytes == 0


@pytest.mark.parametrize(
    ("reserve", "size", "left"),
    [
        (rooms.HOST_RESERVE, 64 * GIB, 64 * GIB * 5 // 100),
        (rooms.HOST_RESERVE, 4 * GIB, 512 * MIB),
        (rooms.HOST_RESERVE, GIB, 256 * MIB),
        (rooms.HOST_RESERVE, 1024 * GIB, 8 * GIB),
        (rooms.CGROUP_RESERVE, 128 * MIB, 32 * MIB),
        (rooms.CGROUP_RESERVE, 10 * GIB, GIB),
        (rooms.Reserve(fixed_bytes=7 * MIB), GIB, 7 * MIB),
        (rooms.Reserve(percent=50), GIB, GIB // 2),
        (rooms.Reserve(percent=0), GIB, 0),
        (rooms.HOST_RESERVE, 0, 0),
    ],
)
def test_how_much_is_left_free(reserve: rooms.Reserve, size: int, left: int) -> None:
    assert reserve.of(size) == left


def test_pressure_is_told_by_the_host_and_by_groups_below_the_root(host: Host) -> None:
    inner = host.group_v2("s/t", "max", 0)
    for group in (host.v2, host.v2 / "s", inner):
        (group / "cgroup.procs").touch()
        (group / "memory.pressure").touch()
    host.enter("/", "/s/t")
    found = rooms.Rooms(proc=host.proc)
    found.read()
    own = [inner / "memory.pressure", host.v2 / "s/memory.pressure"]
    assert found.pressure_files() == [host.proc / "pressure/memory", *own]


def test_the_helpers_of_the_cache_agree(host: Host) -> None:
    group = host.group_v1("a", 4 * GIB, GIB)
    host.enter("/a", "/")
    assert cgroup.own_groups(host.proc / "self")[0] == group
    assert cgroup.Headroom(host.proc / "self").bytes() == 3 * GIB
    assert (cgroup.limit_bytes(group), cgroup.usage_bytes(group)) == (4 * GIB, GIB)
