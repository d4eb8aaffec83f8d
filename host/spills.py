"""Spill files as the daemon handles them: always with a time limit, since their store may be dead."""

import contextlib
import ctypes
import fcntl
import logging
import os
import pathlib
import stat
import struct
import threading

from swaptide.cache import spillfile
from swaptide.cache.errors import SetupError, SwaptideError
from swaptide.host import detached, isolation

log = logging.getLogger(__name__)

LIMIT_SECONDS = 2.0
# A new disk waits longer for its store than one that is removed.
MAKE_SECONDS = 60.0
_KEEP_SIZE, _PUNCH_HOLE = 1, 2  # fallocate(2)
_BLKDISCARD = 0x1277
_RANGE = struct.Struct("QQ")


async def lend(
    path: pathlib.Path, user: isolation.User, *, disk_id: str | None, force: bool
) -> isolation.Loan:
    """As isolation.lend_spill, within a time limit.

    Raises SwaptideError.
    """
    abandoned = threading.Event()

    def body() -> isolation.Loan:
        loan = isolation.lend_spill(path, user, disk_id=disk_id, force=force)
        if disk_id is None and abandoned.is_set():
            isolation.take_back(loan)
        return loan

    try:
        return await detached.call(body, MAKE_SECONDS)
    except TimeoutError:
        raise SetupError(f"spill={path}: its store does not answer; mend it") from None
    finally:
        abandoned.set()


async def take_back(loan: isolation.Loan) -> None:
    """As isolation.take_back; trouble is logged."""
    try:
        await detached.call(lambda: isolation.take_back(loan), LIMIT_SECONDS)
    except TimeoutError:
        log.warning("store does not answer, spill left spill=%s", loan.path)
    except OSError as error:
        log.warning("spill not taken back spill=%s error=%r", loan.path, str(error))


async def release(path: pathlib.Path, disk_id: str) -> str | None:
    """Erase the spill of `disk_id` at `path`; returns the trouble, if any.  A dead store is left behind."""
    try:
        await detached.call(lambda: _release(path, disk_id), LIMIT_SECONDS)
    except TimeoutError:
        why = "its store does not answer"
    except (OSError, SwaptideError) as error:
        why = getattr(error, "strerror", None) or str(error)
    else:
        return None
    log.warning("spill not released spill=%s error=%r", path, why)
    return f"spill={path} is not erased: {why}"


async def collect(directory: pathlib.Path) -> None:
    """Remove the spill files of vanished disks in `directory`; missing is fine."""
    try:
        removed = await detached.call(lambda: spillfile.collect_orphans(directory), LIMIT_SECONDS)
    except TimeoutError:
        log.warning("store does not answer, orphans left for later directory=%s", directory)
    except (OSError, SwaptideError) as error:
        log.warning("orphans not collected directory=%s error=%r", directory, str(error))
    else:
        for path in removed:
            log.info("orphan spill file removed file=%s", path)


def _release(path: pathlib.Path, disk_id: str) -> None:
    try:
        header = spillfile.read_header(path)
    except FileNotFoundError:
        return
    if header is None or header.disk_id != disk_id:
        return
    # Opened before it loses its name and its header, erased after: nobody serves from a half erased one.
    fd = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        spillfile.release(path, disk_id)
        _discard(fd)
        if stat.S_ISBLK(os.fstat(fd).st_mode) and os.geteuid() == 0:
            os.fchown(fd, 0, -1)
    finally:
        os.close(fd)


def _discard(fd: int) -> None:
    """Have the store forget the contents, where it can: what is encrypted is noise without its key anyway."""
    size = os.lseek(fd, 0, os.SEEK_END)
    if stat.S_ISBLK(os.fstat(fd).st_mode):
        with contextlib.suppress(OSError):
            fcntl.ioctl(fd, _BLKDISCARD, _RANGE.pack(0, size))
    else:
        fallocate = ctypes.CDLL(None).fallocate
        fallocate(fd, _KEEP_SIZE | _PUNCH_HOLE, ctypes.c_long(0), ctypes.c_long(size))
