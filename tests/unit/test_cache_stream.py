"""Frames of a disk that moves: what is written is read, and whatever else comes is refused."""

import json
import os
import pathlib
import random
import socket
import struct
import threading
import zlib

import pytest

from swaptide.cache import stream


class Memory:
    """A wire that remembers."""

    def __init__(self, data: bytes = b"") -> None:
        self.data = bytearray(data)
        self.at = 0

    def write(self, data: bytes | memoryview) -> None:
        self.data += data

    def read_into(self, room: memoryview) -> None:
        if self.at + len(room) > len(self.data):
            raise stream.StreamError("the other side hung up")
        room[:] = self.data[self.at : self.at + len(room)]
        self.at += len(room)


def frame(kind: bytes, payload: bytes = b"", number: int = 0, length: int | None = None) -> bytes:
    """A frame by hand."""
    head = struct.pack("<4sIQ", kind, len(payload) if length is None else length, number)
    return head + struct.pack("<I", zlib.crc32(head + payload)) + payload


def written() -> bytes:
    """A short stream."""
    wire = Memory()
    writer = stream.Writer(wire)
    writer.greet()
    writer.put_json(stream.HELLO, {"size_bytes": 4096})
    writer.put(stream.PAGES, bytes(100_000))
    writer.put(stream.OPEN)
    assert writer.sent_bytes == len(wire.data)
    return bytes(wire.data)


def read_all(data: bytes) -> list[tuple[bytes, bytes]]:
    wire = Memory(data)
    reader = stream.Reader(wire)
    reader.greet()
    found = []
    while wire.at < len(data):
        kind, payload = reader.next()
        found.append((kind, bytes(payload)))
    return found


def test_what_is_written_is_read() -> None:
    assert read_all(written()) == [
        (stream.HELLO, b'{"size_bytes": 4096}'),
        (stream.PAGES, bytes(100_000)),
        (stream.OPEN, b""),
    ]


def test_the_format_is_what_it_was() -> None:
    """Another version of the program has to be able to read it."""
    wire = Memory()
    writer = stream.Writer(wire)
    writer.greet()
    writer.put(stream.TICK)
    writer.put(stream.OPEN)
    assert wire.data == b"swaptide disk stream 1\n" + frame(b"TICK") + frame(b"OPEN", number=1)


def test_every_cut_is_noticed() -> None:
    data = written()
    whole = {len(stream.GREETING)}
    at = len(stream.GREETING)
    for _, payload in read_all(data):
        at += stream.HEADER_BYTES + len(payload)
        whole.add(at)
    for length in [*range(200), *range(len(data) - 60, len(data))]:
        if length not in whole:
            with pytest.raises(stream.StreamError):
                read_all(data[:length])


def test_every_flipped_bit_is_noticed() -> None:
    data, draw = written(), random.Random(5)
    for at in [*range(120), *draw.sample(range(len(data)), 200), *range(len(data) - 24, len(data))]:
        damaged = bytearray(data)
        damaged[at] ^= 1 << draw.randrange(8)
        with pytest.raises(stream.StreamError):
            read_all(bytes(damaged))


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"swaptide disk stream 2\n", "version '2', and this program reads version 1"),
        (b"GET / HTTP/1.1\r\nHost: x\r\n", "no stream of a swaptide disk"),
        (stream.GREETING + frame(b"WHAT"), "makes no sense"),
        (stream.GREETING + frame(b"PAGE", length=1 << 31), "makes no sense"),
        (stream.GREETING + frame(b"PAGE", b"x", number=1), "frame 1 came where 0 was due"),
        (stream.GREETING + frame(b"TICK") + frame(b"TICK"), "frame 0 came where 1 was due"),
        (stream.GREETING + frame(b"FAIL", b'{"error": "no \\u0007room"}'), "gave up: no room"),
        (stream.GREETING + frame(b"FAIL", b"\xff"), "gave up: without a reason"),
    ],
)
def test_what_else_comes_is_refused(data: bytes, said: str) -> None:
    with pytest.raises(stream.StreamError, match=said):
        read_all(data)


@pytest.mark.parametrize(
    "payload", [b"{", b"[]", b"7", b"\xff\xfe", b"[" * 5000, b'{"a":"' + bytes(70_000) + b'"}']
)
def test_json_that_is_none_is_refused(payload: bytes) -> None:
    with pytest.raises(stream.StreamError, match="JSON"):
        stream.parse(memoryview(payload))


def test_words_of_messages_are_checked() -> None:
    message = {"n": -1, "b": True, "big": 1 << 64, "f": 1.0, "s": "a\nb" + "c" * 999, "good": 7}
    assert stream.number_of(message, "good") == 7
    for key in ("n", "b", "big", "f", "s", "missing"):
        with pytest.raises(stream.StreamError, match=key):
            stream.number_of(message, key)
    assert stream.text_of(message, "s").startswith("abc") and len(stream.text_of(message, "s")) == 300
    with pytest.raises(stream.StreamError):
        stream.text_of(message, "n")


def test_expect_skips_ticks_and_nothing_else() -> None:
    good = Memory(frame(b"TICK") + frame(b"GOOD", b'{"a": 1}', number=1))
    assert stream.Reader(good).expect(stream.GOOD) == {"a": 1}
    bad = Memory(frame(b"OPEN"))
    with pytest.raises(stream.StreamError, match="OPEN came where GOOD was due"):
        stream.Reader(bad).expect(stream.GOOD)


def test_silence_and_hang_ups_end() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        wire = stream.SocketWire(ours, silence_seconds=0.1)
        assert not wire.has_news()
        with pytest.raises(stream.StreamError, match="says nothing"):
            stream.Reader(wire).next()
        with pytest.raises(stream.StreamError, match="takes nothing in"):
            while True:
                wire.write(bytes(1 << 20))
        theirs.close()
        assert wire.has_news()
        with pytest.raises(stream.StreamError, match="hung up|broke"):
            stream.Reader(wire).next()
        with pytest.raises(stream.StreamError, match="broke"):
            wire.write(b"x")


def test_frames_through_a_socket_arrive_whole() -> None:
    ours, theirs = socket.socketpair()
    sent = [random.Random(n).randbytes(n * 997 % stream.MOST_BYTES) for n in range(200)]

    def send() -> None:
        writer = stream.Writer(stream.SocketWire(ours))
        for payload in sent:
            writer.put(stream.PAGES, memoryview(payload))

    with ours, theirs:
        thread = threading.Thread(target=send)
        thread.start()
        reader = stream.Reader(stream.SocketWire(theirs))
        assert [bytes(reader.next()[1]) for _ in sent] == sent
        thread.join()


def test_a_file_that_breaks_off(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "saved"
    with open(path, "wb") as file:
        writer = stream.Writer(stream.FileWire(file.fileno()))
        writer.greet()
        writer.put_json(stream.LAST, {"stored_pages": 1})
    os.truncate(path, path.stat().st_size - 1)
    with open(path, "rb") as file:
        reader = stream.Reader(stream.FileWire(file.fileno()))
        reader.greet()
        with pytest.raises(stream.StreamError, match="breaks off"):
            reader.next()
    with open(path, "rb") as file, pytest.raises(stream.StreamError, match="cannot be written"):
        stream.FileWire(file.fileno()).write(b"x")
    assert json.loads('{"a": 1}') == dict(stream.parse(memoryview(b'{"a": 1}')))
