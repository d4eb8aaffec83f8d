"""Dividing RAM among disks: floors first, then to where a byte is worth most.  Pure, exact, deterministic.

A byte is worth weight * (gain + fairness / size): what it saves, on the disk's hull, and a price that falls
with what the disk has already.  The worth of every disk's next byte is made equal (water filling), between
what each must and may have.  With no gains at all that is size in proportion to weight, the shares-per-page
rule of Waldspurger ("Memory resource management in VMware ESX Server", OSDI 2002); the gain takes the place
of his tax on idle memory: what is not read costs its holder more.  The price also makes the answer
continuous: two disks with equal curves get equal parts instead of all or nothing, so noise in the curves
moves little.
"""

import math
from collections.abc import Sequence
from typing import Final

import msgspec

from swaptide.balloon import curves

# The price is such that at an equal share it is so much of what the last quarter of the RAM saves per byte:
# a disk that saves nothing keeps a twentieth of its equal share against one busy neighbour.
FAIRNESS: Final = 0.1
_LAST_PART: Final = 0.25
# In page reads per second: whoever reads less than this is moved by weight rather than by its reads.
LEAST_PRICE: Final = 1.0
# A weight of 0 is a weight so small that it gets its floor until all others have their caps.
LEAST_WEIGHT: Final = 1e-6
GREATEST_WEIGHT: Final = 1e9

_ROUNDS: Final = 100
_PAGE: Final = 4096


class Claim(msgspec.Struct, frozen=True):
    """One disk: it gets from `low_bytes` to `high_bytes`."""

    low_bytes: int
    high_bytes: int
    weight: float = 1.0
    curve: curves.Curve = curves.FLAT


def divide(claims: Sequence[Claim], budget_bytes: int, fairness: float = FAIRNESS) -> list[int]:
    """What each gets, in their order; in sum at most the budget, unless the lows alone are more."""
    lows = [claim.low_bytes for claim in claims]
    highs = [claim.high_bytes for claim in claims]
    if budget_bytes <= sum(lows):
        return lows
    if budget_bytes >= sum(highs):
        return highs
    parts = _level(claims, budget_bytes, price_of(claims, budget_bytes, fairness))
    return [min(high, max(low, math.floor(part))) for low, high, part in zip(lows, highs, parts, strict=True)]


def price_of(claims: Sequence[Claim], budget_bytes: int, fairness: float = FAIRNESS) -> float:
    """The price of size at this budget, in page reads per second."""
    return max(LEAST_PRICE, fairness * _last_part(claims, budget_bytes)) if claims else LEAST_PRICE


def worth(claim: Claim, size_bytes: int, price: float) -> float:
    """What divide() makes the most of, summed over all disks: the integral of what each byte is worth."""
    saved = curves.hits(claim.curve, size_bytes)
    return weight_of(claim.weight) * (saved + price * math.log(max(1, size_bytes)))


def weight_of(weight: float) -> float:
    """A weight that can be reckoned with."""
    return float(min(GREATEST_WEIGHT, max(LEAST_WEIGHT, weight)))


def _last_part(claims: Sequence[Claim], budget_bytes: int) -> float:
    """Reads saved by the last part of the budget, if all went by gain alone, as if an equal share were that
    dense.
    """
    pieces = []
    spent = 0.0
    for claim in claims:
        spent += claim.low_bytes
        start = 0.0
        for end, gain in zip(claim.curve.ends, claim.curve.gains, strict=True):
            size = min(end, claim.high_bytes) - max(start, claim.low_bytes)
            if size > 0:
                pieces.append((-gain * weight_of(claim.weight), gain, size))
            start = end
    pieces.sort()
    free = budget_bytes - spent
    begin = free * (1 - _LAST_PART)
    at = saved = 0.0
    for _, gain, size in pieces:
        saved += gain * max(0.0, min(at + size, free) - max(at, begin))
        at += size
        if at >= free:
            break
    return saved / _LAST_PART / len(claims)


def _level(claims: Sequence[Claim], budget_bytes: int, price: float) -> list[float]:
    """Sizes at the level of worth where their sum is the budget, or less by a page at most."""
    rows = [
        (float(c.low_bytes), float(c.high_bytes), weight_of(c.weight), c.curve.ends, c.curve.gains)
        for c in claims
    ]
    # Above the highest level all are at their lows, at the lowest all are at their highs.
    high = max(w * ((gains[0] if gains else 0.0) + price / max(low, 1.0)) for low, _, w, _, gains in rows)
    low = min(w * price / max(top, 1.0) for _, top, w, _, _ in rows)
    over, under = math.log(low) - 1e-9, math.log(high) + 1e-9
    best = [row[0] for row in rows]
    for _ in range(_ROUNDS):
        level = math.exp((over + under) / 2)
        sizes = [_size(row, level, price) for row in rows]
        short = budget_bytes - sum(sizes)
        if short < 0:
            over = (over + under) / 2
            continue
        best, under = sizes, (over + under) / 2
        if short < _PAGE:
            break
    return best


def _size(
    row: tuple[float, float, float, tuple[float, ...], tuple[float, ...]], level: float, price: float
) -> float:
    """The size at which the next byte of this disk is worth `level`."""
    low, high, weight, ends, gains = row
    wanted = level / weight
    start = 0.0
    for end, gain in zip(ends, gains, strict=True):
        rest = wanted - gain
        # Where the gain alone is worth the level, all of this piece is taken.
        size = price / rest if rest > 0 else high
        if size < end:
            return min(high, max(low, start, size))
        start = end
        if start >= high:
            return high
    return min(high, max(low, start, price / wanted))
