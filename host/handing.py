"""A disk on its way to another host together with its store: the daemon's side (cache/handing.py).

On the daemon's loop.  Until the disk is `leaving` everything is undone if anything fails or who asked leaves;
from there on it is finished, or left to whoever knows where the guest runs.
"""

import asyncio
import contextlib
import logging
import time
from typing import Any, Final

import msgspec

from swaptide.cache import detached, handing, marks, places
from swaptide.cache.errors import BusyError, SetupError, StateError, SwaptideError, UsageError
from swaptide.host import adoption, handover, jobs, protocol, supervisor

log = logging.getLogger(__name__)

# What is in RAM need not ebb to the last byte: a guest that writes on keeps some there.
_EXCESS_BYTES: Final = 16 << 20
_STUCK_SECONDS: Final = 10.0
_UNDO_SECONDS: Final = 15.0
_RETAKE_SECONDS: Final = 60.0


def check(keeper: supervisor.Keeper, request: protocol.Migrate, *, tls: bool, unix: bool) -> None:
    """Raises UsageError where the disk's store cannot be handed over, or not like this."""
    marks.stores(keeper.definition.spill_path)
    if not tls and not unix:
        raise UsageError(
            "a store is handed over with its key: use --tls-certificates or a unix socket, and not --insecure"
        )
    if request.bandwidth_bytes is not None:
        raise UsageError("--bandwidth is for what is copied; with --hand-over-store nothing of it is")


class Handing(handover.Sending):
    """One disk on its way out with its store."""

    given = "done"

    def _order(self, bandwidth: int | None) -> dict[str, Any]:
        return {"do": "hand", "spill": self._keeper.definition.spill_path}

    async def _lessen(self, job: jobs.Job) -> None:
        await self._ebb(job)
        await _remember(self._keeper, store_given=True)

    async def _let_go(self, job: jobs.Job) -> None:
        job.order(handing.LEAVE)
        await job.until("leaving")

    async def _ebb(self, job: jobs.Job) -> None:
        """Wait until little is in RAM, or no less is to be had."""
        await job.until("ebbing")
        least, since = None, time.monotonic()
        while (excess := job.step.get("excess_bytes", 0)) > _EXCESS_BYTES:
            if least is None or excess < least:
                least, since = excess, time.monotonic()
            elif time.monotonic() - since >= _STUCK_SECONDS:
                log.warning("disk ebbs no more name=%s excess_bytes=%d", self._name, excess)
                break
            await job.check(1.0)

    async def _give_up(self, job: jobs.Job, error: BaseException) -> None:
        await self._serve_again(job, error)
        with contextlib.suppress(StateError, OSError, SwaptideError):
            if self._state.gate() == "open":
                await _remember(self._keeper, store_given=False)
        await self._undo(error)

    async def _serve_again(self, job: jobs.Job, error: BaseException) -> None:
        leaving = self._state.gate() == "leaving"
        job.order(handing.UNDO)  # in any case: it may be on its way there
        if leaving:
            with contextlib.suppress(SwaptideError, TimeoutError):
                async with asyncio.timeout(_UNDO_SECONDS):
                    await job.until("undone")
        await job.close()
        with contextlib.suppress(StateError, OSError):
            if self._state.gate() == "handed":
                error.add_note(
                    f"the store of disk {self._name} was taken over there meanwhile, where its contents are"
                    f" now: `swaptide disk rm {self._name}` here"
                )
                log.warning("disk was taken over there name=%s", self._name)
            if self._state.gate() == "leaving":
                # Its process is gone, and nobody was told that the store is theirs.
                try:
                    await retake(self._keeper)
                except SwaptideError as trouble:
                    error.add_note(str(trouble))
                    log.warning("disk not taken back name=%s error=%r", self._name, str(trouble))

    @property
    def _either(self) -> str:
        return (
            f", and its writes wait. If it runs here, `swaptide migrate {self._name} --take-back`; if there,"
            f" {handover.ACCEPT}, and `swaptide disk rm {self._name}` here after that"
        )

    def _lost(self, error: SwaptideError) -> None:
        """The guest is there; whoever was to give the disk away is gone, or was not answered."""
        with contextlib.suppress(StateError, OSError):
            self._state.set_gate("handed")
        log.warning("disk handed over without an answer name=%s error=%r", self._name, str(error))
        raise SwaptideError(
            f"the guest has moved, but the disk there was not told, or did not say, that its store is its own"
            f" ({error}): if it is not served there, {handover.ACCEPT}. Then `swaptide disk rm {self._name}`"
            " here, which leaves the store alone"
        )


async def _remember(keeper: supervisor.Keeper, *, store_given: bool) -> None:
    """Also beyond the end of this host, when the state file is gone.  Raises SetupError."""
    await keeper.commit(msgspec.structs.replace(keeper.definition, store_given=store_given))


async def retake(keeper: supervisor.Keeper) -> None:
    """Serve a disk again that is leaving, or was handed over and not taken.

    Raises SetupError where its store is another's by now, or cannot be reached, which has to be known.
    """
    disk = keeper.definition
    disk_id = disk.disk_id
    if disk_id is None:
        raise BusyError(f"disk {disk.name} was never made")
    try:
        await detached.call(lambda: marks.retake(disk.spill_path, disk_id), _RETAKE_SECONDS)
    except TimeoutError:
        raise SetupError(f"spill={places.show(disk.spill_path)}: its server does not answer") from None
    with contextlib.suppress(StateError, OSError):
        state = keeper.open_face()
        if state is not None:
            state.set_gate("open")
    await keeper.update(msgspec.structs.replace(keeper.definition, store_given=False))
    log.info("disk taken back name=%s", disk.name)
    # One that has let go of its store does not take it up again; its successor does.
    with contextlib.suppress(BusyError):  # it is being started
        await keeper.restart()
    await adoption.until_served(keeper)
