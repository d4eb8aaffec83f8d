"""The disks' targets: the way from what each has to what each shall have.  Pure functions; sizes in bytes.

Three rules hold for every plan.  A target is between floor and cap.  What a target is above the RAM in use
(or the floor) is a licence to grow at the guest's speed, and all licences together never exceed what is
spare.  All targets together never exceed the budget, unless the floors do.
"""

from collections.abc import Sequence

import msgspec

from swaptide.balloon import curves, division
from swaptide.balloon.settings import Settings


class Part(msgspec.Struct, frozen=True):
    """One disk: low <= target <= high; `told` is what the disk itself says is its target."""

    name: str
    low: int
    high: int
    ram: int
    target: int
    told: int
    weight: float
    curve: curves.Curve = curves.FLAT
    movable: bool = True


class Plan(msgspec.Struct, frozen=True):
    """Targets by name, and what was done to get there."""

    targets: dict[str, int]
    moved: bool = False


def licence(part: Part) -> int:
    """What a disk may still take before its target, its floor aside."""
    return max(0, part.target - max(part.low, part.ram))


def debt(parts: Sequence[Part]) -> int:
    """What disks below their floors may take, whatever is spare."""
    return sum(max(0, part.low - part.ram) for part in parts)


def caps_fit(parts: Sequence[Part], spare: int, margin: int) -> bool:
    """Whether all disks that can move could fill their caps out of `spare`.

    With `margin` left over, unless they are at their caps already.
    """
    movable = [part for part in parts if part.movable]
    needed = sum(max(0, part.high - part.ram) for part in movable)
    needed += sum(max(0, part.target - part.ram) for part in parts if not part.movable)
    there = all(part.target == part.high for part in movable)
    return needed <= spare - (0 if there else margin)


def shares(settings: Settings, parts: Sequence[Part], budget: int) -> list[int]:
    """What each shall have of the budget.

    First no more than it has and some headroom, so that a licence nobody uses keeps nobody else small; what
    is left then is divided up to the caps.
    """
    claims = [division.Claim(part.low, _reach(settings, part), part.weight, part.curve) for part in parts]
    first = division.divide(claims, budget, settings.fairness)
    if budget <= sum(claim.high_bytes for claim in claims):
        return first
    rest = [
        division.Claim(got, part.high, part.weight, part.curve)
        for got, part in zip(first, parts, strict=True)
    ]
    return division.divide(rest, budget, settings.fairness)


def plan(
    settings: Settings,
    parts: Sequence[Part],
    wanted: Sequence[int],
    *,
    budget: int,
    spare: int,
    may_grow: bool,
    may_move: bool,
) -> Plan:
    """The next targets on the way to `wanted`."""
    need = sum(max(part.low, part.ram) for part in parts) - budget
    if need > 0:
        return Plan(_named(parts, _shrink(parts, wanted, need)))
    spare = max(0, spare - debt(parts))
    base = [max(part.low, min(part.target, part.ram)) for part in parts]
    extra = [part.target - kept for part, kept in zip(parts, base, strict=True)]
    extra = _cut(base, extra, wanted, max(0, min(spare, budget - sum(base))))
    moved = False
    if may_move:
        base, extra, moved = _move(settings, parts, wanted, base, extra, budget, spare)
    if may_grow:
        base, extra = _grow(settings, parts, wanted, base, extra, budget, spare)
    return Plan(_named(parts, [kept + more for kept, more in zip(base, extra, strict=True)]), moved)


def _reach(settings: Settings, part: Part) -> int:
    headroom = max(settings.headroom_least_bytes, int(part.ram * settings.headroom_share))
    return min(part.high, max(part.low, part.ram + headroom))


def _named(parts: Sequence[Part], sizes: Sequence[int]) -> dict[str, int]:
    return {part.name: size for part, size in zip(parts, sizes, strict=True)}


def _shrink(parts: Sequence[Part], wanted: Sequence[int], need: int) -> list[int]:
    """Targets that free `need`: what is on its way already, then what disks have beyond their shares.

    Those are enough: the shares are no more than the budget, or the floors.
    """
    freed = [max(0, part.ram - part.target) for part in parts]
    beyond = [max(0, part.ram - max(part.low, size)) for part, size in zip(parts, wanted, strict=True)]
    _fill(freed, beyond, need)
    return [min(part.target, max(part.low, part.ram - size)) for part, size in zip(parts, freed, strict=True)]


def _fill(freed: list[int], most: Sequence[int], need: int) -> None:
    """Raise `freed` towards `most`, each in proportion, until their sum is `need`."""
    room = [max(0, limit - size) for limit, size in zip(most, freed, strict=True)]
    rest, total = need - sum(freed), sum(room)
    if rest <= 0 or total <= 0:
        return
    for index, size in enumerate(room):
        # Rounded up: what is needed is freed.
        freed[index] += size if rest >= total else -(-size * rest // total)


def _cut(base: Sequence[int], extra: list[int], wanted: Sequence[int], room: int) -> list[int]:
    """Licences within `room`: first those beyond a disk's share give way, then all in proportion."""
    over = sum(extra) - room
    if over <= 0:
        return extra
    beyond = [
        min(more, max(0, kept + more - size)) for kept, more, size in zip(base, extra, wanted, strict=True)
    ]
    total = sum(beyond)
    if total > 0:
        taken = min(over, total)
        extra = [more - -(-size * taken // total) for more, size in zip(extra, beyond, strict=True)]
    total = sum(extra)
    return extra if total <= room else [more * room // total for more in extra]


def _gaps(settings: Settings, base: Sequence[int], extra: Sequence[int], wanted: Sequence[int]) -> list[int]:
    """How far each target is below its share, 0 within the dead band."""
    gaps = [size - kept - more for kept, more, size in zip(base, extra, wanted, strict=True)]
    return [
        gap if gap > max(settings.move_band_least_bytes, int(size * settings.move_band_share)) else 0
        for gap, size in zip(gaps, wanted, strict=True)
    ]


def _move(
    settings: Settings,
    parts: Sequence[Part],
    wanted: Sequence[int],
    base: list[int],
    extra: list[int],
    budget: int,
    spare: int,
) -> tuple[list[int], list[int], bool]:
    """One step of RAM from disks above their shares, as much as those below miss.

    Not before the last step has been taken: until then the RAM is neither here nor there.
    """
    late = sum(max(0, part.ram - part.target) for part in parts)
    gaps = _gaps(settings, base, extra, wanted)
    free = min(spare - sum(extra), budget - sum(base) - sum(extra))
    missing = sum(gaps) - max(0, free)
    if late > settings.move_band_least_bytes or missing <= 0:
        return base, extra, False
    if not _worth_moving(settings, parts, wanted, gaps, budget):
        return base, extra, False
    step = max(settings.move_least_bytes, int(sum(part.ram for part in parts) * settings.move_share))
    step = min(step, missing)
    # The band is for who gets it: what each of many gives may be little.
    beyond = [max(0, kept + more - size) for kept, more, size in zip(base, extra, wanted, strict=True)]
    total = sum(beyond)
    if total <= 0:
        return base, extra, False
    base, extra = list(base), list(extra)
    for index, size in enumerate(beyond):
        give = size * min(step, total) // total
        unused = min(extra[index], give)
        extra[index] -= unused
        base[index] = max(parts[index].low, base[index] - (give - unused))
    return base, extra, True


def _worth_moving(
    settings: Settings, parts: Sequence[Part], wanted: Sequence[int], gaps: Sequence[int], budget: int
) -> bool:
    """Whether what the shares are worth more than the targets is something to those who would get RAM.

    Near the best division another one is worth as much, and noise makes the difference.  A licence beyond
    a disk's reach is worth nothing to it.
    """
    claims = [division.Claim(part.low, part.high, part.weight, part.curve) for part in parts]
    price = division.price_of(claims, budget, settings.fairness)
    reach = [_reach(settings, part) for part in parts]
    gained = sum(
        division.worth(claim, min(size, most), price) - division.worth(claim, min(part.target, most), price)
        for claim, size, part, most in zip(claims, wanted, parts, reach, strict=True)
    )
    scale = sum(
        part.weight * (part.curve.reads + price) for part, gap in zip(parts, gaps, strict=True) if gap > 0
    )
    return gained > settings.move_worth_share * scale


def _grow(
    settings: Settings,
    parts: Sequence[Part],
    wanted: Sequence[int],
    base: list[int],
    extra: list[int],
    budget: int,
    spare: int,
) -> tuple[list[int], list[int]]:
    """Targets towards the shares: RAM that was to go may stay, and licences within what is spare."""
    gaps = _gaps(settings, base, extra, wanted)
    total = sum(gaps)
    free = min(total, budget - sum(base) - sum(extra))
    if free <= 0:
        return base, extra
    rises = [gap * free // total for gap in gaps]
    stays = [
        min(rise, max(0, max(part.low, part.ram) - kept)) if not more else 0
        for rise, part, kept, more in zip(rises, parts, base, extra, strict=True)
    ]
    asked = [rise - stay for rise, stay in zip(rises, stays, strict=True)]
    left, total = max(0, spare - sum(extra)), sum(asked)
    granted = asked if total <= left else [ask * left // total for ask in asked]
    return (
        [kept + stay for kept, stay in zip(base, stays, strict=True)],
        [more + grant for more, grant in zip(extra, granted, strict=True)],
    )
