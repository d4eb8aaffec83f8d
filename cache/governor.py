"""Watches the limits and the process's own memory, and publishes counters.

Owned by the engine's event loop.  Sets the budget that the segments work under; moves nothing itself.
"""

import asyncio
import concurrent.futures
import contextlib
import logging
import os
import pathlib
import threading
import time
from collections.abc import Callable
from typing import Final

from swaptide.cache import geometry, layout, memory, survey
from swaptide.cache.inotify import watch_modify
from swaptide.cache.mapping import Mapping
from swaptide.cache.movers import Movers, Orders
from swaptide.cache.planning import Snapshot
from swaptide.cache.segments import Segments

log = logging.getLogger(__name__)

ACTIVE_SECONDS: Final = 0.1
IDLE_SECONDS: Final = 1.0
# Of which nothing is wanted, and where nothing moves: words that change are noticed at once all the same.
CALM_SECONDS: Final = 5.0
CALM_AFTER_SECONDS: Final = 10.0
# nbdkit keeps one buffer per thread, as large as the largest request it saw: 16 threads of 1 MiB for each
# connection, and for each thread its stack and Python's state of it (measured: 14 KiB, and 20 for the first).
# Those of the first connection are in the base; those of any other are charged when it is opened.
REQUEST_BUFFERS_BYTES: Final = 16 * (geometry.MAX_REQUEST_BYTES + (32 << 10))
# How long a further connection waits for the room of its buffers: while RAM is being given back; and where
# none is left to give, as at the floor, for another connection to end.
ROOM_SECONDS: Final = 5.0
FLOOR_SECONDS: Final = 0.25
ROOM_TICK_SECONDS: Final = 0.002

_CONTROL = {name: index for index, name in enumerate(layout.CONTROL)}
_COUNTER = {name: index for index, name in enumerate(layout.COUNTERS)}
# How often it is looked whether a disk that is being frozen stands still.
FREEZING_SECONDS: Final = 0.01
# How long the loop may take to answer another thread.
STILL_SECONDS: Final = 10.0
# The walk over all segments that tells what lives by age is not done more often.
AGES_SECONDS: Final = 1.0
# Words that are obeyed as soon as they change.  A deadline is written before its target, so it is read after.
_ORDERS = ("target_bytes", "compress", "clean_ahead_permille", "deadline_ns", "frozen", "spill_timeout_ms")
_ACTIVITY = (
    "reads",
    "writes",
    "trims",
    "zeroes",
    "spill_written_bytes",
    "spill_read_bytes",
    "cleaned_segments",
)


class Governor:
    """The budget of one disk, whose state file is `state_fd`; its changes are watched where it has a name."""

    def __init__(
        self,
        mapping: Mapping,
        segments: Segments,
        movers: Movers,
        state_fd: int,
        state_path: pathlib.Path | None,
        reserved_bytes: int,
        store_trouble: Callable[[], str] = str,
        set_store_timeout: Callable[[float | None], None] = lambda seconds: None,
        called: Callable[[], None] = lambda: None,
    ) -> None:
        self._mapping = mapping
        self._segments = segments
        self._movers = movers
        movers.stirred = lambda: self._changed.set()
        self._store_trouble = store_trouble
        self._set_store_timeout = set_store_timeout
        self._called = called
        self._told_trouble = ""
        self._state_fd = state_fd
        self._state_path = state_path
        self._applying = threading.Lock()
        self._meter = memory.Meter()
        self._changed = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._connections = 0
        # What a damaged state file says must not be more than a word holds.
        self._heard: tuple[int, ...] = ()
        # What the process itself wants for as long as it lives, whatever the words say.
        self._ebbing = self._held = False
        self._activity: tuple[int, ...] = ()
        self._active_at = time.monotonic()
        self._ages_at = 0.0
        self._told_frozen: int | None = None
        base = min(geometry.MAX_BASE_BYTES, self._meter.start_bytes + REQUEST_BUFFERS_BYTES)
        self._base_bytes = max(base, self._meter.start_bytes)
        self._heard_call = self._control("call")  # what was called before was another process's to hear
        self._put("base_bytes", self._base_bytes)
        self._put("reserved_bytes", reserved_bytes)
        self.apply()

    async def run(self) -> None:
        """Follow the control words until cancelled."""
        watch = self._watch()
        self._loop = asyncio.get_running_loop()
        try:
            while True:
                self._changed.clear()
                self.apply()
                self._publish()
                self._hear_call()
                await self._wait_for_news(self._pause_seconds(watched=watch is not None))
        finally:
            if watch is not None:
                asyncio.get_running_loop().remove_reader(watch)
                os.close(watch)

    def _hear_call(self) -> None:
        call = self._control("call")
        if call != self._heard_call:
            self._heard_call = call
            try:
                self._called()
            except Exception:  # the disk serves on, whatever keeps a job from beginning
                log.exception("call not taken")

    def _pause_seconds(self, *, watched: bool) -> float:
        now = time.monotonic()
        if self._is_active():
            self._active_at = now
            return ACTIVE_SECONDS
        calm = watched and self._movers.calm and now - self._active_at >= CALM_AFTER_SECONDS
        return CALM_SECONDS if calm else IDLE_SECONDS

    async def _wait_for_news(self, seconds: float) -> None:
        """Wait for a changed control word, or until a disk that is being frozen stands still."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            obeyed = self._obeyed()
            if obeyed is None:
                left = min(left, FREEZING_SECONDS)
            elif obeyed != self._told_frozen:
                return
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(left):
                    await self._changed.wait()
                    return

    def _obeyed(self) -> int | None:
        """The word `frozen` if the disk stands still by it, or goes on; None if it is not there yet."""
        with self._applying:  # what is in force is what was heard last
            word = self._heard[_ORDERS.index("frozen")]
            still = self._segments.turnstile.is_still() and self._movers.are_still()
        return None if layout.is_frozen(word) and not still else word

    def expect_connections(self, count: int) -> None:
        """Charge the request buffers of `count` connections before they grow.  Any thread may call this."""
        self._connections = count
        self.apply()
        self._active_at = time.monotonic()
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):  # the loop has ended
                self._loop.call_soon_threadsafe(self._changed.set)

    def wait_for_room(self, pause: Callable[[float], bool]) -> bool:
        """Wait, not for ever, until what the connections are charged is below the target.  Any thread.

        `pause` lets seconds go by, and is false when there is nothing to wait for any more; then this is.
        """
        begun = time.monotonic()
        while (patience := self._room_seconds()) > 0:
            if time.monotonic() - begun > patience:
                log.warning(
                    "connection admitted beyond the target connections=%d target_bytes=%d",
                    self._connections,
                    self._control("target_bytes"),
                )
                return True
            if not pause(ROOM_TICK_SECONDS):
                return False
        return True

    def _room_seconds(self) -> float:
        """How long it is worth waiting for room; 0 where there is enough."""
        if self._connections <= 1:
            return 0.0  # in the base
        now = Snapshot(*self._segments.snapshot())
        if now.populated > now.limit and not layout.is_frozen(self._control("frozen")):
            return ROOM_SECONDS
        # The limit never falls below what a disk needs to work: then it says nothing about the room.
        used = os.fstat(self._state_fd).st_blocks * 512 + self._charge_bytes(0)
        return FLOOR_SECONDS if used > self._control("target_bytes") else 0.0

    def apply(self) -> None:
        """Take over the target and measure the memory that counts against it.  Any thread."""
        # One at a time, or a charge just made would be taken back by who counted the connections before.
        with self._applying:
            self._heard = self._spoken()
            target = self._heard[0]
            if self._ebbing:
                target = min(target, self._control("floor_bytes"))
            try:
                private = self._meter.now_bytes()
            except OSError:  # no descriptor to be had, for example: the last figure has to do
                private = self._counter("private_bytes")
            orders = self._orders(*self._heard[1:-1])
            orders = orders._replace(frozen=orders.frozen or self._held)
            self._set_store_timeout(layout.spill_timeout_seconds(self._heard[-1]))
            self._segments.turnstile.set_frozen(orders.frozen)
            self._movers.order(orders)
            self._segments.ram.set_budget(target, self._charge_bytes(private))
            self._put("private_bytes", private)
            self._put("target_seen_bytes", self._heard[0])

    def lead(self, *, ebbing: bool, held: bool) -> None:
        """Have as little in RAM as may be, or stand still, in this process alone, whatever the words say.

        In force at once, but what is under way goes on: see `stands_still`.  Any thread.
        """
        self._ebbing, self._held = ebbing, held
        self.apply()
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._changed.set)

    def stands_still(self) -> bool:
        """Whether nothing changes or moves any more.  Any thread but the loop's."""
        told: concurrent.futures.Future[bool] = concurrent.futures.Future()
        assert self._loop is not None

        def look() -> None:
            # On the loop: movers are begun nowhere else.
            told.set_result(self._segments.turnstile.is_still() and self._movers.are_still())

        self._loop.call_soon_threadsafe(look)
        return told.result(STILL_SECONDS)

    def excess_bytes(self) -> int:
        """How much is in RAM beyond what may be, as of now.  Any thread."""
        now = Snapshot(*self._segments.snapshot())
        return max(0, now.populated - now.limit) * geometry.SEGMENT_BYTES

    def _charge_bytes(self, private: int) -> int:
        buffers = self._meter.start_bytes + self._connections * REQUEST_BUFFERS_BYTES
        return max(0, max(private, buffers) - self._base_bytes)

    def _spoken(self) -> tuple[int, ...]:
        """The words of _ORDERS; the target first, since what goes with it was written before it."""
        return tuple(self._control(name) for name in _ORDERS)

    @staticmethod
    def _orders(compress: int, clean_ahead_permille: int, deadline_ns: int, frozen: int = 0) -> Orders:
        # One that is over binds nobody: whoever set it may have died before it was taken away.
        binding = deadline_ns > time.monotonic_ns()
        return Orders(
            layout.COMPRESS[compress] if compress < len(layout.COMPRESS) else "none",
            min(1.0, clean_ahead_permille / 1000),
            deadline_ns / 1e9 if binding else None,
            layout.is_frozen(frozen),
        )

    def _watch(self) -> int | None:
        if self._state_path is None:
            return None  # nobody can find an unnamed file by name; the idle tick looks often enough
        fd = watch_modify(self._state_path)
        asyncio.get_running_loop().add_reader(fd, self._notified, fd)
        return fd

    def _notified(self, fd: int) -> None:
        os.read(fd, 65536)
        # The movers' own punches notify as well; only a changed control word is news.
        if (
            self._spoken() != self._heard
            or self._control("publish_request") != self._counter("publish_answer")
            or self._control("call") != self._heard_call
        ):
            self._changed.set()

    def _publish(self) -> None:
        request, obeyed = self._control("publish_request"), self._obeyed()
        raw, packed, packed_bytes, clean, disk, disk_bytes = survey.tiers(self._segments)
        now = Snapshot(*self._segments.snapshot())
        in_use = self._segments.disk_use()
        store_trouble = self._store_trouble()
        trouble = store_trouble or self._movers.trouble
        if trouble != self._told_trouble:
            self._mapping.write_text(geometry.TROUBLE_OFFSET, geometry.TROUBLE_BYTES, trouble.encode())
            self._told_trouble = trouble
        gauges = {
            "stored_pages": raw + packed + disk,
            "raw_bytes": raw * geometry.PAGE_BYTES,
            "packed_pages": packed,
            "packed_bytes": packed_bytes,
            "clean_bytes": clean * geometry.PAGE_BYTES,
            "spilled_bytes": disk * geometry.PAGE_BYTES,
            "spilled_disk_bytes": disk_bytes,
            "ram_slots_used": now.populated,
            "ram_slots_limit": now.limit,
            "disk_slots_used": sum(in_use),
            "second_slots_used": sum(in_use[1:]),
            "droppable_bytes": (now.clean + now.free) * geometry.SEGMENT_BYTES,
            **self._speeds(now),
            "degraded": int(bool(trouble)),
            "usable_stores": 0 if store_trouble else self._movers.usable_stores,
            "ram_blocked": int(self._movers.ram_blocked),
        }
        for name, value in gauges.items():
            self._put(name, value)
        if time.monotonic() >= self._ages_at:
            survey.count_ages(self._segments)
            self._ages_at = time.monotonic() + AGES_SECONDS
        if obeyed is not None:
            self._put("frozen_seen", obeyed)
            if layout.is_frozen(obeyed) != layout.is_frozen(self._told_frozen or 0):
                if layout.is_frozen(obeyed):
                    log.info("disk frozen, writes wait")
                else:
                    log.info("disk thawed")
            self._told_frozen = obeyed
        # Last: whoever asked sees the answer only when everything above is there.
        self._put("publish_answer", request)

    def _speeds(self, now: Snapshot) -> dict[str, int]:
        rates, segment = self._movers.rates, geometry.SEGMENT_BYTES
        packs = self._control("compress") != layout.COMPRESS.index("none")
        return {
            "packable_bytes": int(now.raw * rates.gain * segment) if packs else 0,
            "pack_bytes_per_second": int(rates.pack_slots_per_second * segment) if packs else 0,
            "spill_bytes_per_second": int(rates.spill_slots_per_second * segment),
        }

    def _is_active(self) -> bool:
        before, self._activity = self._activity, tuple(self._counter(name) for name in _ACTIVITY)
        return before != self._activity

    def _control(self, name: str) -> int:
        return self._mapping.control_word(_CONTROL[name])

    def _counter(self, name: str) -> int:
        return self._mapping.counter_word(_COUNTER[name])

    def _put(self, name: str, value: int) -> None:
        self._mapping.set_counter_word(_COUNTER[name], value)
