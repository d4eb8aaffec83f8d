"""A disk as a stream: frames, to another host or into a file.  What comes in is not trusted.

A stream begins with GREETING.  Each frame is a header (kind, bytes of its payload, its number in this
direction, CRC-32 of these three and the payload) and its payload: parcels (cache/parcels.pyx) or JSON.
Pure, but for the wire that it is given.
"""

import json
import os
import select
import socket
import struct
import time
import zlib
from collections.abc import Mapping
from typing import Any, Final, Protocol

from swaptide.cache.errors import SwaptideError

VERSION: Final = 1
_NAME: Final = b"swaptide disk stream "
GREETING: Final = b"%s%d\n" % (_NAME, VERSION)
_HEAD: Final = struct.Struct("<4sIQ")
_CHECK: Final = struct.Struct("<I")
HEADER_BYTES: Final = _HEAD.size + _CHECK.size
MOST_BYTES: Final = 256 << 10
_JSON_BYTES: Final = 64 << 10

HELLO: Final = b"HELO"  # who this is: the first frame in either direction
PAGES: Final = b"PAGE"
TICK: Final = b"TICK"  # nothing to send, but alive
LAST: Final = b"LAST"  # that was all of it, and how many pages there are
GOOD: Final = b"GOOD"  # the answer: all of them are here
OPEN: Final = b"OPEN"  # the disk is yours
DONE: Final = b"DONE"  # the answer: it is served
STATE: Final = b"STAT"  # a piece of a state file, behind where it lies
KEY: Final = b"SKEY"  # what the keyring has of the disk
FAIL: Final = b"FAIL"  # and why; the end
KINDS: Final = (HELLO, PAGES, TICK, LAST, GOOD, OPEN, DONE, STATE, KEY, FAIL)

# How long the other side may say nothing, and take nothing in.
SILENCE_SECONDS: Final = 30.0
TICK_SECONDS: Final = 1.0
_SHOWN_CHARS: Final = 300


class StreamError(SwaptideError):
    """The stream broke off, is damaged, or is none; or the other side gave up, with its reason."""


class GaveUpError(StreamError):
    """The other side gave up, and said why."""


class Wire(Protocol):
    """What frames go through: all of it, or StreamError."""

    def write(self, data: bytes | memoryview) -> None: ...  # noqa: D102
    def read_into(self, room: memoryview) -> None: ...  # noqa: D102


class SocketWire:
    """A connected socket, which may be TLS's."""

    def __init__(self, connection: socket.socket, *, silence_seconds: float = SILENCE_SECONDS) -> None:
        self._socket = connection
        self._silence = silence_seconds
        connection.settimeout(silence_seconds)
        if connection.family in (socket.AF_INET, socket.AF_INET6):
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def write(self, data: bytes | memoryview) -> None:
        """Send all of it."""
        try:
            self._socket.sendall(data)
        except TimeoutError:
            raise StreamError(f"the other side takes nothing in for {self._silence:.0f} s") from None
        except (OSError, ValueError) as error:
            raise StreamError(f"the connection broke: {_reason(error)}") from error

    def read_into(self, room: memoryview) -> None:
        """Receive as much."""
        done = 0
        while done < len(room):
            try:
                got = self._socket.recv_into(room[done:])
            except TimeoutError:
                raise StreamError(f"the other side says nothing for {self._silence:.0f} s") from None
            except (OSError, ValueError) as error:
                raise StreamError(f"the connection broke: {_reason(error)}") from error
            if got == 0:
                raise StreamError("the other side hung up")
            done += got

    def has_news(self) -> bool:
        """Whether the other side said something, or hung up."""
        pending = getattr(self._socket, "pending", None)
        if pending is not None and pending():
            return True
        return bool(select.select([self._socket], [], [], 0)[0])


class FileWire:
    """A file, from where it stands."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def write(self, data: bytes | memoryview) -> None:
        """Write all of it."""
        left = memoryview(data)
        while len(left):
            try:
                left = left[os.write(self._fd, left) :]
            except OSError as error:
                raise StreamError(f"the file cannot be written: {error.strerror}") from error

    def read_into(self, room: memoryview) -> None:
        """Read as much."""
        done = 0
        while done < len(room):
            try:
                got = os.readv(self._fd, [room[done:]])
            except OSError as error:
                raise StreamError(f"the file cannot be read: {error.strerror}") from error
            if got == 0:
                raise StreamError("the file breaks off in the middle; save it again")
            done += got


class Writer:
    """Writes frames; `sent_bytes` is what they took so far."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        self._number = 0
        self._at = time.monotonic()
        self.sent_bytes = 0

    def greet(self) -> None:
        """Begin the stream; once, by who sends the disk."""
        self._wire.write(GREETING)
        self.sent_bytes += len(GREETING)

    def put(self, kind: bytes, payload: bytes | memoryview = b"") -> None:
        """Write one frame; raises StreamError."""
        head = _HEAD.pack(kind, len(payload), self._number)
        header = head + _CHECK.pack(zlib.crc32(payload, zlib.crc32(head)))
        if len(payload) <= 4096:
            self._wire.write(header + bytes(payload))
        else:
            self._wire.write(header)
            self._wire.write(payload)
        self._number += 1
        self._at = time.monotonic()
        self.sent_bytes += len(header) + len(payload)

    def put_json(self, kind: bytes, value: Mapping[str, Any]) -> None:
        """Write one frame of JSON; raises StreamError."""
        self.put(kind, json.dumps(value).encode())

    def tick(self) -> None:
        """Say that we live, where nothing was written for a while."""
        if time.monotonic() - self._at >= TICK_SECONDS:
            self.put(TICK)


class Reader:
    """Reads frames, and checks them."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        self._number = 0
        self._header = memoryview(bytearray(HEADER_BYTES))
        self._room = memoryview(bytearray(MOST_BYTES))

    def greet(self) -> None:
        """Read the beginning; raises StreamError where it is no stream, or one of another version."""
        room = memoryview(bytearray(len(GREETING)))
        self._wire.read_into(room)
        if bytes(room) == GREETING:
            return
        if bytes(room[: len(_NAME)]) == _NAME:
            theirs = bytes(room[len(_NAME) :]).decode("ascii", "replace").strip()
            raise StreamError(
                f"the stream is of version {theirs!r}, and this program reads version {VERSION};"
                " use the same swaptide on both sides"
            )
        raise StreamError("that is no stream of a swaptide disk")

    def next(self) -> tuple[bytes, memoryview]:
        """The next frame's kind and payload, which is good until the next one is read.

        Raises StreamError; GaveUpError where the frame says that the other side did.
        """
        self._wire.read_into(self._header)
        kind, length, number = _HEAD.unpack_from(self._header)
        (check,) = _CHECK.unpack_from(self._header, _HEAD.size)
        if kind not in KINDS or length > MOST_BYTES:
            raise StreamError(f"frame {self._number} makes no sense: the stream is damaged")
        payload = self._room[:length]
        self._wire.read_into(payload)
        if zlib.crc32(payload, zlib.crc32(self._header[: _HEAD.size])) != check:
            raise StreamError(f"frame {self._number} has a wrong checksum: the stream is damaged")
        if number != self._number:
            raise StreamError(f"frame {number} came where {self._number} was due: the stream is damaged")
        self._number += 1
        if kind == FAIL:
            raise GaveUpError(f"the other side gave up: {_words(payload)}")
        return kind, payload

    def drain(self) -> None:
        """Read what comes, whatever it is; raises StreamError once nothing does."""
        self._wire.read_into(self._room[:1])

    def expect(self, wanted: bytes) -> Mapping[str, Any]:
        """The JSON of the next frame but for ticks, which has to be a `wanted`; raises StreamError."""
        kind, payload = self.next()
        while kind == TICK:
            kind, payload = self.next()
        if kind != wanted:
            raise StreamError(f"{kind.decode()} came where {wanted.decode()} was due")
        return parse(payload)


def parse(payload: memoryview) -> Mapping[str, Any]:
    """The JSON object of a frame, {} where it is empty; raises StreamError."""
    if not len(payload):
        return {}
    try:
        if len(payload) > _JSON_BYTES:
            raise ValueError("too long")
        found = json.loads(bytes(payload))
    except (ValueError, RecursionError) as error:
        raise StreamError("a frame that should be JSON is none") from error
    if not isinstance(found, dict):
        raise StreamError("a frame that should be a JSON object is none")
    return found


def parse_line(line: bytes) -> Mapping[str, Any]:
    """A JSON object of who may be believed to mean well; raises StreamError where it is none."""
    try:
        found = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise StreamError("a line that should be JSON is none") from error
    if not isinstance(found, dict):
        raise StreamError("a line that should be a JSON object is none")
    return found


def number_of(message: Mapping[str, Any], key: str) -> int:
    """A whole number of a message; raises StreamError where there is none."""
    value = message.get(key)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 1 << 63:
        raise StreamError(f"a message has no good {key}")
    return value


def text_of(message: Mapping[str, Any], key: str) -> str:
    """A word of a message, fit to be shown; raises StreamError where there is none."""
    value = message.get(key)
    if not isinstance(value, str):
        raise StreamError(f"a message has no good {key}")
    return "".join(char for char in value if char.isprintable())[:_SHOWN_CHARS]


def _words(payload: memoryview) -> str:
    try:
        return text_of(parse(payload), "error")
    except StreamError:
        return "without a reason"


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
