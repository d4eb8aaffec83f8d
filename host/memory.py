"""The memory that state files lie in: a tmpfs of the daemon's own, else /dev/shm, else as configured.

Used by the daemon at its start and end only.  A tmpfs of its own brings huge pages (measured: giving
1 GiB back takes 5 ms instead of 257 ms) and no swapping of the cache itself.
"""

import contextlib
import dataclasses
import fcntl
import logging
import os
import pathlib
import shutil
import stat
import subprocess

from swaptide.cache.errors import SetupError
from swaptide.host import config, isolation, paths

log = logging.getLogger(__name__)

SHARED = pathlib.Path("/dev/shm")
_SAFE = "mode=0700,size=100%,nosuid,nodev,noexec"
# The best first.  noswap is known from Linux 6.4 on, huge= only with transparent huge pages.
# size=100% because the caps of the disks are the limit, not half of the host's RAM.
_OPTIONS = (f"{_SAFE},huge=within_size,noswap", f"{_SAFE},huge=within_size", f"{_SAFE},noswap", _SAFE)
_NOTE = "run-dir"
_PART = "disks"
_APART = "disk@"


@dataclasses.dataclass(frozen=True)
class Memory:
    """Where state files lie, and whether the directory is a mount of ours.

    `directory` is `base`, or the part of it that belongs to the one user that nbdkit runs as.
    """

    directory: pathlib.Path
    mounted: bool
    base: pathlib.Path


def prepare(chosen: config.Config, servants: isolation.Servants | None = None) -> Memory:
    """The directory for state files, or for those of the disks, made ready for those who serve.

    Raises SetupError if there is none to be had.
    """
    made = _prepare(chosen)
    if servants is None or (servants.user is None and not servants.apart):
        return made
    # Searchable, so that the way is open; what the daemon relies on, nobody else can replace.
    made.base.chmod(0o711)
    return made if servants.user is None else _part_of(made, servants.user)


def state_path(directory: pathlib.Path, name: str, *, apart: bool) -> pathlib.Path:
    """Where a disk's state file lies: in `directory`, or `apart` in one of its own there."""
    # No name of a disk and no escaped path has an @.
    return (directory / f"{_APART}{name}" if apart else directory) / f"{name}.state"


def own_directory(state: pathlib.Path) -> pathlib.Path | None:
    """The directory of its own that a state file lies in, if it does."""
    return state.parent if state.parent.name == f"{_APART}{state.stem}" else None


def make_own(directory: pathlib.Path, user: isolation.User) -> None:
    """Make a disk's own directory, or make one that is there the user's.  Raises SetupError."""
    try:
        directory.mkdir(mode=0o700, exist_ok=True)
        if not stat.S_ISDIR(directory.lstat().st_mode):
            raise SetupError(f"{directory} is not a directory; remove it")
        os.chown(directory, user.uid, user.gid, follow_symlinks=False)
        directory.chmod(0o700)  # whatever another user before made of it
    except OSError as error:
        raise SetupError(
            f"memory directory {directory} cannot be made: {error.strerror};"
            " make room there, or set memory_dir in the configuration"
        ) from error


def _prepare(chosen: config.Config) -> Memory:
    if chosen.memory_dir is not None:
        directory = chosen.memory_dir / paths.escape(chosen.run_dir)
        _own(directory)
        if _filesystem(directory) not in ("tmpfs", "ramfs"):
            log.warning("state files are not in memory directory=%s remedy='mount a tmpfs there'", directory)
        return Memory(directory, mounted=False, base=directory)
    own = chosen.run_dir / "mem"
    check_own(own)
    if own.is_mount() or _mount(own):
        return Memory(own, mounted=True, base=own)
    directory = _fallback(chosen.run_dir)
    _own(directory)
    (directory / _NOTE).write_text(str(chosen.run_dir))
    log.warning("no tmpfs of our own, using shared memory without huge pages directory=%s", directory)
    return Memory(directory, mounted=False, base=directory)


def _part_of(made: Memory, user: isolation.User) -> Memory:
    """A directory of the user's in one of ours."""
    part = made.base / _PART
    make_own(part, user)
    return dataclasses.replace(made, directory=part)


def release(memory: Memory) -> None:
    """Give back what `prepare` made, if no state file is left in it; never raises."""
    if any(memory.base.rglob("*.state")):
        log.warning("state files of unknown disks kept directory=%s", memory.base)
        return
    try:
        if memory.mounted:
            _run("umount", str(memory.base))
        else:
            for part in (memory.base / _PART, *memory.base.glob(f"{_APART}*")):
                with contextlib.suppress(FileNotFoundError):
                    part.rmdir()
        (memory.base / _NOTE).unlink(missing_ok=True)
        memory.base.rmdir()
    except (OSError, subprocess.CalledProcessError) as error:
        log.warning("memory not given back directory=%s error=%r", memory.base, str(error))


def collect_orphans(shared: pathlib.Path = SHARED) -> list[pathlib.Path]:
    """Remove fallback directories of ours whose run directory is gone and whose disks nobody serves."""
    removed = []
    for directory in shared.glob(f"swaptide-{os.geteuid()}-*"):
        with contextlib.suppress(OSError):
            if directory.lstat().st_uid != os.geteuid() or not stat.S_ISDIR(directory.lstat().st_mode):
                continue
            if pathlib.Path((directory / _NOTE).read_text()).exists():
                continue
            if any(is_locked(path) for path in directory.rglob("*.state")):
                continue
            shutil.rmtree(directory)
            removed.append(directory)
    return removed


def is_locked(path: pathlib.Path) -> bool:
    """Whether some process serves the state file at `path`; raises OSError if it cannot be opened."""
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    else:
        return False
    finally:
        os.close(fd)


def check_own(directory: pathlib.Path) -> None:
    """Raises SetupError if a tmpfs must not go to `directory`: it exists and is no directory of ours."""
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        found = directory.lstat()  # not stat: mount would follow a link to anywhere
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
            raise SetupError(f"{directory} is not a directory of ours; remove it, or use another --run-dir")


def _fallback(run_dir: pathlib.Path) -> pathlib.Path:
    return SHARED / f"swaptide-{os.geteuid()}-{paths.escape(run_dir)}"


def _own(directory: pathlib.Path) -> None:
    """Make `directory`, or make sure that an existing one is ours alone: /dev/shm is everybody's."""
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = directory.lstat()
    except OSError as error:
        raise SetupError(
            f"memory directory {directory} cannot be made: {error.strerror};"
            " make room there, or set memory_dir in the configuration"
        ) from error
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o066:
        raise SetupError(f"memory directory {directory} is not ours alone; remove it, or chmod it 0700")


def _mount(directory: pathlib.Path) -> bool:
    if os.geteuid() != 0:
        return False
    try:
        directory.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise SetupError(
            f"directory {directory} cannot be made: {error.strerror};"
            " make room there, or choose another --run-dir"
        ) from error
    why = ""
    for options in _OPTIONS:
        try:
            _run("mount", "-t", "tmpfs", "-o", options, "swaptide", str(directory))
        except (OSError, subprocess.CalledProcessError) as error:
            why = _reason(error)
            continue
        log.info("tmpfs mounted directory=%s options=%s", directory, options)
        return True
    directory.rmdir()
    log.warning("tmpfs not mounted directory=%s error=%r", directory, why)
    return False


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True, text=True, stdin=subprocess.DEVNULL)


def _reason(error: OSError | subprocess.CalledProcessError) -> str:
    if isinstance(error, subprocess.CalledProcessError):
        return " ".join(str(error.stderr).split())
    return str(error)


def _filesystem(path: pathlib.Path) -> str:
    device = path.stat().st_dev
    wanted = f"{os.major(device)}:{os.minor(device)}"
    for line in pathlib.Path("/proc/self/mountinfo").read_text("utf-8", "surrogateescape").splitlines():
        left, _, right = line.partition(" - ")
        if left.split()[2] == wanted:
            return right.split()[0]
    return ""
