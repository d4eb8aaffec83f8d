"""The first page of a swap area, as mkswap(8) writes it: version 1, 4 KiB pages.

Source of the layout: union swap_header in the Linux kernel's include/linux/swap.h.
"""

import struct
import uuid

from swaptide.cache import geometry
from swaptide.cache.errors import UsageError

_INFO_OFFSET = 1024
_MAGIC_OFFSET = geometry.PAGE_BYTES - 10
_INFO = struct.Struct("<III16s16s")
MAX_LABEL_BYTES = 16


def header(size_bytes: int, label: str) -> bytes:
    """One page that makes a disk a swap area called `label`; raises UsageError for a bad label."""
    raw = label.encode()
    if len(raw) > MAX_LABEL_BYTES or not label.isprintable():
        raise UsageError(f"swap-label={label}: at most {MAX_LABEL_BYTES} bytes of printable text")
    last_page = size_bytes // geometry.PAGE_BYTES - 1
    page = bytearray(geometry.PAGE_BYTES)
    _INFO.pack_into(page, _INFO_OFFSET, 1, last_page, 0, uuid.uuid4().bytes, raw)
    page[_MAGIC_OFFSET:] = b"SWAPSPACE2"
    return bytes(page)
