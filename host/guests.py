"""The guests of a daemon and what can be done with them; one method for each call of the command.

Owned by the daemon's loop.  A guest's monitor serves one client, so whatever is said to a registered guest
goes over the connection that watches it.
"""

import asyncio
import contextlib
import logging
import os
import pathlib
import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

from swaptide.balloon import guests, qmp, watch
from swaptide.cache.errors import BusyError, SetupError, SwaptideError, UsageError
from swaptide.host import (
    blocks,
    config,
    definitions,
    disks,
    guestbook,
    hotplug,
    paths,
    protocol,
    resets,
    snippet,
    wipe,
)

log = logging.getLogger(__name__)

Tell = Callable[[dict[str, Any]], None]

_CONTACT_SECONDS = qmp.OPEN_SECONDS + 1
_ALONE_SECONDS = 2.0
_IDLE_SECONDS = 1.0
_POLL_SECONDS = 0.1
_MINE = "/machine/peripheral/swaptide-"


class Guests:
    """All guests of one run directory.  `watched` is what the balloon's controller works with."""

    def __init__(self, chosen: config.Config, served: disks.Disks, book: guestbook.Guestbook) -> None:
        self.watched = guests.Guests(self._hear, self._greet)
        self._disks = served
        self._book = book
        self._known: dict[str, guestbook.GuestDefinition] = {}
        self._resets = resets.Resets(chosen.run_dir, served.show)
        self._plugging: set[str] = set()  # block nodes of disks that are being attached or detached
        self._tidying: set[asyncio.Task[None]] = set()

    def start(self) -> None:
        """Watch every guest that is remembered."""
        for known in self._book.load():
            self._watch(known)

    async def leave(self) -> None:
        """Let go of all guests; they run on, their balloons as they are."""
        await self._resets.leave()
        for task in self._tidying:
            task.cancel()
        await asyncio.gather(*self._tidying, return_exceptions=True)
        await self.watched.leave()

    async def add(self, request: protocol.GuestAdd) -> dict[str, Any]:
        """Register a guest; returns its report after the first attempt to reach it.

        Raises UsageError for what cannot be.
        """
        for disk in request.disks:
            await self._disks.show(disk)  # there has to be one
        known = self._known[request.name] = self._define(request)
        try:
            await self._book.save(known)
        except SetupError:
            del self._known[request.name]
            raise
        guest = self._watch(known)
        await guest.tried(_CONTACT_SECONDS)
        return self._report(guest)

    def names(self) -> list[str]:
        """All guests that are registered."""
        return sorted(self._known)

    async def all(self) -> list[dict[str, Any]]:
        """The reports of all guests, by name."""
        return [self._report(guest) for guest in self.watched]

    async def remove(self, name: str) -> dict[str, Any]:
        """Forget a guest; returns its last report."""
        report = self._report(self._find(name))
        await self._book.forget(name)
        self._known.pop(name, None)
        if name in self.watched:
            await self.watched.remove(name)
        return report

    async def attach(self, request: protocol.Attach, tell: Tell) -> dict[str, Any]:
        """Plug a disk into a running guest; if it fails or is cancelled, that is undone.

        Raises SwaptideError saying why and, where QEMU or the guest did not let it be undone, what is left.
        """
        disk_id, socket = await self._serving(request.name)
        with self._alone(request.name, disk_id):
            async with self.monitor(request) as monitor:
                if await blocks.find(monitor, disk_id) is None:
                    await hotplug.clear_node(monitor, disk_id)
                    await self._wait_free(request.name)
                return await hotplug.attach(
                    monitor,
                    request.name,
                    disk_id,
                    socket,
                    bus=request.bus,
                    seconds=request.deadline_seconds or hotplug.ATTACH_SECONDS,
                    tell=tell,
                )

    async def detach(self, request: protocol.Detach, tell: Tell) -> dict[str, Any]:
        """Unplug a disk from a running guest.

        Raises BusyError if the guest uses it or does not let go of it in time.
        """
        disk_id = (await self._disks.show(request.name))["id"]
        if disk_id is None:
            raise UsageError(f"disk {request.name} has not started yet; it is in no guest")
        with self._alone(request.name, disk_id):
            async with self.monitor(request) as monitor:
                place = await blocks.find(monitor, disk_id)
                if place is not None and not request.force:
                    await self._refuse_used(request.name, monitor, place)
                seconds = request.deadline_seconds or hotplug.DETACH_SECONDS
                return await hotplug.detach(monitor, request.name, disk_id, seconds=seconds, tell=tell)

    def _define(self, request: protocol.GuestAdd) -> guestbook.GuestDefinition:
        definitions.check_name(request.name, "guest")
        if request.name in self._known:
            raise UsageError(
                f"guest {request.name} exists; choose another name, or forget it with"
                f" `swaptide guest rm {request.name}`"
            )
        _check_monitor(request.qmp)
        for known in self._known.values():
            if known.qmp == request.qmp:
                raise UsageError(
                    f"monitor {request.qmp} is guest {known.name}'s; QEMU serves one client there"
                )
        if (request.min_bytes is None) != (request.max_bytes is None):
            raise UsageError("the balloon moves between two sizes; give --min and --max, or neither")
        if (
            request.min_bytes is not None
            and request.max_bytes is not None
            and request.min_bytes > request.max_bytes
        ):
            raise UsageError("--min is more than --max; give the smaller one as --min")
        if request.clear_on_reset:
            if not request.disks:
                raise UsageError("nothing to clear on reset; name the guest's disks with --disk")
            wipe.check()
        return guestbook.GuestDefinition(
            name=request.name,
            qmp=request.qmp,
            min_bytes=request.min_bytes,
            max_bytes=request.max_bytes,
            disks=tuple(dict.fromkeys(request.disks)),
            clear_on_reset=request.clear_on_reset,
        )

    def _watch(self, known: guestbook.GuestDefinition) -> watch.Watch:
        self._known[known.name] = known
        return self.watched.add(
            watch.Entry(known.name, pathlib.Path(known.qmp), known.min_bytes, known.max_bytes)
        )

    def _find(self, name: str) -> watch.Watch:
        if name not in self.watched:
            names = ", ".join(sorted(self._known)) or "none"
            raise UsageError(f"there is no guest {name!r}; the guests are: {names}")
        return self.watched[name]

    def _report(self, guest: watch.Watch) -> dict[str, Any]:
        known = self._known[guest.entry.name]
        more = {"disks": list(known.disks), "clear_on_reset": known.clear_on_reset}
        return {**guest.report(time.time()), **more}

    @contextlib.asynccontextmanager
    async def monitor(
        self, request: protocol.Attach | protocol.Detach | protocol.Migrate
    ) -> AsyncIterator[qmp.Monitor]:
        """The connection of a registered guest, or one for this call alone."""
        if (request.qmp is None) == (request.guest is None):
            raise UsageError("which guest? give either --qmp SOCKET or --guest NAME")
        named = request.guest
        for known in self._known.values():
            if known.qmp == request.qmp:
                named = known.name
        if named is not None:
            async with self._find(named).borrow() as monitor:
                yield monitor
            return
        assert request.qmp is not None
        _check_monitor(request.qmp)
        own = qmp.Monitor(pathlib.Path(request.qmp))
        await own.open()
        try:
            yield own
        finally:
            await own.close()

    @contextlib.contextmanager
    def _alone(self, disk: str, disk_id: str) -> Iterator[None]:
        node = snippet.node_name(disk_id)
        if node in self._plugging:
            raise BusyError(f"disk {disk} is being attached or detached; try again when that is done")
        self._plugging.add(node)
        try:
            yield
        finally:
            self._plugging.discard(node)

    async def _serving(self, name: str) -> tuple[str, str]:
        """Id and socket of a disk; raises BusyError if it does not serve."""
        report = await self._disks.show(name)
        if report["id"] is None or report["pid"] is None:
            raise BusyError(f"disk {name} does not run; look with `swaptide disk show {name}`")
        return report["id"], report["socket"]

    async def _wait_free(self, name: str) -> None:
        """Raises BusyError if another guest has the disk: two on one swap disk destroy each other's pages."""
        deadline = time.monotonic() + _ALONE_SECONDS
        while (clients := (await self._disks.show(name))["connections"]) > 0:
            if time.monotonic() >= deadline:
                raise BusyError(
                    f"disk {name} has {clients} client(s) connected; detach it from the guest that has it"
                )
            await asyncio.sleep(_POLL_SECONDS)

    async def _refuse_used(self, name: str, monitor: qmp.Monitor, place: blocks.Place) -> None:
        """Raises BusyError if the guest reads or writes: Linux gives up even a disk that it swaps on."""
        before = await blocks.counts(monitor, place)
        await asyncio.sleep(_IDLE_SECONDS)
        after = await blocks.counts(monitor, place)
        if (before.rd_operations, before.wr_operations) != (after.rd_operations, after.wr_operations):
            raise BusyError(
                f"the guest is using disk {name} right now; swap off there first, or lose what is swapped out"
                " with --force"
            )

    def _hear(self, guest: watch.Watch, event: qmp.Event) -> None:
        known = self._known.get(guest.entry.name)
        if event.name == "RESET" and known is not None and known.clear_on_reset:
            self._resets.note(guest, event.at_seconds, known.disks)
        path = event.data.get("path")
        if event.name == "DEVICE_DELETED" and isinstance(path, str) and path.startswith(_MINE):
            node = path.rpartition("/")[2]
            if node.startswith("swaptide-") and node not in self._plugging:
                task = asyncio.create_task(self._tidy(guest, node))
                self._tidying.add(task)
                task.add_done_callback(self._tidying.discard)

    async def _tidy(self, guest: watch.Watch, node: str) -> None:
        """A guest let go of a disk late, or by itself: its block node would hold the disk's connection."""
        with contextlib.suppress(SwaptideError):
            async with guest.borrow() as monitor:
                await hotplug.delete_node(monitor, node)
                log.info(
                    "disk's node removed after the guest let go guest=%s node=%s", guest.entry.name, node
                )

    async def _greet(self, guest: watch.Watch) -> None:
        await self._resets.resume_left(guest)


def _check_monitor(path: str) -> None:
    """Raises UsageError unless a monitor's socket can have this path."""
    if not os.path.isabs(path) or "\0" in path:
        raise UsageError(f"monitor {path!r} is not allowed: give an absolute path")
    if len(os.fsencode(path)) > paths.SOCKET_PATH_BYTES:
        raise UsageError(
            f"monitor path {path} is longer than {paths.SOCKET_PATH_BYTES} bytes; use a shorter one"
        )
