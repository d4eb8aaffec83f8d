"""The control socket: takes calls of the command and answers them, on the daemon's loop.

A call goes on if its client vanishes, since half of a change is worse than all of it, unless it can be
undone, as a disk plugged in or memory asked for.  The daemon's end cancels all.
"""

import asyncio
import contextlib
import logging
import os
import socket
import struct
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any, TypeVar

import msgspec

import swaptide
from swaptide.cache.errors import SwaptideError
from swaptide.host import disks, guests, listener, migrate, overview, protocol, steering
from swaptide.host.config import Config

log = logging.getLogger(__name__)

T = TypeVar("T")

_REQUEST_SECONDS = 10.0
_PEER = struct.Struct("3i")  # pid, uid, gid
_decoder = msgspec.json.Decoder(protocol.Request)


class Control:
    """The server on the control socket."""

    def __init__(
        self, chosen: Config, served: disks.Disks, watched: guests.Guests, balloon: steering.Steering
    ) -> None:
        self._path = chosen.control_socket
        self._disks = served
        self._guests = watched
        self._balloon = balloon
        self._moves = migrate.Migrations(served, watched)
        self._calls: set[asyncio.Task[None]] = set()
        self._socket: socket.socket | None = None
        self._server: asyncio.Server | None = None

    async def open(self) -> None:
        """Begin to answer; raises SetupError if the socket cannot be made."""
        listener.check(self._path)
        self._socket = listener.bind(self._path)
        self._server = await asyncio.start_unix_server(
            self._answer, sock=self._socket, limit=protocol.LINE_LIMIT_BYTES
        )

    async def close(self) -> None:
        """Stop answering, and cancel the calls that are under way."""
        if self._server is not None:
            self._server.close()
            self._path.unlink(missing_ok=True)
        for call in self._calls:
            call.cancel()
        await asyncio.gather(*self._calls, return_exceptions=True)

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._calls.add(task)
        undo: list[Callable[[], None]] = []  # what was done, should nobody hear of it
        try:
            async with asyncio.timeout(_REQUEST_SECONDS):
                line = await reader.readline()
            reply: protocol.Reply | None = _refusal(writer)
            if reply is None:
                async with _telling_that_we_live(writer):
                    reply = await self._reply(line, reader, writer, undo)
            _send(writer, reply)
            await writer.drain()
            if undo and await _is_heard(reader):
                undo.clear()
        except (TimeoutError, OSError, ValueError):
            log.debug("client left")
        finally:
            for step in undo:
                step()
            self._calls.discard(task)
            writer.close()

    async def _reply(
        self,
        line: bytes,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        undo: list[Callable[[], None]],
    ) -> protocol.Reply:
        """The answer; `undo` gets how to undo what was done, if it can be."""
        try:
            return protocol.Result(await self._call(_decoder.decode(line), reader, writer, undo))
        except ConnectionAbortedError:
            raise
        except Exception as error:
            return _failure_of(error)

    async def _call(
        self,
        request: protocol.Request,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        undo: list[Callable[[], None]],
    ) -> Any:
        def tell(step: dict[str, Any]) -> None:
            _send(writer, protocol.Progress(step))

        match request:
            case protocol.Add():
                return await self._disks.add(request, tell)
            case protocol.List():
                return await self._disks.all()
            case protocol.Show(name):
                return await self._disks.show(name)
            case protocol.Set():
                return await self._disks.set(request, tell)
            case protocol.Clear():
                return await self._disks.clear(request, tell)
            case protocol.Restart(name):
                return await self._disks.restart(name)
            case protocol.Remove():
                return await self._disks.remove(request, tell)
            case protocol.Freeze(name):
                return await self._disks.freeze(name, True)
            case protocol.Thaw(name):
                return await self._disks.freeze(name, False)
            case protocol.Migrate():
                return await _while_there(reader, self._moves.send(request, tell))
            case protocol.TakeBack(name):
                return await self._moves.take_back(name)
            case protocol.Receive():
                return await _while_there(reader, self._moves.receive(request, tell))
            case protocol.Accept(name):
                return await self._moves.accept(name)
            case protocol.Save():
                return await _while_there(reader, self._moves.save(request, tell))
            case protocol.Load():
                return await _while_there(reader, self._moves.load(request, tell))
            case protocol.Look():
                return await overview.take(self._disks, self._guests, self._balloon)
            case protocol.Names():
                return {
                    "disks": sorted(keeper.definition.name for keeper in self._disks.keepers()),
                    "guests": self._guests.names(),
                    "reservations": self._balloon.reserved(),
                }
            case protocol.GuestAdd():
                return await self._guests.add(request)
            case protocol.GuestList():
                return await self._guests.all()
            case protocol.GuestRemove(name):
                return await self._guests.remove(name)
            case protocol.Attach():
                return await _while_there(reader, self._guests.attach(request, tell))
            case protocol.Detach():
                return await self._guests.detach(request, tell)
            case protocol.Reserve():
                return await _while_there(reader, self._reserve(request, tell, undo))
            case protocol.Reservations():
                return self._balloon.reservations()
            case protocol.Release(id):
                return self._balloon.release(id)

    async def _reserve(
        self, request: protocol.Reserve, tell: migrate.Tell, undo: list[Callable[[], None]]
    ) -> dict[str, Any]:
        standing = await self._balloon.reserve(request, tell)
        undo.append(lambda: self._balloon.give_back(standing))
        return standing


def _failure_of(error: Exception) -> protocol.Failure:
    match error:
        case msgspec.MsgspecError() | UnicodeDecodeError():
            return protocol.Failure(
                "usage",
                f"request not understood by the daemon, which is version {swaptide.__version__}: {error};"
                " use the command of that version, or end the daemon and start this one's",
            )
        case SwaptideError():
            return protocol.failure_of(error)
    log.error("call failed", exc_info=error)
    if isinstance(error, OSError):
        return protocol.Failure("setup", f"{error.filename or 'the daemon'}: {error.strerror or error}")
    return protocol.Failure("error", f"internal error {error!r}; see the daemon's log")


async def _is_heard(reader: asyncio.StreamReader) -> bool:
    """Whether the client got its answer, rather than left before it came."""
    async with asyncio.timeout(_REQUEST_SECONDS):
        return bool(await reader.read(1))


async def _while_there(reader: asyncio.StreamReader, work: Coroutine[Any, Any, T]) -> T:
    """Do `work`, but cancel it and wait for its end once the client has left; ConnectionAbortedError then."""
    task = asyncio.ensure_future(work)
    left = asyncio.ensure_future(_until_left(reader))
    try:
        done, _ = await asyncio.wait({task, left}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        left.cancel()
        task.cancel()
        await asyncio.wait({task})
        trouble = None if task.cancelled() else task.exception()
    if left in done:
        raise ConnectionAbortedError("the client left") from trouble
    return task.result()


async def _until_left(reader: asyncio.StreamReader) -> None:
    with contextlib.suppress(OSError):
        while await reader.read(4096):
            pass


@contextlib.asynccontextmanager
async def _telling_that_we_live(writer: asyncio.StreamWriter) -> AsyncIterator[None]:
    """Let the client of a long call see that nobody hangs."""

    async def tell() -> None:
        while True:
            await asyncio.sleep(protocol.ALIVE_SECONDS)
            _send(writer, protocol.Alive())

    task = asyncio.ensure_future(tell())
    try:
        yield
    finally:
        task.cancel()


def _refusal(writer: asyncio.StreamWriter) -> protocol.Failure | None:
    """What another user is told; who connected is the kernel's word, for the socket's mode can be changed."""
    raw = writer.get_extra_info("socket").getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size)
    _, uid, _ = _PEER.unpack(raw)
    if uid in (0, os.geteuid()):
        return None
    log.warning("call refused uid=%d", uid)
    return protocol.Failure(
        "setup", f"user {uid} may not ask this daemon; run as the user of `swaptide serve`"
    )


def _send(writer: asyncio.StreamWriter, reply: protocol.Reply) -> None:
    if not writer.is_closing():
        writer.write(msgspec.json.encode(reply) + b"\n")
