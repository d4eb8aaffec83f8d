"""nbdkit's callbacks that are not in the data path: configuration, life cycle, what a client may do.

Called by nbdkit's threads with the GIL held.  A start that fails prints one line and ends the
process at once: nbdkit would print a traceback and could leave half a disk behind.
"""

import errno
import logging
import os
import sys
from typing import TYPE_CHECKING, NoReturn

import nbdkit

from swaptide.cache import engine, errors, geometry, guard, logs
from swaptide.cache.errors import SwaptideError
from swaptide.nbdkit_plugin import hot, parameters, quit

if TYPE_CHECKING:
    from swaptide.cache import endpoint
    from swaptide.nbdkit_plugin import gate

API_VERSION = 2

log = logging.getLogger("swaptide.plugin")

_settings = engine.Settings()
_disk: engine.Engine | None = None
_metrics: "endpoint.Address | None" = None
_log_format = logs.Form.TEXT
_scraped: "endpoint.Endpoint | None" = None
_calls: str | None = None
_jobs: "gate.Jobs | None" = None


def _die(message: str) -> NoReturn:
    if _log_format is logs.Form.JSON:
        logs.to_stderr(_log_format)
        log.critical("disk cannot start error=%r", message)
    else:
        sys.stderr.write(f"nbdkit: error: swaptide: {errors.plain(message)}\n")
        sys.stderr.flush()
    if _disk is not None:
        _disk.abandon()
    os._exit(1)


def _engine() -> engine.Engine:
    assert _disk is not None
    return _disk


def config(key: str, value: str) -> None:
    """Take one key=value parameter."""
    global _settings, _metrics, _log_format, _calls
    try:
        if key == parameters.METRICS:
            _metrics = parameters.metrics(value)
        elif key == parameters.CALLS:
            _calls = parameters.calls(value)
        elif key == parameters.LOG_FORMAT:
            _log_format = parameters.log_format(value)
        else:
            _settings = parameters.apply(_settings, key, value)
    except SwaptideError as error:
        _die(str(error))


def config_complete() -> None:
    """Check the parameters against each other, before anything is made."""
    try:
        if _settings.state is None or not _settings.state.exists():
            engine.check_limits(_settings)
    except SwaptideError as error:
        _die(str(error))
    except OSError as error:
        _die(f"state={_settings.state}: {error.strerror}")


def thread_model() -> int:
    """Requests run in parallel, so that one that waits for the disk does not stop the others."""
    return nbdkit.THREAD_MODEL_PARALLEL


def get_ready() -> None:
    """Make or take over the disk, while errors can still be told on the terminal."""
    global _disk
    logs.to_stderr(_log_format)
    guard.hide()  # before there is a key: taking a large disk over takes seconds
    try:
        _disk = engine.Engine.prepare(_settings)
    except SwaptideError as error:
        _die(str(error))
    except (OSError, MemoryError) as error:
        _die(f"cannot start: {error}")


def after_fork() -> None:
    """Start the movers; only now, since threads do not survive the fork."""
    global _scraped
    disk = _engine()
    if _calls is not None:
        disk.called = _take_call
    if _metrics is not None:
        from swaptide.nbdkit_plugin import scrapes  # under the daemon nobody asks the disk itself

        # Before the start, which measures what the process takes by itself.
        _scraped = scrapes.serve(disk, _metrics)
    try:
        disk.start()
    except (OSError, MemoryError) as error:
        _die(f"cannot start: {error}")
    hot.serve(disk.log)
    quit.hang_up_first()
    log.info("serving id=%s size_bytes=%d", disk.identity.disk_id, disk.identity.size_bytes)


def _take_call() -> None:
    """A daemon wants the whole disk moved."""
    global _jobs
    if _jobs is None:
        from swaptide.nbdkit_plugin import gate  # for the few disks that ever move

        assert _calls is not None
        _jobs = gate.Jobs(_engine(), _calls)
    _jobs.called()


def cleanup() -> None:
    """The last connection is gone; stop the movers while the interpreter still runs."""
    hot.stop_keeping()
    if _scraped is not None:
        _scraped.close()
    if _jobs is not None:
        _jobs.close()
    if _disk is not None:
        _disk.stop()


def list_exports(readonly: bool, is_tls: bool) -> list[str]:
    """The one export there is: the disk's id."""
    return [_engine().identity.disk_id]


def default_export(readonly: bool, is_tls: bool) -> str:
    """What the empty export name stands for."""
    return _engine().identity.disk_id


def open(readonly: bool) -> hot.Connection:
    """Admit a client once nothing of a client that is gone can change the disk any more.

    And once there is room for the buffers of its requests, which nbdkit makes as they come.
    """
    disk = _engine()
    wanted = nbdkit.export_name()
    if wanted not in ("", disk.identity.disk_id, disk.origin):
        nbdkit.set_error(2)  # ENOENT
        raise RuntimeError(f"export {wanted!r} is not this disk, whose id is {disk.identity.disk_id}")
    disk.connected(+1)
    try:
        connection = hot.admit(disk.wake_waiters)
        if not disk.wait_for_room(hot.pause):
            hot.dismiss(connection)
            nbdkit.set_error(errno.ESHUTDOWN)
            raise RuntimeError("the client went, or the server ends, before there was room for it")
        return connection
    except BaseException:
        disk.connected(-1)  # nbdkit closes only what was opened
        raise


def close(connection: hot.Connection) -> None:
    """A client went."""
    hot.dismiss(connection)
    _engine().connected(-1)


def get_size(connection: hot.Connection) -> int:
    """Size of the disk in bytes."""
    return _engine().identity.size_bytes


def block_size(connection: hot.Connection) -> tuple[int, int, int]:
    """Any size and alignment works; 4 KiB is cheapest; more than 1 MiB would grow nbdkit's buffers."""
    return (1, geometry.PAGE_BYTES, geometry.MAX_REQUEST_BYTES)


def can_write(connection: hot.Connection) -> bool:
    """Always."""
    return True


def can_flush(connection: hot.Connection) -> bool:
    """Accepted: what is acknowledged survives this process (docs/design.md), not the host."""
    return True


def can_fua(connection: hot.Connection) -> int:
    """As for flush: every acknowledged write is already in the state file."""
    return nbdkit.FUA_NATIVE


def is_rotational(connection: hot.Connection) -> bool:
    """Never."""
    return False


def can_trim(connection: hot.Connection) -> bool:
    """Trims free memory at once."""
    return True


def can_zero(connection: hot.Connection) -> bool:
    """Zeroes cost no memory."""
    return True


def can_fast_zero(connection: hot.Connection) -> bool:
    """Zeroing is always faster than writing."""
    return True


def can_extents(connection: hot.Connection) -> bool:
    """Holes and zeroes are known exactly."""
    return True


def can_multi_conn(connection: hot.Connection) -> bool:
    """All connections see one page table: a flush on one covers what was acknowledged on all."""
    return True


def can_cache(connection: hot.Connection) -> int:
    """Nothing to cache ahead: a read never promotes."""
    return nbdkit.CACHE_NONE
