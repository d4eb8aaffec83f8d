"""The second lever: guests' own balloons, by what the guests say of themselves.  Pure functions.

Nothing a guest says is trusted: statistics that are old or missing move nothing, a balloon that does not
answer is left alone for longer and longer, and no guest is taken below its least.  Sizes in bytes, times in
seconds.
"""

import math
from collections.abc import Iterable, Mapping
from typing import Final

import msgspec

from swaptide.balloon import outlook, samples

# A guest that brings back a thousand pages a second waits for some of every millisecond: it is short of RAM.
HARD_BYTES_PER_SECOND: Final = 4 << 20
# One that moves a quarter of that in either direction is not idle.
_IDLE_PART: Final = 4
# Statistics are polled every 2 s; four polls missed are a guest that does not answer.
OLD_SECONDS: Final = 10.0
STEP_SHARE: Final = 1 / 8
LEAST_STEP_BYTES: Final = 64 << 20
# Steps below this are not worth a guest's while.
WORTH_BYTES: Final = 16 << 20
# What is taken at once of what a guest calls available, beyond what is left to it: its own caches are part
# of it.
TAKE_SHARE: Final = 1 / 4
KEEP_SHARE: Final = 1 / 8
KEEP_BYTES: Final = 128 << 20
# A guest shows in two polls what a step did to it.
SETTLE_SECONDS: Final = 5.0
GIVE_UP_SECONDS: Final = 10.0
BACK_OFF_SECONDS: Final = 60.0
_MOST_DOUBLINGS: Final = 6
# A balloon moves by whole pages and may stop a few short.
_NEAR_BYTES: Final = 4 << 20
# Rates are taken over at least so much of the guest's own time.
_LEAST_SECONDS: Final = 0.5


class Lever(msgspec.Struct, frozen=True):
    """What is remembered of one guest.

    `said_at` is when its statistics were made; rates are None until two of them were seen.  `asked_bytes`
    is the step under way, None for none; `nearest_bytes` how near it came, at `nearer_at`.
    """

    said_at: float | None = None
    swapped_in: int | None = None
    swapped_out: int | None = None
    in_per_second: float | None = None
    out_per_second: float | None = None
    asked_bytes: int | None = None
    nearest_bytes: int = 0
    nearer_at: float = 0.0
    moved_at: float = -math.inf
    blocked_until: float = -math.inf
    failures: int = 0


class Move(msgspec.Struct, frozen=True):
    """What guests are asked now, and what the host must leave free for steps up that are under way."""

    levers: Mapping[str, Lever]
    balloons: Mapping[str, int]
    promised_bytes: int


def move(
    levers: Mapping[str, Lever],
    guests: Iterable[samples.Guest],
    now: float,
    *,
    spare_bytes: int,
    missing_bytes: int,
) -> Move:
    """One step for whom it is due: up out of `spare_bytes`, down for `missing_bytes` (0: take nothing)."""
    known = {guest.name: guest for guest in guests}
    found: dict[str, Lever] = {}
    balloons: dict[str, int] = {}
    for name, guest in known.items():
        found[name], withdrawn = _settle(_hear(levers.get(name, Lever()), guest, now), guest, now)
        if withdrawn is not None:
            balloons[name] = withdrawn
    promised = sum(_promised(found[name], guest) for name, guest in known.items())
    # Who suffers most is first; names decide between equals.
    by_need = sorted(known, key=lambda name: (-(found[name].in_per_second or 0.0), name))
    for name in by_need:
        step = _give(found[name], known[name], now, spare_bytes - promised)
        if step:
            balloons[name] = outlook.bounded(known[name].actual_bytes) + step
            found[name] = _ask(found[name], known[name], balloons[name], now)
            promised += step
    by_idleness = sorted(known, key=lambda name: (-_idle(known[name]), name))
    for name in by_idleness:
        step = _take(found[name], known[name], now) if missing_bytes > 0 else 0
        if step:
            balloons[name] = outlook.bounded(known[name].actual_bytes) - step
            found[name] = _ask(found[name], known[name], balloons[name], now)
            missing_bytes -= step
    return Move(found, balloons, promised)


def _hear(lever: Lever, guest: samples.Guest, now: float) -> Lever:
    """Take in what a guest says, if it is new."""
    age, came, went = guest.age_seconds, guest.swapped_in_bytes, guest.swapped_out_bytes
    if age is None or not math.isfinite(age):
        return lever
    said = now - max(0.0, age)
    if lever.said_at is not None and abs(said - lever.said_at) < _LEAST_SECONDS:
        return lever
    heard = msgspec.structs.replace(
        lever, said_at=said, swapped_in=came, swapped_out=went, in_per_second=None, out_per_second=None
    )
    if lever.said_at is None or said < lever.said_at:
        return heard
    passed = said - lever.said_at
    return msgspec.structs.replace(
        heard,
        in_per_second=_rate(lever.swapped_in, came, passed),
        out_per_second=_rate(lever.swapped_out, went, passed),
    )


def _rate(before: int | None, now: int | None, passed: float) -> float | None:
    # Counters that fell are a guest that booted again.
    if before is None or now is None or now < before:
        return None
    return outlook.bounded(now - before) / passed


def _settle(lever: Lever, guest: samples.Guest, now: float) -> tuple[Lever, int | None]:
    """Look after the step under way: it has arrived, goes on, or is given up and withdrawn."""
    if lever.asked_bytes is None:
        return lever, None
    actual = outlook.bounded(guest.actual_bytes)
    away = abs(actual - lever.asked_bytes)
    if away <= _NEAR_BYTES:
        return msgspec.structs.replace(lever, asked_bytes=None, moved_at=now, failures=0), None
    if away <= lever.nearest_bytes - _NEAR_BYTES:
        return msgspec.structs.replace(lever, nearest_bytes=away, nearer_at=now), None
    if now - lever.nearer_at < GIVE_UP_SECONDS:
        return lever, None
    wait = BACK_OFF_SECONDS * 2 ** min(lever.failures, _MOST_DOUBLINGS)
    given_up = msgspec.structs.replace(
        lever, asked_bytes=None, moved_at=now, blocked_until=now + wait, failures=lever.failures + 1
    )
    # Or a driver that is loaded in an hour would find the old wish and follow it.
    return given_up, max(actual, outlook.bounded(guest.min_bytes))


def _ask(lever: Lever, guest: samples.Guest, asked: int, now: float) -> Lever:
    away = abs(asked - outlook.bounded(guest.actual_bytes))
    return msgspec.structs.replace(lever, asked_bytes=asked, nearest_bytes=away, nearer_at=now)


def _promised(lever: Lever, guest: samples.Guest) -> int:
    if lever.asked_bytes is None:
        return 0
    return max(0, lever.asked_bytes - outlook.bounded(guest.actual_bytes))


def _may_move(lever: Lever, guest: samples.Guest, now: float) -> bool:
    age = guest.age_seconds
    return (
        lever.asked_bytes is None
        and age is not None
        and 0 <= age <= OLD_SECONDS
        and now >= lever.blocked_until
        and now - lever.moved_at >= SETTLE_SECONDS
    )


def _give(lever: Lever, guest: samples.Guest, now: float, spare_bytes: int) -> int:
    """A step up for a guest that swaps in hard; 0 for none."""
    if not _may_move(lever, guest, now) or (lever.in_per_second or 0.0) < HARD_BYTES_PER_SECOND:
        return 0
    least, most = outlook.bounded(guest.min_bytes), outlook.bounded(guest.max_bytes)
    step = max(LEAST_STEP_BYTES, int((most - least) * STEP_SHARE))
    step = min(step, most - outlook.bounded(guest.actual_bytes), spare_bytes)
    return step if step >= WORTH_BYTES else 0


def _take(lever: Lever, guest: samples.Guest, now: float) -> int:
    """A step down for a guest that is idle by its own account; 0 for none."""
    rates = (lever.in_per_second, lever.out_per_second)
    quiet = HARD_BYTES_PER_SECOND / _IDLE_PART
    if not _may_move(lever, guest, now) or any(rate is None or rate >= quiet for rate in rates):
        return 0
    step = min(
        int(_idle(guest) * TAKE_SHARE),
        outlook.bounded(guest.actual_bytes) - outlook.bounded(guest.min_bytes),
    )
    return step if step >= WORTH_BYTES else 0


def _idle(guest: samples.Guest) -> int:
    """What a guest could spare by its own account."""
    if guest.available_bytes is None:
        return 0
    actual = outlook.bounded(guest.actual_bytes)
    keep = max(KEEP_BYTES, int(actual * KEEP_SHARE))
    return max(0, min(outlook.bounded(guest.available_bytes), actual) - keep)
