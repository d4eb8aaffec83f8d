"""The host daemon: takes its run directory, brings its disks up, answers the command until it is told to end.

It owns the asyncio loop that everything in host/ runs on, and is never in the data path.
"""

import asyncio
import contextlib
import faulthandler
import fcntl
import logging
import os
import pathlib
import signal

from swaptide.cache.errors import BusyError, SetupError
from swaptide.host import (
    config,
    control,
    definitions,
    disks,
    guestbook,
    guests,
    health,
    isolation,
    launch,
    listener,
    memory,
    notify,
    scrapes,
    shares,
    spills,
    steering,
)

log = logging.getLogger(__name__)

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def run(chosen: config.Config) -> None:
    """Serve until SIGTERM, SIGINT or SIGHUP.

    Raises SetupError if the host lacks something, BusyError if another daemon has the run directory.
    """
    launch.require(chosen.nbdkit)
    servants = isolation.choose(chosen)
    if chosen.balloon:
        steering.check(chosen)
    faulthandler.enable()  # whoever finds us hanging and aborts us, finds in the log where
    shares.Shares(chosen.cgroup).check()
    _keep_descriptors()
    listener.check(chosen.control_socket)
    if chosen.memory_dir is None:
        memory.check_own(chosen.run_dir / "mem")
    made = [path for path in (chosen.run_dir, chosen.state_dir, chosen.spill_dir) if not path.is_dir()]
    try:
        _make(chosen.run_dir, 0o755)
        _check_owner(chosen.run_dir)
        lock = _lock(chosen.run_dir / "daemon.lock")
    except SetupError:
        _remove_empty(made)
        raise
    disks_left = False
    try:
        disks_left = not _run_locked(chosen, servants)
    finally:
        if not disks_left:
            # Before the lock is let go, so that nobody gets hold of a file that is about to vanish.
            (chosen.run_dir / "daemon.lock").unlink(missing_ok=True)
            _remove_empty(made)
        os.close(lock)


def _run_locked(chosen: config.Config, found: list[isolation.Servants]) -> bool:
    """Serve; returns whether no disk is left."""
    # Under root others may pass through, to files that they know and may open.
    for directory in (chosen.state_dir, chosen.spill_dir):
        _make(directory, 0o711 if os.geteuid() == 0 else 0o700)
    store = definitions.Store(chosen.definitions_dir)
    place: memory.Memory | None = None
    try:
        servants = _isolate(chosen, found)
        for directory in memory.collect_orphans():
            log.info("orphan memory removed directory=%s", directory)
        place = memory.prepare(chosen, servants)
        asyncio.run(_serve(chosen, disks.Disks(chosen, place.directory, store, servants)))
    finally:
        empty = not store.names()
        if empty:
            if place is not None:
                memory.release(place)
            store.close()
    return empty


def _isolate(chosen: config.Config, found: list[isolation.Servants]) -> isolation.Servants:
    """Who serves the disks, from where everything lies.  Raises SetupError if it cannot be as configured."""
    if found == [isolation.Servants()]:
        return found[0]
    memory_dir = [] if chosen.memory_dir is None else [chosen.memory_dir]
    for directory in memory_dir:
        _make(directory, 0o711)
    servants = isolation.settle(found, chosen, [chosen.run_dir, chosen.spill_dir, *memory_dir])
    if servants != isolation.Servants():
        isolation.lend_privileges()
    return servants


async def _serve(chosen: config.Config, served: disks.Disks) -> None:
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in _SIGNALS:
        loop.add_signal_handler(number, ended.set)
    # Before the disks start: after a reboot their old files hold the space that they need.
    await spills.collect(chosen.spill_dir)
    watched = guests.Guests(chosen, served, guestbook.Guestbook(guestbook.directory(chosen.definitions_dir)))
    balloon = steering.Steering(chosen, served, watched.watched)
    server = control.Control(chosen, served, watched, balloon)
    scraped = scrapes.Scrapes(chosen, served, watched, balloon)
    looked_after = health.Health(served.keepers)
    manager = notify.Notifier(lambda: _status(served))
    try:
        served.start()
        watched.start()
        balloon.start()
        looked_after.start()
        scraped.start()
        await server.open()
        log.info("serving run_dir=%s disks=%d pid=%d", chosen.run_dir, len(served), os.getpid())
        manager.start()
        await ended.wait()
    finally:
        await manager.close()
        await server.close()
        await scraped.close()
        await looked_after.close()
        await balloon.close()
        await watched.leave()
        await served.leave()
        log.info("ended run_dir=%s disks_left_serving=%d", chosen.run_dir, len(served))


def _status(served: disks.Disks) -> str:
    idle = sum(not keeper.serves for keeper in served.keepers())
    return f"disks: {len(served)}" + (f", of which not running: {idle}" if idle else "")


def _keep_descriptors() -> None:
    """What our starter left open is not for the disks' processes, which outlive us and it."""
    for name in os.listdir("/proc/self/fd"):
        if int(name) > 2:
            with contextlib.suppress(OSError):  # the listing's own
                os.set_inheritable(int(name), False)


def _make(directory: pathlib.Path, mode: int) -> None:
    try:
        if not directory.is_dir():
            directory.mkdir(mode=mode, parents=True, exist_ok=True)
            directory.chmod(mode)  # whatever the umask
    except OSError as error:
        raise SetupError(
            f"directory {directory} cannot be made: {error.strerror};"
            " run as another user, or choose another one (--run-dir, or the configuration)"
        ) from error


def _check_owner(run_dir: pathlib.Path) -> None:
    """Raises SetupError if the run directory, or a link to it, is somebody else's: they could swap it."""
    if not {run_dir.lstat().st_uid, run_dir.stat().st_uid} <= {0, os.geteuid()}:
        raise SetupError(f"run directory {run_dir} is another user's; use another --run-dir")


def _lock(path: pathlib.Path) -> int:
    """Hold the run directory; raises BusyError if another daemon does, SetupError if it cannot be written."""
    while True:
        try:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise SetupError(f"{path} cannot be opened: {error.strerror}; use another --run-dir") from error
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if path.exists() and os.fstat(fd).st_ino == path.stat().st_ino:
                return fd
        except BlockingIOError as error:
            os.close(fd)
            raise BusyError(
                f"another daemon serves {path.parent}; end that one, or choose another --run-dir"
            ) from error
        os.close(fd)  # its last owner removed it meanwhile


def _remove_empty(directories: list[pathlib.Path]) -> None:
    for directory in sorted(directories, key=lambda path: len(path.parts), reverse=True):
        with contextlib.suppress(OSError):
            directory.rmdir()
