"""A made-up QMP server on a real socket: a guest as a test wants it, honest or not.

Like QEMU it serves one client at a time; others wait in its queue and hear nothing.
"""

import asyncio
import contextlib
import json
import pathlib
import time
from collections.abc import AsyncIterator, Callable
from types import TracebackType
from typing import Any, Self

GREETING = {"QMP": {"version": {"qemu": {"micro": 0, "minor": 2, "major": 7}}, "capabilities": ["oob"]}}
GIB = 1 << 30
NEVER = object()  # as an answer: none
HANG_UP = object()
UNSUPPORTED = (1 << 64) - 1
PATH = "/machine/peripheral/balloon0"
WAIT_SECONDS = 60.0


class Refusal(Exception):
    """An answer that is an error: its class and its words."""

    def __init__(self, kind: str, words: str) -> None:
        super().__init__(words)
        self.kind = kind


Answer = Callable[[dict[str, Any]], Any]


class Monitor:
    """The server; `answers` is by command, `said` every command that came."""

    def __init__(self, path: pathlib.Path) -> None:
        self.path = path
        self.greeting: bytes | None = json.dumps(GREETING).encode() + b"\r\n"
        self.said: list[tuple[str, dict[str, Any]]] = []
        self.actual: Any = 2 * GIB
        self.stats: Any = {"stat-available-memory": GIB, "stat-swap-in": 4096, "stat-swap-out": 8192}
        self.last_update: Any = None  # now
        self.running = True
        self.answers: dict[str, Answer] = {
            "qmp_capabilities": lambda given: {},
            "query-status": lambda given: {
                "running": self.running,
                "status": "running" if self.running else "paused",
            },
            "query-memory-size-summary": lambda given: {"base-memory": 4 * GIB, "plugged-memory": 0},
            "query-balloon": lambda given: {"actual": self.actual},
            "qom-list": lambda given: (
                [{"name": "balloon0", "type": "child<virtio-balloon-pci>"}]
                if given["path"] == "/machine/peripheral"
                else []
            ),
            "qom-get": self._get,
            "qom-set": lambda given: {},
            "balloon": self._balloon,
            "stop": lambda given: self._run(False),
            "cont": lambda given: self._run(True),
        }
        self._turn = asyncio.Lock()
        self._writer: asyncio.StreamWriter | None = None
        self._server: asyncio.Server | None = None

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_unix_server(self._serve, self.path)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.vanish()

    async def vanish(self) -> None:
        """As when QEMU is killed."""
        if self._server is not None:
            self._server.close()
            self._server = None
            self.path.unlink(missing_ok=True)
        self.hang_up()

    def hang_up(self) -> None:
        """End the connection that is served."""
        if self._writer is not None:
            self._writer.transport.abort()

    def event(self, name: str, at: float | None = None, **data: Any) -> None:
        """Tell an event."""
        seconds = time.time() if at is None else at
        stamp = {"seconds": int(seconds), "microseconds": int(seconds % 1 * 1e6)}
        self.tell({"event": name, "data": data, "timestamp": stamp})

    def tell(self, message: Any) -> None:
        """Send any line to whoever is served."""
        self.tell_raw(json.dumps(message).encode() + b"\r\n")

    def tell_raw(self, raw: bytes) -> None:
        """Send bytes to whoever is served."""
        assert self._writer is not None
        self._writer.write(raw)

    async def flood(self, raw: bytes, seconds: float) -> int:
        """Send `raw` for so long as fast as it is taken; returns how often."""
        assert self._writer is not None
        count, end = 0, time.monotonic() + seconds
        with contextlib.suppress(ConnectionError):
            while time.monotonic() < end:
                self._writer.write(raw)
                count += 1
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._writer.drain(), 0.05)
        return count

    def commands(self, name: str) -> list[dict[str, Any]]:
        """What `name` was called with so far."""
        return [given for command, given in self.said if command == name]

    def _get(self, given: dict[str, Any]) -> Any:
        if given["property"] != "guest-stats":
            return 0
        at = int(time.time()) if self.last_update is None else self.last_update
        return {"stats": self.stats, "last-update": at}

    def _balloon(self, given: dict[str, Any]) -> Any:
        self.actual = given["value"]
        return {}

    def _run(self, running: bool) -> Any:
        self.running = running
        return {}

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            async with self._turn:
                self._writer = writer
                if self.greeting is not None:
                    writer.write(self.greeting)
                async for message in _messages(reader):
                    if self._answer(writer, message) is HANG_UP:
                        writer.transport.abort()
        writer.close()

    def _answer(self, writer: asyncio.StreamWriter, message: dict[str, Any]) -> Any:
        command, given = message["execute"], message.get("arguments", {})
        self.said.append((command, given))
        answer = self.answers.get(command)
        reply: dict[str, Any] = {"id": message.get("id")}
        try:
            if answer is None:
                raise Refusal("CommandNotFound", f"The command {command} has not been found")
            value = answer(given)
            if value is NEVER or value is HANG_UP:
                return value
            reply["return"] = value
        except Refusal as error:
            reply["error"] = {"class": error.kind, "desc": str(error)}
        writer.write(json.dumps(reply).encode() + b"\r\n")
        return None


async def _messages(reader: asyncio.StreamReader) -> AsyncIterator[dict[str, Any]]:
    """What the client says: objects, with nothing in between."""
    decoder, text = json.JSONDecoder(), ""
    while data := await reader.read(1 << 16):
        text += data.decode()
        with contextlib.suppress(json.JSONDecodeError):
            while text := text.lstrip():
                message, end = decoder.raw_decode(text)
                text = text[end:]
                yield message


async def wait_for(condition: Callable[[], bool], what: str = "it") -> None:
    """Wait until `condition` holds."""
    end = time.monotonic() + WAIT_SECONDS
    while not condition():
        assert time.monotonic() < end, f"{what} not within {WAIT_SECONDS:.0f} s"
        await asyncio.sleep(0.01)
