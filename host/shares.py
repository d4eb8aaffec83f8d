"""CPU cgroups for the disks' processes, one for each, of the disk's weight: so guests share cores fairly.

Called on the daemon's loop, and keeps nothing.  Writing to a cgroup file system waits for nothing.
"""

import contextlib
import logging
import pathlib
from typing import Final

from swaptide.cache.errors import SetupError

log = logging.getLogger(__name__)

_V1_FILE: Final = "cpu.shares"
_V2_FILE: Final = "cpu.weight"
# v1 has 1024 where v2, and a disk's weight, have 100.
_V1_PER_WEIGHT: Final = 1024 / 100
_V1_LEAST: Final = 2
_PREFIX: Final = "disk-"  # a disk may be called as one of the kernel's own files


class Shares:
    """The groups below `directory`; without one, processes stay where the daemon is."""

    def __init__(self, directory: pathlib.Path | None) -> None:
        self._directory = directory

    def check(self) -> None:
        """Make the directory ready for groups; raises SetupError if it cannot have any."""
        directory = self._directory
        if directory is None:
            return
        made = not directory.exists()
        try:
            directory.mkdir(exist_ok=True)
            self._prepare(directory)
        except (SetupError, OSError) as error:
            if made:
                with contextlib.suppress(OSError):
                    directory.rmdir()
            if isinstance(error, SetupError):
                raise
            raise SetupError(
                f"cgroup {directory} cannot be used: {error.strerror}; choose another directory"
            ) from error

    @staticmethod
    def _prepare(directory: pathlib.Path) -> None:
        if (directory / _V1_FILE).exists():
            return
        if "cpu" not in _words(directory / "cgroup.controllers"):
            raise SetupError(
                f"cgroup {directory} has no CPU controller; choose a directory of /sys/fs/cgroup that has it,"
                " or have its parent pass it on (cgroup.subtree_control)"
            )
        if "cpu" not in _words(directory / "cgroup.subtree_control"):
            (directory / "cgroup.subtree_control").write_text("+cpu")

    def enter(self, name: str, pid: int, weight: int) -> None:
        """Have a disk's process run in the disk's group.  A disk is served without it where that fails."""
        if self._directory is None:
            return
        group = self._group(self._directory, name)
        try:
            group.mkdir(exist_ok=True)
            self._weigh(group, weight)
            (group / "cgroup.procs").write_text(str(pid))
        except OSError as error:
            log.warning("disk not in its cgroup name=%s group=%s error=%r", name, group, error.strerror)

    def weigh(self, name: str, weight: int) -> None:
        """Give a disk that is there another weight."""
        if self._directory is None:
            return
        group = self._group(self._directory, name)
        try:
            self._weigh(group, weight)
        except OSError as error:
            log.warning("weight not set name=%s group=%s error=%r", name, group, error.strerror)

    def leave(self, name: str) -> None:
        """Remove the group of a disk whose process has ended; one that is in use stays."""
        if self._directory is not None:
            with contextlib.suppress(OSError):
                self._group(self._directory, name).rmdir()

    @staticmethod
    def _group(directory: pathlib.Path, name: str) -> pathlib.Path:
        return directory / f"{_PREFIX}{name}"

    @staticmethod
    def _weigh(group: pathlib.Path, weight: int) -> None:
        if (group / _V1_FILE).exists():
            (group / _V1_FILE).write_text(str(max(_V1_LEAST, round(weight * _V1_PER_WEIGHT))))
        else:
            (group / _V2_FILE).write_text(str(weight))


def _words(path: pathlib.Path) -> list[str]:
    try:
        return path.read_text().split()
    except FileNotFoundError:
        return []
