"""What memory is taken from: the host, and the memory cgroups with a limit that this process lives in.

Owned by the controller's loop.  Every file is read anew each time, since limits change and processes are
moved; what cannot be read counts as full, so that the disks shrink rather than let the host starve.
"""

import dataclasses
import logging
import os
import pathlib

from swaptide.balloon import complaints, samples
from swaptide.cache import cgroup

log = logging.getLogger(__name__)

HOST = "host"
_MIB = 1 << 20
_GIB = 1 << 30


@dataclasses.dataclass(frozen=True)
class Reserve:
    """How much of a room is left free: a share of it within bounds, or exactly `fixed_bytes`.

    A share is never more than a quarter of the room.
    """

    percent: int = 0
    least_bytes: int = 0
    most_bytes: int = 1 << 62
    fixed_bytes: int | None = None

    def of(self, size_bytes: int) -> int:
        """Bytes to leave free in a room of this size."""
        if self.fixed_bytes is not None:
            return self.fixed_bytes
        share = size_bytes * self.percent // 100
        return min(max(share, self.least_bytes), self.most_bytes, max(share, size_bytes // 4))


# Enough for half a second of a quick allocator, before anybody notices, and what the kernel itself keeps
# (its watermarks); 5 % of a large host would be more than that ever takes.
HOST_RESERVE = Reserve(percent=5, least_bytes=512 * _MIB, most_bytes=8 * _GIB)
# A cgroup kills at its limit, where a host still has its page cache to fall back on: relatively more.
CGROUP_RESERVE = Reserve(percent=10, least_bytes=64 * _MIB, most_bytes=2 * _GIB)


@dataclasses.dataclass(frozen=True)
class Group:
    """A memory cgroup with a limit, as it was read last."""

    path: pathlib.Path
    limit_bytes: int
    reserve_bytes: int


class Rooms:
    """The rooms of this host and process.  `groups` are those cgroups that the last `read` found limited."""

    def __init__(
        self,
        host_reserve: Reserve = HOST_RESERVE,
        cgroup_reserve: Reserve = CGROUP_RESERVE,
        proc: pathlib.Path = pathlib.Path("/proc"),
    ) -> None:
        self._host_reserve = host_reserve
        self._cgroup_reserve = cgroup_reserve
        self._proc = proc
        self._complaints = complaints.Complaints(log)
        self._membership: str | None = None
        self._candidates: list[pathlib.Path] = []
        self._size_bytes = 0
        self.groups: tuple[Group, ...] = ()
        self.host_known = False  # whether the last `read` found what the host has

    def pressure_files(self) -> list[pathlib.Path]:
        """Where the pressure of the host and of this process's v2 cgroups is told, as of the last `read`."""
        # The root's is the host's once more.
        inner = [group for group in self._candidates if (group.parent / "cgroup.procs").exists()]
        told = [file for group in inner if (file := group / "memory.pressure").exists()]
        return [self._proc / "pressure/memory", *told]

    def read(self) -> tuple[samples.Room, ...]:
        """The host, always first, and each cgroup with a limit."""
        self._find()
        host = self._host()
        found = [(path, room) for path in self._candidates if (room := self._group(path)) is not None]
        self.groups = tuple(Group(path, room.size_bytes, room.reserve_bytes) for path, room in found)
        return (host, *(room for _, room in found))

    def _host(self) -> samples.Room:
        try:
            free, self._size_bytes = _meminfo(self._proc / "meminfo")
            self.host_known = True
            self._complaints.fine("meminfo")
        except (OSError, ValueError, KeyError) as error:
            self._complaints.fail("meminfo", error, "the host counts as full, disks shrink to their floors")
            self.host_known, free = False, 0
            self._size_bytes = self._size_bytes or os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        return samples.Room(HOST, free, self._size_bytes, self._host_reserve.of(self._size_bytes))

    def _find(self) -> None:
        """Look where this process is, if that changed."""
        try:
            membership = (self._proc / "self/cgroup").read_text()
            if membership != self._membership:
                self._candidates = cgroup.own_groups(self._proc / "self")
                self._membership = membership
                self.groups = ()
            self._complaints.fine("cgroups")
        except (OSError, ValueError) as error:
            # Without cgroups in the kernel there is no such file: that is no fault.
            self._complaints.fail("cgroups", error, "no cgroup's limit is looked at")

    def _group(self, path: pathlib.Path) -> samples.Room | None:
        name, limit = f"cgroup:{path}", 0
        try:
            known = cgroup.limit_bytes(path)
            if known is None:
                self._complaints.forget(name)
                return None
            limit = known
            free = cgroup.room_bytes(path)
            if free is None:
                raise ValueError("its usage cannot be read")
            self._complaints.fine(name)
        except (OSError, ValueError) as error:
            self._complaints.fail(name, error, "it counts as full, disks shrink to their floors")
            free = 0
        return samples.Room(name, free, limit, self._cgroup_reserve.of(limit))


def host_bytes(proc: pathlib.Path) -> int:
    """What the host has in all; 0 where it does not tell."""
    try:
        return _meminfo(proc / "meminfo")[1]
    except (OSError, ValueError, KeyError):
        return 0


def _meminfo(path: pathlib.Path) -> tuple[int, int]:
    """MemAvailable and MemTotal, in bytes.  Raises OSError, ValueError or KeyError."""
    lines = (line.partition(":") for line in path.read_text().splitlines())
    words = {name: rest.split() for name, _, rest in lines}
    return int(words["MemAvailable"][0]) << 10, int(words["MemTotal"][0]) << 10
