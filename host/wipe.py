"""Empties a disk in place, over NBD, while its guest stands still: the id stays, and QEMU's connection too.

What makes the disk a swap area is its first page, which is kept: the guest's fstab may name it.  Blocking,
with one connection; whoever calls runs it in a thread and may ask it to stop.
"""

import enum
import threading

from swaptide.cache import geometry
from swaptide.cache.errors import SetupError

# Whoever asks to stop waits for one of these.
_STEP_BYTES = 256 << 20
_MAGIC = slice(geometry.PAGE_BYTES - 10, geometry.PAGE_BYTES)
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
        magic = bytes(handle.pread(geometry.PAGE_BYTES, 0))[_MAGIC]
        if magic.startswith(_HIBERNATED):
            return Outcome.HIBERNATED
        at = geometry.PAGE_BYTES if magic in _SWAP else 0
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
