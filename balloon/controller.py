"""The loop that divides the host's RAM: reads the sensors, asks the policy, writes the targets.

Runs as one task on the daemon's loop, which everything here belongs to.  It looks a few times a second, more
often while memory is being given back, and at once when the kernel or a change of the disks calls.
"""

import asyncio
import collections
import contextlib
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from swaptide.balloon import census, complaints, desk, policy, pressure, rooms, samples, thresholds, trace

log = logging.getLogger(__name__)

STEADY_SECONDS = 0.25
BUSY_SECONDS = 0.1  # while memory is being given back, or somebody waits for it
EMPTY_SECONDS = 1.0  # while there is nothing to divide
# However often it is called: a cgroup full of page cache crosses its thresholds all the time.
LEAST_SECONDS = 0.02
_LOG_SECONDS = 1.0
_MIB = 1 << 20


class Guests(Protocol):
    """The guests whose balloons may be moved."""

    def samples(self) -> tuple[samples.Guest, ...]:
        """What is known of each."""

    def apply(self, balloons: Mapping[str, int]) -> None:
        """Ask for these logical sizes, in bytes; waits for no guest."""


class NoGuests:
    """A host without registered guests."""

    def samples(self) -> tuple[samples.Guest, ...]:
        """None."""
        return ()

    def apply(self, balloons: Mapping[str, int]) -> None:
        """Nothing to be done."""


class Controller:
    """`woken` makes it look at once, `run` is its task; `served` answers who asks for memory."""

    def __init__(
        self,
        settings: policy.Settings,
        members: Callable[[], Sequence[census.Member]],
        served: desk.Desk,
        found: rooms.Rooms,
        woken: asyncio.Event,
        *,
        guests: Guests | None = None,
        record: trace.Trace | None = None,
        host_pressure: pressure.Pressure | None = None,
        clock: Callable[[], float] = time.monotonic,
        fell: Callable[[census.Member, float | None], None] = lambda member, due: None,
    ) -> None:
        """`fell` hears of each disk whose target was lowered, and by when that is to hold."""
        self._settings = settings
        self._memory = policy.start(settings)
        self._members = members
        self._desk = served
        self._rooms = found
        self._woken = woken
        self._guests: Guests = guests or NoGuests()
        self._trace = record
        self._clock = clock
        self._fell = fell
        self.decisions: collections.Counter[str] = collections.Counter()  # by reason
        self.pressed = 0  # looks that found pressure
        self._census = census.Census()
        self._pressure = host_pressure or pressure.Pressure(self._press)
        self._thresholds = thresholds.Thresholds(woken.set)
        self._complaints = complaints.Complaints(log)
        self._pressed = False
        self._waiting: list[asyncio.Future[None]] = []
        self._told = ("steady", float("-inf"))
        self.last: tuple[samples.Sample, samples.Decision] | None = None  # what was seen last, and done

    async def looked(self) -> None:
        """Wait for a look that begins after this call, and for what it leads to."""
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(done)
        self._woken.set()
        await done

    async def run(self) -> None:
        """Look and steer until cancelled."""
        try:
            while True:
                self._woken.clear()
                begun = self._clock()
                pause = self._step_safely()
                self._answer()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(pause):
                        await self._woken.wait()
                await asyncio.sleep(max(0.0, begun + LEAST_SECONDS - self._clock()))
        finally:
            self._pressure.close()
            self._thresholds.close()
            if self._trace is not None:
                self._trace.close()

    def step(self) -> float:
        """Look once and steer; returns the seconds until the next look is due.  Needs a running loop."""
        now = self._clock()
        found = self._rooms.read()
        self._thresholds.arm(self._rooms.groups)
        self._pressure.watch(self._rooms.pressure_files())
        members = self._members()
        counted = self._census.take(members)
        self._desk.look(self._situation(now, found[0], counted))
        sample = self._sample(now, found, counted)
        if self._trace is not None:
            self._trace.put(sample)
        decision = self._decide(sample)
        self.last = sample, decision
        hurry = decision.hurry_seconds
        due = None if hurry is None else now + hurry
        changed = self._census.steer(members, decision.targets, due)
        self._note(sample, decision, members, changed, due)
        self._guests.apply(decision.balloons)
        self._tell(sample, decision, changed)
        return self._pause(now, sample, counted, changed)

    def _note(
        self,
        sample: samples.Sample,
        decision: samples.Decision,
        members: Sequence[census.Member],
        changed: Mapping[str, tuple[int, int]],
        due: float | None,
    ) -> None:
        self.decisions[decision.reason] += 1
        self.pressed += sample.pressed
        for member in members:
            old, new = changed.get(member.name, (0, 0))
            if new < old:
                self._fell(member, due)

    def _press(self) -> None:
        self._pressed = True
        self._woken.set()

    def _answer(self) -> None:
        waiting, self._waiting = self._waiting, []
        for done in waiting:
            if not done.done():
                done.set_result(None)

    def _step_safely(self) -> float:
        try:
            pause = self.step()
            self._complaints.fine("controller")
            return pause
        except Exception as error:
            log.debug("step failed", exc_info=True)
            self._complaints.fail("controller", repr(error), "targets stay as they are")
            return STEADY_SECONDS

    def _situation(self, now: float, host: samples.Room, counted: census.Count) -> desk.Situation:
        used = host.size_bytes - host.free_bytes - counted.ram_bytes
        return desk.Situation(
            now, host.free_bytes, used if self._rooms.host_known else None, counted.reclaimable_bytes
        )

    def _sample(self, now: float, found: tuple[samples.Room, ...], counted: census.Count) -> samples.Sample:
        pressed, self._pressed = self._pressed or self._pressure.polled(now), False
        due = self._desk.due
        return samples.Sample(
            at_seconds=now,
            rooms=found,
            disks=counted.disks,
            guests=self._guests.samples(),
            pressed=pressed,
            held_bytes=self._desk.held_bytes,
            wanted_bytes=self._desk.wanted_bytes,
            wanted_seconds=None if due is None else max(0.0, due - now),
            pressure_percent=self._pressure.percent(),
        )

    def _decide(self, sample: samples.Sample) -> samples.Decision:
        try:
            self._memory, decision = policy.decide(self._settings, self._memory, sample)
            self._complaints.fine("policy")
            return decision
        except Exception as error:
            log.debug("policy failed", exc_info=True)
            self._complaints.fail(
                "policy", repr(error), "disks go to their floors while the host lacks memory"
            )
            self._memory = policy.start(self._settings)
            return shelter(sample)

    def _pause(
        self, now: float, sample: samples.Sample, counted: census.Count, changed: Mapping[str, object]
    ) -> float:
        due = self._desk.due
        if due is not None:
            return min(BUSY_SECONDS, max(LEAST_SECONDS, due - now))
        if counted.falling or changed:
            return BUSY_SECONDS
        return STEADY_SECONDS if sample.disks or sample.guests else EMPTY_SECONDS

    def _tell(
        self, sample: samples.Sample, decision: samples.Decision, changed: Mapping[str, tuple[int, int]]
    ) -> None:
        """One line when the reason changes, at most one a second."""
        reason, since = self._told
        if decision.reason == reason or sample.at_seconds - since < _LOG_SECONDS:
            return
        self._told = (decision.reason, sample.at_seconds)
        tightest = min(sample.rooms, key=lambda room: room.free_bytes - room.reserve_bytes)
        log.info(
            "balloon decides reason=%s room=%s free_mib=%d reserve_mib=%d held_mib=%d wanted_mib=%d"
            " ram_mib=%d targets_mib=%s",
            decision.reason,
            tightest.name,
            tightest.free_bytes // _MIB,
            tightest.reserve_bytes // _MIB,
            sample.held_bytes // _MIB,
            (sample.wanted_bytes or 0) // _MIB,
            sum(disk.ram_bytes for disk in sample.disks) // _MIB,
            ",".join(f"{name}:{old // _MIB}>{new // _MIB}" for name, (old, new) in changed.items()) or "-",
        )


def shelter(sample: samples.Sample) -> samples.Decision:
    """What is done without a policy: every disk at its floor while any room lacks memory, else nothing."""
    lacking = any(room.free_bytes < room.reserve_bytes + sample.held_bytes for room in sample.rooms)
    wanting = (sample.wanted_bytes or 0) + sample.held_bytes > sample.rooms[0].free_bytes
    floors = {disk.name: disk.floor_bytes for disk in sample.disks} if lacking or wanting else {}
    return samples.Decision(floors, {}, reason="floors" if floors else "steady")
