"""The state file: made, opened, checked and locked.  One thread, before the server starts.

A new file is laid out under another name and renamed when it is whole, so that a name never shows
half a state file.  The lock (flock) dies with the process that serves.
"""

import dataclasses
import fcntl
import logging
import os
import pathlib
import uuid

from swaptide.cache import face, geometry, layout
from swaptide.cache.errors import BusyError, SetupError, UsageError
from swaptide.cache.mapping import Mapping

log = logging.getLogger(__name__)


@dataclasses.dataclass
class StateFile:
    """An open, locked, mapped state file.  `fresh` says that this process made it."""

    fd: int
    path: pathlib.Path | None
    identity: face.Identity
    shape: geometry.Geometry
    mapping: Mapping
    fresh: bool

    def close(self) -> None:
        """Let go of the lock; the mapping lives as long as somebody holds it."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)

    def discard(self) -> None:
        """Remove a file that this process made and nobody has used yet."""
        if self.fresh and self.path is not None:
            self.path.unlink(missing_ok=True)
        self.close()


def create(path: pathlib.Path | None, size_bytes: int, name: str, limits: face.Limits) -> StateFile:
    """Make a state file for a new disk.  Raises SetupError if the host refuses, UsageError for a bad size."""
    try:
        shape = geometry.of_size(size_bytes)
    except ValueError as error:
        raise UsageError(str(error)) from error
    identity = face.Identity(str(uuid.uuid4()), name, size_bytes)
    if path is None:
        return _fill(os.memfd_create(f"swaptide-{name}", os.MFD_CLOEXEC), None, identity, shape, limits)
    draft = path.with_name(f".{path.name}.{os.getpid()}.new")
    try:
        fd = os.open(draft, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise SetupError(f"state={path}: {error.strerror}; choose another path") from error
    try:
        _warn_unless_tmpfs(fd, path)
        state = _fill(fd, path, identity, shape, limits)
        os.rename(draft, path)
        return state
    except BaseException:
        draft.unlink(missing_ok=True)
        os.close(fd)
        raise


def reopen(path: pathlib.Path) -> StateFile:
    """Open and lock the state file of an existing disk.

    Raises BusyError where another process serves it, StateError where it is not ours or damaged,
    SetupError where it cannot be opened.
    """
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        raise SetupError(f"state={path}: {error.strerror}; choose another path") from error
    try:
        _lock(fd, path)
        identity = face.parse_identity(os.pread(fd, layout.IDENTITY.size, 0), f"state={path}")
        shape = geometry.of_size(identity.size_bytes)
        # Its length may have been cut: a load behind the end of the file would be SIGBUS.
        if os.fstat(fd).st_size != shape.state_bytes:
            raise SetupError(
                f"state={path}: {os.fstat(fd).st_size} bytes, {shape.state_bytes} expected; truncated?"
            )
        return StateFile(fd, path, identity, shape, Mapping(fd, shape, False), False)
    except BaseException:
        os.close(fd)
        raise


def _fill(
    fd: int, path: pathlib.Path | None, identity: face.Identity, shape: geometry.Geometry, limits: face.Limits
) -> StateFile:
    where = f"state={path}" if path is not None else "state file in memory"
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.ftruncate(fd, shape.state_bytes)
        mapping = Mapping(fd, shape, True)
    except OSError as error:
        raise SetupError(f"{where}: cannot make it: {error.strerror}") from error
    for index, word in enumerate(layout.CONTROL):
        mapping.set_control_word(index, getattr(limits, word, 0))
    # The identity is written last: without it nobody takes the file for a state file.
    mapping.write_identity(
        layout.IDENTITY.pack(
            layout.MAGIC,
            layout.FORMAT_VERSION,
            geometry.SEGMENT_BYTES,
            identity.size_bytes,
            uuid.UUID(identity.disk_id).bytes,
            identity.name.encode(),
        )
    )
    return StateFile(fd, path, identity, shape, mapping, True)


def _lock(fd: int, path: pathlib.Path) -> None:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise BusyError(f"state={path}: another process serves this disk; stop it first") from None


def _warn_unless_tmpfs(fd: int, path: pathlib.Path) -> None:
    kind = _file_system_of(path)
    if kind not in ("tmpfs", "ramfs"):
        log.warning(
            "state=%s is on %s, not on tmpfs: guest pages will reach that disk, and capping is not exact",
            path,
            kind,
        )


def _file_system_of(path: pathlib.Path) -> str:
    """Type of the file system at `path`, from mountinfo; the last, longest mount point wins."""
    parent = str(path.parent.resolve())
    best, kind = "", "an unknown file system"
    for line in pathlib.Path("/proc/self/mountinfo").read_text().splitlines():
        fields = line.split()
        point = fields[4]
        if (parent == point or parent.startswith(point.rstrip("/") + "/")) and len(point) >= len(best):
            best, kind = point, fields[fields.index("-") + 1]
    return kind
