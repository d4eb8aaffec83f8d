"""The state file: made, opened, checked and locked.  One thread, before the server starts.

A new file is laid out under another name and gets its own when the whole disk is made, so that a name
never shows half a disk.  The lock (flock) dies with the process that serves.
"""

import contextlib
import dataclasses
import fcntl
import logging
import os
import pathlib
import struct
import uuid
import zlib

from swaptide.cache import face, geometry, keys, layout
from swaptide.cache.errors import BusyError, SetupError, StateError, UsageError
from swaptide.cache.mapping import Mapping

log = logging.getLogger(__name__)

# CRC-32 of the identity, behind it: a size or a flag that changed would still look like one.
_CHECK = struct.Struct("<I")


@dataclasses.dataclass
class StateFile:
    """An open, locked, mapped state file.  `draft` is the name it has until it is published."""

    fd: int
    path: pathlib.Path | None
    identity: face.Identity
    shape: geometry.Geometry
    mapping: Mapping
    draft: pathlib.Path | None = None
    fresh: bool = False

    @property
    def may_be_swapped(self) -> bool:
        """Whether the host may write its pages to swap."""
        if self.path is None:
            return True
        kind, options = _file_system_of(self.path)
        return kind != "ramfs" and "noswap" not in options

    def publish(self) -> None:
        """Give the file its name.  Raises BusyError if another disk took that name meanwhile."""
        if self.draft is None or self.path is None:
            return
        try:
            os.link(self.draft, self.path)  # unlike rename, never replaces
        except FileExistsError:
            raise BusyError(f"state={self.path}: another disk was made there meanwhile") from None
        self.draft.unlink()
        self.draft = None

    def close(self) -> None:
        """Let go of the lock; the mapping lives as long as somebody holds it."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            fcntl.flock(fd, fcntl.LOCK_UN)  # the mapping would keep it
            os.close(fd)

    def discard(self) -> None:
        """Remove a file that this process made and nobody has used yet."""
        if self.draft is not None:
            self.draft.unlink(missing_ok=True)
        elif self.fresh and self.path is not None and self._has_its_name():
            self.path.unlink()
        self.close()

    def _has_its_name(self) -> bool:
        try:
            return self.path is not None and os.path.samestat(os.fstat(self.fd), self.path.stat())
        except FileNotFoundError:
            return False


def create(
    path: pathlib.Path | None,
    size_bytes: int,
    name: str,
    limits: face.Limits,
    *,
    encrypted: bool,
    slots: tuple[int, int] | None = None,
) -> StateFile:
    """Make a state file for a new disk.  Raises SetupError if the host refuses, UsageError for a bad size.

    `slots` as of face.Identity.
    """
    try:
        shape = geometry.of_size(size_bytes, slots)
    except ValueError as error:
        raise UsageError(str(error)) from error
    identity = face.Identity(str(uuid.uuid4()), name, size_bytes, encrypted, slots)
    if path is None:
        return _fill(os.memfd_create(f"swaptide-{name}", os.MFD_CLOEXEC), None, None, identity, shape, limits)
    draft = draft_of(path, identity.disk_id)
    sweep_drafts(path)
    try:
        fd = os.open(draft, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise SetupError(f"state={path}: {error.strerror}; choose another path") from error
    try:
        _warn_unless_tmpfs(fd, path)
        return _fill(fd, path, draft, identity, shape, limits)
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
        identity, shape = _identify(fd, path)
        # Its length may have been cut: a load behind the end of the file would be SIGBUS.
        if os.fstat(fd).st_size != shape.state_bytes:
            raise SetupError(
                f"state={path}: {os.fstat(fd).st_size} bytes, {shape.state_bytes} expected; truncated?"
            )
        if os.lseek(fd, 0, os.SEEK_HOLE) < shape.segment_table_offset:
            raise StateError(f"state={path}: damaged: a part of its header is missing")
        return StateFile(fd, path, identity, shape, Mapping(fd, shape, False))
    except BaseException:
        os.close(fd)
        raise


def _identify(fd: int, path: pathlib.Path) -> tuple[face.Identity, geometry.Geometry]:
    raw = os.pread(fd, layout.IDENTITY.size + _CHECK.size, 0)
    identity = face.parse_identity(raw, f"state={path}")
    known, check = raw[: layout.IDENTITY.size], raw[layout.IDENTITY.size :]
    try:
        if check == _check_of(known):
            return identity, geometry.of_size(identity.size_bytes, identity.slots)
    except ValueError:
        pass
    raise StateError(f"state={path}: damaged: its first page is not as it was written")


def pack_identity(identity: face.Identity) -> bytes:
    """How it lies at the beginning of a state file, its check included."""
    known = layout.IDENTITY.pack(
        layout.MAGIC,
        layout.FORMAT_VERSION,
        geometry.SEGMENT_BYTES,
        identity.size_bytes,
        uuid.UUID(identity.disk_id).bytes,
        identity.name.encode(),
        layout.flags_of(identity.encrypted, identity.slots),
    )
    return known + _check_of(known)


def _check_of(identity: bytes) -> bytes:
    return _CHECK.pack(zlib.crc32(identity))


def _fill(
    fd: int,
    path: pathlib.Path | None,
    draft: pathlib.Path | None,
    identity: face.Identity,
    shape: geometry.Geometry,
    limits: face.Limits,
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
    mapping.write_identity(pack_identity(identity))
    return StateFile(fd, path, identity, shape, mapping, draft, True)


def sweep_drafts(path: pathlib.Path) -> None:
    """Remove what creators of this name left behind that were killed half way, and their keys."""
    for draft in path.parent.glob(f".{path.name}.*.new"):
        with contextlib.suppress(OSError), open(draft, "rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            disk_id = id_of_draft(path, draft)
            with contextlib.suppress(SetupError):  # no keyring, no key
                if disk_id is not None:
                    keys.erase(disk_id)
            draft.unlink()


def draft_of(path: pathlib.Path, disk_id: str) -> pathlib.Path:
    """The name of what is to be the disk at `path`; whoever removes it erases the key of that id as well."""
    return path.with_name(f".{path.name}.{disk_id}.new")


def id_of_draft(path: pathlib.Path, draft: pathlib.Path) -> str | None:
    """The disk that was to be made at `path`, as the name of its draft says; None if it does not."""
    try:
        return str(uuid.UUID(draft.name.removeprefix(f".{path.name}.").removesuffix(".new")))
    except ValueError:
        return None


def _lock(fd: int, path: pathlib.Path) -> None:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise BusyError(f"state={path}: another process serves this disk; stop it first") from None


def _warn_unless_tmpfs(fd: int, path: pathlib.Path) -> None:
    kind, _ = _file_system_of(path)
    if kind not in ("tmpfs", "ramfs"):
        log.warning(
            "state file is not on tmpfs: guest pages will reach that disk, and capping is not exact"
            " file=%s kind=%s",
            path,
            kind,
        )


def _file_system_of(path: pathlib.Path) -> tuple[str, frozenset[str]]:
    """Type and options of the file system that holds `path`, from mountinfo."""
    device = path.parent.stat().st_dev
    number = f"{os.major(device)}:{os.minor(device)}"
    for line in pathlib.Path("/proc/self/mountinfo").read_text().splitlines():
        fields = line.split()
        if fields[2] == number:
            kind, _, options = fields[fields.index("-") + 1 :][:3]
            return kind, frozenset(options.split(","))
    return "an unknown file system", frozenset()
