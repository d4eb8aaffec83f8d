"""The unprivileged users that nbdkit runs as under a daemon of root, and what is handed over to them.

Whether each disk has one of its own or all have the same is chosen and tried once, at the daemon's start.
What lies in a user's own directory is not trusted: no link that this user could have made is followed here.
"""

import contextlib
import dataclasses
import errno
import functools
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
from swaptide.host import config, paths, process, uids

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
class Servants:
    """Who serves the disks: each has a number of its own where there are `claims`, else all have `user`.

    Neither is the daemon's own user.
    """

    user: User | None = None
    claims: uids.Claims | None = None

    @property
    def apart(self) -> bool:
        """Whether each disk has a user of its own."""
        return self.claims is not None

    def __str__(self) -> str:
        if self.claims is not None:
            return f"a user of each disk's own, uids {self.claims.uids.start}-{self.claims.uids.stop - 1}"
        return "root" if self.user is None else f"user {self.user.name}"


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


def numbered(uid: int, gid: int | None = None) -> User:
    """A user that is a number alone, as a disk's own is; its group has the same."""
    return User(str(uid), uid, uid if gid is None else gid)


@functools.cache
def name_of(uid: int) -> str:
    """How the user of that number is called: the number where it has no name."""
    if uid in uids.DEFAULT:
        return str(uid)  # nobody else's, so that no directory service need be asked
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def choose(chosen: config.Config) -> list[Servants]:
    """Who can serve, the best first; one where that is configured.  Raises UsageError for no such user."""
    if os.geteuid() != 0:
        return [Servants()]
    if chosen.user is not None:
        user = find(chosen.user)
        return [Servants(user if user.uid != 0 else None)]
    if chosen.uids is not None:
        return [Servants(claims=uids.Claims(uids.parse(chosen.uids)))]
    found = [Servants(claims=uids.Claims(uids.DEFAULT))]
    for name in _PREFERRED:
        with contextlib.suppress(UsageError):
            found.append(Servants(find(name)))
            break
    return [*found, Servants()]


def settle(found: Sequence[Servants], chosen: config.Config, directories: Sequence[pathlib.Path]) -> Servants:
    """The first of `found` that can serve: nbdkit enters `directories` and loads the plugin.

    Raises SetupError if it is the only one and cannot; what is passed over is a warning.
    """
    for servants in found:
        why = _obstacle(servants, chosen.nbdkit, directories)
        if why is None:
            level = logging.WARNING if servants != found[0] else logging.INFO
            log.log(level, "nbdkit has its user user=%r", str(servants))
            return servants
        if len(found) == 1:
            raise SetupError(f"nbdkit cannot run as {servants}, as configured: {why}")
        log.warning("nbdkit cannot have this user user=%r reason=%r", str(servants), why)
    raise AssertionError("root can")


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


def _obstacle(servants: Servants, nbdkit: str, directories: Sequence[pathlib.Path]) -> str | None:
    user = servants.user
    if servants.claims is not None:
        user = numbered(servants.claims.uids[0])
        why = servants.claims.obstacle()
        if why is not None:
            return why
    if user is None:
        return None
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
