"""Servers that disks spill to: nbdkit on a file, which dies, stalls and comes back when told to.

Everything is reaped by its pid.
"""

import concurrent.futures
import contextlib
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence

import pytest

from swaptide.cache import geometry
from tests.real import sockets

WAIT_SECONDS = 60.0


class Remote:
    """An nbdkit that serves `path` over a unix socket or TCP, with these filters and their parameters."""

    def __init__(
        self,
        directory: pathlib.Path,
        size: int,
        *,
        filters: Sequence[str] = (),
        parameters: Sequence[str] = (),
        options: Sequence[str] = (),
    ) -> None:
        if shutil.which("nbdkit") is None:
            pytest.skip("nbdkit is missing (Debian package nbdkit)")
        self.path = directory / "export"
        self.socket = directory / "export.sock"
        self.log = directory / "export.log"
        self.plugin = ["file", str(self.path)]
        self.filters, self.parameters, self.options = list(filters), list(parameters), list(options)
        self.open_to_all = False
        self.port: int | None = None  # of loopback, in the place of the socket
        self.process: subprocess.Popen[bytes] | None = None
        if not self.path.exists():
            self.path.touch()
            os.truncate(self.path, size)

    @property
    def uri(self) -> str:
        """Where disks find it."""
        return f"nbd+unix:///?socket={self.socket}"

    def command(self) -> list[str]:
        """The command line that serves."""
        filters = [f"--filter={each}" for each in self.filters]
        where = ["-U", str(self.socket)] if self.port is None else ["-p", str(self.port), "-i", "127.0.0.1"]
        return ["nbdkit", "-f", *where, *self.options, *filters, *self.plugin, *self.parameters]

    def start(self) -> None:
        """Start and wait until it listens."""
        self.socket.unlink(missing_ok=True)
        with open(self.log, "ab") as output:
            self.process = subprocess.Popen(self.command(), stdout=output, stderr=output)
        deadline = time.monotonic() + WAIT_SECONDS
        while not self._listens():
            if self.process.poll() is not None or time.monotonic() > deadline:
                self.stop(signal.SIGKILL)
                raise RuntimeError(f"the spill server does not serve: {self.log.read_text()}")
            time.sleep(0.01)
        if self.open_to_all:
            self.socket.chmod(0o666)

    def stop(self, how: signal.Signals = signal.SIGKILL) -> None:
        """End it; what was acknowledged stays in the file."""
        process, self.process = self.process, None
        if process is not None:
            process.send_signal(how)
            try:
                process.wait(WAIT_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def restart(self, away_seconds: float = 0.0) -> None:
        """Die, and come back after a while."""
        self.stop()
        time.sleep(away_seconds)
        self.start()

    def has_died(self) -> bool:
        """Whether it ended by itself."""
        return self.process is not None and self.process.poll() is not None

    def keep(self) -> bool:
        """Have it run, for a condition that is waited for.

        It may die when a client with requests under way is gone: an assertion of nbdkit 1.32 does not expect
        that two threads answer on a broken connection.
        """
        if self.process is not None and self.process.poll() == -signal.SIGABRT:
            self.start()
        return True

    def keep_during(self, work: Callable[[], None]) -> None:
        """Have it run while `work`, which is done in another thread and starts no process, needs it."""
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            working = pool.submit(work)
            while not working.done():
                self.keep()
                time.sleep(0.02)
            working.result()

    @contextlib.contextmanager
    def stalled(self) -> Iterator[None]:
        """It answers nothing meanwhile, and nobody is told."""
        assert self.process is not None
        self.process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self.process.send_signal(signal.SIGCONT)

    def _listens(self) -> bool:
        if self.port is None:
            return sockets.listens(self.socket)
        with contextlib.suppress(ConnectionRefusedError), socket.create_connection(("127.0.0.1", self.port)):
            return True
        return False


@contextlib.contextmanager
def serving(
    directory: pathlib.Path,
    disk_size: int,
    *,
    size: int | None = None,
    filters: Sequence[str] = (),
    parameters: Sequence[str] = (),
    options: Sequence[str] = (),
    open_to_all: bool = False,
    port: int | None = None,
) -> Iterator[Remote]:
    """A running server with room for a disk of `disk_size` bytes, or with `size` bytes; ended after.

    `open_to_all` users of the host, as disks under a daemon of root need it.
    """
    directory.mkdir(exist_ok=True)
    needed = geometry.of_size(disk_size).spill_bytes if size is None else size
    remote = Remote(directory, needed, filters=filters, parameters=parameters, options=options)
    remote.open_to_all, remote.port = open_to_all, port
    try:
        remote.start()
        yield remote
    finally:
        remote.stop()
        remote.path.unlink(missing_ok=True)


@contextlib.contextmanager
def place(directory: pathlib.Path, disk_size: int, store: str) -> Iterator[str]:
    """Where a disk may spill to: a "file", the export of a server, "nbd", or a file and that: "pair"."""
    if store == "file":
        yield str(directory / "spill")
        return
    with serving(directory / "remote", disk_size) as remote:
        yield remote.uri if store == "nbd" else pair(directory / "spill", disk_size, remote)


def pair(path: pathlib.Path, disk_size: int, remote: Remote) -> str:
    """A file that has room for a third of a disk, and a server for the rest."""
    slots = geometry.of_size(disk_size).disk_slots // 3
    return f"{path},size={geometry.store_bytes(slots)},{remote.uri}"
