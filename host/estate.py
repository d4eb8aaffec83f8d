"""What one disk leaves in files, as far as the user that nbdkit runs as has to own it.

Belongs to the disk's keeper, on the daemon's loop.  Under a daemon that is not root all of it is its own.
"""

import contextlib
import logging
import os
import pathlib

from swaptide.cache import face, keys
from swaptide.cache.errors import SetupError, StateError
from swaptide.host import definitions, isolation, keyring, spills

log = logging.getLogger(__name__)

_ROOT = isolation.User("root", 0, 0)


class Estate:
    """The state file, key and spill of a disk that `user` serves, None for the daemon's own user."""

    def __init__(self, user: isolation.User | None) -> None:
        self.user = user
        self._loan: isolation.Loan | None = None  # for a disk that is yet to be made

    async def give(self, disk: definitions.Definition, *, fresh: bool, force: bool = False) -> None:
        """Make all of `disk` the user's before its process starts; `fresh` if it is yet to be made.

        Raises SwaptideError; UsageError where the spill path holds what is not `disk`'s and not `force`.
        """
        if os.geteuid() != 0:
            return
        disk_id = None if fresh else await self._give_state(disk)
        if self.user is None or (disk_id is None and not fresh):
            return
        loan = await spills.lend(pathlib.Path(disk.spill_path), self.user, disk_id=disk_id, force=force)
        if fresh:
            self._loan = loan

    def settle(self) -> None:
        """The disk is made: its spill file stays what it is."""
        self._loan = None

    async def take_back(self, disk: definitions.Definition) -> None:
        """Undo what was done to the spill path of a disk which never came to be."""
        loan, self._loan = self._loan, None
        if loan is not None and not pathlib.Path(disk.state_path).exists():
            await spills.take_back(loan)

    async def erase_key(self, disk_id: str, owner: int) -> str | None:
        """Forget the key of a disk whose state file was that user's; returns the trouble, if any."""
        users = {owner} if self.user is None else {owner, self.user.uid}
        others = users - {os.geteuid()}
        try:
            keys.erase(disk_id)
            if others and os.geteuid() == 0:
                await keyring.erase(disk_id, others)
        except SetupError as error:
            log.warning("key not erased id=%s error=%r", disk_id, str(error))
            return f"its key is not erased: {error}"
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
