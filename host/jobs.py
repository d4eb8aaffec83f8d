"""A job that a disk's process does in a thread of its own, as the daemon sees it: begun, followed, ended.

On the daemon's loop.  Pages do not come by here.  Closing a job takes it back as far as it can be.
"""

import asyncio
import contextlib
import json
import logging
import os
import pathlib
import socket
import struct
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Any

from swaptide.cache import face
from swaptide.cache.errors import BusyError, SetupError, StateError, SwaptideError
from swaptide.host import listener, supervisor

log = logging.getLogger(__name__)

_ANSWER_SECONDS = 5.0
_PEER = struct.Struct("3i")  # pid, uid, gid
_LINE_BYTES = 64 << 10

Step = Mapping[str, Any]


class JobError(SwaptideError):
    """The job ended early, with the process's own reason."""


class Job:
    """One job under way.  `step` is what was told last; `heard` is called with each."""

    def __init__(
        self,
        name: str,
        connection: socket.socket,
        given: Sequence[socket.socket | int],
        heard: Callable[[Step], None],
    ) -> None:
        """Sockets that are `given` are hung up when this is closed."""
        self.step: Step = {"at": "begun"}
        self._name = name
        self._connection = connection
        self._heard = heard
        self._told = asyncio.Condition()
        self._error: SwaptideError | None = None
        self._fds = [each if isinstance(each, int) else each.fileno() for each in given]
        self._kept = [each for each in given if not isinstance(each, int)]
        self._listening: asyncio.Task[None] | None = None
        self._writer: asyncio.StreamWriter | None = None

    async def start(self, order: Mapping[str, Any]) -> None:
        """Say what is to be done, with what was given."""
        line = json.dumps(dict(order)).encode() + b"\n"
        self._connection.setblocking(True)  # the other end waits for just this
        self._connection.settimeout(_ANSWER_SECONDS)
        try:
            sent = socket.send_fds(self._connection, [line], self._fds)
            if sent < len(line):  # else nothing more is sent: a quick job may be over, and its end closed
                self._connection.sendall(line[sent:])
        except OSError as error:
            raise SetupError(f"the process of disk {self._name} went away: {error}") from error
        self._connection.setblocking(False)
        reader, self._writer = await asyncio.open_unix_connection(sock=self._connection, limit=_LINE_BYTES)
        self._listening = asyncio.create_task(self._listen(reader), name=f"job-{self._name}")

    async def until(self, *wanted: str) -> Step:
        """Wait until it is at one of these; raises JobError if it ended before."""
        async with self._told:
            while self.step["at"] not in wanted:
                if self._error is not None:
                    raise self._error
                await self._told.wait()
            return self.step

    async def check(self, seconds: float) -> None:
        """Wait a while; raises JobError if it ended meanwhile."""
        async with self._told:
            if self._error is None:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(seconds):
                        await self._told.wait()
            if self._error is not None:
                raise self._error

    def order(self, word: str) -> None:
        """Say what is next."""
        if self._writer is not None and not self._writer.is_closing():
            self._writer.write(word.encode() + b"\n")

    async def close(self) -> None:
        """Hang up, on the other host as well."""
        self._hang_up()
        if self._writer is not None:
            self._writer.close()
        self._connection.close()
        if self._listening is not None:
            self._listening.cancel()
            await asyncio.gather(self._listening, return_exceptions=True)

    def _hang_up(self) -> None:
        for each in self._kept:
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()
        self._kept = []

    async def _listen(self, reader: asyncio.StreamReader) -> None:
        error: SwaptideError = JobError(f"the process of disk {self._name} went away in the middle")
        try:
            while line := await reader.readline():
                step = _step_of(line)
                if step["at"] == "error":
                    error = JobError(str(step.get("error")))
                    break
                await self._take(step)
        except (OSError, ValueError, RecursionError) as trouble:
            error = JobError(f"the process of disk {self._name} makes no sense: {trouble}")
        # The other side shall hear of it at once; ours is a copy of the connection that just ended.
        self._hang_up()
        async with self._told:
            self._error = error
            self._told.notify_all()

    async def _take(self, step: Step) -> None:
        self._heard(step)
        async with self._told:
            self.step = step
            self._told.notify_all()


def _step_of(line: bytes) -> Step:
    """Raises ValueError."""
    step = json.loads(line)
    if not isinstance(step, dict) or not isinstance(step.get("at"), str):
        raise ValueError("no step")
    return step


@contextlib.asynccontextmanager
async def begun(
    keeper: supervisor.Keeper,
    order: Mapping[str, Any],
    given: Sequence[socket.socket | int] = (),
    heard: Callable[[Step], None] = lambda step: None,
) -> AsyncIterator[Job]:
    """A job of a disk that serves, closed at the end.  Raises SetupError if its process does not take it.

    Sockets that are given are this one's from here on; files stay the caller's.
    """
    try:
        connection = await _call(keeper)
    except BaseException:
        for each in given:
            if not isinstance(each, int):
                each.close()
        raise
    job = Job(keeper.definition.name, connection, given, heard)
    try:
        await job.start(order)
        yield job
    finally:
        await job.close()


async def _call(keeper: supervisor.Keeper) -> socket.socket:
    """A connection to a disk's process, and to nobody else."""
    name, path = keeper.definition.name, keeper.calls_path
    live = keeper.process
    if live is None or not keeper.serves:
        raise BusyError(f"disk {name} does not run; look with `swaptide disk show {name}`")
    user = keeper.estate.user
    bound = listener.bind(path, user.uid if user is not None and os.geteuid() == 0 else None)
    bound.setblocking(False)
    loop = asyncio.get_running_loop()
    try:
        with face.StateFace(pathlib.Path(keeper.definition.state_path)) as state:
            state.call()
        async with asyncio.timeout(_ANSWER_SECONDS):
            while True:
                connection, _ = await loop.sock_accept(bound)
                raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size)
                if _PEER.unpack(raw)[0] == live.pid:
                    return connection
                connection.close()
                log.warning("call answered by another process name=%s pid=%d", name, _PEER.unpack(raw)[0])
    except TimeoutError:
        raise SetupError(
            f"the process of disk {name} does not answer: it is of another version, or hangs;"
            f" `swaptide disk restart {name}` and try again"
        ) from None
    except (StateError, FileNotFoundError) as error:
        raise BusyError(f"disk {name} cannot be asked: {error}") from error
    finally:
        bound.close()
        path.unlink(missing_ok=True)
