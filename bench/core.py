"""What an ELF core of a guest's memory holds: frames found by their number, and what kind of pages they are.

Pure functions over bytes and an open file; no concurrency.
"""

import dataclasses
import struct
from collections.abc import Iterator, Sequence
from typing import BinaryIO, Final

PAGE_BYTES: Final = 4096
ZERO_PAGE: Final = bytes(PAGE_BYTES)
_FILE_HEADER: Final = struct.Struct("<16sHHIQQQIHHHHHH")
_SEGMENT_HEADER: Final = struct.Struct("<IIQQQQQQ")
_PT_LOAD: Final = 1
_CLASS_64_LITTLE_ENDIAN: Final = b"\x7fELF\x02\x01"
_WORD_BYTES: Final = 8


class CoreError(Exception):
    """Not a core that can be read; str() says why."""


@dataclasses.dataclass(frozen=True)
class Segment:
    """A run of guest memory: `size_bytes` from physical address `address`, at `offset` in the core."""

    address: int
    offset: int
    size_bytes: int


def segments(core: BinaryIO) -> list[Segment]:
    """The loadable segments of a core with physical addresses; raises CoreError."""
    raw = core.read(_FILE_HEADER.size)
    if len(raw) < _FILE_HEADER.size or not raw.startswith(_CLASS_64_LITTLE_ENDIAN):
        raise CoreError("not a 64-bit little-endian ELF file")
    _, _, _, _, _, table, _, _, _, entry_bytes, entries, *_ = _FILE_HEADER.unpack(raw)
    if entry_bytes != _SEGMENT_HEADER.size:
        raise CoreError(f"its segment headers have {entry_bytes} bytes, not {_SEGMENT_HEADER.size}")
    core.seek(table)
    headers = core.read(entry_bytes * entries)
    if len(headers) < entry_bytes * entries:
        raise CoreError("it ends within its segment headers")
    found = []
    for kind, _, offset, _, address, size_bytes, _, _ in _SEGMENT_HEADER.iter_unpack(headers):
        if kind == _PT_LOAD:
            found.append(Segment(address, offset, size_bytes))
    return found


def frames(bitmap: bytes) -> Iterator[int]:
    """The numbers of the bits that are set, least significant first."""
    for index, byte in enumerate(bitmap):
        for bit in range(8):
            if byte >> bit & 1:
                yield index * 8 + bit


def page(core: BinaryIO, layout: Sequence[Segment], frame: int) -> bytes:
    """The 4096 bytes of a frame; raises CoreError if the core does not hold it."""
    address = frame * PAGE_BYTES
    for each in layout:
        if each.address <= address <= each.address + each.size_bytes - PAGE_BYTES:
            core.seek(each.offset + address - each.address)
            found = core.read(PAGE_BYTES)
            if len(found) == PAGE_BYTES:
                return found
            break
    raise CoreError(f"it does not hold frame {frame}")


def is_zero(content: bytes) -> bool:
    """Whether a page holds nothing but zero bytes."""
    return content == ZERO_PAGE


def is_same_filled(content: bytes) -> bool:
    """Whether a page is one 8-byte word repeated, as zram and the kernel's zswap see it."""
    return content == content[:_WORD_BYTES] * (len(content) // _WORD_BYTES)
