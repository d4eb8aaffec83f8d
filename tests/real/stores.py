"""Stores that fail on demand: block devices for a spill path, undone at the end, also after a failure.

A loop device over a FUSE file that nbdkit serves with its error filter: writes or reads fail while a file
exists, and everything stalls while that nbdkit is stopped.  A loop device over a sparse file on a tmpfs:
the thin device that runs full.  Needs root.  Device-mapper's error and flakey targets would do the same where
the kernel has them; these need loop and FUSE alone.
"""

import contextlib
import os
import pathlib
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator

import pytest

from tests.real import sockets

MIB = 1 << 20
WAIT_SECONDS = 60.0
_WRITING = ("pwrite", "zero", "trim")


def need(*tools: str) -> None:
    """Skip, and say what is missing, where a store cannot be made."""
    if os.geteuid() != 0:
        pytest.skip("needs root, for loop devices")
    for tool in tools:
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is missing")


class Faulty:
    """A block device at `path` whose requests fail or wait while told to."""

    def __init__(self, path: pathlib.Path, directory: pathlib.Path, pid: int) -> None:
        self.path = path
        self._directory = directory
        self._pid = pid

    @contextlib.contextmanager
    def refusing(self, what: str) -> Iterator[None]:
        """Every `what` ("read" or "write") fails meanwhile."""
        trigger = self._directory / f"no-{what}"
        trigger.touch()
        try:
            yield
        finally:
            trigger.unlink()

    @contextlib.contextmanager
    def stalled(self) -> Iterator[None]:
        """Nothing is answered meanwhile."""
        os.kill(self._pid, signal.SIGSTOP)
        try:
            # The kernel stops the others once the thread that takes the signal runs: until then they answer.
            _wait_until_stopped(self._pid)
            yield
        finally:
            os.kill(self._pid, signal.SIGCONT)


class Thin:
    """A block device at `path` that has space for less than it says."""

    def __init__(self, path: pathlib.Path, directory: pathlib.Path) -> None:
        self.path = path
        self._directory = directory

    def allocate(self, offset: int, count: int) -> None:
        """Have the space for these bytes, now and later."""
        with open(self._directory / "image", "r+b") as file:
            os.posix_fallocate(file.fileno(), offset, count)

    def fill_up(self) -> None:
        """No more space than is used now."""
        self.grow((self._directory / "image").stat().st_blocks * 512)

    def grow(self, space_bytes: int) -> None:
        """Give it this much space in all."""
        _run("mount", "-o", f"remount,size={space_bytes}", str(self._directory))


@contextlib.contextmanager
def faulty(directory: pathlib.Path, size: int, write_error: str = "EIO") -> Iterator[Faulty]:
    """A device of `size` bytes; refused writes fail with `write_error`, refused reads with EIO."""
    need("nbdkit", "nbdfuse", "losetup", "umount")
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        pytest.skip("/dev/fuse is missing")
    directory.mkdir()
    image, socket, mounted = directory / "image", directory / "socket", directory / "fuse"
    image.touch()
    os.truncate(image, size)
    mounted.mkdir()
    filters = ["error-pread=EIO", *(f"error-{operation}={write_error}" for operation in _WRITING)]
    for what, operation in (("read", "pread"), *(("write", each) for each in _WRITING)):
        filters += [f"error-{operation}-rate=100%", f"error-{operation}-file={directory / f'no-{what}'}"]
    serve = ["nbdkit", "-f", "-U", str(socket), "--filter=error", "file", str(image), *filters]
    show = ["nbdfuse", str(mounted / "disk"), f"nbd+unix:///?socket={socket}"]
    with contextlib.ExitStack() as undo:
        server = undo.enter_context(_running(serve))
        _wait_for(socket, sockets.listens)
        undo.enter_context(_running(show))
        undo.callback(_run, "umount", "--lazy", str(mounted), check=False)
        _wait_for(mounted / "disk")
        yield Faulty(undo.enter_context(loop(mounted / "disk", direct=True)), directory, server.pid)


@contextlib.contextmanager
def thin(directory: pathlib.Path, size: int, space_bytes: int) -> Iterator[Thin]:
    """A device of `size` bytes with space for `space_bytes` so far."""
    need("mount", "umount", "losetup")
    directory.mkdir()
    done = _run("mount", "-t", "tmpfs", "-o", f"size={space_bytes}", "none", str(directory), check=False)
    if done.returncode:
        pytest.skip(f"no tmpfs can be mounted here: {done.stderr.strip()}")
    try:
        image = directory / "image"
        image.touch()
        os.truncate(image, size)
        with loop(image) as path:
            yield Thin(path, directory)
    finally:
        _run("umount", "--lazy", str(directory), check=False)


@contextlib.contextmanager
def loop(image: pathlib.Path, direct: bool = False) -> Iterator[pathlib.Path]:
    """The loop device of a file; `direct` leaves the page cache out, so that every request gets there."""
    need("losetup")
    how = f"--direct-io={'on' if direct else 'off'}"
    done = _run("losetup", "--find", "--show", how, str(image), check=False)
    if done.returncode:
        pytest.skip(f"no loop device can be had here: {done.stderr.strip()}")
    path = pathlib.Path(done.stdout.strip())
    try:
        yield path
    finally:
        _run("losetup", "--detach", str(path), check=False)


@contextlib.contextmanager
def _running(command: list[str]) -> Iterator["subprocess.Popen[bytes]"]:
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait_for(path: pathlib.Path, is_there: Callable[[pathlib.Path], bool] = pathlib.Path.exists) -> None:
    deadline = time.monotonic() + WAIT_SECONDS
    while not is_there(path):
        if time.monotonic() > deadline:
            raise TimeoutError(f"{path} did not appear")
        time.sleep(0.02)


def _run(*command: str, check: bool = True) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(command, capture_output=True, text=True, check=check, timeout=WAIT_SECONDS)


def _wait_until_stopped(pid: int) -> None:
    """Until every thread of a process has stopped."""
    deadline = time.monotonic() + WAIT_SECONDS
    while any(_state_of(task) != "T" for task in pathlib.Path(f"/proc/{pid}/task").iterdir()):
        assert time.monotonic() < deadline, f"process {pid} goes on after SIGSTOP"
        time.sleep(0.001)


def _state_of(task: pathlib.Path) -> str:
    try:
        return (task / "stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:  # the thread has just ended
        return "T"
