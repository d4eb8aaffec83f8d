"""Sizes, and counts, as people write them: powers of 1024, `512M`, `4G`.  Pure functions."""

import re
from collections.abc import Sized

from swaptide.balloon import limits
from swaptide.cache.errors import UsageError

_SHOWN_CHARS = 40
_UNITS = {"": 0, "B": 0, "K": 10, "M": 20, "G": 30, "T": 40}
_SIZE = re.compile(r"(?P<number>[0-9]{1,18})(?P<unit>[KMGT]?)(?:i?B)?", re.IGNORECASE)


def parse(text: str) -> int:
    """Bytes for `text`, such as 4096, 512M or 4G; raises UsageError if it is no size or out of range."""
    match = _SIZE.fullmatch(text.strip())
    text = text if len(text) <= _SHOWN_CHARS else f"{text[:_SHOWN_CHARS]}..."
    if match is None:
        raise UsageError(f"size '{text}' is not a number with K, M, G or T; write for example 512M or 4G")
    size_bytes = int(match["number"]) << _UNITS[match["unit"].upper()]
    if size_bytes == 0:
        raise UsageError(f"size '{text}' is zero; write for example 512M or 4G")
    if size_bytes > limits.MAX_BYTES:
        raise UsageError(f"size '{text}' is more than {show(limits.MAX_BYTES)}; write for example 512M or 4G")
    return size_bytes


def show(size_bytes: int) -> str:
    """A short form of `size_bytes` for people: exact where it is round, else with one decimal."""
    for unit in "TGMK":
        scale = 1 << _UNITS[unit]
        if size_bytes >= scale:
            whole, rest = divmod(size_bytes, scale)
            return f"{whole}{unit}" if rest == 0 else f"{size_bytes / scale:.1f}{unit}"
    return str(size_bytes)


def count(things: Sized, name: str) -> str:
    """How many there are, in words."""
    return f"{len(things)} {name}" + ("" if len(things) == 1 else "s")
