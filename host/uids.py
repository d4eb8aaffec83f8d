"""Numbers for disks: out of a range of user ids that nobody else has, each disk has one to itself.

A number is claimed by a file in a directory of the host's, which names the disk's definition, so that
daemons side by side do not take the same one.  The directory goes with the host's memory, as the disks do;
the number itself is kept in the definition.  Calls block for moments; any thread may make them.
"""

import contextlib
import fcntl
import os
import pathlib
import re
import secrets
from collections.abc import Iterator
from typing import Final

from swaptide.cache.errors import SetupError, UsageError

# Above what systemd gives to containers (to 1879048191) and SSSD and FreeIPA to domains (to 2000200000),
# far above subordinate ids and people; below 2^31.
DEFAULT: Final = range(2130706432, 2130771968)
DIRECTORY: Final = pathlib.Path("/run/swaptide-uids")
_NO_UID: Final = 0xFFFFFFFF  # the kernel's "leave it as it is"
_TEXT: Final = re.compile(r"([0-9]{1,10})-([0-9]{1,10})")
# A file, its field with a first number, and the one with how many there are.
_ACCOUNTS: Final = (("passwd", 2, None), ("group", 2, None), ("subuid", 1, 2), ("subgid", 1, 2))


def parse(text: str) -> range:
    """The numbers of `text`, such as 700000-765535; raises UsageError for anything else."""
    match = _TEXT.fullmatch(text)
    first, last = (int(match[1]), int(match[2])) if match else (0, 0)
    if not 0 < first <= last < _NO_UID:
        raise UsageError(
            f"uids {text!r} is not a range of user ids; write for example {DEFAULT.start}-{DEFAULT.stop - 1}"
        )
    return range(first, last + 1)


def obstacle(
    uids: range, etc: pathlib.Path = pathlib.Path("/etc"), proc: pathlib.Path = pathlib.Path("/proc")
) -> str | None:
    """Why these cannot be users and groups of their own, as far as this host's files tell."""
    for name, field, count in _ACCOUNTS:
        for line in _lines(etc / name):
            taken = _numbers(line.split(":"), field, count)
            if taken.start < uids.stop and uids.start < taken.stop:
                return f"{etc / name} gives {taken.start} to {line.partition(':')[0]}"
    for name in ("uid_map", "gid_map"):
        # In a user namespace, as in some containers, there are only as many as it was given.
        mapped = [_numbers(line.split(), 0, 2) for line in _lines(proc / "self" / name)]
        if mapped and not any(each.start <= uids.start and uids.stop <= each.stop for each in mapped):
            return f"this user namespace does not have all of them (/proc/self/{name})"
    return None


class Claims:
    """Which disk has which number of `uids`; `DIRECTORY` is what all daemons of the host share."""

    def __init__(self, uids: range, directory: pathlib.Path | None = None) -> None:
        self.uids = uids
        self._directory = DIRECTORY if directory is None else directory

    def obstacle(self) -> str | None:
        """Why disks cannot have these numbers on this host."""
        try:
            with self._locked():
                self._remove_empty()
        except OSError as error:
            return f"{self._directory} cannot keep who has which: {error.strerror or error}"
        return obstacle(self.uids)

    def take(self, owner: pathlib.Path) -> int:
        """A number that no other disk has and no process runs as, for the disk that `owner` defines.

        Raises SetupError if there is none, OSError if claims cannot be kept.
        """
        with self._locked():
            for path in self._directory.iterdir():
                if self._owner_of(int(path.name)) == owner:  # of a disk of that name before
                    path.unlink()
            for sweep in (False, True):
                if sweep:
                    self._sweep()
                taken = {int(path.name) for path in self._directory.iterdir()} | _running()
                free = len(self.uids) - sum(uid in self.uids for uid in taken)
                if free > 0:
                    uid = self._choose(taken)
                    self._write(uid, owner)
                    return uid
        raise SetupError(
            f"all {len(self.uids)} user ids are in use; give the configuration more of them (uids)"
        )

    def hold(self, uid: int, owner: pathlib.Path) -> bool:
        """Claim a number again that a disk has already; False if another disk has it.  Raises OSError."""
        with self._locked():
            found = self._owner_of(uid)
            if found in (None, owner):
                self._write(uid, owner)
            return found in (None, owner)

    def release(self, uid: int, owner: pathlib.Path) -> None:
        """Give a number back; another disk's is left alone.  Raises OSError."""
        with self._locked():
            if self._owner_of(uid) == owner:
                (self._directory / str(uid)).unlink()
            self._remove_empty()

    def _remove_empty(self) -> None:
        with contextlib.suppress(OSError):  # somebody has a number
            self._directory.rmdir()

    def _choose(self, taken: set[int]) -> int:
        # Not the next one: what a disk that is gone left behind under its number is long away.
        start = secrets.randbelow(len(self.uids))
        return next(uid for at in range(len(self.uids)) if (uid := self.uids[start - at]) not in taken)

    def _owner_of(self, uid: int) -> pathlib.Path | None:
        try:
            return pathlib.Path(os.fsdecode((self._directory / str(uid)).read_bytes()))
        except FileNotFoundError:
            return None

    def _write(self, uid: int, owner: pathlib.Path) -> None:
        (self._directory / str(uid)).write_bytes(os.fsencode(owner))

    def _sweep(self) -> None:
        """Drop the claims of disks that are not defined any more; only in need, for this may block."""
        for path in self._directory.iterdir():
            owner = self._owner_of(int(path.name))
            if owner is not None and not owner.exists():
                path.unlink()

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """The directory, which nobody else changes meanwhile."""
        while True:
            self._directory.mkdir(mode=0o700, exist_ok=True)
            try:
                fd = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
            except FileNotFoundError:
                continue  # its last user removed it meanwhile
            try:
                if os.fstat(fd).st_uid != os.geteuid():
                    raise PermissionError(f"{self._directory} is another user's")
                fcntl.flock(fd, fcntl.LOCK_EX)
                if _is_named(fd, self._directory):
                    yield
                    return
            finally:
                os.close(fd)


def _is_named(fd: int, path: pathlib.Path) -> bool:
    try:
        return os.path.samestat(os.fstat(fd), path.lstat())
    except FileNotFoundError:
        return False


def _running() -> set[int]:
    """The users of all processes."""
    found = set()
    for entry in pathlib.Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):  # it has ended meanwhile
                # Not the owner of the directory: a process that hides is root's there.
                found.update(_users_of(entry / "status"))
    return found


def _users_of(status: pathlib.Path) -> set[int]:
    fields = dict(line.partition(b":")[::2] for line in status.read_bytes().splitlines())
    if fields.get(b"State", b"").split()[:1] == [b"Z"]:  # it can do nothing any more
        return set()
    return set(map(int, fields.get(b"Uid", b"").split()))


def _lines(path: pathlib.Path) -> list[str]:
    try:
        return path.read_text("utf-8", "surrogateescape").splitlines()
    except OSError:
        return []


def _numbers(fields: list[str], at: int, count: int | None) -> range:
    """The numbers that a line names; none where it does not make sense."""
    try:
        first = int(fields[at])
        return range(first, first + (1 if count is None else int(fields[count])))
    except (IndexError, ValueError):
        return range(0)
