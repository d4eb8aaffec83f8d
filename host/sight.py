"""What `swaptide doctor` and `swaptide plan` see of a host.  Reads, asks, and changes nothing.

The one place that touches the host for them: tests put another one in its place.
"""

import dataclasses
import functools
import os
import pathlib
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any, TypeVar

from swaptide.balloon import samples
from swaptide.cache import endpoint
from swaptide.cache.errors import SwaptideError
from swaptide.host import client, config, protocol, steering, uids

_SAYS_SECONDS = 20.0
_ASK_SECONDS = 2.0
_ANSWER_SECONDS = 5.0

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Space:
    """A file system: what it holds, what is free for root, its kind, and where it is mounted with what."""

    total_bytes: int
    free_bytes: int
    kind: str
    options: frozenset[str] = frozenset()


@dataclasses.dataclass(frozen=True)
class Daemon:
    """What the daemon said; `look` is None and `error` says why where none answered."""

    look: dict[str, Any] | None
    error: str = ""

    @property
    def disks(self) -> list[dict[str, Any]]:
        """All disks' reports."""
        return [] if self.look is None else self.look["disks"]


class Sight:
    """This host, and the daemon of `chosen`; `root` is where /proc, /sys, /etc and /dev are."""

    def __init__(self, chosen: config.Config, root: pathlib.Path = pathlib.Path("/")) -> None:
        self.config = chosen
        self.root = root

    @property
    def uid(self) -> int:
        """Who asks."""
        return os.geteuid()

    @property
    def python(self) -> tuple[int, int]:
        """The version of Python that the core was compiled for."""
        return sys.version_info[:2]

    def text(self, path: str) -> str | None:
        """What stands in a file such as proc/swaps, without the last newline; None if it cannot be read."""
        try:
            return (self.root / path).read_text("utf-8", "surrogateescape").rstrip("\n")
        except OSError:
            return None

    def says(self, *command: str) -> str | None:
        """What a program prints; None where it is missing or fails."""
        try:
            done = subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=_SAYS_SECONDS,
                check=False,
                cwd="/",
            )
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    def has(self, tool: str) -> bool:
        """Whether there is such a program."""
        return shutil.which(tool) is not None

    def libnbd(self) -> str | None:
        """The version of libnbd's binding, None where there is none."""
        try:
            import nbd
        except ImportError:
            return None
        return str(nbd.NBD().get_version())

    def has_capability(self, number: int) -> bool:
        """Whether we have a capability of capabilities(7)."""
        status = self.text("proc/self/status") or ""
        mask = next((line.split()[1] for line in status.splitlines() if line.startswith("CapEff:")), "0")
        return bool(int(mask, 16) >> number & 1)

    def opens(self, path: str) -> str | None:
        """Why a device cannot be opened for reading and writing, None if it can."""
        try:
            os.close(os.open(self.root / path, os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK))
        except OSError as error:
            return error.strerror
        return None

    def may(self, path: pathlib.Path, mode: int) -> bool:
        """Whether we may use `path` like that (os.R_OK and so on)."""
        return os.access(path, mode)

    def status(self, path: pathlib.Path) -> os.stat_result | None:
        """Whose it is, None if it is not there.  Raises TimeoutError where its store does not answer."""
        try:
            return _in_time(path.stat)
        except TimeoutError:
            raise
        except OSError:
            return None

    def nearest(self, path: pathlib.Path) -> pathlib.Path:
        """`path`, or what there is of the way to it."""
        return next((each for each in (path, *path.parents) if os.path.exists(each)), path)

    def space(self, path: pathlib.Path) -> Space | None:
        """The file system of `path`, or of what is to hold it; None if it does not tell.

        Raises TimeoutError where its store does not answer.
        """
        try:
            path = _in_time(lambda: self.nearest(path))
            found, device = _in_time(lambda: (os.statvfs(path), path.stat().st_dev))
        except TimeoutError:
            raise
        except OSError:
            return None
        unit = found.f_frsize
        kind, options = self._mount_of(f"{os.major(device)}:{os.minor(device)}")
        free = found.f_bfree if self.uid == 0 else found.f_bavail
        return Space(found.f_blocks * unit, free * unit, kind, options)

    def rotates(self, path: pathlib.Path) -> bool | None:
        """Whether a spinning disk is below `path`; None where nobody tells."""
        status = self.status(path)
        if status is None:
            return None
        number = status.st_rdev or status.st_dev
        base = f"sys/dev/block/{os.major(number)}:{os.minor(number)}"
        # A partition has no queue of its own.
        said = self.text(f"{base}/queue/rotational") or self.text(f"{base}/../queue/rotational")
        return None if said is None else said == "1"

    def overlap(self) -> str | None:
        """Why disks cannot have users of their own, as far as this host's files tell."""
        chosen = uids.DEFAULT if self.config.uids is None else uids.parse(self.config.uids)
        return uids.obstacle(chosen, self.root / "etc", self.root / "proc")

    def asks(self, address: endpoint.Address) -> str | None:
        """The first line of what answers at this address: empty if it says nothing, None if nobody does."""
        try:
            with socket.create_connection((address.host, address.port), _ASK_SECONDS) as asked:
                asked.settimeout(_ASK_SECONDS)
                asked.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
                return asked.recv(128).decode("ascii", "replace").partition("\r\n")[0]
        except ConnectionRefusedError:
            return None
        except OSError:
            return ""

    @functools.cached_property
    def daemon(self) -> Daemon:
        """What the daemon says."""
        try:
            return Daemon(_in_time(lambda: client.call(self.config.run_dir, protocol.Look())))
        except TimeoutError:
            told = f"the daemon of {self.config.run_dir} took the call and does not answer"
            return Daemon(None, f"{told}; see its log, and start it again: its disks go on")
        except (SwaptideError, OSError) as error:
            return Daemon(None, str(error))

    @functools.cached_property
    def rooms(self) -> tuple[samples.Room, ...]:
        """What memory is taken from: as the daemon sees it, else as it would where we are."""
        look = self.daemon.look
        if look is not None:
            return tuple(samples.Room(**room) for room in look["host"]["rooms"])
        return steering.rooms_of(self.config).read()

    def defined(self) -> int:
        """How many disks are defined, as far as we may look."""
        try:
            return sum(name.endswith(".json") for name in os.listdir(self.config.definitions_dir))
        except OSError:
            return 0

    def _mount_of(self, device: str) -> tuple[str, frozenset[str]]:
        for line in (self.text("proc/self/mountinfo") or "").splitlines():
            left, _, right = line.partition(" - ")
            if left.split()[2] == device:
                kind, _, options = right.split(" ", 2)
                return kind, frozenset(options.split(","))
        return "unknown", frozenset()


def _in_time(ask: Callable[[], T]) -> T:
    """What `ask` returns or raises; TimeoutError if store or daemon let it wait, which may be for ever."""
    answers: list[T] = []
    errors: list[BaseException] = []

    def body() -> None:
        try:
            answers.append(ask())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=body, daemon=True)
    thread.start()
    thread.join(_ANSWER_SECONDS)
    if errors:
        raise errors[0]
    if not answers:
        raise TimeoutError("the store does not answer")
    return answers[0]
