"""The unprivileged user that nbdkit runs as under a daemon of root, and what is handed over to it.

The user is chosen and tried once, at the daemon's start.  What lies in the user's own directory is not
trusted: nothing here follows a link that this user could have made.
"""

import dataclasses
import errno
import logging
import os
import pathlib
import pwd
import resource
import shutil
import stat
import subprocess
from collections.abc import Sequence

from swaptide.cache import guard, spillfile
from swaptide.cache.errors import SetupError, UsageError
from swaptide.host import config, paths, process

log = logging.getLogger(__name__)

_PREFERRED = ("swaptide", "nobody")
_NO_FOLLOW = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_TRY_SECONDS = 30.0


@dataclasses.dataclass(frozen=True)
class User:
    """A user of this host and its first group."""

    name: str
    uid: int
    gid: int


@dataclasses.dataclass(frozen=True)
class Loan:
    """A spill file or device that was given to a user; `before` is what it was, unless it was `made`."""

    path: pathlib.Path
    made: bool
    before: os.stat_result


def find(name: str) -> User:
    """The user of that name or number; raises UsageError if there is none."""
    try:
        found = pwd.getpwuid(int(name)) if name.isdecimal() else pwd.getpwnam(name)
    except (KeyError, OverflowError):
        # A number needs no name, but -1 means "leave it" to the kernel and more does not fit.
        if name.isdecimal() and int(name) < 0xFFFFFFFF:
            return User(name, int(name), int(name))
        raise UsageError(f"there is no user {name!r}; use a name or a number of this host") from None
    return User(found.pw_name, found.pw_uid, found.pw_gid)


def choose(chosen: config.Config) -> User | None:
    """Who nbdkit shall run as, None for the daemon's own user; raises UsageError if there is no such user."""
    if os.geteuid() != 0:
        return None
    if chosen.user is not None:
        user = find(chosen.user)
        return user if user.uid != 0 else None
    for name in _PREFERRED:
        try:
            return find(name)
        except UsageError:
            continue
    log.warning("nbdkit runs as root: this host has none of the users %s", ", ".join(_PREFERRED))
    return None


def usable(user: User, chosen: config.Config, directories: Sequence[pathlib.Path]) -> bool:
    """Whether nbdkit can serve as `user`: it enters `directories` and loads the plugin.  Tells why not."""
    why = _obstacle(user, chosen.nbdkit, directories)
    if why is None:
        log.info("nbdkit runs as user=%s uid=%d", user.name, user.uid)
        return True
    log.warning("nbdkit runs as root: user=%s cannot serve reason=%r", user.name, why)
    return False


def prefix(user: User | None) -> list[str]:
    """The words before a command that have it run as `user` with no privileges, under the same pid."""
    if user is None:
        return []
    ids = ["--reuid", str(user.uid), "--regid", str(user.gid), "--clear-groups"]
    return ["setpriv", *ids, "--no-new-privs", "--inh-caps=-all", "--bounding-set=-all"]


def lend_privileges() -> None:
    """Take for ourselves what nbdkit may not take as that user; it inherits this (cache/guard.py)."""
    try:
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    except (OSError, ValueError) as error:
        log.info("memory locking stays limited reason=%r", str(error))  # nbdkit warns where it matters
    # Good for the daemon as well: it must not wait for memory behind a disk that it has to restart.
    guard.mark_io_flusher()


def give_state(path: pathlib.Path, user: User) -> None:
    """Make the state file at `path` the user's.  Raises SetupError if it is no plain file of its own."""
    try:
        fd = os.open(path, os.O_RDONLY | _NO_FOLLOW)
    except OSError as error:
        raise SetupError(f"{path} cannot be opened: {error.strerror}") from error
    try:
        _give_file(fd, path, user)
    finally:
        os.close(fd)


def lend_spill(path: pathlib.Path, user: User, *, disk_id: str | None = None, force: bool = False) -> Loan:
    """Have a spill file or device at `path` that is the user's, for the disk `disk_id`.

    None is a disk that is yet to be made: then a file is made if there is none, and one that holds
    something is not touched, unless `force`.  A device may be named by a link, as below /dev/disk; so may
    a file, where the link is root's.  Raises SwaptideError.  Blocks as long as the store does.
    """
    fd, made = _open_spill(path, fresh=disk_id is None)
    try:
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode) and not stat.S_ISBLK(found.st_mode):
            raise SetupError(f"{path} is not a regular file; choose another path")
        # Looked at before it is given away: the plugin's own look comes too late for somebody else's file.
        if disk_id is not None:
            spillfile.check_owned(fd, path, disk_id)
        elif not made:
            spillfile.check_free(fd, path, force=force)
        if stat.S_ISBLK(found.st_mode):
            os.fchown(fd, user.uid, -1)
        else:
            _give_file(fd, path, user)
    except BaseException:
        if made:
            path.unlink(missing_ok=True)
        raise
    finally:
        os.close(fd)
    return Loan(path, made, found)


def take_back(loan: Loan) -> None:
    """Undo `lend_spill` for a disk that came to nothing.  Raises OSError."""
    if loan.made:
        loan.path.unlink(missing_ok=True)
        return
    fd = os.open(os.path.realpath(loan.path), os.O_RDWR | _NO_FOLLOW)
    try:
        if os.path.samestat(os.fstat(fd), loan.before):
            os.fchown(fd, loan.before.st_uid, loan.before.st_gid)
            os.fchmod(fd, stat.S_IMODE(loan.before.st_mode))
    finally:
        os.close(fd)


def _open_spill(path: pathlib.Path, *, fresh: bool) -> tuple[int, bool]:
    """Open it for `lend_spill`; the second value says whether this call made it."""
    try:
        try:
            return _open_existing(path, exclusive=fresh), False
        except FileNotFoundError:
            if not fresh:
                raise
            return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | _NO_FOLLOW, 0o600), True
    except OSError as error:
        hint = "choose another path" if fresh else "it holds pages of this disk, put it back"
        if error.errno == errno.EBUSY:
            hint = "is it mounted?"
        raise SetupError(f"spill={path}: {error.strerror}; {hint}") from error


def _open_existing(path: pathlib.Path, *, exclusive: bool) -> int:
    link = path.lstat()
    if stat.S_ISLNK(link.st_mode) and link.st_uid != 0:
        raise SetupError(f"spill={path}: a link of another user than root; name the file itself")
    real = os.path.realpath(path)
    # On a block device O_EXCL says whether it is mounted or otherwise in use.
    more = os.O_EXCL if exclusive and stat.S_ISBLK(os.stat(real).st_mode) else 0
    return os.open(real, os.O_RDWR | _NO_FOLLOW | more)


def _give_file(fd: int, path: pathlib.Path, user: User) -> None:
    found = os.fstat(fd)
    if not stat.S_ISREG(found.st_mode):
        raise SetupError(f"{path} is not a regular file; choose another path")
    if (found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode)) == (user.uid, user.gid, 0o600):
        return
    if found.st_nlink > 1:  # under its other name it may be something that is not to be given away
        raise SetupError(f"{path} has another name as well (a hard link); remove that one")
    os.fchmod(fd, 0o600)
    os.fchown(fd, user.uid, user.gid)


def _obstacle(user: User, nbdkit: str, directories: Sequence[pathlib.Path]) -> str | None:
    if shutil.which("setpriv") is None:
        return "setpriv is missing; install the Debian package util-linux"
    for directory in directories:
        if _try(user, "test", "-x", str(directory)) is not None:
            return f"it may not enter {directory}; give it and the directories above it mode o+x"
    plugin = str(paths.plugin())
    said = _try(user, nbdkit, "python", plugin, "--dump-plugin")
    if said is not None:
        return f"it cannot load {plugin} ({said}); install swaptide where all users can read it"
    return None


def _try(user: User, *command: str) -> str | None:
    """Run `command` as the user; None if it worked, else its last word."""
    try:
        done = subprocess.run(
            [*prefix(user), *command],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
            timeout=_TRY_SECONDS,
            cwd="/",
            env=process.environment(),
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    if done.returncode == 0:
        return None
    return (done.stderr.strip().splitlines() or [f"status {done.returncode}"])[-1]
