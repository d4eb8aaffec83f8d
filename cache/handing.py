"""One disk handed over together with its store.  Runs in a thread of its own in the disk's process.

Nothing of what lies on the store is sent: what is in RAM ebbs onto it while the guest runs; then the disk
stands still, and its tables, the little that is left in RAM and its key are.  Until the other side was told
that the store is its own nothing is changed here, and whatever goes wrong ends with clients served as before;
from the order LEAVE on only who gave it knows where the guest runs (docs/design.md, "Migration").
"""

import contextlib
import os
import time
from collections.abc import Iterator
from typing import Any, Final, Protocol

from swaptide.cache import adopting, geometry, keys, layout, sending, stream
from swaptide.cache.stream import StreamError

LEAVE: Final = "leave"  # from here on nobody comes back to this disk unless UNDO is said
UNDO: Final = "undo"

_OFFSET_BYTES: Final = 8
_STILL_SECONDS: Final = 30.0
_STILL_POLL_SECONDS: Final = 0.002
_TELL_SECONDS: Final = 0.2
# Nobody takes over a store that has shown no life for so short a time, unless told to (marks.LIFE_SECONDS).
_SURE_SECONDS: Final = 10.0
# A segment's place: RAM slot + 1 in these bits (entry.pxd).
_RAM_SHIFT: Final = 4
_RAM_MASK: Final = (1 << 28) - 1


class Store(Protocol):
    """What this does with the disk beside what any job does."""

    def lead(self, *, ebbing: bool, held: bool) -> None:
        """Have as little in RAM as may be, or stand still."""

    def stands_still(self) -> bool:
        """Whether nothing changes or moves any more."""

    def excess_bytes(self) -> int:
        """How much is in RAM beyond what may be."""

    def hush(self, hushed: bool) -> None:
        """Show the store no life from now on, or at once; raises SetupError."""

    def reclaim(self, spill: str) -> bool:
        """Make every copy of the disk worthless; False where one has its store by now.  Raises SetupError."""

    def let_go(self) -> None:
        """Never write to the store again, nor read."""

    def state(self) -> tuple[int, geometry.Geometry]:
        """The state file, and how it is laid out."""

    def offer(self) -> dict[str, Any]:
        """What is handed over: `adopting.Offer`."""

    def key(self) -> bytearray | None:
        """What the keyring has of the disk; None where it is not encrypted."""

    def forget_key(self) -> None:
        """Erase that."""


class HandedDisk(sending.Disk, Store, Protocol):
    """A disk that can be handed over."""


class Handing(sending.Sender):
    """Hands `disk` over through `wire`."""

    def __init__(self, disk: HandedDisk, called: sending.Called, wire: stream.Wire, spill: str) -> None:
        super().__init__(disk, called, wire)
        self._store = disk
        self._spill = spill
        self._still_at: float | None = None

    def hand_over(self) -> None:
        """Do it, as ordered: HOLD, LEAVE, and UNDO or GIVE; raises StreamError where it ends before.

        What became of the disk its gate tells.
        """
        try:
            self._greet_with_store()
            self._ebb()
            begun = time.monotonic()
            self._stand_still()
            self._send_all()
            self._tell("arrived", delta_seconds=time.monotonic() - begun)
            self._wait_for_leave()
        except BaseException:
            self._go_on()
            raise
        self._disk.set_gate("leaving")
        self._tell("leaving")
        if self._decision() == UNDO:
            self._go_on()
            self._tell("undone")
            return
        self._disk.set_gate("handed")
        self._store.let_go()
        self._writer.put(stream.OPEN)
        self._other(self._reader.expect, stream.DONE)
        # The gate stays: so whoever removes the disk leaves the store alone.
        self._store.forget_key()
        self._tell("done")

    def _greet_with_store(self) -> None:
        self._greet(**{adopting.STORE: {**self._store.offer(), "spill": self._spill}})
        if self._other(self._reader.expect, stream.HELLO).get("takes_store") is not True:
            raise StreamError("the other side takes no stores; use the same swaptide on both sides")

    def _ebb(self) -> None:
        self._store.lead(ebbing=True, held=False)
        self._tell_ebb()
        while (order := self._called_for()) != sending.HOLD:
            if order is not None:
                raise StreamError(f"{order} ordered where {sending.HOLD} was due")
            if time.monotonic() - self._told_at >= _TELL_SECONDS:
                self._tell_ebb()

    def _tell_ebb(self) -> None:
        self._tell("ebbing", excess_bytes=self._store.excess_bytes())

    def _stand_still(self) -> None:
        self._store.lead(ebbing=True, held=True)
        self._await_stillness(self._store.stands_still, _STILL_SECONDS, _STILL_POLL_SECONDS)
        self._still_at = time.monotonic()
        self._store.hush(True)

    def _send_all(self) -> None:
        fd, shape = self._store.state()
        sent = 0
        for start, end in _extents(fd, shape):
            for at in range(start, end, stream.MOST_BYTES - _OFFSET_BYTES):
                count = min(stream.MOST_BYTES - _OFFSET_BYTES, end - at)
                room = self._room[: _OFFSET_BYTES + count]
                room[:_OFFSET_BYTES] = at.to_bytes(_OFFSET_BYTES, "little")
                if os.preadv(fd, [room[_OFFSET_BYTES:]], at) != count:
                    raise StreamError("the state file is shorter than it should be")
                self._other(self._writer.put, stream.STATE, room)
                sent += count
        kept = self._store.key()
        if kept is not None:
            try:
                self._other(self._writer.put, stream.KEY, kept)
            finally:
                keys.wipe(kept)
        self._sent_pages = self._pages.stored()
        last = {"state_bytes": sent, "stored_pages": self._sent_pages}
        self._other(self._writer.put_json, stream.LAST, last)
        self._other(self._reader.expect, stream.GOOD)

    def _wait_for_leave(self) -> None:
        while (order := self._called_for()) != LEAVE:
            if order is not None:
                raise StreamError(f"{order} ordered where {LEAVE} was due")

    def _decision(self) -> str:
        """GIVE or UNDO; what becomes of the other side meanwhile says nothing about where the guest runs."""
        while (order := self._called.order(stream.TICK_SECONDS)) not in (sending.GIVE, UNDO):
            if order is not None:
                raise StreamError(f"{order} ordered where {sending.GIVE} or {UNDO} was due")
            with contextlib.suppress(StreamError):
                self._writer.tick()
        assert order is not None
        return order

    def _go_on(self) -> None:
        """Serve as before.  Raises SwaptideError where that may be another's to do; then the gate is shut."""
        if self._still_at is not None and time.monotonic() - self._still_at >= _SURE_SECONDS:
            self._reclaim()
        try:
            # First, so that no copy is good any more once something moves.
            self._store.hush(False)
        finally:
            self._disk.set_gate("open")
            self._store.lead(ebbing=False, held=False)

    def _reclaim(self) -> None:
        self._disk.set_gate("leaving")  # and that it stays where the store is not reached
        if not self._store.reclaim(self._spill):
            self._disk.set_gate("handed")
            self._store.let_go()
            raise StreamError("the store was taken over there meanwhile")


def _extents(fd: int, shape: geometry.Geometry) -> Iterator[tuple[int, int]]:
    """Where the state file has what counts: header and tables without their holes, RAM slots in use."""
    at = 0
    while at < shape.pool_offset:
        try:
            start = os.lseek(fd, at, os.SEEK_DATA)
        except OSError:  # nothing but a hole from here on
            break
        if start >= shape.pool_offset:
            break
        at = min(os.lseek(fd, start, os.SEEK_HOLE), shape.pool_offset)
        yield start, at
    for slot in sorted(_slots_in_use(fd, shape)):
        start = shape.pool_offset + slot * geometry.SEGMENT_BYTES
        yield start, start + geometry.SEGMENT_BYTES


def _slots_in_use(fd: int, shape: geometry.Geometry) -> set[int]:
    """The RAM slots that segments have."""
    found = set()
    table = os.pread(fd, shape.segments * geometry.SEGMENT_ENTRY_BYTES, shape.segment_table_offset)
    for at in range(0, len(table), geometry.SEGMENT_ENTRY_BYTES):
        (place,) = layout.WORD.unpack_from(table, at)
        if slot := place >> _RAM_SHIFT & _RAM_MASK:
            found.add(slot - 1)
    return found
