"""The spill file or device: claimed, reserved in full, locked, and given up again.

A 64 KiB header says whose it is: the disk's id, the state file that alone can make sense of the
contents, and the boot in which it was made.  A spill file whose state file is gone is garbage.
Runs before the server starts, in one thread.
"""

import ctypes
import dataclasses
import errno
import fcntl
import logging
import mmap
import os
import pathlib
import stat
import struct
import uuid

from swaptide.cache import face, geometry, layout, store
from swaptide.cache.errors import BusyError, SetupError, StateError, UsageError

log = logging.getLogger(__name__)

MAGIC = b"tidespil"
_HEADER = struct.Struct("<8sQ16s40s1024sI")
_BLANK_PROBE_BYTES = 1 << 20
DEFAULT_DIRECTORY = pathlib.Path("/var/tmp")
# statx(2), Linux 6.1
_AT_EMPTY_PATH = 0x1000
_STATX_DIOALIGN = 0x2000
_STATX_BYTES = 256
_STATX_DIO_MEMORY_ALIGN = 152  # where it lies


@dataclasses.dataclass(frozen=True)
class SpillHeader:
    """Whose a spill file is.  `state_path` is empty for a disk whose state file has no name.

    `part` is 1 or 2 for the first and the second of a disk's two stores, 0 for the only one.
    """

    disk_id: str
    state_path: str
    boot_id: str
    part: int = 0


@dataclasses.dataclass
class SpillFile:
    """An open, locked, fully reserved spill file.  `align` is what direct I/O demands, in bytes.

    Not `direct`: what is written goes to the page cache first.
    """

    fd: int
    align: int
    direct: bool
    path: pathlib.Path | None
    reserved_bytes: int

    def __post_init__(self) -> None:
        self.store = store.FileStore(self.fd, self.align, self.direct)

    @property
    def place(self) -> str:
        """Which one it is, for people."""
        return str(self.path)

    def start(self, *, may_die: bool) -> None:
        """Nothing to start: whoever reads or writes does it."""

    def trouble(self) -> str:
        """Never known before a write or read fails."""
        return ""

    def set_timeout(self, seconds: float | None) -> None:
        """Nothing to set: whoever reads waits as long as the kernel does."""

    def wind_up(self) -> bool:
        """Whether a write was cut off: never, as whoever writes waits for it."""
        return False

    def close(self) -> None:
        """Let go of the file and its lock; the file stays."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)

    def discard(self, disk_id: str) -> None:
        """Remove the file of a disk that came to nothing, or wipe the device's header.  Raises OSError."""
        if self.path is not None:
            release(self.path, disk_id)


def read_header(path: pathlib.Path) -> SpillHeader | None:
    """The header of the file or device at `path`; None where there is none of ours.  Raises OSError."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        return parse(os.pread(fd, _HEADER.size, 0))
    finally:
        os.close(fd)


def create(
    path: pathlib.Path | None,
    shape: geometry.Geometry,
    disk_id: str,
    state_path: str,
    *,
    force: bool,
    part: int = 0,
) -> SpillFile:
    """Claim `path` (or an unnamed file) and reserve all that a disk of this shape can ever need there.

    Raises UsageError where the path holds something that is not ours to overwrite, BusyError where a
    disk uses it, SetupError where it cannot be made or the space is lacking; nothing is left behind.
    """
    fd, made = _open_unnamed() if path is None else _open_named(path)
    try:
        if not made and path is not None:
            _check_ours(fd, path, disk_id, force)
        _reserve(fd, shape.spill_bytes, path)
        os.pwrite(fd, pack(SpillHeader(disk_id, state_path, boot_id(), part)), 0)
        return SpillFile(fd, *_go_direct(fd, path), path, shape.spill_bytes)
    except BaseException:
        os.close(fd)
        if made and path is not None:
            path.unlink(missing_ok=True)
        raise


def reopen(path: pathlib.Path, shape: geometry.Geometry, disk_id: str, *, part: int = 0) -> SpillFile:
    """Open the spill file of an existing disk.  Raises SetupError where it is gone or another's."""
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | _exclusive(path))
    except OSError as error:
        if error.errno == errno.EBUSY:
            raise BusyError(f"spill={path}: the device is in use; is it mounted?") from error
        raise SetupError(
            f"spill={path}: {error.strerror}; it holds pages of this disk, put it back"
        ) from error
    try:
        _lock(fd, path)
        header = check_owned(fd, path, disk_id)
        check_part(str(path), header, part)
        if header.boot_id != boot_id():
            # A state file on a real file system: what of it reached that disk nobody knows.
            raise SetupError(
                f"spill={path}: of a disk that was lost when the host restarted; remove its state file"
            )
        size = os.lseek(fd, 0, os.SEEK_END)
        if size < shape.spill_bytes:
            raise SetupError(f"spill={path}: cut short to {size} bytes, {shape.spill_bytes} expected")
        return SpillFile(fd, *_go_direct(fd, path), path, shape.spill_bytes)
    except BaseException:
        os.close(fd)
        raise


def check_free(fd: int, path: pathlib.Path, *, force: bool) -> None:
    """Raises as `create` does if `fd` may not become a disk's; locks it until it is closed."""
    _lock(fd, path)
    _check_ours(fd, path, "", force)


def check_owned(fd: int, path: pathlib.Path, disk_id: str) -> SpillHeader:
    """The header of what is open as `fd`; raises SetupError if it is not that disk's spill file."""
    header = parse(os.pread(fd, _HEADER.size, 0))
    if header is None or header.disk_id != disk_id:
        raise SetupError(f"spill={path}: not the spill file of this disk ({disk_id}); put it back")
    return header


def check_part(place: str, header: SpillHeader, part: int) -> None:
    """Raises SetupError if a disk's store is not the one, of its one or two, that it was named as."""
    if header.part != part:
        named = ("the only", "the first", "the second")
        is_part = named[header.part] if header.part < len(named) else "an unknown"
        raise SetupError(
            f"spill={place}: {is_part} store of this disk, named as {named[part]} one;"
            " name them as when it was made"
        )


def release(path: pathlib.Path, disk_id: str) -> None:
    """Remove a disk's spill file, or wipe its header from a device.  Missing, or another's: left alone."""
    try:
        header = read_header(path)
    except OSError:
        return
    if header is None or header.disk_id != disk_id:
        return
    if stat.S_ISREG(path.stat().st_mode):
        path.unlink(missing_ok=True)
        return
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.pwrite(fd, bytes(geometry.PAGE_BYTES), 0)
    finally:
        os.close(fd)


def collect_orphans(directory: pathlib.Path) -> list[pathlib.Path]:
    """Remove every *.spill file in `directory` that is ours, unlocked, and whose state file is gone."""
    gone = []
    for path in sorted(directory.glob("*.spill")):
        try:
            if _collect(path):
                gone.append(path)
        except OSError as error:
            log.warning("spill file cannot be examined path=%s error=%s", path, error.strerror)
    return gone


def boot_id() -> str:
    """The kernel's name for this boot."""
    return pathlib.Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def _collect(path: pathlib.Path) -> bool:
    if not stat.S_ISREG(path.lstat().st_mode):
        return False
    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        # Without the lock first, since a disk that starts must not find it taken; then judged again, since
        # a disk may have been made over the garbage meanwhile.
        if not _holds_garbage(fd):
            return False
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        if not _holds_garbage(fd) or not _has_name(fd, path):
            return False
        path.unlink(missing_ok=True)
        return True
    finally:
        os.close(fd)


def _holds_garbage(fd: int) -> bool:
    header = parse(os.pread(fd, _HEADER.size, 0))
    return header is not None and _is_garbage(header)


def _is_garbage(header: SpillHeader) -> bool:
    """Only the state file knows which page lies where; without it, or after a reboot, nothing can be read."""
    if header.boot_id != boot_id() or not header.state_path:
        return True
    try:
        # The word of whoever serves the disk: no device is opened for it, and nobody waits at a FIFO.
        if not stat.S_ISREG(os.lstat(header.state_path).st_mode):
            return True
        with open(header.state_path, "rb", opener=_patient) as state:
            return face.parse_identity(state.read(layout.IDENTITY.size), "").disk_id != header.disk_id
    except FileNotFoundError:
        return True
    except (OSError, StateError):
        return False  # perhaps of another version; somebody may still want it


def _patient(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK)


def parse(raw: bytes) -> SpillHeader | None:
    """The header that a spill file or export begins with; None where it is none of ours."""
    if len(raw) < _HEADER.size or not raw.startswith(MAGIC):
        return None
    _, _, disk_id, boot, state_path, part = _HEADER.unpack_from(raw)
    return SpillHeader(
        str(uuid.UUID(bytes=disk_id)),
        os.fsdecode(state_path.rstrip(b"\0")),
        boot.rstrip(b"\0").decode("ascii", "replace"),
        part,
    )


def pack(header: SpillHeader) -> bytes:
    """The page that a spill file or export begins with."""
    raw = _HEADER.pack(
        MAGIC,
        1,
        uuid.UUID(header.disk_id).bytes,
        header.boot_id.encode(),
        os.fsencode(header.state_path),
        header.part,
    )
    return raw.ljust(geometry.PAGE_BYTES, b"\0")


def _open_unnamed() -> tuple[int, bool]:
    try:
        fd = os.open(DEFAULT_DIRECTORY, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise SetupError(
            f"cannot make a spill file in {DEFAULT_DIRECTORY}: {error.strerror}; name one with spill=PATH"
        ) from error
    return fd, True


def _open_named(path: pathlib.Path) -> tuple[int, bool]:
    """Open and lock `path`; the second value says whether this call made it."""
    try:
        try:
            fd, made = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), True
        except FileExistsError:
            fd, made = os.open(path, os.O_RDWR | os.O_CLOEXEC | _exclusive(path)), False
    except OSError as error:
        hint = "is it mounted?" if error.errno == errno.EBUSY else "choose another path"
        raise SetupError(f"spill={path}: {error.strerror}; {hint}") from error
    try:
        _lock(fd, path)
        if not _has_name(fd, path):
            # Garbage when it was opened, and collected before it was locked.
            raise BusyError(f"spill={path}: removed meanwhile; try again")
    except BaseException:
        os.close(fd)
        raise
    return fd, made


def _exclusive(path: pathlib.Path) -> int:
    """On a block device O_EXCL asks whether it is mounted or otherwise in use, and keeps others from that."""
    return os.O_EXCL if stat.S_ISBLK(path.stat().st_mode) else 0


def _has_name(fd: int, path: pathlib.Path) -> bool:
    try:
        return os.path.samestat(os.fstat(fd), path.stat())
    except FileNotFoundError:
        return False


def _lock(fd: int, path: pathlib.Path) -> None:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise BusyError(f"spill={path}: in use by another disk; choose another path") from None


def _check_ours(fd: int, path: pathlib.Path, disk_id: str, force: bool) -> None:
    if force:
        return
    mode = os.fstat(fd).st_mode
    if not stat.S_ISREG(mode) and not stat.S_ISBLK(mode):
        raise UsageError(f"spill={path}: neither a file nor a block device; choose another path")
    header = parse(os.pread(fd, _HEADER.size, 0))
    if header is None:
        if not _is_blank(fd):
            raise UsageError(f"spill={path}: holds something that is not swaptide's; empty it, or use force")
    elif header.disk_id != disk_id and not _is_garbage(header):
        raise UsageError(
            f"spill={path}: belongs to the disk {header.disk_id}; remove that disk, or use force"
        )


def _is_blank(fd: int) -> bool:
    """Nothing but zeros in the first and the last MiB: no file system, partition table or RAID member."""
    end = os.lseek(fd, 0, os.SEEK_END)
    for offset in (0, max(0, end - _BLANK_PROBE_BYTES)):
        if any(os.pread(fd, _BLANK_PROBE_BYTES, offset)):
            return False
    return True


def _reserve(fd: int, needed: int, path: pathlib.Path | None) -> None:
    where = f"spill={path}" if path is not None else f"spill file in {DEFAULT_DIRECTORY}"
    if stat.S_ISBLK(os.fstat(fd).st_mode):
        size = os.lseek(fd, 0, os.SEEK_END)
        if size < needed:
            raise SetupError(
                f"{where}: {size} bytes, {needed} are needed; choose a larger device or a smaller disk"
            )
        return
    space = os.fstatvfs(fd)
    free = space.f_bavail * space.f_frsize + os.fstat(fd).st_blocks * 512
    if free < needed:
        raise SetupError(
            f"{where}: {needed} bytes are needed, {free} are free; free some or choose another path"
        )
    try:
        os.ftruncate(fd, needed)
        os.posix_fallocate(fd, 0, needed)
    except OSError as error:
        raise SetupError(f"{where}: cannot reserve {needed} bytes: {error.strerror}") from error


def _go_direct(fd: int, path: pathlib.Path | None) -> tuple[int, bool]:
    """Switch the descriptor to direct I/O; the alignment it demands, in bytes, and whether it is that."""
    try:
        fcntl.fcntl(fd, fcntl.F_SETFL, fcntl.fcntl(fd, fcntl.F_GETFL) | os.O_DIRECT)
        direct = _is_direct(fd)
    except OSError:
        direct = False
    if not direct:
        log.warning("no direct I/O there: spilled pages will also occupy the page cache path=%s", path)
        return geometry.PAGE_BYTES, False
    with mmap.mmap(-1, geometry.PAGE_BYTES) as page, memoryview(page) as view:
        try:
            os.preadv(fd, [view[:512]], 512)
        except OSError:
            return geometry.PAGE_BYTES, True
    return 512, True


def _is_direct(fd: int) -> bool:
    """Whether O_DIRECT is more than accepted: ext4 with data=journal takes it, and uses the page cache."""
    found = ctypes.create_string_buffer(_STATX_BYTES)
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.statx(fd, b"", _AT_EMPTY_PATH, _STATX_DIOALIGN, found) != 0:
        return True
    (mask,) = struct.unpack_from("<I", found)
    (memory_align,) = struct.unpack_from("<I", found, _STATX_DIO_MEMORY_ALIGN)
    return not mask & _STATX_DIOALIGN or memory_align != 0  # older kernels, and many file systems, do not say
