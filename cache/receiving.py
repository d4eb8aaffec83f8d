"""One disk taken in from another, or out of a file.  Runs in a thread of its own in the disk's process.

Clients wait at the gate from before the first page until the last word; where that never comes they go on
waiting, since what is there is not their disk.
"""

import contextlib
import time
from collections.abc import Callable, Mapping
from typing import Any, Final, Protocol

from swaptide.cache import adopting, sending, stream
from swaptide.cache.stream import StreamError

_TELL_SECONDS: Final = 0.2
# How long what is still sent is read after giving up, so that the reason gets through.
_DRAIN_SECONDS: Final = 5.0


class ReceivingDisk(sending.Disk, adopting.AdoptingDisk, Protocol):
    """A disk that takes in pages, or another one's store."""


class Receiver:
    """Takes into `disk` what comes through `wire`."""

    def __init__(self, disk: ReceivingDisk, called: sending.Called, wire: stream.Wire) -> None:
        self._disk = disk
        self._called = called
        self._reader = stream.Reader(wire)
        self._writer = stream.Writer(wire)
        self.pages = disk.incoming()
        self._taken = 0
        self._bytes = 0
        self._told_at = 0.0

    def receive(self) -> None:
        """Take a disk in and serve it once it is given; raises StreamError, also to the other side."""
        try:
            hello = self._hello()
            if adopting.STORE in hello:
                self._adopt(hello)
                return
            origin = self._begin(hello)
            self._writer.put_json(stream.HELLO, {"disk_id": self._disk.disk_id})
            self._take_all()
            self._disk.set_origin(origin)
            self._disk.set_gate("arrived")
            self._writer.put(stream.GOOD)
            self._tell("arrived")
            self._reader.expect(stream.OPEN)
            self._disk.set_gate("open")
        except stream.GaveUpError:
            raise
        except StreamError as error:
            self._refuse(str(error))
            raise
        with contextlib.suppress(StreamError):  # ours it is, whether they hear of it or not
            self._writer.put(stream.DONE)
        self._tell("done")

    def load(self) -> None:
        """Take a disk out of a file and serve it; raises StreamError, and clients wait then."""
        origin = self._begin(self._hello())
        self._take_all()
        self._disk.set_origin(origin)
        self._disk.set_gate("open")
        self._tell("done")

    def _adopt(self, hello: Mapping[str, Any]) -> None:
        """As receive, where the disk's store is handed over and not its pages."""
        adopting.Adopting(self._disk, self._called, self._reader, self._writer).take(hello)

    def _hello(self) -> Mapping[str, Any]:
        self._reader.greet()
        return self._reader.expect(stream.HELLO)

    def _begin(self, hello: Mapping[str, Any]) -> str:
        """Whose contents come; everything that was here is gone then."""
        size = stream.number_of(hello, "size_bytes")
        origin = stream.text_of(hello, "disk_id")
        adopting.check_size(size, self._disk.size_bytes)
        self._disk.set_origin(None)
        self._own(self.pages.clear)
        self._tell("copying")
        return origin

    def _take_all(self) -> None:
        while True:
            kind, payload = self._reader.next()
            if kind == stream.PAGES:
                try:
                    self._taken += self._own(self.pages.take, payload)
                except ValueError as error:
                    raise StreamError(f"the stream is damaged: {error}") from error
                self._bytes += len(payload)
            elif kind == stream.LAST:
                break
            elif kind != stream.TICK:
                raise StreamError(f"{kind.decode()} came where pages were due")
            if time.monotonic() - self._told_at >= _TELL_SECONDS:
                self._tell("copying")
        wanted, found = stream.number_of(stream.parse(payload), "stored_pages"), self.pages.stored()
        if wanted != found:
            raise StreamError(f"{found} pages are here, and {wanted} were there: the stream is damaged")

    def _own(self, what: Callable[..., int | None], *given: Any) -> int:
        """Do what may fail for a reason of our own."""
        try:
            return what(*given) or 0
        except OSError as error:
            raise StreamError("this disk's process ends, or was told to give up") from error

    def _refuse(self, reason: str) -> None:
        with contextlib.suppress(StreamError):
            self._writer.put_json(stream.FAIL, {"error": reason})
            deadline = time.monotonic() + _DRAIN_SECONDS
            while time.monotonic() < deadline:
                self._reader.drain()

    def _tell(self, at: str) -> None:
        self._told_at = time.monotonic()
        self._called.tell(at=at, taken_pages=self._taken, taken_bytes=self._bytes)
