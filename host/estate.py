"""What one disk leaves in files, as far as the user that nbdkit runs as has to own it, and who that is.

Belongs to the disk's keeper, on the daemon's loop.  Under a daemon that is not root all of it is its own.
"""

import contextlib
import logging
import os
import pathlib
import secrets
import shutil

import msgspec

from swaptide.cache import detached, face, keys, places, statefile
from swaptide.cache.errors import SetupError, StateError
from swaptide.host import config, definitions, isolation, keyring, memory, spills

log = logging.getLogger(__name__)

_ROOT = isolation.User("root", 0, 0)
_CLAIM_SECONDS = 5.0
_REMOVE_SECONDS = 10.0


class Estate:
    """The state file, key and spill of a disk, which `user` serves, None for the daemon's own user.

    `definition_path` is what the disk's claim to a user of its own hangs on.
    """

    def __init__(self, servants: isolation.Servants, definition_path: pathlib.Path) -> None:
        self.user = servants.user
        self._servants = servants
        self._claimant = definition_path
        self._loans: list[isolation.Loan] = []  # for a disk that is yet to be made

    async def find_user(self, disk: definitions.Definition, *, fresh: bool) -> int | None:
        """Settle who is to serve `disk`; returns the number that is its own now, if any.

        `fresh` if the disk is yet to be made.  Raises SetupError if no number is free.
        """
        claims = self._servants.claims
        if claims is None:
            return disk.uid
        before = None if fresh or disk.uid is not None else _user_of_old(pathlib.Path(disk.state_path))
        if before is not None:
            self.user = before
            return None

        def body() -> int:
            if disk.uid is not None:
                if claims.hold(disk.uid, self._claimant):
                    return disk.uid
                log.warning("another disk has the same user name=%s uid=%d", disk.name, disk.uid)
                if not fresh:  # its files and its key are that user's
                    return disk.uid
            return claims.take(self._claimant)

        try:
            uid = await detached.call(body, _CLAIM_SECONDS)
        except (OSError, TimeoutError) as error:
            raise SetupError(f"disk {disk.name} gets no user of its own: {error}") from error
        self.user = isolation.numbered(uid)
        return uid

    async def release_user(self, disk: definitions.Definition) -> None:
        """Let other disks have the number that was `disk`'s, which is gone."""
        claims = self._servants.claims
        if claims is None or disk.uid is None:
            return
        uid = disk.uid
        try:
            await detached.call(lambda: claims.release(uid, self._claimant), _CLAIM_SECONDS)
        except (OSError, TimeoutError) as error:
            log.warning("user not released uid=%d error=%r", uid, str(error))

    async def give(self, disk: definitions.Definition, *, fresh: bool, force: bool = False) -> None:
        """Make all of `disk` the user's before its process starts; `fresh` if it is yet to be made.

        Raises SwaptideError; UsageError where the spill path holds what is not `disk`'s and not `force`.
        """
        if os.geteuid() != 0:
            return
        own = memory.own_directory(pathlib.Path(disk.state_path))
        if own is not None:
            memory.make_own(own, self.user or _ROOT)
        disk_id = None if fresh else await self._give_state(disk)
        if self.user is None or (disk_id is None and not fresh):
            return
        loans = await spills.lend(disk.spill_path, self.user, disk_id=disk_id, force=force)
        if fresh:
            self._loans = loans

    def settle(self) -> None:
        """The disk is made: its spill file stays what it is."""
        self._loans = []

    async def take_back(self, disk: definitions.Definition) -> None:
        """Undo what was done to the spill path of a disk which never came to be."""
        loans, self._loans = self._loans, []
        if not pathlib.Path(disk.state_path).exists():
            for loan in loans:
                await spills.take_back(loan)

    async def erase_key(self, disk_id: str, *more: int | None) -> str | None:
        """Forget the key of a disk, also in the keyrings of `more` users; returns the trouble, if any."""
        users = {uid for uid in more if uid is not None}
        if self.user is not None:
            users.add(self.user.uid)
        others = users - {os.geteuid()}
        try:
            keys.erase(disk_id)
            if others and os.geteuid() == 0:
                await keyring.erase(disk_id, others)
        except SetupError as error:
            log.warning("key not erased id=%s error=%r", disk_id, str(error))
            return f"its key is not erased: {error}"
        return None

    async def adopt_key(self, number: str, disk_id: str) -> None:
        """Have the key that came as `number` be the disk's.  Raises SetupError."""
        if os.geteuid() == 0 and self.user is not None and self.user.uid != 0:
            await keyring.rename(number, disk_id, self.user.uid)
        else:
            keyring.renamed(number, disk_id)

    async def remove_state(self, disk: definitions.Definition) -> list[str]:
        """Remove the state file, what making it left, and the disk's own directory; returns the trouble."""
        state = pathlib.Path(disk.state_path)
        drafts = list(state.parent.glob(f".{state.name}.*.new"))
        left = [await self._erase_key_of(draft, state) for draft in drafts]
        own = memory.own_directory(state)
        left += [_unlink(path) for path in (state, *drafts)] if own is None else [await _remove_tree(own)]
        return [each for each in left if each is not None]

    async def _erase_key_of(self, draft: pathlib.Path, state: pathlib.Path) -> str | None:
        """A process that was killed before its disk had a name may have made a key."""
        disk_id = statefile.id_of_draft(state, draft)
        with contextlib.suppress(OSError):
            # The name is the word of whoever made it: it costs a key in that user's keyring alone.
            if disk_id is not None:
                return await self.erase_key(disk_id, draft.lstat().st_uid)
        return None

    async def _give_state(self, disk: definitions.Definition) -> str | None:
        """The disk's id, None if the state file does not tell: nbdkit says what is wrong with it."""
        path = pathlib.Path(disk.state_path)
        user = self.user or _ROOT
        owner = path.lstat().st_uid
        disk_id = None
        with contextlib.suppress(StateError), face.StateFace(path) as state:
            disk_id = state.identity.disk_id
            if state.identity.encrypted and owner != user.uid:
                await keyring.move(disk_id, owner, user.uid)
        if owner != user.uid:
            isolation.give_state(path, user)
            log.info("disk given to another user name=%s user=%s", disk.name, user.name)
        return disk_id


async def _remove_tree(directory: pathlib.Path) -> str | None:
    """Remove a directory that was another user's, with all that they may have put there."""
    try:
        await detached.call(lambda: shutil.rmtree(directory), _REMOVE_SECONDS)  # follows no links
    except FileNotFoundError:
        return None
    except (OSError, TimeoutError, RecursionError) as error:
        log.warning("directory not removed directory=%s error=%r", directory, str(error))
        return f"{directory}: {error}"
    return None


def _unlink(path: pathlib.Path) -> str | None:
    """Remove a file of a directory that may be another user's; returns the trouble, if any."""
    try:
        path.unlink(missing_ok=True)
    except OSError as error:  # a directory, perhaps
        log.warning("file not removed file=%s error=%r", path, error.strerror)
        return f"{path}: {error.strerror}"
    return None


def _user_of_old(state: pathlib.Path) -> isolation.User | None:
    """Who serves a disk that was made before disks had users of their own; None if it may have its own.

    The directory that it lies in is that user's alone, so that nobody else could reach it there.
    """
    found = state.parent.stat()
    return isolation.numbered(found.st_uid, found.st_gid) if found.st_uid != 0 else None


def fresh_paths(
    definition: definitions.Definition,
    chosen: config.Config,
    memory_dir: pathlib.Path,
    *,
    apart: bool = False,
) -> definitions.Definition:
    """`definition` with paths for a disk that is yet to be made; a spill path that was chosen stays.

    Its state file lies in `memory_dir`, or `apart` in a directory of its own there.
    The spill file's name is new each time: a process stuck on a dead store may still hold the old one.
    """
    spill = definition.spill_path
    if not definition.spill_chosen:
        made = chosen.spill_dir / f"{definition.name}-{secrets.token_hex(4)}.spill"
        spill = places.quote(str(made))
    state = str(memory.state_path(memory_dir, definition.name, apart=apart))
    return msgspec.structs.replace(definition, spill_path=spill, state_path=state)
