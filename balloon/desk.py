"""Who asks for memory, waits here until the host really has it, or is told at once that it never will.

Owned by the controller's loop, which looks in at every step: `look` grants, refuses and gives up; what is
under way and what is held goes into the next sample.
"""

import asyncio
import collections
import dataclasses
import enum
import logging
import secrets
import time
from collections.abc import Callable

from swaptide.balloon import reservations
from swaptide.cache.errors import SetupError, UsageError

log = logging.getLogger(__name__)

Tell = Callable[["Standing"], None]
_TELL_SECONDS = 0.2


class Verdict(enum.StrEnum):
    """Where a request stands; all but WAITING are final."""

    WAITING = "waiting"
    GRANTED = "granted"
    IMPOSSIBLE = "impossible"  # even with every cache at its floor
    LATE = "late"


@dataclasses.dataclass(frozen=True)
class Situation:
    """What the host has at one moment.  Sizes in bytes, `now` in seconds of CLOCK_MONOTONIC.

    `free_bytes` is MemAvailable, `used_bytes` what is in use beside the disks, None for unknown, and
    `reclaimable_bytes` what the caches would give back at their floors.
    """

    now: float
    free_bytes: int
    used_bytes: int | None
    reclaimable_bytes: int


@dataclasses.dataclass(frozen=True)
class Standing:
    """How a request stands.  Sizes in bytes.

    `held_bytes` is what other reservations keep free, `waiting_bytes` what others under way ask for;
    `could_bytes` what could be had: now if it is late, with every cache at its floor if it is impossible.
    """

    id: str
    verdict: Verdict
    size_bytes: int
    elapsed_seconds: float
    deadline_seconds: float
    hold_seconds: float
    available_bytes: int = 0
    held_bytes: int = 0
    waiting_bytes: int = 0
    reclaimable_bytes: int = 0
    could_bytes: int = 0


@dataclasses.dataclass(eq=False)
class _Request:
    id: str
    size_bytes: int
    begun: float
    deadline_seconds: float
    hold_seconds: float
    tell: Tell
    answer: "asyncio.Future[Standing]"
    admitted: bool = False
    told_at: float = 0.0

    @property
    def due(self) -> float:
        return self.begun + self.deadline_seconds


class Desk:
    """The reservations of a daemon: those under way here, those granted in `book`."""

    def __init__(
        self,
        book: reservations.Book,
        wake: Callable[[], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._book = book
        self._wake = wake
        self._clock = clock
        self._waiting: list[_Request] = []
        self._used_bytes: int | None = None
        self.answers: collections.Counter[Verdict] = collections.Counter()

    @property
    def held_bytes(self) -> int:
        """What is to be kept free for those that were granted."""
        return reservations.held_bytes(self._book.ledger, self._used_bytes)

    @property
    def wanted_bytes(self) -> int | None:
        """What those under way ask for, all together; None if there are none."""
        admitted = [request.size_bytes for request in self._waiting if request.admitted]
        return sum(admitted) if admitted else None

    @property
    def due(self) -> float | None:
        """When the first of those under way has to be answered, in seconds of CLOCK_MONOTONIC."""
        return min((request.due for request in self._waiting), default=None)

    async def reserve(
        self, size_bytes: int, deadline_seconds: float, hold_seconds: float, tell: Tell
    ) -> Standing:
        """Wait until so much is available; granted, it is held for `hold_seconds`.

        Cancelled, it gives back what it has.  Raises SetupError if it cannot be written down.
        """
        answer: asyncio.Future[Standing] = asyncio.get_running_loop().create_future()
        request = _Request(
            secrets.token_hex(4), size_bytes, self._clock(), deadline_seconds, hold_seconds, tell, answer
        )
        self._waiting.append(request)
        self._wake()
        try:
            return await answer
        except asyncio.CancelledError:
            log.info("reservation given up id=%s size_bytes=%d", request.id, size_bytes)
            self._forget(request.id)
            raise
        finally:
            if request in self._waiting:
                self._waiting.remove(request)
            self._wake()

    def release(self, id: str) -> None:
        """Let the caches have again what is left of a reservation; raises UsageError if there is none."""
        self._book.put(reservations.release(self._book.ledger, id, self._used_bytes))
        log.info("reservation released id=%s", id)
        self._wake()

    def granted(self) -> list[tuple[reservations.Reservation, int]]:
        """All that were granted, oldest first, each with what is left of it."""
        ledger = self._book.ledger
        left = reservations.left_bytes(ledger, self._used_bytes)
        return list(zip(ledger.entries, left, strict=True))

    def look(self, situation: Situation) -> None:
        """Strike off what is over, and answer whom there is an answer for."""
        self._used_bytes = situation.used_bytes
        before = self._book.ledger
        self._book.put(reservations.advance(before, situation.now, situation.used_bytes))
        after = {entry.id for entry in self._book.ledger.entries}
        for entry in before.entries:
            if entry.id not in after:
                why = "expired" if situation.now >= entry.expires_at else "used"
                log.info("reservation over id=%s why=%s", entry.id, why)
        for request in list(self._waiting):
            self._consider(request, situation)

    def _consider(self, request: _Request, situation: Situation) -> None:
        if request.answer.done():
            return
        standing = self._standing(request, situation)
        if not request.admitted:
            # Not granted in the same step, even if it is there: first the targets have to leave room for it.
            request.admitted = standing.verdict is not Verdict.IMPOSSIBLE
            if request.admitted:
                self._wake()
                self._tell(request, standing, situation.now)
            else:
                self._answer(request, standing)
        elif standing.verdict is Verdict.GRANTED:
            self._grant(request, standing, situation)
        elif standing.verdict is Verdict.LATE:
            self._answer(request, standing)
        elif situation.now - request.told_at >= _TELL_SECONDS:
            self._tell(request, standing, situation.now)

    @staticmethod
    def _tell(request: _Request, standing: Standing, now: float) -> None:
        request.told_at = now
        request.tell(dataclasses.replace(standing, verdict=Verdict.WAITING))

    def _standing(self, request: _Request, situation: Situation) -> Standing:
        held = self.held_bytes
        others = sum(other.size_bytes for other in self._waiting if other.admitted and other is not request)
        now_bytes = situation.free_bytes - held
        best_bytes = now_bytes + situation.reclaimable_bytes - others
        if not request.admitted and best_bytes < request.size_bytes:
            verdict, could = Verdict.IMPOSSIBLE, best_bytes
        elif situation.used_bytes is not None and now_bytes >= request.size_bytes:
            verdict, could = Verdict.GRANTED, now_bytes
        else:
            verdict = Verdict.LATE if situation.now >= request.due else Verdict.WAITING
            could = now_bytes
        return Standing(
            request.id,
            verdict,
            request.size_bytes,
            situation.now - request.begun,
            request.deadline_seconds,
            request.hold_seconds,
            situation.free_bytes,
            held,
            others,
            situation.reclaimable_bytes,
            max(0, could),
        )

    def _grant(self, request: _Request, standing: Standing, situation: Situation) -> None:
        new = reservations.Reservation(
            request.id,
            request.size_bytes,
            request.size_bytes,
            situation.now,
            situation.now + request.hold_seconds,
        )
        assert situation.used_bytes is not None
        try:
            self._book.put(reservations.grant(self._book.ledger, new, situation.used_bytes))
        except SetupError as error:
            self._waiting.remove(request)
            request.answer.set_exception(error)
            return
        self._answer(request, standing)

    def _answer(self, request: _Request, standing: Standing) -> None:
        self._waiting.remove(request)
        self.answers[standing.verdict] += 1
        log.info(
            "reservation answered id=%s verdict=%s size_bytes=%d elapsed_s=%.3f could_bytes=%d",
            request.id,
            standing.verdict.value,
            request.size_bytes,
            standing.elapsed_seconds,
            standing.could_bytes,
        )
        request.answer.set_result(standing)

    def _forget(self, id: str) -> None:
        """One that was granted just when nobody waited for it any more."""
        try:
            self._book.put(reservations.release(self._book.ledger, id, self._used_bytes))
        except UsageError:
            return
