"""The HTTP server of /metrics: a thread with a loop of its own, which sleeps until somebody asks.

For the daemon and for the plugin alike.  Whoever asks gets one answer and is hung up on; requests are bounded
in size, number and time, so that nobody on the network costs more than that.
"""

import asyncio
import contextlib
import dataclasses
import http
import ipaddress
import logging
import re
import socket
import threading
from collections.abc import Callable
from typing import Final

from swaptide.cache import threads
from swaptide.cache.errors import SetupError, UsageError

log = logging.getLogger(__name__)

DEFAULT: Final = "127.0.0.1:9819"
OFF: Final = "off"
_SHOWN_CHARS: Final = 40
_ADDRESS: Final = re.compile(r"(?:\[([0-9A-Fa-f:.]{2,45})\]|([0-9.]{7,15})):([0-9]{1,5})")
_LONGEST_REQUEST_BYTES: Final = 16 << 10
_MOST_CONNECTIONS: Final = 32
_SECONDS: Final = 10.0
_END_SECONDS: Final = 5.0

# Takes the request's Accept header; returns content type and body.
Answer = Callable[[str], tuple[str, bytes]]


@dataclasses.dataclass(frozen=True)
class Address:
    """An IP address and a port; port 0 lets the kernel choose."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def is_local(self) -> bool:
        """Whether only this host can connect."""
        return ipaddress.ip_address(self.host).is_loopback


def parse(key: str, text: str) -> Address | None:
    """The address that `text` names, None for off.  Raises UsageError, naming `key`."""
    if text == OFF:
        return None
    found = _ADDRESS.fullmatch(text)
    with contextlib.suppress(ValueError):
        if found is not None and int(found[3]) <= 65535:
            return Address(str(ipaddress.ip_address(found[1] or found[2])), int(found[3]))
    raise UsageError(
        f"{key}={repr(text[:_SHOWN_CHARS])[1:-1]}: not an IP address and a port; write for example {DEFAULT},"
        f" [::1]:9819, or {OFF}"
    )


class Endpoint:
    """Serves `answer` at /metrics, which is called in the thread; made it listens, started it answers."""

    def __init__(self, address: Address, answer: Answer) -> None:
        """Raises SetupError if the address cannot be had."""
        self._answer = answer
        self._connections = 0
        self._failed = False
        self._listener = _bind(address)
        self.address = Address(address.host, self._listener.getsockname()[1])
        self._loop: asyncio.AbstractEventLoop | None = None
        self._main: asyncio.Task[None] | None = None
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._body, name=threads.METRICS, daemon=True)

    def start(self) -> None:
        """Begin to answer."""
        self._thread.start()
        self._ready.wait()

    def close(self) -> None:
        """Stop listening; an answer under way is waited for, but not for ever."""
        if self._loop is not None and self._main is not None:
            with contextlib.suppress(RuntimeError):  # the loop ended before
                self._loop.call_soon_threadsafe(self._main.cancel)
            self._thread.join(_END_SECONDS)
        self._listener.close()

    def _body(self) -> None:
        threads.call_me(threads.METRICS)
        try:
            asyncio.run(self._run())
        except asyncio.CancelledError:
            pass
        except Exception as error:  # nobody's data depends on it
            log.warning("metrics are served no more error=%r", str(error))
        finally:
            self._ready.set()

    async def _run(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._main = asyncio.current_task()
        server = await asyncio.start_server(self._converse, sock=self._listener, limit=_LONGEST_REQUEST_BYTES)
        self._ready.set()
        async with server:
            await server.serve_forever()

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._connections >= _MOST_CONNECTIONS:
            writer.transport.abort()
            return
        self._connections += 1
        try:
            async with asyncio.timeout(_SECONDS):
                writer.write(self._reply(await _head(reader)))
                await writer.drain()
                writer.close()
                await writer.wait_closed()
        except (TimeoutError, OSError, EOFError):
            log.debug("client of the metrics left")
        finally:
            self._connections -= 1
            writer.transport.abort()

    def _reply(self, head: bytes | None) -> bytes:
        if head is None:
            return _response(http.HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)
        lines = head.decode("latin-1").split("\r\n")
        words = lines[0].split(" ")
        if len(words) != 3 or not words[2].startswith("HTTP/1."):
            return _response(http.HTTPStatus.BAD_REQUEST)
        if words[0] not in ("GET", "HEAD"):
            return _response(http.HTTPStatus.METHOD_NOT_ALLOWED, more="Allow: GET, HEAD\r\n")
        if words[1].partition("?")[0] != "/metrics":
            return _response(http.HTTPStatus.NOT_FOUND, b"look at /metrics\n")
        kind, body, status = self._tell(_accept(lines))
        return _response(status, body, kind, body_too=words[0] == "GET")

    def _tell(self, accept: str) -> tuple[str, bytes, http.HTTPStatus]:
        try:
            kind, body = self._answer(accept)
            self._failed = False
            return kind, body, http.HTTPStatus.OK
        except Exception as error:
            level = logging.DEBUG if self._failed else logging.WARNING
            log.log(level, "metrics not to be had error=%r", str(error) or repr(error))
            log.debug("scrape failed", exc_info=True)
            self._failed = True
            return _PLAIN, b"metrics cannot be had now; see the log\n", http.HTTPStatus.SERVICE_UNAVAILABLE


_PLAIN: Final = "text/plain; charset=utf-8"


def _bind(address: Address) -> socket.socket:
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    bound = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        bound.bind((address.host, address.port))
        bound.listen(_MOST_CONNECTIONS)
        bound.setblocking(False)
    except OSError as error:
        bound.close()
        raise SetupError(f"metrics at {address}: {error.strerror}; choose another address") from error
    return bound


async def _head(reader: asyncio.StreamReader) -> bytes | None:
    """A request as far as its empty line; None if it is too long."""
    try:
        return await reader.readuntil(b"\r\n\r\n")
    except asyncio.LimitOverrunError:
        return None


def _accept(lines: list[str]) -> str:
    found = (line.partition(":") for line in lines[1:])
    return ",".join(value.strip() for name, _, value in found if name.strip().lower() == "accept")


def _response(
    status: http.HTTPStatus,
    body: bytes | None = None,
    kind: str = _PLAIN,
    *,
    more: str = "",
    body_too: bool = True,
) -> bytes:
    body = f"{status.phrase}\n".encode() if body is None else body
    head = (
        f"HTTP/1.1 {status.value} {status.phrase}\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n"
        f"Cache-Control: no-store\r\nX-Content-Type-Options: nosniff\r\n{more}Connection: close\r\n\r\n"
    )
    return head.encode() + (body if body_too else b"")
