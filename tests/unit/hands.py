"""A disk that is moved by hand: written, packed, spilled, cleaned, restarted, and looked into."""

import functools
import os
import pathlib
import random
import struct
from collections.abc import Callable, Iterable
from typing import NamedTuple

from swaptide.cache import engine, geometry, keys, places, planning

PAGE = 4096
SIZE = 24 << 20
SHAPE = geometry.of_size(SIZE)
PAGES = SHAPE.pages
PIECES = geometry.PIECES_PER_SEGMENT
STRIDE = PAGE + geometry.TAG_BYTES
FOOTER = geometry.CHUNKS_PER_SEGMENT * STRIDE
# place, write, age, fill, count, flags (cache/mapping.pxd); the states of a place (cache/entry.pxd)
SEGMENT_ENTRY = struct.Struct("<QQQIHH")
FREE, OPEN, DIRTY, WRITING, CLEAN, DISK, DYING = range(7)
PACKED_FLAG, SOLID_FLAG, STRONG_FLAG = 16, 32, 64
NOISE = random.Random(3).randbytes(1 << 20)
WORDS = [bytes(random.Random(n).choices(range(97, 123), k=2 + n % 9)) for n in range(400)]


class Home(NamedTuple):
    """Where a page's piece lies."""

    kind: int
    length: int
    offset: int
    segment: int

    @property
    def chunks(self) -> set[int]:
        """The chunks of its segment's image that it touches."""
        return {self.offset // PAGE, (self.offset + self.length - 1) // PAGE}


class Part(NamedTuple):
    """A segment as its table has it."""

    state: int
    ram: int
    disk: int
    age: int
    fill: int
    pieces: int
    flags: int


@functools.cache
def text(key: int) -> bytes:
    """A page of words: it packs to about half."""
    return b" ".join(random.Random(key).choices(WORDS, k=1000))[:PAGE]


def sparse(key: int) -> bytes:
    """A page of zeros but for one word: it packs to next to nothing."""
    at = key % 500 * 8
    return bytes(at) + struct.pack("<Q", key + 1) + bytes(PAGE - at - 8)


def noise(key: int) -> bytes:
    """A page that does not shrink."""
    at = key * 7919 % (len(NOISE) - PAGE)
    return struct.pack("<Q", key) + NOISE[at : at + PAGE - 8]


def half(key: int) -> bytes:
    """A page that packs, but not by much."""
    return noise(key)[: PAGE // 4] + text(key)[: PAGE // 4 * 3]


def digits(key: int) -> bytes:
    """A page in which nothing comes again, but of few different bytes: only zstd finds something."""
    return noise(key).translate(bytes(48 + n % 16 for n in range(256)))


def mixed(key: int) -> bytes:
    """One of all kinds."""
    return (text, sparse, noise, half, text, lambda key: struct.pack("<I", key) * (PAGE // 4))[key % 6](key)


class Hand:
    """A disk that is moved by hand, and what every page of it has to be."""

    def __init__(
        self, state: pathlib.Path, spill: places.Spill, size: int = SIZE, encrypt: bool = True
    ) -> None:
        self.settings = engine.Settings(size, 1 << 30, state=state, spill=spill, encrypt=encrypt)
        self.shape = geometry.of_size(size)
        self.model: dict[int, bytes] = {}
        self.made = self._open()

    def _open(self) -> engine.Engine:
        made = engine.Engine.prepare(self.settings)
        made.segments.ram.set_budget(1 << 40, 0)
        return made

    def again(self) -> None:
        """Go on with a successor, which finds the state file as it was left."""
        self.made.stop()
        self.made = self._open()

    def room(self, slots: int = 8) -> None:
        """Have so many free slots: nobody makes any while a write waits."""
        free = planning.Snapshot(*self.made.segments.snapshot()).free
        if free < slots:
            self.made.moves.populate(slots - free)

    def write(self, pages: Iterable[int], make: Callable[[int], bytes], version: int = 0) -> None:
        """Fill pages, one at a time."""
        for page in pages:
            self.put(page * PAGE, make(page + version * 1_000_003))

    def put(self, at: int, data: bytes) -> None:
        """Write anything anywhere."""
        self.room()
        self.made.log.write_bytes(data, at)
        for page in range(at // PAGE, -(-(at + len(data)) // PAGE)):
            old = bytearray(self.model.get(page, bytes(PAGE)))
            start, end = max(at, page * PAGE), min(at + len(data), (page + 1) * PAGE)
            old[start - page * PAGE : end - page * PAGE] = data[start - at : end - at]
            self.model[page] = bytes(old)

    def expected(self, at: int, count: int) -> bytes:
        """What has to be there."""
        pages = range(at // PAGE, -(-(at + count) // PAGE))
        return b"".join(self.model.get(page, bytes(PAGE)) for page in pages)[at % PAGE :][:count]

    def check(self, seed: int = 0) -> None:
        """Read every page alone, all in large requests, and parts of any length anywhere."""
        size = self.shape.size_bytes
        for page in self.model:
            assert self.made.log.read_bytes(PAGE, page * PAGE) == self.model[page], page
        for at in range(0, size, 1 << 20):
            assert self.made.log.read_bytes(1 << 20, at) == self.expected(at, 1 << 20), at
        chooser = random.Random(seed)
        for _ in range(300):
            count = chooser.choice((1, 100, 512, 5000, 100_000))
            at = chooser.randrange(size - count)
            assert self.made.log.read_bytes(count, at) == self.expected(at, count), (at, count)

    def pack(self, strong: bool = False, keep: int = 0) -> int:
        """Pack all that is to be packed; returns how many segments."""
        done = 0
        while True:
            self.room(6)
            if self.made.moves.pack(0, keep, strong) <= 0:
                return done
            done += 1

    def strengthen(self) -> int:
        """Pack all that was packed quickly anew."""
        done = 0
        while True:
            self.room(6)
            if self.made.moves.strengthen(1) <= 0:
                return done
            done += 1

    def ebb(self) -> None:
        """Everything that is not open to disk, and out of RAM."""
        self.made.segments.seal_packers()
        while self.made.moves.spill(0, 1, False) == 1:
            pass
        self.made.moves.drop(1000)

    def home(self, page: int) -> Home:
        """Where a page lies; a kind below 2 lies nowhere."""
        (entry,) = struct.unpack("<Q", self._table(self.shape.page_table_offset + page * 8, 8))
        return Home(entry & 3, entry >> 2 & 0x1FFF, entry >> 15 & 0x1FFFFF, entry >> 36)

    def part(self, segment: int) -> Part:
        """A segment."""
        raw = self._table(self.shape.segment_table_offset + segment * 32, 32)
        place, _write, age, fill, count, flags = SEGMENT_ENTRY.unpack(raw)
        return Part(place & 15, place >> 4 & 0xFFFFFFF, place >> 32, age, fill, count, flags)

    def parts(self) -> dict[int, Part]:
        """All segments in use that pages lie in."""
        numbers = {home.segment for home in map(self.home, self.model) if home.kind >= 2}
        return {number: self.part(number) for number in numbers}

    def _table(self, at: int, count: int) -> bytes:
        assert self.settings.state is not None
        with open(self.settings.state, "rb") as file:
            file.seek(at)
            return file.read(count)

    def flip(self, segment: int, within: int) -> None:
        """Turn a byte of a segment's image on disk over."""
        at = geometry.SPILL_HEADER_BYTES + (self.part(segment).disk - 1) * geometry.SEGMENT_BYTES + within
        assert isinstance(self.settings.spill, pathlib.Path)
        with open(self.settings.spill, "r+b", buffering=0) as file:
            byte = os.pread(file.fileno(), 1, at)[0] ^ 0x40
            os.pwrite(file.fileno(), bytes([byte]), at)
            os.fdatasync(file.fileno())

    def unreadable(self) -> set[int]:
        """The pages that cannot be read; every other one is right."""
        found = set()
        for page, data in self.model.items():
            try:
                assert self.made.log.read_bytes(PAGE, page * PAGE) == data, page
            except OSError:
                found.add(page)
        return found

    def close(self) -> None:
        """Stop; the files are the caller's."""
        disk_id = self.made.identity.disk_id
        self.made.stop()
        keys.erase(disk_id)


Maker = Callable[..., Hand]
