"""One connection to a guest's QMP monitor, which is not trusted: it may lie, stall, flood, reboot or vanish.

Runs on the loop of whoever opens it.  Every wait has a deadline, every answer is checked against a type,
and what comes in is taken no faster than others on the loop can bear.
"""

import asyncio
import contextlib
import dataclasses
import logging
import pathlib
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

import msgspec
from qemu.qmp import ConnectError, EventListener, ExecuteError, Message, QMPClient, QMPError, Runstate
from qemu.qmp.qmp_client import NegotiationError

from swaptide.cache.errors import SetupError, SwaptideError

log = logging.getLogger(__name__)

OPEN_SECONDS = 5.0
COMMAND_SECONDS = 5.0
CLOSE_SECONDS = 2.0
# The longest line that is read: query-block of a guest with a hundred disks is a tenth of it.
LINE_BYTES = 1 << 20
# QEMU sends a few messages a second, and at most some dozens at once.
_BURST = 200
_BURST_SECONDS = 1.0
_YIELD_EVERY = 16
_SHOWN_CHARS = 300
_ATTEMPTS = 3

T = TypeVar("T")
OnEvent = Callable[["Event"], None]


class MonitorError(SetupError):
    """The monitor cannot be reached, does not answer in time, or answers what makes no sense."""


class RefusedError(SwaptideError):
    """QEMU answered with an error; `kind` is its class (GenericError, CommandNotFound, ...)."""

    def __init__(self, message: str, kind: str) -> None:
        super().__init__(message)
        self.kind = kind


@dataclasses.dataclass(frozen=True)
class Event:
    """What QEMU tells by itself; `at_seconds` is of the host's wall clock, as QEMU has it."""

    name: str
    data: Mapping[str, Any]
    at_seconds: float


class Pace:
    """Lets so many messages through in a second, and others on the loop run in between."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._since = clock()
        self._count = 0

    async def step(self) -> None:
        """Before each message; who sends too many waits, with what it has sent in its own socket."""
        self._count += 1
        if self._count % _YIELD_EVERY == 0:
            await asyncio.sleep(0)
        left = self._since + _BURST_SECONDS - self._clock()
        if left <= 0:
            self._since, self._count = self._clock(), 0
        elif self._count >= _BURST:
            await asyncio.sleep(left)


class _Client(QMPClient):
    """The library's client, paced."""

    def __init__(self) -> None:
        super().__init__(readbuflen=LINE_BYTES)
        self._pace = Pace()
        # Its own record of all events only grows.
        self.events.names = {""}

    async def _on_message(self, msg: Message) -> None:
        await self._pace.step()
        await super()._on_message(msg)


class _Ear(EventListener):
    """Hands each event on and keeps none."""

    def __init__(self) -> None:
        super().__init__()
        self.heard: list[OnEvent] = []

    async def put(self, event: Message) -> None:
        for each in list(self.heard):
            try:
                each(_event_of(event))
            except Exception:  # or the connection would end of it
                log.exception("event not taken in")


class Monitor:
    """A connection to the monitor at `path`; once it is closed or lost, make another one."""

    def __init__(self, path: pathlib.Path) -> None:
        self.path = path
        self._ear = _Ear()
        self._client: _Client | None = None

    @property
    def is_open(self) -> bool:
        """Whether commands can be sent, as far as is known."""
        return self._client is not None and self._client.runstate is Runstate.RUNNING

    async def open(self) -> None:
        """Connect and greet; raises MonitorError with what to do about it."""
        try:
            async with asyncio.timeout(OPEN_SECONDS):
                self._client = await self._connect()
        except TimeoutError:
            raise MonitorError(
                f"monitor {self.path} says nothing for {OPEN_SECONDS:.0f} s: is another client connected to"
                " this monitor? QEMU serves one at a time; give swaptide one of its own with"
                f" -qmp unix:{self.path.with_name('swaptide.qmp')},server=on,wait=off"
            ) from None
        except ConnectError as error:
            raise MonitorError(f"monitor {self.path} {_trouble(error.exc)}") from error

    async def _connect(self) -> _Client:
        """Raises ConnectError."""
        attempts = _ATTEMPTS
        while True:
            client = _Client()
            client.register_listener(self._ear)
            try:
                await client.connect(str(self.path))
                return client
            except ConnectError as error:
                # An event of QEMU's that comes before its answer to the greeting, which the library
                # takes for the answer: seen around resets.
                attempts -= 1
                if not attempts or not isinstance(error.exc, NegotiationError):
                    raise

    async def close(self) -> None:
        """Hang up; nothing that goes wrong with that matters any more."""
        client, self._client = self._client, None
        if client is None:
            return
        # After `quit` there is an EOFError here, and whatever else ended the connection.
        with contextlib.suppress(Exception):
            async with asyncio.timeout(CLOSE_SECONDS):
                await client.disconnect()

    async def lost(self) -> None:
        """Wait until the connection has ended, whoever ended it."""
        client = self._client
        while client is not None and client.runstate is Runstate.RUNNING:
            await client.runstate_changed()

    async def execute(
        self, command: str, arguments: Mapping[str, Any] | None = None, *, seconds: float = COMMAND_SECONDS
    ) -> Any:
        """What QEMU returns.

        Raises RefusedError with QEMU's words, MonitorError if there is no answer in time.
        """
        if self._client is None:
            raise MonitorError(f"monitor {self.path} is not connected; is the guest running?")
        try:
            async with asyncio.timeout(seconds):
                return await self._client.execute(command, arguments)
        except TimeoutError:
            raise MonitorError(
                f"monitor {self.path}: {command} is not answered within {seconds:g} s; QEMU hangs,"
                " perhaps in a disk that does not answer"
            ) from None
        except ExecuteError as error:
            raise RefusedError(clean(str(error)), error.error_class) from error
        except (QMPError, OSError, EOFError) as error:
            raise MonitorError(f"monitor {self.path} went away during {command}") from error

    async def ask(self, wanted: type[T], command: str, arguments: Mapping[str, Any] | None = None) -> T:
        """As `execute`, where the answer has to be a `wanted`; raises MonitorError as well if it is not."""
        answer = await self.execute(command, arguments)
        try:
            return msgspec.convert(answer, wanted)
        except (msgspec.MsgspecError, RecursionError, OverflowError) as error:
            raise MonitorError(
                f"monitor {self.path} answers {command} with nonsense: {clean(str(error))}"
            ) from error

    @contextlib.contextmanager
    def hearing(self, heard: OnEvent) -> Iterator[None]:
        """Have `heard` called with each event meanwhile; it must not block."""
        self._ear.heard.append(heard)
        try:
            yield
        finally:
            self._ear.heard.remove(heard)


def clean(text: str) -> str:
    """Words of a stranger, fit for one line of a terminal or a log."""
    text = " ".join("".join(char if char.isprintable() else " " for char in text).split())
    return text if len(text) <= _SHOWN_CHARS else f"{text[:_SHOWN_CHARS]}..."


def _event_of(message: Message) -> Event:
    name, data, stamp = message.get("event"), message.get("data"), message.get("timestamp")
    at = 0.0
    if isinstance(stamp, Mapping):
        with contextlib.suppress(TypeError, ValueError, OverflowError):
            at = float(stamp.get("seconds", 0)) + float(stamp.get("microseconds", 0)) / 1e6
    return Event(str(name), data if isinstance(data, Mapping) else {}, at)


def _trouble(error: BaseException) -> str:
    """Why a connection did not come about, and what helps."""
    if isinstance(error, FileNotFoundError):
        return "is not there; is the guest running, with -qmp unix:PATH,server=on,wait=off?"
    if isinstance(error, ConnectionRefusedError):
        return "is not listened at: has the guest ended, or was it started without this -qmp?"
    if isinstance(error, PermissionError):
        return "may not be opened; run the daemon as root or as QEMU's user"
    if isinstance(error, BlockingIOError):
        return "has a full queue: is another client connected to this monitor? QEMU serves one at a time"
    if isinstance(error, (EOFError, ConnectionError)):
        return (
            "hangs up before it greets: is another client connected to this monitor, or is it another socket?"
        )
    if isinstance(error, OSError):
        return f"cannot be reached: {clean(error.strerror or str(error))}; give the socket of its -qmp"
    return f"does not speak QMP ({clean(str(error))}); give the path of a -qmp socket"
