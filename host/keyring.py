"""Keys in the keyrings of other users: moved when a disk changes its user, erased when it is removed.

A keyring is opened only by a process of its user, so root's daemon has a child become that user for it.
The child is this module; the key never leaves it but into the kernel.  Called from the daemon's loop.
"""

import contextlib
import logging
import os
import subprocess
import sys
from collections.abc import Iterable, Iterator

from swaptide.cache import detached, keys
from swaptide.cache.errors import SetupError

log = logging.getLogger(__name__)

_LIMIT_SECONDS = 10.0


async def move(disk_id: str, old_uid: int, new_uid: int) -> None:
    """Move a disk's key from one user to another.  Raises SetupError if neither has it."""
    await _in_child("move", disk_id, str(old_uid), str(new_uid))


async def rename(number: str, disk_id: str, uid: int) -> None:
    """Have the key that a user keeps as `number` be a disk's.  Raises SetupError if there is neither."""
    await _in_child("rename", number, disk_id, str(uid))


async def erase(disk_id: str, uids: Iterable[int]) -> None:
    """Erase a disk's key in the keyrings of these users; missing is fine.  Raises SetupError."""
    await _in_child("erase", disk_id, *map(str, sorted(uids)))


async def _in_child(*words: str) -> None:
    def body() -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-P", "-m", "swaptide.host.keyring", *words],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=_LIMIT_SECONDS,
        )

    try:
        done = await detached.call(body, 2 * _LIMIT_SECONDS)
    except (OSError, TimeoutError, subprocess.TimeoutExpired) as error:
        raise SetupError(f"the keyring of another user cannot be opened: {error}") from error
    if done.returncode:
        said = (done.stderr.strip().splitlines() or [f"status {done.returncode}"])[-1]
        raise SetupError(said)


def renamed(number: str, disk_id: str) -> None:
    """As `rename`, for the own user.  May be done again after it was cut off."""
    try:
        key = keys.read(number)
    except SetupError:
        keys.wipe(keys.find(disk_id))
        return
    keys.keep(disk_id, key)
    keys.wipe(key)
    keys.erase(number)


def _main(what: str, disk_id: str, *uids: str) -> None:
    if what == "rename":
        with _as_user(int(uids[1])):
            renamed(disk_id, uids[0])
        return
    numbers = [int(uid) for uid in uids]
    if what == "erase":
        for uid in numbers:
            with _as_user(uid):
                keys.erase(disk_id)
        return
    old, new = numbers
    try:
        with _as_user(old):
            key = keys.read(disk_id)
    except SetupError:
        with _as_user(new):  # as after a daemon that was killed between the two steps
            keys.wipe(keys.find(disk_id))
        return
    with _as_user(new):
        keys.keep(disk_id, key)
    keys.wipe(key)
    with _as_user(old):
        keys.erase(disk_id)


@contextlib.contextmanager
def _as_user(uid: int) -> Iterator[None]:
    """Be `uid` for a while; the kernel makes no core dump of a process that changed its user."""
    os.setresuid(uid, uid, 0)
    try:
        yield
    finally:
        os.setresuid(0, 0, 0)


if __name__ == "__main__":
    try:
        _main(*sys.argv[1:])
    except SetupError as error:
        sys.exit(str(error))
