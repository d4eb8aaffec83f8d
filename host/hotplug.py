"""Puts a disk into a running guest and takes it out again, over QMP.

Each is a sequence with an end: done, or undone as far as QEMU and the guest let it be, in words.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import msgspec

from swaptide.balloon import figures, qmp
from swaptide.cache.errors import BusyError, SwaptideError, UsageError
from swaptide.host import blocks, snippet

log = logging.getLogger(__name__)

Tell = Callable[[dict[str, Any]], None]

ATTACH_SECONDS = 30.0
DETACH_SECONDS = 30.0
UNDO_SECONDS = 5.0
_POLL_SECONDS = 0.1
# How long QEMU may need to connect to a disk whose process is just being restarted.
_CONNECT_SECONDS = 20.0
_PLACE = "/machine/peripheral"
_PORTS = tuple(f"child<{kind}>" for kind in ("pcie-root-port", "ioh3420", "xio3130-downstream"))
_PORT_HELP = (
    "start the guest with a spare one, `-device pcie-root-port,id=spare,chassis=9` or in libvirt"
    " <controller type='pci' model='pcie-root-port'/>"
)


class _Property(msgspec.Struct):
    name: str
    type: str


async def attach(
    monitor: qmp.Monitor, name: str, disk_id: str, socket: str, *, bus: str | None, seconds: float, tell: Tell
) -> dict[str, Any]:
    """Put a disk into the guest and wait until the guest has it; returns what it is called there.

    Raises SwaptideError, when all that was done has been undone or the message says what was not.
    """
    begun = time.monotonic()
    status = await monitor.ask(figures.Status, "query-status")
    if not status.running:
        raise BusyError(f"the guest is {qmp.clean(status.status)}; let it run, it has to take the disk")
    if await blocks.find(monitor, disk_id) is not None:
        raise UsageError(f"disk {name} is attached to this guest already; look at its disks there")
    chosen = bus or await _free_port(monitor)
    place = blocks.Place(snippet.node_name(disk_id), f"{_PLACE}/{snippet.node_name(disk_id)}")
    async with _undoing(monitor, name, place):
        await _add_node(monitor, name, disk_id, socket)
        tell({"step": "node", "node": place.node})
        await _add_device(monitor, disk_id, chosen)
        tell({"step": "device", "device": place.device, "bus": chosen})
        await _wait_taken(monitor, name, place, begun + seconds)
    return {
        "name": name,
        "id": disk_id,
        "node": place.node,
        "device": place.device,
        "bus": chosen,
        "elapsed_seconds": time.monotonic() - begun,
    }


async def detach(
    monitor: qmp.Monitor, name: str, disk_id: str, *, seconds: float, tell: Tell
) -> dict[str, Any]:
    """Take a disk out of the guest and wait until the guest has let go of it.

    Raises SwaptideError; a request that the guest has not answered stays, and QEMU lets go when it does.
    """
    begun = time.monotonic()
    place = await blocks.find(monitor, disk_id)
    if place is None and not await clear_node(monitor, disk_id):
        raise UsageError(f"disk {name} is not attached to this guest; is it another one's?")
    if place is not None:
        tell({"step": "asked", "device": place.device})
        if not await _unplug(monitor, place, begun + seconds):
            raise BusyError(
                f"the guest has not let go of disk {name} within {seconds:g} s: if it still swaps there,"
                " swap off; it may also not listen while it boots. The request stays: QEMU lets go"
                f" when the guest does, `swaptide detach {name}` clears up then"
            )
        tell({"step": "unplugged", "device": place.device})
        await delete_node(monitor, place.node)
    return {"name": name, "id": disk_id, "elapsed_seconds": time.monotonic() - begun}


async def clear_node(monitor: qmp.Monitor, disk_id: str) -> bool:
    """Remove a block node of ours that no device uses; returns whether there was one."""
    if await blocks.find(monitor, disk_id) is not None:
        return False
    node = snippet.node_name(disk_id)
    if not await blocks.has_node(monitor, node):
        return False
    await delete_node(monitor, node)
    return True


async def _add_node(monitor: qmp.Monitor, name: str, disk_id: str, socket: str) -> None:
    await clear_node(monitor, disk_id)  # of an attempt that was cut off
    try:
        await monitor.execute("blockdev-add", snippet.backend(disk_id, socket), seconds=_CONNECT_SECONDS)
    except qmp.RefusedError as error:
        hint = ""
        if "Permission denied" in str(error):
            hint = "; QEMU runs as another user, make the disk with --socket-owner"
        raise SwaptideError(f"QEMU cannot use disk {name}: {error}{hint}") from error


async def _add_device(monitor: qmp.Monitor, disk_id: str, bus: str | None) -> None:
    node, where = snippet.node_name(disk_id), {} if bus is None else {"bus": bus}
    try:
        await monitor.execute("device_add", {"id": node, **snippet.device(node), **where})
    except qmp.RefusedError as error:
        if "does not support hotplug" in str(error):
            raise SwaptideError(f"nothing can be plugged in: {error}; {_PORT_HELP}") from error
        raise SwaptideError(f"QEMU does not plug it in: {error}") from error


async def _wait_taken(monitor: qmp.Monitor, name: str, place: blocks.Place, deadline: float) -> None:
    begun = time.monotonic()
    while not await blocks.is_taken(monitor, place):
        if time.monotonic() >= deadline:
            raise BusyError(
                f"the guest has not taken disk {name} within {time.monotonic() - begun:.0f} s; has it booted,"
                " with drivers for virtio-blk and for hot-plug?"
            )
        await asyncio.sleep(_POLL_SECONDS)


@contextlib.asynccontextmanager
async def _undoing(monitor: qmp.Monitor, name: str, place: blocks.Place) -> AsyncIterator[None]:
    """Take back what the body has done if it fails or is cancelled."""
    try:
        yield
    except BaseException as error:
        # A second cancellation must not leave half of it.
        undo = asyncio.ensure_future(_undo(monitor, name, place))
        while not undo.done():
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait({undo})
        left = undo.result()
        log.info("attaching undone disk=%s left=%r", name, left)
        if left is not None and isinstance(error, SwaptideError):
            raise SwaptideError(f"{error}; {left}") from error
        raise


async def _undo(monitor: qmp.Monitor, name: str, place: blocks.Place) -> str | None:
    """Returns what could not be undone, and what to do about it."""
    try:
        deadline = time.monotonic() + UNDO_SECONDS
        if not await _unplug(monitor, place, deadline):
            return (
                f"QEMU keeps {place.device} until the guest answers or is reset,"
                f" `swaptide detach {name}` clears it away then"
            )
        await delete_node(monitor, place.node, missing_is_fine=True)
    except SwaptideError as error:
        return f"what was done may not be undone: {error}"
    return None


async def _unplug(monitor: qmp.Monitor, place: blocks.Place, deadline: float) -> bool:
    """Ask for a device back and wait for it; returns whether it is gone.  Raises SwaptideError if refused."""
    gone, refused = asyncio.Event(), asyncio.Event()

    def hear(event: qmp.Event) -> None:
        if event.data.get("path") == place.device:
            if event.name == "DEVICE_DELETED":
                gone.set()
            elif event.name == "DEVICE_UNPLUG_GUEST_ERROR":
                refused.set()

    with monitor.hearing(hear):
        try:
            await monitor.execute("device_del", {"id": place.device})
        except qmp.RefusedError as error:
            if error.kind == "DeviceNotFound":
                return True
            if "already in the process" not in str(error):
                raise SwaptideError(f"QEMU does not take it out: {error}") from error
        while not gone.is_set():
            if refused.is_set():
                raise BusyError("the guest refuses to let go of the disk; swap off there, and try again")
            if not monitor.is_open:
                raise qmp.MonitorError(f"monitor {monitor.path} has closed meanwhile; the guest has ended")
            left = deadline - time.monotonic()
            if left <= 0:
                return False
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(min(left, _POLL_SECONDS)):
                    await gone.wait()
    return True


async def delete_node(monitor: qmp.Monitor, node: str, *, missing_is_fine: bool = False) -> None:
    """Remove a block node; QEMU may need a moment until a device that is gone no longer uses it."""
    deadline = time.monotonic() + UNDO_SECONDS
    while True:
        try:
            await monitor.execute("blockdev-del", {"node-name": node})
            return
        except qmp.RefusedError as error:
            if missing_is_fine and not await blocks.has_node(monitor, node):
                return
            if time.monotonic() >= deadline:
                raise SwaptideError(f"QEMU does not give block node {node} back: {error}") from error
        await asyncio.sleep(_POLL_SECONDS)


async def _free_port(monitor: qmp.Monitor) -> str | None:
    """A free hot-plug port; None where there are no ports at all, and the root bus may do (a `pc` machine).

    Raises SwaptideError where all are taken.
    """
    entries = await monitor.ask(list[_Property], "qom-list", {"path": _PLACE})
    ports = sorted((entry.name for entry in entries if entry.type in _PORTS), key=_in_order)
    for port in ports:
        path = f"{_PLACE}/{port}"
        if await monitor.execute("qom-get", {"path": path, "property": "hotplug"}) is not True:
            continue
        behind = await monitor.ask(list[_Property], "qom-list", {"path": f"{path}/{port}"})
        if not any(entry.name.startswith("child[") for entry in behind):
            return port
    if ports:
        raise SwaptideError(f"none of the guest's {len(ports)} PCI Express ports is free; {_PORT_HELP}")
    return None


def _in_order(name: str) -> tuple[int, str]:
    """By length first, so that port 10 comes after port 9."""
    return len(name), name
