"""What came of a replay, added up: windows of time for a table or a plot, and a summary of all.

Bounded in memory, however long the trace.
"""

import collections
from collections.abc import Iterable, Mapping
from typing import Final

import msgspec

from swaptide.balloon import simulator

_QUIET: Final = ("steady", "grow")


class DiskTally(msgspec.Struct):
    """One disk in a window: RAM and target at its end, pages read in it, and of those the hits."""

    ram_bytes: int = 0
    target_bytes: int = 0
    reads: float = 0.0
    hits: float = 0.0

    @property
    def hit_ratio(self) -> float | None:
        """From 0 to 1; None where nothing was read."""
        return self.hits / self.reads if self.reads else None


class Window(msgspec.Struct):
    """So much time: the least that was free and spare in it, triggers, decisions by reason, disks, guests."""

    at_seconds: float
    free_bytes: int
    spare_bytes: int
    pressed: int
    reasons: dict[str, int]
    disks: dict[str, DiskTally]
    guests: dict[str, int]

    @property
    def reason(self) -> str:
        """The one that says most: the commonest that is not quiet, else whether something grew."""
        loud = {reason: count for reason, count in self.reasons.items() if reason not in _QUIET}
        chosen = loud or {reason: 1 for reason in self.reasons if reason == "grow"} or {"steady": 1}
        return max(chosen, key=lambda reason: (chosen[reason], reason))


class Windows:
    """Windows of `width_seconds` each; beyond `most` they are merged by twos, and twice as wide."""

    def __init__(self, width_seconds: float, most: int) -> None:
        self.width_seconds = width_seconds
        self.all: list[Window] = []
        self._most = most
        self._start: float | None = None

    def add(self, moment: simulator.Moment) -> None:
        """Take a moment in; they come in the order of their times."""
        if self._start is None:
            self._start = moment.at_seconds
        at = self._start + (moment.at_seconds - self._start) // self.width_seconds * self.width_seconds
        window = _window(moment, at)
        if self.all and self.all[-1].at_seconds >= at:
            _merge(self.all[-1], window)
            return
        self.all.append(window)
        while len(self.all) > self._most:
            self._widen()

    def _widen(self) -> None:
        self.width_seconds *= 2
        start, found = self._start or 0.0, list(self.all)
        self.all = []
        for window in found:
            at = start + (window.at_seconds - start) // self.width_seconds * self.width_seconds
            if self.all and self.all[-1].at_seconds >= at:
                _merge(self.all[-1], window)
            else:
                window.at_seconds = at
                self.all.append(window)


class Summary(msgspec.Struct):
    """A whole replay.  `longest_short_seconds` is how long the reserve was not free at the longest, from
    the moment that was noticed to the one when it was there again; `turns` how often a disk's target changed
    its direction."""

    samples: int = 0
    seconds: float = 0.0
    free_least_bytes: int = 0
    spare_least_bytes: int = 0
    short_seconds: float = 0.0
    longest_short_seconds: float = 0.0
    pressed: int = 0
    turns: int = 0
    reasons: dict[str, int] = {}
    disks: dict[str, DiskTally] = {}


class Tally:
    """Adds a replay up while it runs."""

    def __init__(self) -> None:
        self.summary = Summary()
        self._first: float | None = None
        self._last: simulator.Moment | None = None
        self._short_since: float | None = None
        self._reasons: collections.Counter[str] = collections.Counter()
        self._directions: dict[str, bool] = {}

    def add(self, moment: simulator.Moment) -> None:
        """Take a moment in; they come in the order of their times."""
        found, last = self.summary, self._last
        if last is None:
            self._first = moment.at_seconds
            found.free_least_bytes, found.spare_least_bytes = moment.free_bytes, moment.spare_bytes
        elif last.spare_bytes < 0:
            found.short_seconds += moment.at_seconds - last.at_seconds
        self._shortage(moment)
        found.samples += 1
        found.seconds = moment.at_seconds - (self._first or 0.0)
        found.free_least_bytes = min(found.free_least_bytes, moment.free_bytes)
        found.spare_least_bytes = min(found.spare_least_bytes, moment.spare_bytes)
        found.pressed += moment.pressed
        found.turns += self._turns(moment)
        self._reasons[moment.reason] += 1
        found.reasons = dict(sorted(self._reasons.items()))
        for name, now in moment.disks.items():
            _add(found.disks.setdefault(name, DiskTally()), now)
        self._last = moment

    def _shortage(self, moment: simulator.Moment) -> None:
        if moment.spare_bytes < 0 and self._short_since is None:
            self._short_since = moment.at_seconds
        if self._short_since is not None:
            lasted = moment.at_seconds - self._short_since
            self.summary.longest_short_seconds = max(self.summary.longest_short_seconds, lasted)
        if moment.spare_bytes >= 0:
            self._short_since = None

    def _turns(self, moment: simulator.Moment) -> int:
        turned = 0
        for name, now in moment.disks.items():
            before = None if self._last is None else self._last.disks.get(name)
            if before is None or before.target_bytes == now.target_bytes:
                continue
            up = now.target_bytes > before.target_bytes
            turned += self._directions.get(name, up) != up
            self._directions[name] = up
        return turned


def total(disks: Iterable[DiskTally]) -> DiskTally:
    """Several disks as if they were one."""
    found = DiskTally()
    for disk in disks:
        found.ram_bytes += disk.ram_bytes
        found.target_bytes += disk.target_bytes
        found.reads += disk.reads
        found.hits += disk.hits
    return found


def _window(moment: simulator.Moment, at: float) -> Window:
    disks: dict[str, DiskTally] = {}
    for name, now in moment.disks.items():
        _add(disks.setdefault(name, DiskTally()), now)
    return Window(
        at,
        moment.free_bytes,
        moment.spare_bytes,
        int(moment.pressed),
        {moment.reason: 1},
        disks,
        dict(moment.guests),
    )


def _add(disk: DiskTally, now: simulator.DiskNow | DiskTally) -> None:
    disk.ram_bytes, disk.target_bytes = now.ram_bytes, now.target_bytes
    disk.reads += now.reads
    disk.hits += now.hits


def _merge(into: Window, later: Window) -> None:
    into.free_bytes = min(into.free_bytes, later.free_bytes)
    into.spare_bytes = min(into.spare_bytes, later.spare_bytes)
    into.pressed += later.pressed
    into.reasons = _sum(into.reasons, later.reasons)
    # Who is gone by the end is gone.
    for name in into.disks.keys() - later.disks.keys():
        del into.disks[name]
    for name, now in later.disks.items():
        _add(into.disks.setdefault(name, DiskTally()), now)
    into.guests = later.guests


def _sum(first: Mapping[str, int], second: Mapping[str, int]) -> dict[str, int]:
    return {name: first.get(name, 0) + second.get(name, 0) for name in {**first, **second}}
