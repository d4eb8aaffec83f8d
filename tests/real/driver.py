"""Random load over libnbd, many requests in flight on several connections, against a model.

The model is a bytearray.  Requests in flight never share a byte, but often share a page, so every
answer is known exactly.  One thread; the seed decides everything but the timing.
"""

import contextlib
import dataclasses
import random
import select
import struct
from collections.abc import Callable

import nbd

from tests.real.buffers import Buffers

PAGE = 4096
MAX_REQUEST = 1 << 20


@dataclasses.dataclass
class Request:
    """One request in flight: bytes [start, end).  `before` is what a change replaces."""

    kind: str
    start: int
    end: int
    expected: bytes = b""
    before: bytes = b""
    buffer: memoryview | None = None
    cookie: int = -1


def stock(chooser: random.Random) -> tuple[bytes, bytes, bytes, bytes]:
    """A request and a page of each kind of data: noise, words, counters, and pages that are half of both."""
    size = MAX_REQUEST + PAGE
    noise = chooser.randbytes(size)
    words = [chooser.randbytes(chooser.randint(2, 12)) for _ in range(500)]
    text = b" ".join(chooser.choices(words, k=size // 4))[:size]
    counters = struct.pack(f"<{size // 8}Q", *range(1 << 40, (1 << 40) + size // 8))
    half = b"".join(noise[at : at + PAGE // 2] + text[at : at + PAGE // 2] for at in range(0, size, PAGE))
    return noise, text, counters, half


class WrongByte(AssertionError):
    """The disk answered something that was never written there."""


class Driver:
    """Keeps up to `depth` random requests in flight on each connection.

    `weights` are the odds of read, write, trim, zero; `biggest` limits request sizes in bytes.
    """

    def __init__(
        self,
        uri: str,
        size: int,
        seed: int,
        *,
        connections: int = 2,
        depth: int = 16,
        biggest: int = MAX_REQUEST,
    ) -> None:
        self.random = random.Random(seed)
        self.size = size
        self.depth = depth
        self.biggest = biggest
        self.patience_seconds = 60.0  # for the next answer
        self.weights = {"read": 40, "write": 45, "trim": 8, "zero": 7}
        self.model = bytearray(size)
        self.counts = dict.fromkeys(self.weights, 0)
        self.connections = connections
        self._stock = stock(self.random)
        self._buffers = Buffers(MAX_REQUEST)
        self._flying: dict[int, list[Request]] = {}
        self._unsettled: list[Request] = []
        self._handles = [self._connect(uri) for _ in range(connections)]

    def _connect(self, uri: str) -> "nbd.NBD":
        handle = nbd.NBD()
        handle.connect_uri(uri)
        self._flying[id(handle)] = []
        return handle

    def run(self, requests: int, every: Callable[[int], None] | None = None) -> None:
        """Issue `requests` and wait for all; `every(n)` is called before the n-th.  Raises WrongByte."""
        for n in range(requests):
            if every is not None:
                every(n)
            handle = self.random.choice(self._handles)
            while len(self._flying[id(handle)]) >= self.depth:
                self._wait()
            request = self._draw()
            while self._overlaps(request):
                request = self._draw()
            self._issue(handle, request)
            self._collect()
        self.drain()

    def run_until_dead(self, requests: int, every: Callable[[int], None] | None = None) -> bool:
        """`run`, but for at most `requests`; True if the server went away in the middle."""
        try:
            self.run(requests, every)
        except nbd.Error:
            return True
        return False

    def resume(self, uri: str) -> None:
        """Go on with the successor of a server that died.

        What was in flight was done or not, one after the other page; whichever it was, it stays that way.
        Raises WrongByte where it is neither.
        """
        self._unsettled += [r for flying in self._flying.values() for r in flying if r.kind != "read"]
        self._flying = {}
        self._handles = [self._connect(uri) for _ in range(self.connections)]
        while self._unsettled:  # kept until it is looked at: this one may die as well
            self._settle(self._unsettled[0])
            del self._unsettled[0]

    def _settle(self, request: Request) -> None:
        at = request.start
        while at < request.end:
            end = min(request.end, at - at % PAGE + PAGE)
            got = bytes(self._handles[0].pread(end - at, at))
            if got != request.before[at - request.start : end - request.start]:
                self._compare(at, got, self.model[at:end])
            self.model[at:end] = got
            at = end

    def drain(self) -> None:
        """Wait for everything in flight."""
        while any(self._flying.values()):
            self._wait()

    def check_all(self) -> None:
        """Read the whole disk and compare it."""
        handle = self._handles[0]
        for start in range(0, self.size, MAX_REQUEST):
            count = min(MAX_REQUEST, self.size - start)
            self._compare(start, handle.pread(count, start), self.model[start : start + count])

    @property
    def in_flight(self) -> list[Request]:
        """What has not been answered yet."""
        return [request for flying in self._flying.values() for request in flying]

    def close(self) -> None:
        """Say goodbye on every connection whose server lives."""
        for handle in self._handles:
            with contextlib.suppress(nbd.Error):
                handle.shutdown()
        self._handles = []

    # Drawing a request.

    def _draw(self) -> Request:
        kind = self.random.choices(list(self.weights), list(self.weights.values()))[0]
        start, length = self._draw_range()
        return Request(kind, start, min(self.size, start + length))

    def _draw_range(self) -> tuple[int, int]:
        shape = self.random.random()
        if shape < 0.45:  # one whole page
            return self.random.randrange(self.size // PAGE) * PAGE, PAGE
        if shape < 0.65:  # whole pages
            pages = self.random.randint(1, max(1, min(64, self.biggest // PAGE)))
            return self.random.randrange(self.size // PAGE) * PAGE, pages * PAGE
        if shape < 0.85:  # a piece of a busy page, so that neighbours are in flight together
            page = self.random.randrange(64) * (self.size // PAGE // 64)
            return page * PAGE + self.random.randrange(8) * 512, self.random.choice((512, 512, 1024, 100))
        if shape < 0.98:
            return self.random.randrange(self.size), self.random.randint(1, min(20000, self.biggest))
        return self.random.randrange(self.size), self.random.randint(1, self.biggest)

    def _overlaps(self, new: Request) -> bool:
        return any(
            old.start < new.end and new.start < old.end and (old.kind != "read" or new.kind != "read")
            for flying in self._flying.values()
            for old in flying
        )

    def _draw_data(self, count: int) -> bytes:
        kind = self.random.random()
        if kind < 0.1:
            return bytes(count)
        if kind < 0.2:
            return self.random.randbytes(self.random.choice((1, 2, 4))) * count
        # A packed page is as much as a third of its neighbours, or does not shrink at all.
        source = self.random.choices(self._stock, (4, 3, 2, 2))[0]
        start = self.random.randrange(PAGE)
        # Every write is different from every other: a lost one shows.
        data = bytearray(source[start : start + count])
        for at in range(0, count - 8, 512):
            data[at : at + 8] = self.random.randbytes(8)
        return bytes(data)

    # Issuing and collecting.

    def _issue(self, handle: "nbd.NBD", request: Request) -> None:
        count = request.end - request.start
        self.counts[request.kind] += 1
        self._flying[id(handle)].append(request)
        if request.kind != "read":
            request.before = bytes(self.model[request.start : request.end])
        if request.kind == "read":
            request.expected = bytes(self.model[request.start : request.end])
            request.buffer = self._buffers.take(count)
            request.cookie = handle.aio_pread(request.buffer, request.start)
        elif request.kind == "write":
            data = self._draw_data(count)[:count]
            self.model[request.start : request.end] = data
            request.buffer = self._buffers.filled(data)
            request.cookie = handle.aio_pwrite(request.buffer, request.start)
        else:
            self.model[request.start : request.end] = bytes(count)
            if request.kind == "trim":
                request.cookie = handle.aio_trim(count, request.start)
            else:
                flags = self.random.choice((0, nbd.CMD_FLAG_NO_HOLE))
                request.cookie = handle.aio_zero(count, request.start, flags=flags)

    def _wait(self) -> None:
        poll = select.poll()
        byfd = {}
        for handle in self._handles:
            direction = handle.aio_get_direction()
            events = (select.POLLIN if direction & nbd.AIO_DIRECTION_READ else 0) | (
                select.POLLOUT if direction & nbd.AIO_DIRECTION_WRITE else 0
            )
            byfd[handle.aio_get_fd()] = handle
            poll.register(handle.aio_get_fd(), events)
        ready = poll.poll(self.patience_seconds * 1000)
        if not ready:
            raise TimeoutError(f"no answer for {self.patience_seconds:.0f} s")
        for fd, events in ready:
            handle = byfd[fd]
            direction = handle.aio_get_direction()
            if events & (select.POLLIN | select.POLLHUP) and direction & nbd.AIO_DIRECTION_READ:
                handle.aio_notify_read()
            elif events & select.POLLOUT and direction & nbd.AIO_DIRECTION_WRITE:
                handle.aio_notify_write()
        self._collect()

    def _collect(self) -> None:
        for handle in self._handles:
            flying = self._flying[id(handle)]
            for request in [r for r in flying if r.cookie >= 0 and handle.aio_command_completed(r.cookie)]:
                flying.remove(request)
                if request.buffer is not None:
                    if request.kind == "read":
                        self._compare(request.start, bytes(request.buffer), request.expected)
                    self._buffers.give(request.buffer)

    @staticmethod
    def _compare(start: int, got: bytes | bytearray, expected: bytes | bytearray) -> None:
        if got == expected:
            return
        wrong = next(i for i in range(len(expected)) if got[i] != expected[i])
        raise WrongByte(
            f"offset {start + wrong} (page {(start + wrong) // PAGE}):"
            f" read {bytes(got[wrong : wrong + 16]).hex()},"
            f" written {bytes(expected[wrong : wrong + 16]).hex()}"
        )
