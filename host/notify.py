"""What systemd is told: that the daemon serves, that its loop still goes round, that it ends (sd_notify(3)).

Silent where nobody asked for it.  Owned by the daemon's loop, on which nothing here waits.
"""

import asyncio
import contextlib
import logging
import os
import socket
from collections.abc import Callable, Mapping

log = logging.getLogger(__name__)

_STATUS_SECONDS = 10.0
_MICRO = 1e6


class Notifier:
    """Tells the service manager of `environ` how things are, from `start` until `close`."""

    def __init__(self, status: Callable[[], str], environ: Mapping[str, str] = os.environ) -> None:
        """`status` is one line for people, as `systemctl status` shows it."""
        self._status = status
        self._address = _address(environ)
        self._beat_seconds = _beat_seconds(environ)
        self._socket: socket.socket | None = None
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """The daemon serves from now on; a loop that stands still is noticed from now on."""
        if self._address is None:
            return
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        self._socket.setblocking(False)
        self._send("READY=1", f"STATUS={self._status()}")
        self._task = asyncio.create_task(self._beat(), name="notify")

    async def close(self) -> None:
        """The daemon ends."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        if self._socket is not None:
            self._send("STOPPING=1", "STATUS=ends, its disks serve on")
            self._socket.close()

    async def _beat(self) -> None:
        while True:
            await asyncio.sleep(self._beat_seconds)
            self._send("WATCHDOG=1", f"STATUS={self._status()}")

    def _send(self, *words: str) -> None:
        assert self._socket is not None and self._address is not None
        # A full queue: the next one will do.  A manager that is gone: nobody is left to tell.
        with contextlib.suppress(OSError):
            self._socket.sendto("\n".join(words).encode(), self._address)


def _address(environ: Mapping[str, str]) -> str | None:
    """The manager's socket, None for none; one that begins with @ has no file."""
    given = environ.get("NOTIFY_SOCKET", "")
    if not given:
        return None
    if given[0] not in "/@":
        log.warning("service manager not told address=%s so='only Unix sockets are known here'", given)
        return None
    return "\0" + given[1:] if given[0] == "@" else given


def _beat_seconds(environ: Mapping[str, str]) -> float:
    """Twice as often as the manager wants, if it watches us."""
    try:
        if int(environ.get("WATCHDOG_PID") or os.getpid()) == os.getpid():
            return min(_STATUS_SECONDS, int(environ["WATCHDOG_USEC"]) / _MICRO / 2)
    except (KeyError, ValueError):
        pass
    return _STATUS_SECONDS
