"""Thresholds of v1 memory cgroups: the kernel says at once when usage crosses them, upwards or downwards.

Owned by the controller's loop.  Memory in a tmpfs cannot be reclaimed without swap, so the kernel may see no
pressure until it kills; usage is what tells in time.  v2 has no such thing: its usage is polled.
"""

import asyncio
import contextlib
import logging
import os
import pathlib
from collections.abc import Callable, Sequence

from swaptide.balloon import complaints, rooms

log = logging.getLogger(__name__)

_CONTROL = "cgroup.event_control"
_USAGE = "memory.usage_in_bytes"


def levels(group: rooms.Group) -> tuple[int, ...]:
    """Usages at which to look: where the reserve begins, and as far before and half of it behind."""
    reserve = min(group.reserve_bytes, group.limit_bytes)
    found = (group.limit_bytes - 2 * reserve, group.limit_bytes - reserve, group.limit_bytes - reserve // 2)
    return tuple(sorted({level for level in found if level > 0}))


class Thresholds:
    """Calls `fired` whenever a cgroup's usage crosses one of its levels."""

    def __init__(self, fired: Callable[[], None]) -> None:
        self._fired = fired
        self._complaints = complaints.Complaints(log)
        self._armed: dict[rooms.Group, int] = {}

    def arm(self, groups: Sequence[rooms.Group]) -> None:
        """Watch these, and no others; what is watched already stays so.  Needs a running loop."""
        for group in set(self._armed) - set(groups):
            self._disarm(group)
        for group in groups:
            if group not in self._armed and (group.path / _CONTROL).exists():
                self._arm(group)

    def close(self) -> None:
        """Watch nothing any more."""
        for group in list(self._armed):
            self._disarm(group)

    def _arm(self, group: rooms.Group) -> None:
        event = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        try:
            _register(group.path, event, levels(group))
            asyncio.get_running_loop().add_reader(event, self._crossed, event)
            self._complaints.fine(str(group.path))
        except OSError as error:
            os.close(event)
            event = -1  # not tried again until the group changes
            self._complaints.fail(str(group.path), error, "its usage is polled instead")
        self._armed[group] = event

    def _disarm(self, group: rooms.Group) -> None:
        event = self._armed.pop(group)
        if event >= 0:
            asyncio.get_running_loop().remove_reader(event)
            os.close(event)  # the kernel forgets the thresholds with it

    def _crossed(self, event: int) -> None:
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(event)
        self._fired()


def _register(group: pathlib.Path, event: int, usages: Sequence[int]) -> None:
    """Raises OSError where the kernel refuses."""
    usage = os.open(group / _USAGE, os.O_RDONLY | os.O_CLOEXEC)
    try:
        for level in usages:
            (group / _CONTROL).write_text(f"{event} {usage} {level}")
    finally:
        os.close(usage)
