"""The guests that an operator registered, remembered beside the disks across the daemon's end.

Owned by the daemon's loop.  The directory is there only while a guest is.
"""

import contextlib
import pathlib
from typing import Annotated

import msgspec

from swaptide.balloon import limits
from swaptide.host import definitions

_Limit = Annotated[int, msgspec.Meta(gt=0, le=limits.MAX_BYTES)]


class GuestDefinition(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One guest.  `qmp` is the absolute path of its monitor; sizes in bytes.

    Without `min_bytes` and `max_bytes` its balloon is never moved.  `disks` are the names of those that it
    swaps on, which are emptied when it is reset if `clear_on_reset`.
    """

    name: str
    qmp: str
    min_bytes: _Limit | None = None
    max_bytes: _Limit | None = None
    disks: tuple[str, ...] = ()
    clear_on_reset: bool = False


class Guestbook(definitions.Files):
    """The directory of the guests of one run directory."""

    def load(self) -> list[GuestDefinition]:
        """Every readable definition by name; one that is damaged is left alone and logged."""
        return self._load(GuestDefinition)

    async def save(self, definition: GuestDefinition) -> None:
        """Write `definition` so that it survives a crash.

        Raises SetupError if the directory refuses, or its store does not answer.
        """
        await self._save(definition.name, definition)

    def _write(self, name: str, value: msgspec.Struct) -> None:
        self.directory.mkdir(mode=0o700, exist_ok=True)
        super()._write(name, value)

    def _remove(self, name: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            super()._remove(name)
            if not any(self.directory.iterdir()):
                self.directory.rmdir()


def directory(definitions_dir: pathlib.Path) -> pathlib.Path:
    """Where the guests of a run directory are remembered, beside its disks."""
    return definitions_dir / "guests"
