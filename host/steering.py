"""The balloon of a daemon: its controller, wired to the disks and the run directory; and what is asked of it.

On the daemon's loop.  With `balloon = false` there is none: every disk may use its cap.
"""

import asyncio
import contextlib
import dataclasses
import logging
import time
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from swaptide.balloon import controller, desk, policy, pressure, reservations, rooms, samples, trace
from swaptide.cache.errors import SetupError, SwaptideError, UsageError
from swaptide.host import config, disks, protocol, sizes

log = logging.getLogger(__name__)

_SETTLE_SECONDS = 1.0


@dataclasses.dataclass(frozen=True)
class Figures:
    """For whoever measures: decisions by reason, looks that found pressure, reservations' answers by verdict,
    how many are granted, and in bytes what is kept free for them and what those under way ask for.
    """

    decisions: Mapping[str, int]
    pressed: int
    answers: Mapping[str, int]
    granted: int
    held_bytes: int
    wanted_bytes: int


class Steering:
    """Divides the RAM among `served`, until `close`."""

    def __init__(
        self, chosen: config.Config, served: disks.Disks, guests: controller.Guests | None = None
    ) -> None:
        self._config = chosen
        self._task: asyncio.Task[None] | None = None
        self._desk: desk.Desk | None = None
        self._rooms = rooms_of(chosen)
        if not chosen.balloon:
            log.info("balloon off: every disk may use its cap")
            return
        woken = asyncio.Event()
        book = reservations.Book(chosen.run_dir / "reservations.json")
        self._desk = desk.Desk(book, woken.set)
        self._controller = controller.Controller(
            policy.Settings(),
            served.members,
            self._desk,
            self._rooms,
            woken,
            guests=guests,
            record=None if chosen.trace is None else trace.Trace(chosen.trace),
            fell=lambda member, due: served.squeezes.fell(member.name, member.state.path, due),
        )
        served.steered_by(woken.set, self._settle)

    def start(self) -> None:
        """Begin to steer."""
        if self._desk is not None:
            self._task = asyncio.create_task(self._controller.run(), name="balloon")

    async def close(self) -> None:
        """Stop steering; targets stay as they are."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def reserve(
        self, request: protocol.Reserve, tell: Callable[[dict[str, Any]], None]
    ) -> dict[str, Any]:
        """Wait for the memory; the result says whether it is granted.  Raises SetupError without balloon."""
        standing = await self._asked().reserve(
            request.size_bytes,
            request.deadline_seconds,
            request.hold_seconds,
            lambda step: tell(dataclasses.asdict(step)),
        )
        return dataclasses.asdict(standing)

    def give_back(self, standing: Mapping[str, Any]) -> None:
        """What was granted, perhaps, to somebody who never heard of it."""
        with contextlib.suppress(UsageError):
            self.release(standing["id"])

    def release(self, id: str) -> dict[str, Any]:
        """Give one back; raises UsageError if there is none such."""
        self._asked().release(id)
        return {"id": id}

    def reserved(self) -> list[str]:
        """The ids of all reservations; none where nothing is ever promised."""
        try:
            return [each["id"] for each in self.reservations()]
        except SwaptideError:
            return []

    def reservations(self) -> list[dict[str, Any]]:
        """What is held, oldest first."""
        now = time.monotonic()
        return [
            {
                "id": entry.id,
                "size_bytes": entry.size_bytes,
                "left_bytes": left,
                "age_seconds": round(now - entry.granted_at, 3),
                "expires_in_seconds": round(max(0.0, entry.expires_at - now), 3),
            }
            for entry, left in self._asked().granted()
        ]

    def figures(self) -> Figures | None:
        """What it has done so far, and what is reserved; None where nobody steers."""
        if self._desk is None:
            return None
        return Figures(
            dict(self._controller.decisions),
            self._controller.pressed,
            {verdict.value: count for verdict, count in self._desk.answers.items()},
            len(self._desk.granted()),
            self._desk.held_bytes,
            self._desk.wanted_bytes or 0,
        )

    def view(self) -> dict[str, Any]:
        """The host as it was seen last, and what was done about it; `balloon` says whether anything is."""
        sample, reason = self._seen()
        return {
            "balloon": self._desk is not None,
            "reason": reason,
            "rooms": [msgspec.structs.asdict(room) for room in sample.rooms],
            "pressure_percent": sample.pressure_percent,
            "held_bytes": sample.held_bytes,
            "wanted_bytes": sample.wanted_bytes,
        }

    def _seen(self) -> tuple[samples.Sample, str | None]:
        if self._desk is not None and self._controller.last is not None:
            sample, decision = self._controller.last
            return sample, decision.reason
        found = self._rooms.read()
        percent = pressure.percent(self._rooms.pressure_files())
        return samples.Sample(time.monotonic(), found, (), pressure_percent=percent), None

    def _asked(self) -> desk.Desk:
        if self._desk is None:
            raise SetupError(
                "the balloon is off here (balloon = false), so nothing is freed or kept free; switch it on in"
                " the configuration"
            )
        return self._desk

    async def _settle(self) -> None:
        """Wait until the policy has seen what changed; not for ever, since nothing depends on it."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_SETTLE_SECONDS):
                await self._controller.looked()


def check(chosen: config.Config) -> None:
    """Raises UsageError for a host reserve that is more than the host has."""
    size = rooms.host_bytes(chosen.proc_dir)
    if size and config.reserve("host_reserve", chosen.host_reserve).of(size) >= size:
        raise UsageError(
            f"host_reserve {chosen.host_reserve} is all that this host has ({sizes.show(size)});"
            " configure less"
        )


def rooms_of(chosen: config.Config) -> rooms.Rooms:
    """The rooms of this host with the reserves that are configured."""
    return rooms.Rooms(
        config.reserve("host_reserve", chosen.host_reserve),
        config.reserve("cgroup_reserve", chosen.cgroup_reserve),
        chosen.proc_dir,
    )
