"""What one disk leaves in files, as far as the user that nbdkit runs as has to own it.

Belongs to the disk's keeper, on the daemon's loop.  Under a daemon that is not root all of it is its own.
"""

import contextlib
import logging
import os
import pathlib

from swaptide.cache import face
from swaptide.cache.errors import StateError
from swaptide.host import definitions, isolation, keyring, spills

log = logging.getLogger(__name__)

_ROOT = isolation.User("root", 0, 0)


class Estate:
    """The state file, key and spill of a disk that `user` serves, None for the daemon's own user."""

    def __init__(self, user: isolation.User | None) -> None:
        self.user = user
        self._blank_spill: pathlib.Path | None = None  # made by us for a disk that is yet to be made

    async def give(self, disk: definitions.Definition, *, fresh: bool) -> None:
        """Make all of `disk` the user's before its process starts; `fresh` if it is yet to be made.

        Raises SetupError.
        """
        if os.geteuid() != 0:
            return
        if not fresh:
            await self._give_state(disk)
        path = pathlib.Path(disk.spill_path)
        if self.user is not None and await spills.give(path, self.user, make=fresh):
            self._blank_spill = path

    def settle(self) -> None:
        """The disk is made: from now on its spill file is more than a blank one."""
        self._blank_spill = None

    async def drop_blank(self, disk: definitions.Definition) -> None:
        """Remove the spill file that was made for a disk which never came to be."""
        path, self._blank_spill = self._blank_spill, None
        if path is not None and not pathlib.Path(disk.state_path).exists():
            await spills.remove_blank(path)

    async def _give_state(self, disk: definitions.Definition) -> None:
        path = pathlib.Path(disk.state_path)
        user = self.user or _ROOT
        owner = path.lstat().st_uid
        if owner == user.uid:
            return
        with contextlib.suppress(StateError), face.StateFace(path) as state:  # nbdkit says what is wrong
            if state.identity.encrypted:
                await keyring.move(state.identity.disk_id, owner, user.uid)
        isolation.give_state(path, user)
        log.info("disk given to another user name=%s user=%s", disk.name, user.name)
