"""One disk on its way to another host, and whoever moves its guest there.

On the daemon's loop.  Until the guest cannot come back everything is undone if anything fails or who asked
leaves; from there on it is finished (docs/design.md, "Migration").
"""

import asyncio
import contextlib
import logging
import socket
import time
from collections.abc import Callable
from typing import Any, ClassVar

from swaptide.balloon import qmp
from swaptide.cache import face, geometry
from swaptide.cache.errors import StateError, SwaptideError
from swaptide.host import jobs, shielded, supervisor, switchover

log = logging.getLogger(__name__)

Tell = Callable[[dict[str, Any]], None]

# When the rest is small enough, or has stopped shrinking, QEMU is told to begin: the rounds go on meanwhile.
_SMALL_BYTES = 16 << 20
_MOST_ROUNDS = 8
_POLL_SECONDS = 0.02
# A client that left may be on its way back: QEMU tries at once.
_LEFT_SECONDS = 0.2
_GONE_SECONDS = 5.0
ACCEPT = "run `swaptide receive DISK --accept` there"


def figures(step: jobs.Step) -> dict[str, Any]:
    """What the last step says was moved."""
    wanted = ("rounds", "sent_pages", "sent_bytes", "taken_pages", "taken_bytes")
    return {key: step[key] for key in wanted if key in step}


class Moved:
    """Whoever moves the guest."""

    stopped_at: float | None = None  # of the wall clock: when the guest stopped using the disk here

    async def begin(self) -> None:
        """The disk has been copied but for a little."""

    async def is_over(self) -> bool:
        """Whether the guest has stopped here; raises SwaptideError if it will not."""
        raise NotImplementedError

    async def complete(self) -> None:
        """The disk is there: have the guest run there, and wait until it cannot come back."""

    async def undo(self) -> None:
        """Have the guest run here again."""

    async def end(self) -> None:
        """It is over."""


class Leaving(Moved):
    """Somebody else does: over when the last client has left, which does not come back."""

    def __init__(self, keeper: supervisor.Keeper, state: face.StateFace) -> None:
        self._keeper = keeper
        self._state = state
        self._since: float | None = None

    async def is_over(self) -> bool:
        if self._state.counters()["connections"]:
            self._since = None
            return False
        if self._since is None:
            self._since = time.monotonic()
            self.stopped_at = time.time()
        return time.monotonic() - self._since >= _LEFT_SECONDS


class Switching(Moved):
    """QEMU does, told by us."""

    def __init__(self, switch: switchover.Switchover, monitor: qmp.Monitor) -> None:
        self._switch = switch
        self._hearing = monitor.hearing(switch.hear)

    async def begin(self) -> None:
        self._hearing.__enter__()
        await self._switch.begin()

    async def is_over(self) -> bool:
        over = await self._switch.waits()
        self.stopped_at = self._switch.stopped_at
        return over

    async def complete(self) -> None:
        await self._switch.go_on()
        await self._switch.completed()

    async def undo(self) -> None:
        await self._switch.undo()

    async def end(self) -> None:
        with contextlib.suppress(Exception):
            self._hearing.__exit__(None, None, None)
        await self._switch.set_back()


class Sending:
    """One disk on its way out, copied.  With its store it goes by the same steps (host/handing.py)."""

    given: ClassVar[str] = "gone"  # where its process is once the disk is the other one's

    def __init__(self, keeper: supervisor.Keeper, state: face.StateFace, moved: Moved, tell: Tell) -> None:
        self._keeper = keeper
        self._name = keeper.definition.name
        self._state = state
        self._moved = moved
        self._tell = tell
        self._served_at: float | None = None

    async def run(
        self, connection: socket.socket, tls: dict[str, str] | None, bandwidth: int | None
    ) -> dict[str, Any]:
        """Do it; returns what that took.  Raises SwaptideError, and says where the disk is then."""
        begun = time.monotonic()
        order = {**self._order(bandwidth), "tls": tls}
        async with jobs.begun(self._keeper, order, [connection], self._heard) as job:
            try:
                await self._lessen(job)
                await self._moved.begin()
                while not await self._moved.is_over():
                    await job.check(_POLL_SECONDS)
                job.order("hold")
                arrived = await job.until("arrived")
                await self._let_go(job)
            except BaseException as error:
                await shielded.to_the_end(self._give_up(job, error))
                raise
            # From here on it is finished, whoever leaves.
            await shielded.to_the_end(self._hand_over(job))
        return self._took(job, arrived, begun)

    def _took(self, job: jobs.Job, arrived: jobs.Step, begun: float) -> dict[str, Any]:
        ended = self._served_at or time.time()
        return {
            **figures(job.step),
            "delta_seconds": arrived.get("delta_seconds"),
            "pause_seconds": None
            if self._moved.stopped_at is None
            else max(0.0, ended - self._moved.stopped_at),
            "elapsed_seconds": time.monotonic() - begun,
        }

    def _heard(self, step: jobs.Step) -> None:
        if step["at"] == "done":
            self._served_at = time.time()
        self._tell(dict(step))

    def _order(self, bandwidth: int | None) -> dict[str, Any]:
        return {"do": "send", "bandwidth": bandwidth or 0}

    async def _lessen(self, job: jobs.Job) -> None:
        """Wait until little is left to be moved while the guest stands still, or no less is to be had."""
        await job.until("copying")
        while job.step.get("rounds", 0) == 0 or (
            job.step.get("pending_pages", 0) * geometry.PAGE_BYTES > _SMALL_BYTES
            and job.step["rounds"] < _MOST_ROUNDS
        ):
            await job.check(1.0)

    async def _let_go(self, job: jobs.Job) -> None:
        """What is left to be done before the guest runs there."""

    async def _give_up(self, job: jobs.Job, error: BaseException) -> None:
        """Have clients served here as before, then the guest run here."""
        await job.close()
        await self._undo(error)

    async def _hand_over(self, job: jobs.Job) -> None:
        try:
            await self._moved.complete()
        except qmp.MonitorError as error:
            # Nobody knows how it ended; but a QEMU that has let go of the disk will not write to it.
            if not await self._has_left():
                raise SwaptideError(
                    f"{error}; nobody knows whether the guest runs there{self._either}"
                ) from error
        except BaseException as error:
            await self._give_up(job, error)
            raise
        finally:
            await self._moved.end()
        job.order("give")
        try:
            await job.until(self.given)
        except jobs.JobError as error:
            self._lost(error)

    @property
    def _either(self) -> str:
        """What to do then, whichever is true."""
        return f". Disk {self._name} stays here; if the guest does run there, {ACCEPT}"

    def _lost(self, error: SwaptideError) -> None:
        """The guest is there; the process that was to give the disk away is gone, or was not answered."""
        with contextlib.suppress(StateError, OSError):
            if self._state.gate() == "open":
                self._state.set_gate("given")
        if self._state.gate() == "gone":
            return
        served = self._served_at is not None
        log.warning("disk given away without an answer name=%s error=%r", self._name, str(error))
        if not served:
            raise SwaptideError(
                f"the guest has moved, but the disk there was not told that it is its own ({error}):"
                f" {ACCEPT}; disk {self._name} is refused to clients here"
            )

    async def _has_left(self) -> bool:
        deadline = time.monotonic() + _GONE_SECONDS
        while time.monotonic() < deadline:
            if not self._state.counters()["connections"]:
                return True
            await asyncio.sleep(_POLL_SECONDS)
        return False

    async def _undo(self, error: BaseException) -> None:
        try:
            await self._moved.undo()
        except SwaptideError as trouble:
            error.add_note(str(trouble))
            log.warning("guest's migration not undone name=%s error=%r", self._name, str(trouble))
        finally:
            await self._moved.end()
