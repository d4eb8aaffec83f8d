"""Empties a disk in place, over NBD, while its guest stands still: the id stays, and QEMU's connection too.

What makes the disk a swap area is its first page, which is kept: the guest's fstab may name it.  It is as
long as the guest's pages are, and ends with the signature.  Blocking, with one connection; whoever calls runs
it in a thread and may ask it to stop.
"""

import enum
import threading

from swaptide.cache.errors import SetupError

# Whoever asks to stop waits for one of these.
_STEP_BYTES = 256 << 20
_MAGIC_BYTES = 10
# What Linux has on one machine or another: 4 KiB, on arm64 16 and 64 as well.
_PAGES_BYTES = (4096, 8192, 16384, 32768, 65536)
_SWAP = (b"SWAPSPACE2", b"SWAP-SPACE")
_HIBERNATED = (b"S1SUSPEND", b"S2SUSPEND", b"ULSUSPEND", b"LINHIB0001")


class Outcome(enum.StrEnum):
    """What became of it."""

    EMPTIED = "emptied"
    HIBERNATED = "holds a hibernated system"  # and was left alone
    STOPPED = "stopped"


def check() -> None:
    """Raises SetupError unless this host can do it."""
    try:
        import nbd  # noqa: F401
    except ImportError as error:
        raise SetupError(
            f"libnbd's Python module cannot be loaded ({error}); install python3-libnbd"
        ) from error


def empty(socket: str, disk_id: str, size_bytes: int, stop: threading.Event) -> Outcome:
    """Discard everything, but for the first page of a swap area; raises SetupError if the server fails."""
    check()
    import nbd

    handle = nbd.NBD()
    try:
        handle.set_export_name(disk_id)
        handle.connect_unix(socket)
        at = _header_bytes(bytes(handle.pread(min(size_bytes, max(_PAGES_BYTES)), 0)))
        if at is None:
            return Outcome.HIBERNATED
        while at < size_bytes:
            if stop.is_set():
                return Outcome.STOPPED
            length = min(_STEP_BYTES, size_bytes - at)
            handle.trim(length, at)
            at += length
        handle.shutdown()
    except nbd.Error as error:
        raise SetupError(f"disk at {socket} is not emptied: {error.string}") from error
    return Outcome.EMPTIED


def _header_bytes(start: bytes) -> int | None:
    """The length of the page that makes it a swap area, or 0; None if a system is hibernated there."""
    magics = [start[page_bytes - _MAGIC_BYTES : page_bytes] for page_bytes in _PAGES_BYTES]
    if any(magic.startswith(_HIBERNATED) for magic in magics):
        return None
    # The longest, since a shorter one may be left of what the disk was before.
    found = (page_bytes for page_bytes, magic in zip(_PAGES_BYTES, magics, strict=True) if magic in _SWAP)
    return max(found, default=0)
