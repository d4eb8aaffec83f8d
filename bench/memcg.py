"""A memory cgroup of the benchmark's own, so that a server's page cache is held to the same cap as ours.

One thread uses it; the group is removed in the end, when its process is gone.
"""

import contextlib
import itertools
import os
import pathlib
import time
from collections.abc import Iterator
from typing import Final

_PROC: Final = pathlib.Path("/proc/self")
_REMOVE_SECONDS: Final = 2.0
_numbers = itertools.count()


@contextlib.contextmanager
def limited(limit_bytes: int) -> Iterator[pathlib.Path | None]:
    """A group limited to `limit_bytes`: the file that a process writes its id to, to enter it.

    None where this user or this machine cannot make one.  Works with v1 and v2 of the controller.
    """
    group = _make(limit_bytes)
    try:
        yield group / "cgroup.procs" if group is not None else None
    finally:
        if group is not None:
            remove(group)


def _make(limit_bytes: int) -> pathlib.Path | None:
    for parent, limit in parents("memory", ("memory.limit_in_bytes", "memory.max")):
        group = parent / f"swaptide-bench-{os.getpid()}-{next(_numbers)}"
        try:
            group.mkdir()
        except OSError:
            continue
        try:
            (group / limit).write_text(str(limit_bytes))
        except OSError:  # the controller is not on for children of this one
            group.rmdir()
            continue
        return group
    return None


def parents(controller: str, files: tuple[str, str]) -> Iterator[tuple[pathlib.Path, str]]:
    """Where a group of `controller` may be made, the nearest first, with the name of the file that sets it.

    `files` are its names in v1 and v2.
    """
    for line in (_PROC / "cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if controller in controllers.split(","):
            kind, name = controller, files[0]
        elif not controllers:
            kind, name = "cgroup2", files[1]
        else:
            continue
        for mount in _mounts(kind):
            own = mount / path.lstrip("/")
            for parent in (own, *own.parents):
                if parent.is_relative_to(mount) and parent.is_dir():
                    yield parent, name


def _mounts(kind: str) -> Iterator[pathlib.Path]:
    for line in (_PROC / "mountinfo").read_text().splitlines():
        fields = line.split()
        found, options = fields[fields.index("-") + 1], fields[-1].split(",")
        if found == kind or (found == "cgroup" and kind in options):
            yield pathlib.Path(fields[4])


def remove(group: pathlib.Path) -> None:
    """Remove a group; one that is never empty stays."""
    deadline = time.monotonic() + _REMOVE_SECONDS
    while True:
        try:
            group.rmdir()
            return
        except OSError:  # busy until the process that was reaped has left it
            if time.monotonic() > deadline:
                return
            time.sleep(0.02)
