"""What moves next, and when: the asyncio side of the movers.

`plan` is a pure function from a snapshot to the moves to start; `Movers` takes snapshots, starts the
moves in worker threads and looks again whenever one ends or the hot path kicks the eventfd.  Owned by
the engine's event loop; nothing here is called from nbdkit's threads.
"""

import asyncio
import concurrent.futures
import contextlib
import logging
import os
import time
from collections.abc import Callable, Coroutine
from typing import Final, NamedTuple, TypeVar

from swaptide.cache import cgroup, geometry
from swaptide.cache.moves import Moves
from swaptide.cache.segments import Segments

log = logging.getLogger(__name__)

T = TypeVar("T")

# Writes in flight: four of 2 MiB keep a fast disk busy (measured: DESIGN's 4 x pwritev, 3.5 GB/s).
SPILLERS: Final = 4
# A segment in RAM with at most this share of live pages is cleaned rather than written out: below it,
# copying what lives costs less than writing everything.
CLEAN_RAM_PIECES: Final = int(geometry.PIECES_PER_SEGMENT * 0.75)
# Segments in RAM that are cleaned in one go: under load, taking the interpreter again costs as much as one.
CLEAN_BATCH: Final = 8
# Free RAM slots beyond twice the wish that are kept before any is given back.
SPARE_SLOTS: Final = 4
# Free disk slots below which the cleaner works on the disk: a 32nd, at least 12.
DISK_LOW_SHARE: Final = 1 / 32
DISK_LOW_LEAST: Final = 12
# After a failure of the store or the host, in seconds.
BACK_OFF_SECONDS: Final = 0.1
# Where there was nothing to do after all.
PAUSE_SECONDS: Final = 0.01
# Reading the cgroups' files takes tens of microseconds, and a busy disk looks thousands of times a second.
ASK_HOST_SECONDS: Final = 0.02
# How long a segment whose read failed is left alone.
FORGIVE_SECONDS: Final = 5.0
IDLE_SECONDS: Final = 1.0
# Left free below a memory cgroup's limit, in bytes: request buffers (16 MiB) and what the kernel charges.
CGROUP_MARGIN_BYTES: Final = 24 << 20


class Snapshot(NamedTuple):
    """State of the pools; all in segments (2 MiB), taken under one lock."""

    limit: int
    populated: int
    free: int
    to_punch: int
    dirty: int
    writing: int
    clean: int
    disk_free: int
    disk_slots: int
    waiting: int
    cleaner_waits: int


class Plan(NamedTuple):
    """Moves to start now; `release` free slots are given back as well, since nobody will need them soon."""

    punch: bool
    release: int
    drop: int
    spill: int
    populate: int
    clean_ram: bool
    clean_disk: bool


def plan(now: Snapshot, spilling: int, ram_emptiest: int) -> Plan:
    """Decide from the snapshot, the spills under way, and the live pages of the emptiest segment in RAM.

    Free slots wanted: two and an eighth of what is in use, at most 16, so that an idle disk costs little
    and a busy one does not wait for page faults.  Slots are taken back when there are more than the
    limit; else made free ahead of the writers, by populating below the limit and by spilling at it.
    """
    wanted = min(16, 2 + (now.populated - now.free) // 8, max(2, now.limit // 8))
    over = now.populated - now.to_punch - now.limit
    punch = now.to_punch > 0 or (over > 0 and now.free > 1)
    if over > 0:
        short = over + (1 if now.waiting else 0)
    elif now.populated >= now.limit:
        short = wanted - now.free
    else:
        short = 0
    short = max(0, short)
    drop = min(short, now.clean)
    short -= drop + now.writing
    clean_ram = short > 0 and ram_emptiest < CLEAN_RAM_PIECES
    clean_disk = now.disk_free <= max(DISK_LOW_LEAST, int(now.disk_slots * DISK_LOW_SHARE))
    spill = max(0, min(SPILLERS - spilling, short, now.dirty))
    if clean_ram and not clean_disk and over <= 0:
        # Up to that share of live pages cleaning yields a slot no slower than a write to disk does, and
        # leaves every page where it is quick to read.  Unless the cleaner itself has no room to go on.
        spill = min(spill, now.cleaner_waits)
    populate = 0
    if over < 0:
        populate = max(0, min(-over, wanted - now.free))
    elif now.free + now.to_punch + now.writing + now.clean + spilling == 0:
        populate = 1  # the cleaner's, if it lacks one: Segments.populate knows
    # What a trim freed goes back to the host; a reserve stays, since making a slot anew costs milliseconds.
    keep = 2 * wanted + SPARE_SLOTS
    release = now.free - keep if now.free > keep and not now.waiting else 0
    return Plan(punch, release, drop, spill, populate, clean_ram, clean_disk)


class Movers:
    """Runs the plan until cancelled.  `degraded` and `ram_blocked` tell what the host refuses right now."""

    def __init__(self, moves: Moves, segments: Segments, kick_fd: int) -> None:
        self._moves = moves
        self._segments = segments
        self._kick_fd = kick_fd
        self._awake = asyncio.Event()
        self._idle_workers = list(range(SPILLERS))
        self._spilling = 0
        self._cleaning = False
        self._populating = False
        self._moving_memory = False
        self._headroom = cgroup.Headroom()
        self._room: int | None = None
        self._ask_host_at = 0.0
        self._tasks: set[asyncio.Task[None]] = set()
        self._pool = concurrent.futures.ThreadPoolExecutor(SPILLERS + 3, thread_name_prefix="mover")
        self.degraded = False
        self._unreadable = False  # told, until the cleaner could read again
        self.ram_blocked = False

    async def run(self) -> None:
        """Move until cancelled; moves under way are waited for."""
        loop = asyncio.get_running_loop()
        loop.add_reader(self._kick_fd, self._kicked)
        try:
            while True:
                self._awake.clear()
                self._segments.rearm()
                self._start(self._look())
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(IDLE_SECONDS):
                        await self._awake.wait()
        finally:
            loop.remove_reader(self._kick_fd)
            self._segments.stop()
            if self._tasks:
                await asyncio.wait(self._tasks)
            self._pool.shutdown()

    def _kicked(self) -> None:
        os.eventfd_read(self._kick_fd)
        self._awake.set()

    def _look(self) -> Snapshot:
        self._ask_host()
        if self._room is None or self._room > CGROUP_MARGIN_BYTES:
            granted = self._segments.grant_tables()
            if self._room is not None:
                self._room -= granted
        now = Snapshot(*self._segments.snapshot())
        # Where the host gives no more, what there is has to do, whatever the target says.
        return now._replace(limit=min(now.limit, now.populated)) if self.ram_blocked else now

    def _ask_host(self) -> None:
        """Have the cgroups' limits hold for the segments: up, and down where others have used the room."""
        now = time.monotonic()
        if now < self._ask_host_at:
            return
        self._ask_host_at = now + ASK_HOST_SECONDS
        self._room = self._headroom.bytes()
        if self._room is not None:
            spare = (self._room - CGROUP_MARGIN_BYTES) // geometry.SEGMENT_BYTES
            populated = Snapshot(*self._segments.snapshot()).populated
            self._segments.set_host_limit(max(0, populated + spare))

    def _start(self, now: Snapshot) -> None:
        todo = plan(now, self._spilling, self._segments.emptiest_in_ram())
        if (todo.punch or todo.drop or todo.release) and not self._moving_memory:
            self._moving_memory = True
            self._spawn(self._give_back(todo.drop, todo.release))
        for _ in range(todo.spill):
            self._spilling += 1
            self._spawn(self._spill(self._idle_workers.pop()))
        if (todo.populate or self.ram_blocked) and not self._populating:
            self._populating = True
            self._spawn(self._populate(max(1, todo.populate)))
        if (todo.clean_disk or todo.clean_ram) and not self._cleaning:
            self._cleaning = True
            self._spawn(self._clean(todo.clean_disk, todo.clean_ram))

    def _spawn(self, move: Coroutine[None, None, None]) -> None:
        task = asyncio.get_running_loop().create_task(move)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: "asyncio.Task[None]") -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            log.error("move failed", exc_info=task.exception())
        self._awake.set()

    async def _give_back(self, drop: int, release: int) -> None:
        try:
            if not await self._call(self._drop_and_punch, drop, release):
                await asyncio.sleep(PAUSE_SECONDS)  # whatever is clean is claimed by the cleaner
        finally:
            self._moving_memory = False

    def _drop_and_punch(self, drop: int, release: int) -> int:
        return self._moves.drop(drop) + self._moves.punch(release)

    async def _spill(self, worker: int) -> None:
        try:
            result = await self._call(self._moves.spill, worker)
            if result < 0:
                await self._store_failed(-result)
            elif result > 0:
                self._store_works()
            else:
                await asyncio.sleep(PAUSE_SECONDS)  # nothing may be written now: the cleaner is at it
        finally:
            self._spilling -= 1
            self._idle_workers.append(worker)

    async def _store_failed(self, code: int) -> None:
        if not self.degraded:
            log.error(
                "spill write failed error=%s; segments stay in RAM and are tried again", os.strerror(code)
            )
            self.degraded = True
        await asyncio.sleep(BACK_OFF_SECONDS)

    def _store_works(self) -> None:
        if self.degraded:
            log.warning("spill store works again")
            self.degraded = False

    async def _populate(self, count: int) -> None:
        try:
            made = await self._call(self._try_populate, count)
            if made >= 0:
                if self.ram_blocked:
                    log.info("the host gives RAM again")
                self.ram_blocked = False
                if made == 0:
                    await asyncio.sleep(PAUSE_SECONDS)  # the limit fell meanwhile
            else:
                if not self.ram_blocked:
                    log.warning("the host refuses RAM below the target; spilling early instead")
                self.ram_blocked = True
                self._awake.set()
                await asyncio.sleep(BACK_OFF_SECONDS)
        finally:
            self._populating = False

    def _try_populate(self, count: int) -> int:
        """Slots made, or negative where the host refuses."""
        room = self._headroom.bytes()
        if room is not None:
            count = min(count, (room - CGROUP_MARGIN_BYTES) // geometry.SEGMENT_BYTES)
        return self._moves.populate(count) if count > 0 else -1

    async def _clean(self, on_disk: bool, in_ram: bool) -> None:
        """Clean on disk where slots there run low; in RAM where not, or where the disk yields nothing."""
        try:
            done = await self._clean_on(True) if on_disk else 0
            if done <= 0 and in_ram:
                done = await self._clean_on(False)
            if done == 0:
                await asyncio.sleep(PAUSE_SECONDS)
            elif done < 0:
                await asyncio.sleep(BACK_OFF_SECONDS)
        finally:
            self._cleaning = False

    async def _clean_on(self, on_disk: bool) -> int:
        below, most = (geometry.PIECES_PER_SEGMENT, 1) if on_disk else (CLEAN_RAM_PIECES, CLEAN_BATCH)
        done = await self._call(self._moves.clean, on_disk, below, most)
        if done < 0:
            if not self._unreadable:
                log.error("cleaner cannot read what was spilled error=%s", os.strerror(-done))
                self._unreadable = True
            asyncio.get_running_loop().call_later(FORGIVE_SECONDS, self._segments.forgive)
        elif done > 0 and on_disk and self._unreadable:
            log.warning("cleaner can read what was spilled again")
            self._unreadable = False
        return done

    async def _call(self, function: Callable[..., T], *args: object) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._pool, function, *args)
