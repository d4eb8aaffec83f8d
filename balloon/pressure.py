"""Pressure stall information: the kernel says at once when tasks stand still for want of memory.

Owned by the controller's loop.  The loop's own selector knows no EPOLLPRI, so the triggers are in an epoll
object of their own, which is in the loop.
"""

import asyncio
import dataclasses
import logging
import os
import pathlib
import select
from collections.abc import Callable, Sequence

from swaptide.balloon import complaints

log = logging.getLogger(__name__)

STALL_SECONDS = 0.15
# The first that the kernel takes: without CAP_SYS_RESOURCE windows have to be multiples of 2 s.
WINDOWS_SECONDS = (1, 2)
_POLL_SECONDS = 2.0  # how often the kernel itself counts for those who only read
_MICRO = 1e6


def arm(path: pathlib.Path) -> tuple[int, int]:
    """A descriptor that has EPOLLPRI when tasks stalled, and the window in seconds that it is for.

    Raises OSError with the kernel's last word where it takes no trigger.
    """
    fd = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        for window in WINDOWS_SECONDS:
            try:
                os.write(fd, b"some %d %d\0" % (STALL_SECONDS * _MICRO, window * _MICRO))
                return fd, window
            except OSError:
                if window == WINDOWS_SECONDS[-1]:
                    raise
        raise AssertionError("unreachable")
    except BaseException:
        os.close(fd)
        raise


@dataclasses.dataclass(frozen=True)
class Stalls:
    """What one file says: the share of the last ten seconds in which some task stalled, from 0 to 1.

    And for how long some task, and all of them, stalled since the host started; None for all is not told.
    """

    share: float
    some_seconds: float
    full_seconds: float | None


def read(path: pathlib.Path) -> Stalls | None:
    """The stalls that the pressure file `path` tells of; None where there is none that makes sense."""
    some, full = _line(path, "some"), _line(path, "full")
    if some is None:
        return None
    return Stalls(
        float(some["avg10"]) / 100,
        int(some["total"]) / _MICRO,
        None if full is None else int(full["total"]) / _MICRO,
    )


def percent(files: Sequence[pathlib.Path]) -> float | None:
    """Share of the last ten seconds in which some task stalled, where that is most; None if untold."""
    shares = [float(words["avg10"]) for path in files if (words := _some(path)) is not None]
    return max(shares, default=None)


class Pressure:
    """Calls `fired` whenever tasks stalled for want of memory, on the host or in one of the cgroups."""

    def __init__(
        self, fired: Callable[[], None], armer: Callable[[pathlib.Path], tuple[int, int]] = arm
    ) -> None:
        self._fired = fired
        self._armer = armer
        self._complaints = complaints.Complaints(log)
        self._epoll = select.epoll()
        self._in_loop = False
        self._watched: dict[pathlib.Path, int] = {}  # -1 where there is no trigger
        self._marks: dict[pathlib.Path, tuple[float, int]] = {}

    def watch(self, files: Sequence[pathlib.Path]) -> None:
        """Watch these files, and no others.  Needs a running loop."""
        if not self._in_loop:
            asyncio.get_running_loop().add_reader(self._epoll.fileno(), self._ready)
            self._in_loop = True
        for path in set(self._watched) - set(files):
            self._drop(path)
            del self._watched[path]
            self._marks.pop(path, None)
        for path in files:
            if path not in self._watched:
                self._watched[path] = self._arm(path)

    def close(self) -> None:
        """Watch nothing any more; safe to call twice."""
        if self._in_loop:
            asyncio.get_running_loop().remove_reader(self._epoll.fileno())
            self._in_loop = False
        for path in list(self._watched):
            self._drop(path)
        self._watched.clear()
        self._epoll.close()

    def polled(self, now: float) -> bool:
        """Whether a file that has no trigger tells of stalls since the last call, `now` in seconds."""
        untriggered = [path for path, fd in self._watched.items() if fd < 0]
        return any([self._stalled(path, now) for path in untriggered])

    def percent(self) -> float | None:
        """Share of the last ten seconds in which some task stalled, where that is most; None if untold."""
        return percent(list(self._watched))

    def _arm(self, path: pathlib.Path) -> int:
        fd = -1
        try:
            fd, window = self._armer(path)
            self._epoll.register(fd, select.EPOLLPRI | select.EPOLLERR)
            log.info("pressure trigger armed file=%s stall_s=%s window_s=%d", path, STALL_SECONDS, window)
            return fd
        except OSError as error:
            if fd >= 0:
                os.close(fd)
            told = _some(path) is not None
            consequence = "it is read now and then" if told else "only free memory is watched"
            self._complaints.fail(str(path), error, consequence)
            return -1

    def _ready(self) -> None:
        fired = False
        for fd, events in self._epoll.poll(0):
            fired = fired or bool(events & select.EPOLLPRI)
            if events & select.EPOLLERR:  # its cgroup is gone
                path = next(path for path, known in self._watched.items() if known == fd)
                self._drop(path)
                self._complaints.fail(str(path), "gone", "only free memory is watched")
        if fired:
            self._fired()

    def _drop(self, path: pathlib.Path) -> None:
        fd, self._watched[path] = self._watched[path], -1
        if fd >= 0:
            self._epoll.unregister(fd)
            os.close(fd)

    def _stalled(self, path: pathlib.Path, now: float) -> bool:
        words = _some(path)
        if words is None:
            return False
        total = int(words["total"])
        since, before = self._marks.setdefault(path, (now, total))
        stalled = total - before >= STALL_SECONDS * _MICRO
        if stalled or now - since >= _POLL_SECONDS:
            self._marks[path] = (now, total)
        return stalled


def _some(path: pathlib.Path) -> dict[str, str] | None:
    return _line(path, "some")


def _line(path: pathlib.Path, kind: str) -> dict[str, str] | None:
    """The words of the line `kind`, by name; None where there is none that makes sense."""
    try:
        lines = path.read_text().splitlines()
        line = next(line for line in lines if line.startswith(f"{kind} "))
        words = dict(word.split("=", 1) for word in line.split()[1:])
        float(words["avg10"]), int(words["total"])
    except (OSError, ValueError, KeyError, StopIteration):
        return None
    return words
