"""What goes wrong with disks and gets better by itself, told in the daemon's log: each change once.

One task on the daemon's loop.  It looks at the words that the disks publish anyway, which are memory: it asks
nothing of a disk and waits for no store.  What the daemon does itself is told where it does it.
"""

import asyncio
import contextlib
import dataclasses
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from swaptide.balloon import complaints
from swaptide.cache import face, layout, places
from swaptide.cache.errors import StateError
from swaptide.host import supervisor

log = logging.getLogger(__name__)

LOOK_SECONDS: Final = 2.0
# Reads that failed are over once none has failed for so long: only a guest that asks again finds out.
QUIET_SECONDS: Final = 60.0

Keepers = Callable[[], Sequence[supervisor.Keeper]]


@dataclasses.dataclass
class _Disk:
    """What is known of the disk with this id: what holds now, by name, and since when."""

    disk_id: str
    read_errors: int
    failed_at: float | None = None
    since: dict[str, float] = dataclasses.field(default_factory=dict)

    def turned(self, what: str, holds: bool, now: float) -> float | None:
        """Seconds since `what` began if it begins (0) or ends now; None where nothing changed."""
        if holds == (what in self.since):
            return None
        if holds:
            self.since[what] = now
            return 0.0
        return now - self.since.pop(what)


class Health:
    """Looks after all disks, from `start` until `close`."""

    def __init__(self, keepers: Keepers, clock: Callable[[], float] = time.monotonic) -> None:
        self._keepers = keepers
        self._clock = clock
        self._known: dict[str, _Disk] = {}
        self._complaints = complaints.Complaints(log)
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to look, on the running loop."""
        self._task = asyncio.create_task(self._run(), name="health")

    async def close(self) -> None:
        """Look no more."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def look(self) -> None:
        """Tell what has changed since the last look.  A disk that does not serve is as it was."""
        keepers = self._keepers()
        for gone in self._known.keys() - {keeper.definition.name for keeper in keepers}:
            del self._known[gone]
        for keeper in keepers:
            if keeper.serves and keeper.face is not None:
                with contextlib.suppress(StateError, OSError):  # its report says so
                    self._look_at(keeper, keeper.face)

    async def _run(self) -> None:
        while True:
            try:
                self.look()
                self._complaints.fine("health")
            except Exception as error:
                self._complaints.fail("health", repr(error), "changes of disks are not told")
            await asyncio.sleep(LOOK_SECONDS)

    def _look_at(self, keeper: supervisor.Keeper, state: face.StateFace) -> None:
        name, now, counters = keeper.definition.name, self._clock(), state.counters()
        disk = self._known.get(name)
        if disk is None or disk.disk_id != state.identity.disk_id:
            disk = self._known[name] = _Disk(state.identity.disk_id, counters["spill_read_errors"])
        if (passed := disk.turned("degraded", counters["degraded"] != 0, now)) is not None:
            _tell_degraded(keeper, state, counters, passed, begins="degraded" in disk.since)
        if counters["spill_read_errors"] != disk.read_errors:
            disk.read_errors, disk.failed_at = counters["spill_read_errors"], now
        failing = disk.failed_at is not None and now - disk.failed_at < QUIET_SECONDS
        if (passed := disk.turned("unreadable", failing, now)) is not None:
            _tell_unreadable(keeper, counters, passed, begins=failing)
        if (passed := disk.turned("refused", counters["ram_blocked"] != 0, now)) is not None:
            _tell_refused(name, state, passed, begins="refused" in disk.since)
        if (passed := disk.turned("frozen", layout.is_frozen(counters["frozen_seen"]), now)) is not None:
            _tell_frozen(name, passed, begins="frozen" in disk.since)


def _tell_degraded(
    keeper: supervisor.Keeper,
    state: face.StateFace,
    counters: Mapping[str, int],
    passed: float,
    *,
    begins: bool,
) -> None:
    disk = keeper.definition
    if begins:
        log.warning(
            "disk degraded name=%s error=%r write_errors=%d log=%s",
            disk.name,
            _cause(disk.spill_path, state.trouble()),
            counters["spill_write_errors"],
            keeper.log_path,
        )
    else:
        log.info("disk works again name=%s after_seconds=%.1f", disk.name, passed)


def _cause(spill_path: str, trouble: str) -> str:
    """Which store takes no writes, and why, as far as the disk's process says."""
    place = places.show(spill_path)
    if not trouble:
        return f"its store {place} takes no writes"
    named = any(places.show(each) in trouble for each in places.each(spill_path))
    return trouble if named else f"its store {place}: {trouble}"


def _tell_unreadable(
    keeper: supervisor.Keeper, counters: Mapping[str, int], passed: float, *, begins: bool
) -> None:
    disk = keeper.definition
    if begins:
        log.warning(
            "disk cannot read what it spilled name=%s error=%r read_errors=%d log=%s",
            disk.name,
            f"its store {places.show(disk.spill_path)} fails, or holds what is not the disk's",
            counters["spill_read_errors"],
            keeper.log_path,
        )
    else:
        log.info("disk had no more read errors name=%s after_seconds=%.1f", disk.name, passed)


def _tell_refused(name: str, state: face.StateFace, passed: float, *, begins: bool) -> None:
    if begins:
        log.warning(
            "host refuses RAM below the target, disk spills early name=%s ram_bytes=%d target_bytes=%d",
            name,
            state.ram_bytes(),
            state.limits().target_bytes,
        )
    else:
        log.info("host gives RAM again name=%s after_seconds=%.1f", name, passed)


def _tell_frozen(name: str, passed: float, *, begins: bool) -> None:
    if begins:
        log.info("disk frozen name=%s", name)
    else:
        log.info("disk thawed name=%s after_seconds=%.1f", name, passed)
