"""Corpora: files of 4 KiB pages that contenders have to hold, of the same size each.

Pure functions over files, called by the one thread that measures.
"""

import os
import pathlib
import sysconfig
from collections.abc import Iterator
from typing import BinaryIO, Final

from bench import core

# Corpora are whole pieces, so that contenders that pack several pages at once find neighbours together.
PIECE_BYTES: Final = 1 << 20
# A prime: where the text comes round again, its pages are cut elsewhere.
SHIFT_BYTES: Final = 1021


def whole_pieces(size_bytes: int) -> int:
    """The size, rounded down to whole pieces."""
    return size_bytes // PIECE_BYTES * PIECE_BYTES


def spread(source: BinaryIO, target: BinaryIO, size_bytes: int) -> None:
    """Copy pieces that lie evenly spread over the source.  Raises ValueError if it holds less than that."""
    there, wanted = source.seek(0, os.SEEK_END) // PIECE_BYTES, size_bytes // PIECE_BYTES
    if wanted > there:
        raise ValueError(f"{there} MiB of pages, {wanted} MiB wanted")
    for number in range(wanted):
        source.seek(number * there // wanted * PIECE_BYTES)
        target.write(source.read(PIECE_BYTES))


def random(target: BinaryIO, size_bytes: int) -> None:
    """Bytes without any order, which nothing can pack."""
    for _ in range(size_bytes // PIECE_BYTES):
        target.write(os.urandom(PIECE_BYTES))


def text(target: BinaryIO, size_bytes: int, library: pathlib.Path | None = None) -> None:
    """The sources of the standard library, again and again with a shift.  Raises ValueError without any."""
    sources = b"".join(path.read_bytes() for path in modules(library or standard_library()))
    if len(sources) <= SHIFT_BYTES:
        raise ValueError("no sources of the standard library on this machine")
    left, shift = size_bytes, 0
    while left:
        left -= target.write(sources[shift : shift + left])
        shift = (shift + SHIFT_BYTES) % len(sources)


def standard_library() -> pathlib.Path:
    """Where the interpreter has its own modules."""
    return pathlib.Path(sysconfig.get_paths()["stdlib"])


def modules(library: pathlib.Path) -> Iterator[pathlib.Path]:
    """The library's sources in a fixed order, without what was installed beside it."""
    for path in sorted(library.rglob("*.py")):
        if not {"site-packages", "dist-packages"}.intersection(path.parts):
            yield path


def count_kinds(source: BinaryIO) -> tuple[int, int]:
    """How many pages are all zero, and how many are another word repeated."""
    zero = same = 0
    while content := source.read(core.PAGE_BYTES):
        zero += core.is_zero(content)
        same += core.is_same_filled(content) and not core.is_zero(content)
    return zero, same
