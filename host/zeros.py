"""A block device made zeros, for what was written to it without encryption.  Blocks; any thread.

Discarded first, which is quick and gives a thin device its space back.  But a discard is a hint: what does
not read as zeros after it is overwritten, by the kernel's own means where the device has them.
"""

import dataclasses
import fcntl
import os
import struct
from typing import Final

STEP_BYTES: Final = 4 << 20
DISCARD_BYTES: Final = 256 * STEP_BYTES
_BLKDISCARD: Final = 0x1277
_BLKZEROOUT: Final = 0x127F
_RANGE: Final = struct.Struct("QQ")


@dataclasses.dataclass
class Progress:
    """How far it is, for another thread to read; `total_bytes` is 0 until it has begun.

    `abandoned` is set by that other thread, once nobody waits for the end.
    """

    doing: str = "zeroing its device"
    done_bytes: int = 0
    total_bytes: int = 0
    abandoned: bool = False


def discard(fd: int, start: int, end: int) -> bool:
    """Tell the device that nothing there matters any more; False if it does not want to know."""
    try:
        fcntl.ioctl(fd, _BLKDISCARD, _RANGE.pack(start, end - start))
    except OSError:
        return False
    return True


def write(fd: int, start: int, end: int, progress: Progress) -> None:
    """Have the device hold zeros from `start` to `end`, which are multiples of 4096.  Raises OSError."""
    progress.total_bytes = max(0, end - start)
    discarded = False
    for at in range(start, end, STEP_BYTES):
        count = min(STEP_BYTES, end - at)
        if (at - start) % DISCARD_BYTES == 0:
            discarded = discard(fd, at, min(end, at + DISCARD_BYTES))
        if not (discarded and _reads_as_zeros(fd, at, count)):
            _zero(fd, at, count)
        progress.done_bytes += count
    os.fsync(fd)


def _reads_as_zeros(fd: int, at: int, count: int) -> bool:
    try:
        return os.pread(fd, count, at) == bytes(count)
    except OSError:
        return False
    finally:
        os.posix_fadvise(fd, at, count, os.POSIX_FADV_DONTNEED)


def _zero(fd: int, at: int, count: int) -> None:
    try:
        fcntl.ioctl(fd, _BLKZEROOUT, _RANGE.pack(at, count))
    except OSError:  # there is no such request, or the device is broken: then the next line says so
        rest = memoryview(bytes(count))
        while rest:
            rest = rest[os.pwrite(fd, rest, at + count - len(rest)) :]
        os.fdatasync(fd)
        os.posix_fadvise(fd, at, count, os.POSIX_FADV_DONTNEED)
