"""Sizes as parameters give them: powers of 1024, `512M`, `4G`.  Pure functions."""

import re
from typing import Final

from swaptide.cache import geometry
from swaptide.cache.errors import UsageError

_SIZE: Final = re.compile(r"([0-9]{1,18})([KMGT]?)(?:iB|B)?", re.IGNORECASE)
_UNITS: Final = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
_MAX_BYTES: Final = 4 * geometry.MAX_SIZE_BYTES
_SHOWN_CHARS: Final = 40


def parse(key: str, text: str) -> int:
    """Bytes from `4G`, `512M`, `4096`; raises UsageError that names the key."""
    match = _SIZE.fullmatch(text.strip())
    text = text[:_SHOWN_CHARS]
    if match is None:
        raise UsageError(f"{key}={text}: not a size; write for example 512M or 4G")
    value = int(match[1]) * _UNITS[match[2].upper()]
    if value == 0:
        raise UsageError(f"{key}={text}: must be more than zero")
    if value > _MAX_BYTES:
        raise UsageError(f"{key}={text}: must be at most {_MAX_BYTES >> 40}T")
    return value
