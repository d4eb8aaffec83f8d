"""Empties the disks of a guest that was reset, where its operator chose that.

A reset guest needs nothing that it had swapped out.  But it runs on, and what it swaps out next must not be
emptied with the rest: so it is paused first, and a disk that it may have written to since is left alone.
Owned by the daemon's loop; one task for each guest.
"""

import asyncio
import contextlib
import logging
import pathlib
import threading
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from swaptide.balloon import figures, qmp, watch
from swaptide.cache import detached
from swaptide.cache.errors import SwaptideError
from swaptide.host import blocks, wipe

log = logging.getLogger(__name__)

Show = Callable[[str], Awaitable[dict[str, Any]]]

# A gigabyte takes some hundredths of a second.
_PATIENCE_SECONDS = 10.0
_LEAVE_SECONDS = 2.0
_SERVING = ("running", "unstable", "degraded")


class Resets:
    """What is under way, by guest; `show` yields the report of a disk."""

    def __init__(self, run_dir: pathlib.Path, show: Show) -> None:
        self._run_dir = run_dir
        self._show = show
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._again: dict[str, float] = {}

    def note(self, guest: watch.Watch, at_seconds: float, disks: Sequence[str]) -> None:
        """The guest was reset at that time of the wall clock; firmware does so again while it boots."""
        name = guest.entry.name
        self._again[name] = at_seconds
        if name not in self._tasks:
            task = self._tasks[name] = asyncio.create_task(self._work_off(guest, disks), name=f"reset-{name}")
            task.add_done_callback(lambda done: self._tasks.pop(name, None))

    async def resume_left(self, guest: watch.Watch) -> None:
        """Let a guest go on that a daemon paused which was killed meanwhile."""
        marker = self._marker(guest)
        if marker.exists():
            with contextlib.suppress(SwaptideError):
                async with guest.borrow() as monitor:
                    # Another QEMU may be there by now, which waits for somebody else.
                    if (await monitor.ask(figures.Status, "query-status")).status == "paused":
                        log.warning("guest was left paused and goes on name=%s", guest.entry.name)
                        await monitor.execute("cont")
                    marker.unlink(missing_ok=True)

    async def leave(self) -> None:
        """End what is under way; no guest stays paused but one whose disk does not answer."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _work_off(self, guest: watch.Watch, disks: Sequence[str]) -> None:
        name = guest.entry.name
        while (at_seconds := self._again.pop(name, None)) is not None:
            try:
                async with guest.borrow() as monitor:
                    await self._clear(guest, monitor, at_seconds, disks)
            except SwaptideError as error:
                log.warning("disks not emptied after reset guest=%s error=%r", name, str(error))
            except Exception:
                log.exception("disks not emptied after reset guest=%s", name)

    async def _clear(
        self, guest: watch.Watch, monitor: qmp.Monitor, at_seconds: float, disks: Sequence[str]
    ) -> None:
        status = await monitor.ask(figures.Status, "query-status")
        if not status.running:  # whoever paused it may have it go on at any time
            log.info("disks not emptied after reset guest=%s why='it does not run'", guest.entry.name)
            return
        marker = self._marker(guest)
        marker.touch(mode=0o600)
        try:
            await monitor.execute("stop")
            for disk in disks:
                outcome = await self._empty(monitor, disk, at_seconds)
                log.info("disk after reset name=%s guest=%s outcome=%r", disk, guest.entry.name, outcome)
        except _StuckError as error:
            log.error(
                "guest stays paused for the next daemon guest=%s error=%r", guest.entry.name, str(error)
            )
            return
        except BaseException:
            await self._resume(monitor, marker)
            raise
        await self._resume(monitor, marker)

    async def _resume(self, monitor: qmp.Monitor, marker: pathlib.Path) -> None:
        await monitor.execute("cont")
        marker.unlink(missing_ok=True)

    async def _empty(self, monitor: qmp.Monitor, disk: str, at_seconds: float) -> str:
        """What became of one disk, in a few words."""
        try:
            report = await self._show(disk)
            place = None if report["id"] is None else await blocks.find(monitor, report["id"])
            if place is None:
                return "left alone, it is not in this guest"
            if not await blocks.is_untouched(monitor, place, at_seconds):
                return "left alone, the guest may use it again already"
            if report["state"] not in _SERVING or report.get("frozen"):
                return "left alone, it does not serve"
            if report["connections"] != 1:
                return f"left alone, it has {report['connections']} clients"
            return await _empty_unless_stuck(report)
        except SwaptideError as error:
            return f"left alone: {error}"

    def _marker(self, guest: watch.Watch) -> pathlib.Path:
        return self._run_dir / f"{guest.entry.name}.paused"


async def _empty_unless_stuck(report: dict[str, Any]) -> str:
    """The guest may go on only when nothing of this is under way any more."""
    stop = threading.Event()
    work = asyncio.ensure_future(
        detached.call(lambda: wipe.empty(report["socket"], report["id"], report["size_bytes"], stop), None)
    )
    try:
        done, _ = await asyncio.wait({work}, timeout=_PATIENCE_SECONDS)
        if not done:
            stop.set()
            log.warning("guest stays paused until its disk answers disk=%s", report["name"])
        return str(await asyncio.shield(work))
    except asyncio.CancelledError:
        stop.set()
        done, _ = await asyncio.wait({work}, timeout=_LEAVE_SECONDS)
        if not done:
            raise _StuckError(f"disk {report['name']} does not answer") from None
        raise


class _StuckError(Exception):
    """The daemon ends while a disk does not answer: its guest is for the next daemon to let go."""
