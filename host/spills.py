"""Spill files and exports as the daemon handles them: with a time limit, since their store may be dead."""

import asyncio
import ctypes
import fcntl
import logging
import os
import pathlib
import stat
import threading

from swaptide.cache import detached, exports, geometry, places, spillfile, uris
from swaptide.cache.errors import SetupError, SwaptideError
from swaptide.host import isolation, steps, zeros

log = logging.getLogger(__name__)

LIMIT_SECONDS = 2.0
SERVER_SECONDS = 5.0
# A new disk waits longer for its store than one that is removed.
MAKE_SECONDS = 60.0
_KEEP_SIZE, _PUNCH_HOLE = 1, 2  # fallocate(2)
# How long one step of zeroing may take, and how often a long one is told of.
_STEP_SECONDS = 15.0
_TELL_SECONDS = 10.0


async def lend(spill: str, user: isolation.User, *, disk_id: str | None, force: bool) -> list[isolation.Loan]:
    """As isolation.lend_spill for each store, within a time limit; an NBD export has nothing to be lent.

    Raises SwaptideError; then nothing is lent.
    """
    loans: list[isolation.Loan] = []
    try:
        for place in places.each(spill):
            if not uris.is_uri(place):
                loans.append(await _lend(pathlib.Path(place), user, disk_id=disk_id, force=force))
    except BaseException:
        if disk_id is None:
            for loan in loans:
                await take_back(loan)
        raise
    return loans


async def _lend(
    path: pathlib.Path, user: isolation.User, *, disk_id: str | None, force: bool
) -> isolation.Loan:
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


async def release(
    spill: str, disk_id: str, *, plain_bytes: int = 0, told: steps.Steps | None = None
) -> list[str]:
    """Erase the spill of `disk_id`, in each store; returns the trouble, if any.  A dead store is left behind.

    `plain_bytes` are how much of it is not encrypted: a device or an export is not let go before they are
    zeros, however long that takes, as long as it goes on; `told` hears of that.
    """
    found = [
        await _release_one(place, disk_id, plain_bytes, told or steps.Steps()) for place in places.each(spill)
    ]
    return [each for each in found if each is not None]


async def _release_one(place: str, disk_id: str, plain_bytes: int, told: steps.Steps) -> str | None:
    progress = zeros.Progress()
    shown = uris.show(place)
    uri = uris.parse(place) if uris.is_uri(place) else None

    def body() -> None:
        if uri is None:
            _release(pathlib.Path(place), disk_id, plain_bytes, progress)
        else:
            exports.release(uri, disk_id, zero_bytes=plain_bytes, progress=progress)

    # A server may be far away.
    first_seconds = LIMIT_SECONDS if uri is None else SERVER_SECONDS
    work = asyncio.create_task(detached.call(body, None), name=f"release {shown}")
    try:
        await _while_it_goes_on(work, progress, shown, first_seconds, told)
        work.result()
    except TimeoutError:
        why = "its store does not answer" if uri is None else "its server does not answer; its header stays"
    except (OSError, SwaptideError) as error:
        why = getattr(error, "strerror", None) or str(error)
    else:
        return None
    finally:
        # Its thread may wake up much later, when the place is another disk's.
        progress.abandoned = True
        work.cancel()
    if plain_bytes and progress.done_bytes < progress.total_bytes:
        why += "; its contents stay, and they are not encrypted"
    log.warning("spill not released spill=%s error=%r", shown, why)
    return f"spill={shown} is not erased: {why}"


async def _while_it_goes_on(
    work: asyncio.Task[None],
    progress: zeros.Progress,
    shown: str,
    first_seconds: float,
    told: steps.Steps,
) -> None:
    """Wait for the end; raises TimeoutError if nothing happens for too long."""
    loop = asyncio.get_running_loop()
    logged = moved = loop.time()
    seen = (0, 0)
    told.at("erasing its spill")
    while not (await asyncio.wait([work], timeout=steps.TELL_SECONDS))[0]:
        now = loop.time()
        done, total = progress.done_bytes, progress.total_bytes
        if seen != (done, total):
            seen, moved = (done, total), now
        if now - moved >= (_STEP_SECONDS if total else first_seconds):
            raise TimeoutError
        if total:
            told.at(progress.doing, done, total)
            if now - logged >= _TELL_SECONDS:
                logged = now
                log.info(
                    "spill being erased spill=%s doing=%r done_bytes=%d of_bytes=%d",
                    shown,
                    progress.doing,
                    done,
                    total,
                )


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


def _release(path: pathlib.Path, disk_id: str, plain_bytes: int, progress: zeros.Progress) -> None:
    try:
        header = spillfile.read_header(path)
    except FileNotFoundError:
        return
    if header is None or header.disk_id != disk_id:
        return
    # Opened before it loses its name and its header, erased after: nobody serves from a half erased one.
    fd = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        if not stat.S_ISBLK(os.fstat(fd).st_mode):
            spillfile.release(path, disk_id)
            _empty(fd)
            return
        # Until all is done: no other disk can have the device before this is through with it.
        _lock(fd, plain_bytes, progress)
        if spillfile.parse(os.pread(fd, geometry.PAGE_BYTES, 0)) != header:
            return
        if plain_bytes:
            # The header last: a daemon that finds the removal half done finds the device by it.
            _zero(fd, plain_bytes, progress)
        spillfile.release(path, disk_id)
        os.fsync(fd)  # else a device that refuses it is never heard of
        if not plain_bytes:
            zeros.discard(
                fd, 0, os.lseek(fd, 0, os.SEEK_END)
            )  # where it can: it is noise without its key anyway
        if os.geteuid() == 0:
            os.fchown(fd, 0, -1)
    finally:
        os.close(fd)


def _lock(fd: int, plain_bytes: int, progress: zeros.Progress) -> None:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        progress.total_bytes = plain_bytes
        raise SetupError("its process does not end") from None


def _zero(fd: int, plain_bytes: int, progress: zeros.Progress) -> None:
    size = os.lseek(fd, 0, os.SEEK_END)
    zeros.write(fd, geometry.SPILL_HEADER_BYTES, min(size, plain_bytes), progress)


def _empty(fd: int) -> None:
    """A file that has lost its name; it may have another one, of which we know nothing."""
    size = os.lseek(fd, 0, os.SEEK_END)
    fallocate = ctypes.CDLL(None).fallocate
    if fallocate(fd, _KEEP_SIZE | _PUNCH_HOLE, ctypes.c_long(0), ctypes.c_long(size)) != 0:
        os.ftruncate(fd, 0)
