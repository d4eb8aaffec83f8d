"""Watches one guest over QMP, and moves its balloon when told to.

Owned by the loop; one task for each guest, which connects with back-off, polls, and listens in between.
Whatever the guest does, others only see that its sample is missing.
"""

import asyncio
import contextlib
import dataclasses
import logging
import pathlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import msgspec

from swaptide.balloon import figures, qmp, samples
from swaptide.cache.errors import SwaptideError

log = logging.getLogger(__name__)

POLL_SECONDS = 2.0
# So long after the last answer a guest counts as silent, and is not moved any more.
SILENT_SECONDS = 10.0
_SHORTEST_POLL_SECONDS = 0.2
_FIRST_PAUSE_SECONDS = 0.5
_LONGEST_PAUSE_SECONDS = 10.0
_STEADY_SECONDS = 10.0
# Where QEMU keeps what was added with an id, and without.
_PLACES = ("/machine/peripheral", "/machine/peripheral-anon")
# A guest without a balloon says so; the classes of error that mean it.
_NO_BALLOON = frozenset(("DeviceNotActive", "KVMMissingCap", "GenericError", "CommandNotFound"))
_NEWS = frozenset(("STOP", "RESUME", "RESET", "SHUTDOWN", "SUSPEND", "WAKEUP"))


@dataclasses.dataclass(frozen=True)
class Entry:
    """A guest as it was registered.  Without `min_bytes` and `max_bytes` its balloon is never moved."""

    name: str
    path: pathlib.Path
    min_bytes: int | None = None
    max_bytes: int | None = None


class _Property(msgspec.Struct):
    name: str
    type: str


class Watch:
    """One guest; `monitor` is its connection, None while there is none, and `error` says why."""

    def __init__(
        self,
        entry: Entry,
        on_event: Callable[["Watch", qmp.Event], None] = lambda watch, event: None,
        on_connect: Callable[["Watch"], Awaitable[None]] | None = None,
    ) -> None:
        self.entry = entry
        self.monitor: qmp.Monitor | None = None
        self.error: str | None = "not connected yet"
        self.target_bytes: int | None = None  # what the balloon was last told
        self._on_event = on_event
        self._on_connect = on_connect
        self._task: asyncio.Task[None] | None = None
        self._mover: asyncio.Task[None] | None = None
        self._wanted: int | None = None
        self._borrowed = 0
        self._kick = asyncio.Event()
        self._tried = asyncio.Event()
        self._forget()

    def _forget(self) -> None:
        """Nothing that another connection said holds any more."""
        self.balloon_path: str | None = None
        self.status: figures.Status | None = None
        self.actual_bytes: int | None = None
        self.memory_bytes: int | None = None
        self.statistics = figures.Statistics()
        self._heard_at: float | None = None

    def start(self) -> None:
        """Begin to watch."""
        self._task = asyncio.create_task(self._keep(), name=f"guest-{self.entry.name}")

    async def stop(self) -> None:
        """End watching; the guest's balloon stays as it is."""
        tasks = [task for task in (self._task, self._mover) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._task = self._mover = None

    async def tried(self, seconds: float) -> None:
        """Wait until the first attempt to connect has ended, but no longer than that."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._tried.wait()

    @contextlib.asynccontextmanager
    async def borrow(self) -> AsyncIterator[qmp.Monitor]:
        """The live connection, kept while it is borrowed even if QEMU is slow; raises MonitorError."""
        if self.monitor is None or not self.monitor.is_open:
            raise qmp.MonitorError(f"guest {self.entry.name} is not connected: {self.error or 'try again'}")
        self._borrowed += 1
        try:
            yield self.monitor
        finally:
            self._borrowed -= 1

    def move(self, size_bytes: int) -> None:
        """Tell the balloon a logical size, within min..max, without waiting for anything."""
        low, high = self._bounds()
        if low is None or high is None:
            log.debug("balloon not moved, not asked for name=%s", self.entry.name)
            return
        self._wanted = max(low, min(size_bytes, high))
        if self._mover is None or self._mover.done():
            self._mover = asyncio.create_task(self._move(), name=f"balloon-{self.entry.name}")

    def sample(self, now: float, wall: float) -> samples.Guest | None:
        """What the policy may know, None where the balloon is not to be moved or the guest is silent.

        `now` is CLOCK_MONOTONIC, `wall` the wall clock that QEMU's stamps are of.
        """
        low, high = self._bounds()
        if low is None or high is None or self.actual_bytes is None or not self._is_fit(now):
            return None
        actual = self.actual_bytes if self.memory_bytes is None else min(self.actual_bytes, self.memory_bytes)
        said = self.statistics
        available = None if said.available_bytes is None else min(said.available_bytes, actual)
        return samples.Guest(
            name=self.entry.name,
            actual_bytes=actual,
            min_bytes=low,
            max_bytes=high,
            age_seconds=said.age_seconds(wall),
            available_bytes=available,
            swapped_in_bytes=said.swapped_in_bytes,
            swapped_out_bytes=said.swapped_out_bytes,
        )

    def report(self, wall: float) -> dict[str, Any]:
        """Everything that is known, for people."""
        said = self.statistics
        return {
            "name": self.entry.name,
            "qmp": str(self.entry.path),
            "state": self.status.status if self.status is not None else "unreachable",
            "memory_bytes": self.memory_bytes,
            "actual_bytes": self.actual_bytes,
            "target_bytes": self.target_bytes,
            "min_bytes": self.entry.min_bytes,
            "max_bytes": self.entry.max_bytes,
            "balloon": self.balloon_path is not None,
            "age_seconds": said.age_seconds(wall),
            "total_bytes": said.total_bytes,
            "free_bytes": said.free_bytes,
            "available_bytes": said.available_bytes,
            "swapped_in_bytes": said.swapped_in_bytes,
            "swapped_out_bytes": said.swapped_out_bytes,
            "error": self.error,
        }

    def _bounds(self) -> tuple[int | None, int | None]:
        """Least and most, the most being what the guest was started with at most."""
        low, high = self.entry.min_bytes, self.entry.max_bytes
        if low is None or high is None:
            return None, None
        if self.memory_bytes is not None:
            high = min(high, self.memory_bytes)
        return min(low, high), high

    def _is_fit(self, now: float) -> bool:
        heard = self._heard_at is not None and now - self._heard_at <= SILENT_SECONDS
        return heard and self.status is not None and self.status.running and self.balloon_path is not None

    async def _keep(self) -> None:
        pause = _FIRST_PAUSE_SECONDS
        while True:
            begun = time.monotonic()
            monitor = qmp.Monitor(self.entry.path)
            try:
                await self._while_connected(monitor)
            except SwaptideError as error:
                self._lost(str(error))
            except Exception as error:
                log.exception("guest not watched name=%s", self.entry.name)
                self._lost(f"internal error {error!r}; see the daemon's log")
            finally:
                self.monitor = None
                await monitor.close()
            if time.monotonic() - begun > _STEADY_SECONDS:
                pause = _FIRST_PAUSE_SECONDS
            await asyncio.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)

    async def _while_connected(self, monitor: qmp.Monitor) -> None:
        """Raises MonitorError when it ends, always."""
        await monitor.open()
        lost = asyncio.create_task(monitor.lost())
        lost.add_done_callback(lambda done: self._kick.set())
        try:
            with monitor.hearing(self._hear):
                await self._poll(monitor)
                self.monitor, self.error = monitor, None
                log.info("guest connected name=%s state=%s", self.entry.name, self.report(0)["state"])
                self._tried.set()
                if self._on_connect is not None:
                    await self._on_connect(self)
                while not lost.done():
                    await self._wait_for_news()
                    await self._poll_patiently(monitor)
        finally:
            lost.cancel()
        raise qmp.MonitorError(f"monitor {self.entry.path} has closed; the guest has ended, it seems")

    def _lost(self, why: str) -> None:
        """News once; that it is still so is for who asks."""
        if self.monitor is not None or not self._tried.is_set():
            log.warning("guest not connected name=%s error=%r", self.entry.name, why)
        self.error = why
        self._tried.set()
        self._forget()

    async def _wait_for_news(self) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(POLL_SECONDS):
                await self._kick.wait()
            await asyncio.sleep(_SHORTEST_POLL_SECONDS)
        self._kick.clear()

    async def _poll_patiently(self, monitor: qmp.Monitor) -> None:
        try:
            await self._poll(monitor)
        except qmp.MonitorError:
            # QEMU answers nobody while it connects to a disk, which is what a borrower has it do.
            if not self._borrowed or not monitor.is_open:
                raise

    async def _poll(self, monitor: qmp.Monitor) -> None:
        status = await monitor.ask(figures.Status, "query-status")
        status.status = qmp.clean(status.status)
        size = await monitor.ask(figures.MemorySize, "query-memory-size-summary")
        self.memory_bytes = size.base_memory + size.plugged_memory
        if self.balloon_path is None:
            self.balloon_path = await _find_balloon(monitor)
        if self.balloon_path is not None:
            await self._poll_balloon(monitor, self.balloon_path)
        self.status = status
        self._heard_at = time.monotonic()

    async def _poll_balloon(self, monitor: qmp.Monitor, path: str) -> None:
        try:
            self.actual_bytes = (await monitor.ask(figures.Balloon, "query-balloon")).actual
            answer = await monitor.ask(
                figures.GuestStats, "qom-get", {"path": path, "property": "guest-stats"}
            )
        except qmp.RefusedError as error:
            if error.kind not in _NO_BALLOON:
                raise
            self.balloon_path = self.actual_bytes = None  # unplugged
            self.statistics = figures.Statistics()
            return
        self.statistics = figures.statistics(answer)

    def _hear(self, event: qmp.Event) -> None:
        actual = event.data.get("actual")
        if event.name == "BALLOON_CHANGE" and type(actual) is int and 0 <= actual <= figures.MAX_BYTES:
            self.actual_bytes = actual
        if event.name == "SHUTDOWN" and self.status is not None:
            self.status = figures.Status(running=False, status="shutdown")
        if event.name in _NEWS:
            self._kick.set()
        self._on_event(self, event)

    async def _move(self) -> None:
        while (wanted := self._wanted) is not None:
            self._wanted = None
            try:
                async with self.borrow() as monitor:
                    await monitor.execute("balloon", {"value": wanted})
            except SwaptideError as error:
                log.warning("balloon not moved name=%s error=%r", self.entry.name, str(error))
                return
            self.target_bytes = wanted
            log.info("balloon told name=%s size_bytes=%d", self.entry.name, wanted)


async def _find_balloon(monitor: qmp.Monitor) -> str | None:
    """The balloon's place in QEMU's object tree, its statistics switched on; None if there is none."""
    for place in _PLACES:
        for found in await monitor.ask(list[_Property], "qom-list", {"path": place}):
            if found.type.startswith("child<virtio-balloon"):
                path = f"{place}/{found.name}"
                await _switch_on(monitor, path)
                return path
    return None


async def _switch_on(monitor: qmp.Monitor, path: str) -> None:
    which = {"path": path, "property": "guest-stats-polling-interval"}
    interval = await monitor.execute("qom-get", which)
    if type(interval) is not int or not 0 < interval <= POLL_SECONDS:
        await monitor.execute("qom-set", {**which, "value": round(POLL_SECONDS)})
