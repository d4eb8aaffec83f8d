"""The control law: from what is known to who gets how much RAM.  Pure functions; docs/design.md has the
reasons.

decide() goes: what the rooms leave (outlook), what guests are asked (levers), the budget of all disks
(falls at once, climbs slowly), each disk's part of it (division), and the targets that lead there without
the licences to grow ever exceeding what is spare (targets).  It never raises, whatever the sample says.
"""

import math
from collections.abc import Mapping
from typing import Final

import msgspec

from swaptide.balloon import curves, division, levers, outlook, samples, targets
from swaptide.balloon.settings import Settings
from swaptide.cache import ages

__all__ = ["Memory", "Settings", "decide", "start"]

# A disk within so much of its target has arrived: usage holds within one segment.
_NEAR_BYTES: Final = 4 << 20
# How long a disk may take for what is missing: half of the two seconds in which the host is to have relief.
HURRY_SECONDS: Final = 1.0
# Of a reservation's time left: the rest is for another step where a disk does not keep its time.
HURRY_PART: Final = 0.8
LEAST_HURRY_SECONDS: Final = 0.1


class Known(msgspec.Struct, frozen=True):
    """What is remembered of one disk: its demand, the curve of that, and how low it came on its way down."""

    demand: curves.Demand
    curve: curves.Curve = curves.FLAT
    lowest_bytes: int | None = None
    lower_at: float = 0.0


class Memory(msgspec.Struct, frozen=True):
    """What is remembered between two samples.

    `budget_bytes` is what the disks that can move (`movable`) may have in all, None before the first sample;
    `short_since` is since when the floors have not been enough.
    """

    at_seconds: float | None = None
    pressed_at: float = -math.inf
    moved_at: float = -math.inf
    short_since: float | None = None
    budget_bytes: int | None = None
    climbing: bool = False
    movable: Mapping[str, int] = {}
    falls: outlook.Falls = outlook.Falls()
    disks: Mapping[str, Known] = {}
    guests: Mapping[str, levers.Lever] = {}


def start(settings: Settings) -> Memory:
    """The memory of somebody who has seen nothing yet."""
    return Memory()


def decide(settings: Settings, memory: Memory, sample: samples.Sample) -> tuple[Memory, samples.Decision]:
    """What to do now, and what to remember until the next sample."""
    memory, now = _on_time(memory, sample.at_seconds)
    passed = 0.0 if memory.at_seconds is None else now - memory.at_seconds
    disks = {disk.name: disk for disk in sample.disks}
    ram = {name: outlook.bounded(disk.ram_bytes) for name, disk in disks.items()}
    known = {name: _observe(settings, memory.disks.get(name), disk, now) for name, disk in disks.items()}
    falls = outlook.follow(memory.falls, sample.rooms, ram, passed, settings.smooth_seconds)
    memory = msgspec.structs.replace(memory, at_seconds=now, falls=falls, disks=known)
    seen = outlook.look(
        sample,
        falls,
        ahead_seconds=settings.ahead_seconds,
        ahead_share=settings.ahead_share,
        plenty_share=settings.plenty_share,
        band_share=settings.band_share,
        band_least_bytes=settings.band_least_bytes,
    )
    parts = [_part(settings, disk, known[name], now) for name, disk in sorted(disks.items())]
    if seen is None:
        return _blind(memory, parts, now)
    memory, seen, balloons = _guests(settings, memory, sample, seen, parts, now)
    return _divide(settings, memory, sample, seen, parts, balloons, passed)


def _on_time(memory: Memory, at_seconds: float) -> tuple[Memory, float]:
    """The sample's time; where it goes back, what is remembered by time is forgotten, as after pressure."""
    last = memory.at_seconds
    if not math.isfinite(at_seconds) or abs(at_seconds) > 1e12:
        return memory, last if last is not None else 0.0
    if last is None or at_seconds >= last:
        return memory, at_seconds
    disks = {name: msgspec.structs.replace(each, lower_at=at_seconds) for name, each in memory.disks.items()}
    forgotten = Memory(pressed_at=at_seconds, budget_bytes=memory.budget_bytes, movable=memory.movable)
    return msgspec.structs.replace(forgotten, disks=disks), at_seconds


def _observe(settings: Settings, last: Known | None, disk: samples.Disk, now: float) -> Known:
    """What the disk reads, at most once in look_seconds, and whether it comes down as it shall."""
    demand, curve = (None, curves.FLAT) if last is None else (last.demand, last.curve)
    if demand is None or not 0 <= now - demand.at_seconds < settings.look_seconds:
        reads = tuple(map(outlook.bounded, disk.reads_by_age[: ages.BUCKETS]))
        live = tuple(map(outlook.bounded, disk.live_bytes_by_age[: ages.BUCKETS]))
        demand = curves.observe(demand, now, reads, live, settings.half_life_seconds)
        curve = curves.curve(demand)
    ram = outlook.bounded(disk.ram_bytes)
    if ram <= outlook.bounded(disk.target_bytes) + _NEAR_BYTES:
        return Known(demand, curve)
    if last is None or last.lowest_bytes is None or ram < last.lowest_bytes - _NEAR_BYTES:
        return Known(demand, curve, ram, now)
    return Known(demand, curve, last.lowest_bytes, last.lower_at)


def _part(settings: Settings, disk: samples.Disk, known: Known, now: float) -> targets.Part:
    high = outlook.bounded(disk.cap_bytes)
    low = min(high, outlook.bounded(disk.floor_bytes))
    lags = known.lowest_bytes is not None and now - known.lower_at >= settings.stuck_seconds
    return targets.Part(
        name=disk.name,
        low=low,
        high=high,
        ram=outlook.bounded(disk.ram_bytes),
        target=min(high, max(low, outlook.bounded(disk.target_bytes))),
        told=disk.target_bytes,
        weight=division.weight_of(disk.weight),
        curve=known.curve,
        movable=not (disk.stuck or lags),
    )


def _blind(memory: Memory, parts: list[targets.Part], now: float) -> tuple[Memory, samples.Decision]:
    """Nothing is known about the host: every cache at its floor, and nothing asked of guests."""
    changed = {part.name: part.low for part in parts if part.low != part.told}
    return msgspec.structs.replace(memory, pressed_at=now), samples.Decision(changed, {}, reason="floors")


def _guests(
    settings: Settings,
    memory: Memory,
    sample: samples.Sample,
    seen: outlook.Outlook,
    parts: list[targets.Part],
    now: float,
) -> tuple[Memory, outlook.Outlook, Mapping[str, int]]:
    """Ask guests for steps, and leave free what those that go up are to get."""
    at_floors = all(part.ram <= part.low + max(_NEAR_BYTES, part.low // 8) for part in parts if part.movable)
    short = at_floors and seen.soon_bytes < 0
    since = (now if memory.short_since is None else memory.short_since) if short else None
    take = since is not None and now - since >= settings.take_after_seconds
    moved = levers.move(
        memory.guests,
        sample.guests,
        now,
        spare_bytes=seen.soon_bytes - band(settings, seen),
        missing_bytes=-seen.soon_bytes if take else 0,
    )
    left = msgspec.structs.replace(
        seen,
        spare_bytes=seen.spare_bytes - moved.promised_bytes,
        soon_bytes=seen.soon_bytes - moved.promised_bytes,
    )
    memory = msgspec.structs.replace(memory, guests=moved.levers, short_since=since)
    return memory, left, moved.balloons


def band(settings: Settings, seen: outlook.Outlook) -> int:
    """The dead band, in bytes."""
    return outlook.dead_band(seen.least_size_bytes, settings.band_share, settings.band_least_bytes)


def _divide(
    settings: Settings,
    memory: Memory,
    sample: samples.Sample,
    seen: outlook.Outlook,
    parts: list[targets.Part],
    balloons: Mapping[str, int],
    passed: float,
) -> tuple[Memory, samples.Decision]:
    """The disks' part of a decision."""
    now = memory.at_seconds or 0.0
    pressed = sample.pressed and seen.tight
    if pressed or seen.soon_bytes < 0:
        memory = msgspec.structs.replace(memory, pressed_at=now)
    quiet = now - memory.pressed_at >= settings.quiet_seconds
    movable = [part for part in parts if part.movable]
    if quiet and targets.caps_fit(parts, seen.soon_bytes, band(settings, seen) // 2):
        memory = _fitting(memory, movable, seen.soon_bytes)
        chosen = {part.name: part.high if part.movable else part.target for part in parts}
        return memory, _decision(sample, seen, parts, chosen, balloons)
    still = _still([part for part in parts if not part.movable], seen.soon_bytes)
    spare = seen.soon_bytes - still.licences
    memory = _climb(settings, memory, movable, seen, spare, pressed=pressed, passed=passed)
    budget = memory.budget_bytes or 0
    plan = targets.plan(
        settings,
        movable,
        targets.shares(settings, movable, budget),
        budget=budget,
        spare=max(0, spare),
        may_grow=quiet,
        may_move=quiet and now - memory.moved_at >= settings.move_seconds,
    )
    if plan.moved:
        memory = msgspec.structs.replace(memory, moved_at=now)
    chosen = {**plan.targets, **still.targets}
    return memory, _decision(sample, seen, parts, chosen, balloons, pressed=pressed, moved=plan.moved)


class _Still(msgspec.Struct, frozen=True):
    """Disks that cannot fall: what they keep as targets, and what that lets them grow, floors included."""

    targets: dict[str, int]
    licences: int


def _still(parts: list[targets.Part], spare: int) -> _Still:
    """They grow no further than they may already, and not at all where that is no longer spare."""
    debt = targets.debt(parts)
    licences = debt + sum(map(targets.licence, parts))
    if licences <= max(0, spare):
        return _Still({part.name: part.target for part in parts}, licences)
    return _Still({part.name: min(part.target, max(part.low, part.ram)) for part in parts}, debt)


def _fitting(memory: Memory, movable: list[targets.Part], spare: int) -> Memory:
    """All caps fit: the budget is whatever is there."""
    held = {part.name: part.ram for part in movable}
    return msgspec.structs.replace(
        memory, budget_bytes=sum(held.values()) + spare, climbing=False, movable=held
    )


def _climb(
    settings: Settings,
    memory: Memory,
    movable: list[targets.Part],
    seen: outlook.Outlook,
    spare: int,
    *,
    pressed: bool,
    passed: float,
) -> Memory:
    """The budget: down at once to what there is, up slowly, after a quiet time, and not for little."""
    held = {part.name: part.ram for part in movable}
    most = sum(held.values()) + spare
    if pressed:
        above = sum(max(0, part.ram - part.low) for part in movable)
        step = max(settings.pressure_least_bytes, int(above * settings.pressure_share))
        most = sum(held.values()) + min(0, spare) - step
    dead = band(settings, seen)
    # At first half the band is left, so that noise need not take it back; but nothing is given back for that.
    budget, climbing = max(min(most, sum(held.values())), most - dead // 2), False
    if memory.budget_bytes is not None:
        # What came or went with its RAM, as a disk that started or can move again, is neither rise nor fall.
        came = sum(held[name] for name in held.keys() - memory.movable.keys())
        went = sum(memory.movable[name] for name in memory.movable.keys() - held.keys())
        budget = min(most, memory.budget_bytes + came - went)
        now = memory.at_seconds or 0.0
        quiet = now - memory.pressed_at >= settings.quiet_seconds
        goal = min(most - dead // 2, sum(part.high for part in movable))
        if quiet and goal > budget and (memory.climbing or most - budget > dead):
            rate = max(settings.grow_least_bytes, seen.least_size_bytes * settings.grow_share)
            budget = min(goal, budget + int(rate * min(passed, 1.0)))
            climbing = budget < goal
    floors = sum(part.low for part in movable)
    return msgspec.structs.replace(memory, budget_bytes=max(floors, budget), climbing=climbing, movable=held)


def _decision(
    sample: samples.Sample,
    seen: outlook.Outlook,
    parts: list[targets.Part],
    chosen: Mapping[str, int],
    balloons: Mapping[str, int],
    *,
    pressed: bool = False,
    moved: bool = False,
) -> samples.Decision:
    """What changes, in how much of a hurry, and why."""
    changed = {part.name: chosen[part.name] for part in parts if chosen[part.name] != part.told}
    falling = any(part.ram > chosen[part.name] for part in parts if part.movable)
    asked = sample.wanted_bytes is not None and seen.spare_bytes < 0
    can_give = any(chosen[part.name] > part.low for part in parts if part.movable)
    hurry = None
    if falling and (pressed or seen.soon_bytes < 0):
        hurry = _hurry(sample) if asked else HURRY_SECONDS
    if seen.soon_bytes < 0 and not can_give:
        reason = "floors"
    elif asked:
        reason = "reserve"
    elif pressed:
        reason = "pressure"
    elif moved:
        reason = "rebalance"
    elif any(chosen[part.name] < part.target for part in parts):
        reason = "shrink"
    else:
        reason = "grow" if changed else "steady"
    return samples.Decision(changed, balloons, hurry, reason)


def _hurry(sample: samples.Sample) -> float:
    """What is left of a reservation's time, or what pressure gets."""
    left = sample.wanted_seconds
    if left is None or not math.isfinite(left):
        return HURRY_SECONDS
    return max(LEAST_HURRY_SECONDS, left * HURRY_PART)
