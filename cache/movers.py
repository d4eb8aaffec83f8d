"""When something moves, and in which thread: the asyncio side of the movers.

`Movers` takes snapshots, starts the moves that `planning.plan` makes of them in worker threads, and looks
again whenever one ends or the hot path kicks the eventfd.  Owned by the engine's event loop; nothing here is
called from nbdkit's threads.
"""

import asyncio
import concurrent.futures
import contextlib
import errno
import logging
import os
import threading
import time
from collections.abc import Callable, Coroutine, Sequence
from typing import Final, NamedTuple, TypeVar

from swaptide.cache import cgroup, failing, geometry, idle, planning, rates, survey, threads
from swaptide.cache.moves import Moves
from swaptide.cache.segments import Segments

log = logging.getLogger(__name__)

T = TypeVar("T")

# Segments in RAM that are cleaned in one go: under load, taking the interpreter again costs as much as one.
CLEAN_BATCH: Final = 8
# A segment that the guest left half full for so long is closed where RAM is scarce: then it packs as well.
LEFT_SECONDS: Final = 2.0
# How long a falling target may take where nobody said: as long as packing makes it in this time, nothing that
# shrinks goes to disk.
PATIENCE_SECONDS: Final = 5.0
# After a failure of the store or the host, in seconds.
BACK_OFF_SECONDS: Final = 0.1
# Where there was nothing to do after all.
PAUSE_SECONDS: Final = 0.01
# Reading the cgroups' files takes tens of microseconds, and a busy disk looks thousands of times a second.
ASK_HOST_SECONDS: Final = 0.02
# Of the time, what looking for the emptiest segment may take.
EMPTIEST_SHARE: Final = 0.1
# Free disk slots that a store which can forget is left as they are, and how many go in one call.
DISCARD_KEEP: Final = 8
DISCARD_BATCH: Final = 4
# How long a segment whose read failed is left alone.
FORGIVE_SECONDS: Final = 5.0
IDLE_SECONDS: Final = 1.0
# A disk of which nothing was wanted for so long looks less often: a hundred idle disks are not to be felt.
CALM_AFTER_SECONDS: Final = 10.0
CALM_SECONDS: Final = 5.0
# How long staging buffers are kept that nobody writes from.
STAGED_SECONDS: Final = 5.0
# How often work that is done ahead of need looks whether it is still welcome; less and less often, up to
# IDLE_SECONDS, where it is not.
AHEAD_SECONDS: Final = 0.05
# Cores without work from which on one counts as idle.
IDLE_CORES: Final = 0.5
# Packers give way to the guest.
PACKER_NICENESS: Final = 5
# Left free below a memory cgroup's limit, in bytes: request buffers (16 MiB) and what the kernel charges.
CGROUP_MARGIN_BYTES: Final = 24 << 20
# Of that, what a staging buffer leaves.
STAGE_MARGIN_BYTES: Final = 8 << 20


class Orders(NamedTuple):
    """What the operator wants: one of layout.COMPRESS, a share of the target, a time.monotonic() or None.

    Where it is `frozen` nothing is to move.
    """

    compress: str = "none"
    clean_ahead: float = 0.0
    deadline: float | None = None
    frozen: bool = False


def _be_modest() -> None:
    """Give way to the guest's threads; a process that is nicer already stays as it is."""
    threads.call_me(threads.PACKER)
    me = threading.get_native_id()
    os.setpriority(os.PRIO_PROCESS, me, max(PACKER_NICENESS, os.getpriority(os.PRIO_PROCESS, me)))


class Movers:
    """Runs the plan until cancelled.  `degraded` and `ram_blocked` tell what the host refuses right now.

    `stores` are the two that a disk with two has.
    """

    def __init__(
        self, moves: Moves, segments: Segments, kick_fd: int, stores: Sequence[failing.Store] = ()
    ) -> None:
        self._moves = moves
        self._segments = segments
        self._kick_fd = kick_fd
        self._awake = asyncio.Event()
        # Worker 0 first, whose buffer is always there.
        self._idle_spillers = list(reversed(range(planning.SPILLERS)))
        self._spilled_at = time.monotonic()
        self._staged = True
        self._looked_last: planning.Snapshot | None = None
        self._calm_since = time.monotonic()
        self._idle_packers = list(range(planning.PACKERS))
        self._cleaning = False
        self._populating = False
        self._discarding = False
        self._moving_memory = False
        self._headroom = cgroup.Headroom()
        self._room: int | None = None
        self._ask_host_at = 0.0
        self._tasks: set[asyncio.Task[None]] = set()
        self._pool = concurrent.futures.ThreadPoolExecutor(
            planning.SPILLERS + 4, initializer=threads.call_me, initargs=(threads.MOVER,)
        )
        self._packers = concurrent.futures.ThreadPoolExecutor(planning.PACKERS, initializer=_be_modest)
        self._idle = idle.Idle()
        self.rates = rates.Rates(planning.SPILLERS, planning.PACKERS)
        self._packed_bytes = moves.packed_bytes()
        self._orders = Orders()
        self._strengthen_at = 0.0
        self._lowered_at = 0.0
        self._last_limit = 0
        self._emptiest = geometry.CONTENT_BYTES
        self._emptiest_at = 0.0
        self._guest_at = (0, 0)  # how many segments it began, and how full the last one is
        self._guest_since = 0.0
        self._ahead = False
        self._ahead_seconds = AHEAD_SECONDS
        self._disk_idle = False
        self._looked_at = 0.0
        self._misses = 0
        self.stirred: Callable[[], None] = lambda: None  # called when a calm disk is wanted again
        self.degraded = False
        self._trouble = ""  # why, in words
        self._stores = failing.Stores(stores, segments)
        self._unreadable = False  # told, until the cleaner could read again
        self.ram_blocked = False

    @property
    def trouble(self) -> str:
        """Why the disk is degraded, in words; empty where it is not."""
        return self._stores.trouble() if self._stores else self._trouble

    @property
    def usable_stores(self) -> int:
        """How many stores take writes, as far as writes have told."""
        return self._stores.usable() if self._stores else int(not self._trouble)

    def prepare(self) -> None:
        """Have the first segments there before the first request comes; the loop does not run yet.

        Where the host or the target has no room for them, the first writers wait as any other.
        """
        if not self._orders.frozen:
            self._look()
            self._try_populate(planning.LEAST_FREE)

    async def run(self) -> None:
        """Move until cancelled; moves under way are waited for."""
        loop = asyncio.get_running_loop()
        loop.add_reader(self._kick_fd, self._kicked)
        try:
            while True:
                self._awake.clear()
                self._segments.turnstile.rearm()
                if self._orders.frozen:
                    self._ahead = False
                else:
                    self._start(self._look())
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(self._pause_seconds()):
                        await self._awake.wait()
        finally:
            loop.remove_reader(self._kick_fd)
            self._segments.turnstile.stop()
            if self._tasks:
                await asyncio.wait(self._tasks)
            self._pool.shutdown()
            self._packers.shutdown()

    def _kicked(self) -> None:
        os.eventfd_read(self._kick_fd)
        self._awake.set()

    @property
    def calm(self) -> bool:
        """Whether nothing moved for a while, and no memory cgroup or pair of stores has to be watched.

        On the loop alone.
        """
        return self._room is None and not self._stores and self._rests()

    def _rests(self) -> bool:
        return time.monotonic() - self._calm_since >= CALM_AFTER_SECONDS

    def _pause_seconds(self) -> float:
        if self._ahead:
            return self._ahead_seconds
        return CALM_SECONDS if self.calm else IDLE_SECONDS

    def _look(self) -> planning.Snapshot:
        self._stores.look()
        self._ask_host()
        if self._room is None or self._room > CGROUP_MARGIN_BYTES:
            granted = self._segments.ram.grant_tables()
            if self._room is not None:
                self._room -= granted
        now = planning.Snapshot(*self._segments.snapshot())
        self._note(now)
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
            populated = planning.Snapshot(*self._segments.snapshot()).populated
            self._segments.ram.set_host_limit(max(0, populated + spare))

    def _start(self, now: planning.Snapshot) -> None:
        emptiest = self._look_for_emptiest() if now.populated >= now.limit else geometry.CONTENT_BYTES
        busy = planning.Busy(
            planning.SPILLERS - len(self._idle_spillers), planning.PACKERS - len(self._idle_packers)
        )
        wish = self._wish(now)
        todo = planning.plan(now, busy, wish, emptiest)
        if wish.resting and self._segments.seal_dead():
            self._awake.set()
        self._ahead = todo.ahead
        if todo.spill or todo.pack or self._tasks or not todo.ahead:
            self._ahead_seconds = AHEAD_SECONDS
        else:
            self._ahead_seconds = min(2 * self._ahead_seconds, IDLE_SECONDS)
        if todo.spill:
            self._spilled_at, self._staged = time.monotonic(), True
        elif self._staged and len(self._idle_spillers) == planning.SPILLERS:
            self._unstage()
        self._segments.ram.set_keep_free(todo.keep_free)
        if todo.seal_packers and not busy.packing:
            self._segments.seal_packers()
            self._awake.set()
        if todo.seal_guest and self._guest_left(now):
            self._segments.seal_guest(now.guest_fill)
            self._awake.set()
        if (todo.punch or todo.drop or todo.release) and not self._moving_memory:
            self._moving_memory = True
            self._spawn(self._give_back(todo.drop, todo.release))
        for _ in range(todo.spill):
            self._spawn(self._spill(self._idle_spillers.pop(), todo.batch, ahead=todo.ahead))
        for _ in range(todo.pack):
            self._spawn(self._pack(self._idle_packers.pop(), todo.keep_raw))
        if todo.strengthen and time.monotonic() >= self._strengthen_at:
            self._spawn(self._strengthen(self._idle_packers.pop()))
        if (todo.populate or self.ram_blocked) and not self._populating:
            self._populating = True
            self._spawn(self._populate(max(1, todo.populate)))
        if (todo.clean_disk or todo.clean_ram) and not self._cleaning:
            self._cleaning = True
            self._spawn(self._clean(todo.clean_disk, todo.clean_ram, by_age=not now.waiting))
        if self._may_discard(todo):
            self._discarding = True
            self._spawn(self._discard())

    def _note(self, now: planning.Snapshot) -> None:
        """Whether anything changed; a kick alone says little, since the governor kicks with all it does."""
        if now != self._looked_last or self._tasks:
            was_calm = self.calm
            self._looked_last, self._calm_since = now, time.monotonic()
            if was_calm:
                self.stirred()

    def _unstage(self) -> None:
        """Give back the buffers that were not written from for a while."""
        if time.monotonic() - self._spilled_at >= STAGED_SECONDS:
            self._moves.spiller.unstage()
            self._idle_spillers.sort(reverse=True)
            self._staged = False

    def _may_discard(self, todo: planning.Plan) -> bool:
        """Whether the store is at leisure, and keeps more than it need."""
        return (
            self._moves.discards
            and not self._discarding
            and not todo.spill
            and len(self._idle_spillers) == planning.SPILLERS
            and self._segments.spent_slots() > DISCARD_KEEP
        )

    def _look_for_emptiest(self) -> int:
        """The weight of the emptiest segment in RAM, as of a moment ago: that walks over all segments in use,
        which takes microseconds on most disks, but milliseconds on one of a TiB.
        """
        begun = time.monotonic()
        if begun >= self._emptiest_at:
            self._emptiest = survey.emptiest_in_ram(self._segments)
            took = time.monotonic() - begun
            self._emptiest_at = begun + took / EMPTIEST_SHARE
        return self._emptiest

    def order(self, orders: Orders) -> None:
        """Take new orders; in force from the next look on.  Any thread may call this."""
        self._orders = orders

    def are_still(self) -> bool:
        """Whether nothing moves, and nothing will as long as the orders say so.  On the loop alone."""
        return self._orders.frozen and not self._tasks

    def _wish(self, now: planning.Snapshot) -> planning.Wish:
        orders, spare = self._orders, self._idle.now()
        opened, clock = self._moves.segments_opened(), time.monotonic()
        if now.limit < self._last_limit:
            self._lowered_at = time.monotonic()
        self._last_limit = now.limit
        over = now.populated - now.to_punch - now.limit
        left = (orders.deadline or self._lowered_at + PATIENCE_SECONDS) - time.monotonic()
        return planning.Wish(
            compress=orders.compress != "none",
            strengthen=orders.compress == "lz4+zstd",
            hurry=over > 0 and over > self.rates.packed_in(left),
            clean=int(now.limit * orders.clean_ahead),
            demand=self.rates.demand(opened, clock),
            recent=self.rates.recent(opened, clock),
            resting=self._rests(),
            idle_core=spare.cores >= IDLE_CORES,
            idle_disk=spare.cores >= IDLE_CORES and self._disk_is_idle(),
        )

    def _guest_left(self, now: planning.Snapshot) -> bool:
        """Whether the guest has written nothing for a while."""
        at, clock = (self._moves.segments_opened(), now.guest_fill), time.monotonic()
        if at != self._guest_at:
            self._guest_at, self._guest_since = at, clock
        return clock - self._guest_since >= LEFT_SECONDS

    def _disk_is_idle(self) -> bool:
        """Whether no read went to the disk since the last time that this was asked, a while ago."""
        now = time.monotonic()
        if now - self._looked_at >= AHEAD_SECONDS / 2:
            misses = self._moves.misses()
            self._disk_idle = misses == self._misses
            self._misses, self._looked_at = misses, now
        return self._disk_idle

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

    async def _spill(self, worker: int, most: int, *, ahead: bool) -> None:
        begun = time.monotonic()
        try:
            result = await self._call(self._stage_and_spill, worker, most, not ahead)
            if result == -errno.EAGAIN:
                await asyncio.sleep(PAUSE_SECONDS)  # the store broke off: written anew; or no buffer
            elif result < 0:
                await self._store_failed(-result)
            elif result > 0:
                self.rates.spilled((time.monotonic() - begun) / result)
                self._store_works()
            else:
                await asyncio.sleep(PAUSE_SECONDS)  # nothing may be written now: the cleaner is at it
        finally:
            self._idle_spillers.append(worker)

    def _stage_and_spill(self, worker: int, most: int, give_back: bool) -> int:
        if not self._moves.spiller.is_staged(worker):
            room = self._headroom.bytes()
            if room is not None and room < STAGE_MARGIN_BYTES + geometry.SEGMENT_BYTES:
                return -errno.EAGAIN
            if not self._moves.spiller.stage(worker):
                return -errno.EAGAIN
        return self._moves.spill(worker, most, give_back)

    async def _pack(self, worker: int, keep_raw: int) -> None:
        begun = time.monotonic()
        strong = self._orders.compress == "zstd"
        try:
            done = await self._call_packer(self._moves.pack, worker, keep_raw, strong)
            if done == 1:
                # Since the last one that ended: others are packed at the same time.
                before, self._packed_bytes = self._packed_bytes, self._moves.packed_bytes()
                if self._packed_bytes > before:  # else it did not shrink, which says nothing about packing
                    self.rates.packed(time.monotonic() - begun, self._packed_bytes - before)
            elif done <= 0:
                await asyncio.sleep(PAUSE_SECONDS)  # no slot to pack into, or somebody was quicker
        finally:
            self._idle_packers.append(worker)

    async def _strengthen(self, worker: int) -> None:
        try:
            if await self._call_packer(self._moves.strengthen, worker) <= 0:
                # The worker is not kept waiting: it may be wanted to pack.
                self._strengthen_at = time.monotonic() + IDLE_SECONDS
        finally:
            self._idle_packers.append(worker)

    async def _discard(self) -> None:
        try:
            done = await self._call(self._moves.discard, DISCARD_KEEP, DISCARD_BATCH)
            if done <= 0:
                # Nothing is lost: it is a hint.
                await asyncio.sleep(BACK_OFF_SECONDS if done < 0 else PAUSE_SECONDS)
        finally:
            self._discarding = False

    async def _store_failed(self, code: int) -> None:
        if self._stores:
            self._stores.wrote()
            await asyncio.sleep(BACK_OFF_SECONDS)
            return
        self._trouble = f"writing to the spill store fails: {os.strerror(code)}"
        if not self.degraded:
            log.error(
                "spill write failed error=%r so='segments stay in RAM and are tried again'", os.strerror(code)
            )
            self.degraded = True
        await asyncio.sleep(BACK_OFF_SECONDS)

    def _store_works(self) -> None:
        if self._stores:
            self._stores.wrote()
        elif self.degraded:
            log.warning("spill store works again")
            self.degraded, self._trouble = False, ""

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

    async def _clean(self, on_disk: bool, in_ram: bool, *, by_age: bool) -> None:
        """Clean on disk where slots there run low; in RAM where not, or where the disk yields nothing."""
        try:
            done = await self._clean_on(True, by_age) if on_disk else 0
            if done <= 0 and in_ram:
                done = await self._clean_on(False, by_age)
            if done == 0:
                await asyncio.sleep(PAUSE_SECONDS)
            elif done < 0:
                await asyncio.sleep(BACK_OFF_SECONDS)
        finally:
            self._cleaning = False

    async def _clean_on(self, on_disk: bool, by_age: bool) -> int:
        below, most = (planning.CLEAN_DISK_BYTES, 1) if on_disk else (planning.CLEAN_RAM_BYTES, CLEAN_BATCH)
        done = await self._call(self._moves.clean, on_disk, below, most, by_age)
        if done < 0:
            if not self._unreadable:
                log.error("cleaner cannot read what was spilled error=%r", os.strerror(-done))
                self._unreadable = True
            asyncio.get_running_loop().call_later(FORGIVE_SECONDS, self._moves.forgive)
        elif done > 0 and on_disk and self._unreadable:
            log.warning("cleaner can read what was spilled again")
            self._unreadable = False
        return done

    async def _call_packer(self, function: Callable[..., T], *args: object) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._packers, function, *args)

    async def _call(self, function: Callable[..., T], *args: object) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._pool, function, *args)
