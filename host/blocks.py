"""Where a disk of ours is in a guest's QEMU, and what its driver there has done, asked over QMP."""

import dataclasses
import time

import msgspec

from swaptide.balloon import qmp

_DRIVER_OK = "VIRTIO_CONFIG_S_DRIVER_OK"
_BACKEND = "/virtio-backend"
# No system boots, uses a disk and lets go of it again in that time.
_FRESH_SECONDS = 2.0


@dataclasses.dataclass(frozen=True)
class Place:
    """A disk in a guest: its block node, and the paths of device and virtio device in QEMU's object tree."""

    node: str
    device: str

    @property
    def backend(self) -> str:
        """The virtio device, which block statistics and driver status are asked of."""
        return f"{self.device}{_BACKEND}"


class _Inserted(msgspec.Struct, rename="kebab"):
    file: str = ""
    node_name: str = ""


class _Block(msgspec.Struct):
    qdev: str = ""
    inserted: _Inserted | None = None


class _Statuses(msgspec.Struct):
    statuses: list[str]


class _Virtio(msgspec.Struct):
    status: _Statuses


class Counts(msgspec.Struct):
    """Requests of the guest since QEMU started, and how long ago the last one was, None for none."""

    rd_operations: int = 0
    wr_operations: int = 0
    idle_time_ns: int | None = None


class _BlockStats(msgspec.Struct):
    stats: Counts
    qdev: str = ""


class _Node(msgspec.Struct, rename="kebab"):
    node_name: str


async def find(monitor: qmp.Monitor, disk_id: str) -> Place | None:
    """Where the guest has the disk; its id is the export's name, so nothing else can be meant."""
    for block in await monitor.ask(list[_Block], "query-block"):
        if block.inserted is not None and disk_id in block.inserted.file and block.qdev:
            return Place(block.inserted.node_name, block.qdev.removesuffix(_BACKEND))
    return None


async def has_node(monitor: qmp.Monitor, name: str) -> bool:
    """Whether QEMU has a block node of this name, whatever it is for."""
    nodes = await monitor.ask(list[_Node], "query-named-block-nodes", {"flat": True})
    return any(node.node_name == name for node in nodes)


async def has_driver(monitor: qmp.Monitor, place: Place) -> bool | None:
    """Whether the guest's driver has the disk set up; None where QEMU does not tell (before 7.2)."""
    try:
        answer = await monitor.ask(_Virtio, "x-query-virtio-status", {"path": place.backend})
    except qmp.RefusedError as error:
        if error.kind != "CommandNotFound":
            raise
        return None
    return any(status.startswith(_DRIVER_OK) for status in answer.status.statuses)


async def counts(monitor: qmp.Monitor, place: Place) -> Counts:
    """What the guest has asked of the disk."""
    for each in await monitor.ask(list[_BlockStats], "query-blockstats"):
        if each.qdev == place.backend:
            return each.stats
    return Counts()


async def is_taken(monitor: qmp.Monitor, place: Place) -> bool:
    """Whether the guest has the disk: its driver says so or, where QEMU does not tell, it has read."""
    driver = await has_driver(monitor, place)
    return driver if driver is not None else (await counts(monitor, place)).rd_operations > 0


async def is_untouched(monitor: qmp.Monitor, place: Place, since_seconds: float) -> bool:
    """Whether nobody can have written to the disk since a reset at `since_seconds` of the wall clock.

    Ask while the guest stands still.  A reset takes the driver's status away, and nothing is written
    before a driver has set it again; firmware does that as well, and then the disk's idle time decides.
    """
    driver = await has_driver(monitor, place)
    found = await counts(monitor, place)
    elapsed = time.time() - since_seconds  # after the answer: it must not look longer ago than it was
    if driver is False and 0 <= elapsed <= _FRESH_SECONDS:
        return True
    return elapsed >= 0 and (found.idle_time_ns is None or found.idle_time_ns / 1e9 >= elapsed)
