"""One disk sent to another, or into a file.  Runs in a thread of its own in the disk's process.

Until the disk is given away nothing of it is changed, and whatever goes wrong ends with its clients served
as before.
"""

import logging
import os
import time
from collections.abc import Callable
from typing import Any, Final, Protocol

from swaptide.cache import stream
from swaptide.cache.parcels import Incoming, Outgoing
from swaptide.cache.stream import StreamError

log = logging.getLogger(__name__)

# What was under way when changes were held has to end by then: one that waits at the cap may not.
STILL_SECONDS: Final = 10.0
_STILL_POLL_SECONDS: Final = 0.0005
# Between two rounds, so that what a guest writes in a moment is one of them.
_ROUND_SECONDS: Final = 0.02
_TELL_SECONDS: Final = 0.2
# How often both sides are looked at while the bandwidth is used up.
_PACE_SECONDS: Final = 0.1

HOLD: Final = "hold"
GIVE: Final = "give"


class Called(Protocol):
    """Whoever called for a job: hears how far it is, and says what is next."""

    def tell(self, **what: Any) -> None:
        """Say something; never raises."""

    def order(self, seconds: float) -> str | None:
        """The next order, if one comes in time; raises StreamError once they hung up."""


class Disk(Protocol):
    """What a job does with the disk, beside its log."""

    disk_id: str
    name: str
    size_bytes: int

    def outgoing(self) -> Outgoing:
        """Its pages on their way out."""

    def incoming(self) -> Incoming:
        """Pages on their way into it."""

    def gate(self) -> str:
        """Whether clients are served: one of layout.GATES."""

    def set_gate(self, gate: str) -> None:
        """Have clients served or not, by one of them."""

    def set_origin(self, disk_id: str | None) -> None:
        """Whose contents these are."""

    def hold(self, held: bool) -> None:
        """Have clients' changes wait, or go on."""

    def is_still(self) -> bool:
        """Whether no change is under way."""


class Sender:
    """Sends `disk` through `wire`, at most `bandwidth` bytes a second but for the last changes."""

    def __init__(
        self, disk: Disk, called: Called, wire: stream.Wire, *, bandwidth: int | None = None
    ) -> None:
        self._disk = disk
        self._called = called
        self._writer = stream.Writer(wire)
        self._wire = wire
        self._reader = stream.Reader(wire)
        self._pages = disk.outgoing()
        self._room = memoryview(bytearray(stream.MOST_BYTES))
        self._bandwidth = bandwidth
        self._free_at = 0.0  # when more may be sent
        self._ordered: str | None = None  # while a round went on
        self._rounds = 0
        self._sent_pages = 0
        self._told_at = 0.0

    def migrate(self) -> None:
        """Send rounds until told to hold, and hand over when told to give.

        Raises StreamError where it ends before that; whether the disk was given away its gate tells.
        """
        self._greet()
        self._other(self._reader.expect, stream.HELLO)
        given = False
        try:
            self._tell("copying", total_pages=self._pages.begin())
            while self._called_for() != HOLD:
                self._round(until_held=True)
            begun = time.monotonic()
            self._hold()
            self._finish()
            self._other(self._reader.expect, stream.GOOD)
            self._tell("arrived", delta_seconds=time.monotonic() - begun)
            self._await_give()
            self._disk.set_gate("given")
            given = True
            self._writer.put(stream.OPEN)
            self._other(self._reader.expect, stream.DONE)
            self._tell("done")
        finally:
            self._pages.end()
            self._disk.hold(False)
        if given:
            if (gate := self._disk.gate()) != "given":
                raise StreamError(
                    f"the disk is {gate} again, and is not emptied; the other side serves it too"
                )
            self._disk.incoming().clear()
            self._disk.set_gate("gone")
            self._tell("gone")

    def save(self, fd: int) -> None:
        """Write all of it into the file `fd`, while changes wait; raises StreamError."""
        self._greet()
        try:
            self._hold()
            self._tell("copying", total_pages=self._pages.begin())
            self._finish()
            os.fsync(fd)
        except OSError as error:
            raise StreamError(f"the file is not safe: {error.strerror}") from error
        finally:
            self._pages.end()
            self._disk.hold(False)
        self._tell("done")

    def _greet(self, **more: Any) -> None:
        disk = self._disk
        hello = {"disk_id": disk.disk_id, "name": disk.name, "size_bytes": disk.size_bytes}
        self._writer.greet()
        self._writer.put_json(stream.HELLO, {**hello, **more})

    def _called_for(self) -> str | None:
        """What is ordered, after a pause; raises StreamError if whoever ordered is gone."""
        order, self._ordered = self._ordered or self._called.order(_ROUND_SECONDS), None
        if order is None:
            self._hear_other()
            self._writer.tick()
        return order

    def _hear_other(self) -> None:
        """Raises StreamError if the destination gave up: it says nothing else before it is asked."""
        if isinstance(self._wire, stream.SocketWire) and self._wire.has_news():
            kind, _ = self._reader.next()
            raise StreamError(f"{kind.decode()} came where nothing was due")

    def _round(self, *, until_held: bool) -> None:
        """Send what had changed when this began, and tell how far it is."""
        before = self._sent_pages
        while True:
            try:
                used, pages = self._pages.fill(self._room)
            except OSError as error:
                raise StreamError(
                    f"page {self._pages.failed_page} cannot be read from the spill store: {error.strerror}"
                ) from error
            if not used:
                break
            self._other(self._writer.put, stream.PAGES, self._room[:used])
            self._sent_pages += pages
            if time.monotonic() - self._told_at >= _TELL_SECONDS:
                self._tell("copying")
            if until_held:
                self._pace(used)
                self._hear_other()
        # One in which nothing had changed is none, but for the first.
        if self._sent_pages > before or not self._rounds:
            self._rounds += 1
            self._tell("copying")

    def _pace(self, sent: int) -> None:
        """Wait until more may be sent, or until something is ordered: the guest waits from then on.

        Raises StreamError if either side ends it meanwhile.
        """
        if self._bandwidth is None:
            return
        self._free_at = max(self._free_at, time.monotonic()) + sent / self._bandwidth
        while (left := self._free_at - time.monotonic()) > 0:
            self._ordered = self._called.order(min(left, _PACE_SECONDS))
            if self._ordered is not None:
                self._bandwidth = None
                return
            self._hear_other()
            self._writer.tick()

    def _hold(self) -> None:
        self._disk.hold(True)
        self._await_stillness(self._disk.is_still, STILL_SECONDS, _STILL_POLL_SECONDS)

    def _await_stillness(self, is_still: Callable[[], bool], seconds: float, poll_seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while not is_still():
            if time.monotonic() >= deadline:
                raise StreamError(
                    f"a write has been under way for {seconds:.0f} s: is the spill store alive?"
                )
            time.sleep(poll_seconds)

    def _finish(self) -> None:
        """Send what is left, which gets no more, and say so."""
        while self._pages.pending():
            self._round(until_held=False)
        self._other(self._writer.put_json, stream.LAST, {"stored_pages": self._pages.stored()})

    def _await_give(self) -> None:
        while (order := self._called.order(stream.TICK_SECONDS)) != GIVE:
            if order is not None:
                raise StreamError(f"{order} ordered where {GIVE} was due")
            self._writer.tick()

    def _other(self, what: Callable[..., Any], *given: Any) -> Any:
        """Do what needs the other side; where that fails its own reason is told, if it gave one."""
        try:
            return what(*given)
        except stream.GaveUpError:
            raise
        except StreamError as error:
            try:
                self._hear_other()
            except stream.GaveUpError as theirs:
                raise theirs from error
            except StreamError:
                pass
            raise

    def _tell(self, at: str, **more: Any) -> None:
        self._told_at = time.monotonic()
        self._called.tell(
            at=at,
            rounds=self._rounds,
            sent_pages=self._sent_pages,
            sent_bytes=self._writer.sent_bytes,
            pending_pages=self._pages.pending() if at == "copying" else 0,
            **more,
        )
