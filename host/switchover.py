"""QEMU's own migration of a guest, over QMP, up to where it waits for the disks and on from there.

One object for one migration; on the daemon's loop.  What was set in QEMU is set back at the end.
"""

import asyncio
import contextlib
import logging
import time

import msgspec

from swaptide.balloon import qmp
from swaptide.cache.errors import BusyError, SwaptideError

log = logging.getLogger(__name__)

_POLL_SECONDS = 0.02
# How long QEMU may take from migrate-continue until the other one has taken everything.
COMPLETE_SECONDS = 300.0
CANCEL_SECONDS = 30.0
_OVER = ("completed", "failed", "cancelled", "none")
# Wait before block devices are let go of; and `completed` when the destination says so, not when all is sent.
_WANTED = ("pause-before-switchover", "return-path")
WAITS = "pre-switchover"


class _Migration(msgspec.Struct, rename="kebab"):
    status: str = "none"
    error_desc: str = ""


class _Capability(msgspec.Struct):
    capability: str
    state: bool


class SwitchoverError(SwaptideError):
    """QEMU's migration failed; its guest goes on here."""


class Switchover:
    """A migration to `uri` of the guest behind `monitor`."""

    def __init__(self, monitor: qmp.Monitor, uri: str) -> None:
        self._monitor = monitor
        self._uri = uri
        self._before: list[_Capability] = []
        self._begun = False
        self.stopped_at: float | None = None  # of the wall clock

    async def begin(self) -> None:
        """Have QEMU begin; raises SwaptideError with its reason."""
        if (found := await self._status()).status not in _OVER:
            raise BusyError(f"the guest is being migrated already ({qmp.clean(found.status)})")
        known = await self._monitor.ask(list[_Capability], "query-migrate-capabilities")
        self._before = [each for each in known if each.capability in _WANTED and not each.state]
        await self._set_capabilities([_Capability(each.capability, True) for each in self._before])
        self._begun = True
        await self._monitor.execute("migrate", {"uri": self._uri})

    async def waits(self) -> bool:
        """Whether QEMU waits for the disks now; raises SwitchoverError if it failed before."""
        found = await self._status()
        if found.status in _OVER:
            raise SwitchoverError(
                f"QEMU's migration to {qmp.clean(self._uri)} is {qmp.clean(found.status)}:"
                f" {qmp.clean(found.error_desc) or 'no reason given'}"
            )
        if found.status == WAITS and self.stopped_at is None:  # it had been stopped before
            self.stopped_at = time.time()
        return found.status == WAITS

    async def go_on(self) -> None:
        """Let QEMU switch over."""
        await self._monitor.execute("migrate-continue", {"state": WAITS})

    async def completed(self) -> None:
        """Wait until the guest is the other QEMU's; raises SwitchoverError if it never will be."""
        deadline = time.monotonic() + COMPLETE_SECONDS
        while (found := await self._status()).status != "completed":
            if found.status in _OVER:
                reason = qmp.clean(found.error_desc) or "no reason given"
                raise SwitchoverError(f"QEMU's migration is {qmp.clean(found.status)}: {reason}")
            if time.monotonic() >= deadline:
                raise qmp.MonitorError(f"QEMU's migration has not ended within {COMPLETE_SECONDS:.0f} s")
            await asyncio.sleep(_POLL_SECONDS)

    async def undo(self) -> None:
        """Cancel it, and wait until the guest is this QEMU's again; raises SwaptideError if that fails."""
        if not self._begun:
            return
        if (await self._status()).status not in _OVER:
            await self._monitor.execute("migrate_cancel")
            deadline = time.monotonic() + CANCEL_SECONDS
            while (found := await self._status()).status not in _OVER:
                if time.monotonic() >= deadline:
                    raise SwitchoverError(
                        f"QEMU does not cancel its migration: it is {qmp.clean(found.status)}"
                    )
                await asyncio.sleep(_POLL_SECONDS)
            log.info("guest's migration cancelled monitor=%s", self._monitor.path)
        await self.set_back()

    async def set_back(self) -> None:
        """Leave QEMU as it was found."""
        with contextlib.suppress(SwaptideError):
            await self._set_capabilities([_Capability(each.capability, False) for each in self._before])

    async def _set_capabilities(self, wanted: list[_Capability]) -> None:
        if wanted:
            await self._monitor.execute(
                "migrate-set-capabilities", {"capabilities": msgspec.to_builtins(wanted)}
            )

    async def _status(self) -> _Migration:
        return await self._monitor.ask(_Migration, "query-migrate")

    def hear(self, event: qmp.Event) -> None:
        """Takes QEMU's events, for when the guest stopped."""
        if event.name == "STOP":
            self.stopped_at = event.at_seconds
