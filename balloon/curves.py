"""A disk's miss-ratio curve: how many page reads per second miss with so many bytes of RAM.  Pure functions.

The log is a stack ordered by age, and what is younger is in RAM first.  So a read hits if what lives and is
younger than what it reads fits into the RAM: its *depth*, the stack distance of Mattson et al. ("Evaluation
techniques for storage hierarchies", IBM Systems Journal 9(2), 1970), in bytes.  The plugin counts reads by
age; each look turns what came since the last one into depths by what lived then, since ages move on with
every segment that is written and depths do not.  Old looks are forgotten exponentially.

What a further byte brings is the slope of the curve's convex hull, not of the curve: a curve with a cliff
gains nothing up to it, and a division that follows slopes would never cross.  That a share between two
points of the hull is worth what lies between them is how Talus (Beckmann and Sanchez, HPCA 2015) and
Cliffhanger (Cidon et al., NSDI 2016) treat cliffs.
"""

import bisect
from collections.abc import Iterable, Sequence
from typing import Final

import msgspec

from swaptide.cache import ages, geometry

# Half of what was read so long ago still counts: long enough for some thousands of reads from a guest that
# swaps at all, short enough that RAM follows a guest that changed within two minutes.
HALF_LIFE_SECONDS: Final = 45.0
# RAM that a byte of content takes: the log cleans segments that are less than three quarters live, so they
# are seven eighths live in the mean.
RAM_PER_BYTE: Final = 8 / 7
# With less than this seen, what was read counts as if it had taken so long: the first look is no storm.
LEAST_SECONDS: Final = 5.0

# Depths are kept in buckets like those of ages, in segments; here their bounds in bytes.
_EDGES: Final = tuple(ages.youngest(index) * geometry.SEGMENT_BYTES for index in range(ages.BUCKETS))
_END: Final = _EDGES[-1] * 5 // 4
_BOUNDS: Final = (*_EDGES, _END)


class Demand(msgspec.Struct, frozen=True):
    """What one disk reads, by depth: `pages` in `seconds`, both forgotten by halves.

    `reads` and `live` are what the disk said at the last look, at `at_seconds`.
    """

    at_seconds: float
    reads: tuple[int, ...]
    live: tuple[int, ...]
    pages: tuple[float, ...] = (0.0,) * ages.BUCKETS
    seconds: float = 0.0


class Curve(msgspec.Struct, frozen=True):
    """The hull: from `ends[k-1]` (0 for the first) to `ends[k]` bytes of RAM each byte saves `gains[k]` page
    reads per second.  Ends rise and gains fall.  `reads` is all that is read per second."""

    ends: tuple[float, ...] = ()
    gains: tuple[float, ...] = ()
    reads: float = 0.0


FLAT: Final = Curve()


def observe(
    last: Demand | None,
    at_seconds: float,
    reads: Sequence[int],
    live: Sequence[int],
    half_life_seconds: float = HALF_LIFE_SECONDS,
) -> Demand:
    """`last` and what came since.  Counters that fell, as of a disk that was cleared, begin anew."""
    reads, live = tuple(reads), tuple(live)
    if last is None or len(reads) != len(last.reads) or at_seconds < last.at_seconds:
        return Demand(at_seconds, reads, live)
    if reads == last.reads:
        came: list[int] = []
    else:
        came = [now - before for now, before in zip(reads, last.reads, strict=True)]
        if min(came) < 0:
            return Demand(at_seconds, reads, live)
    passed = at_seconds - last.at_seconds
    kept = 0.5 ** (passed / half_life_seconds) if half_life_seconds > 0 else 0.0
    pages = [count * kept for count in last.pages]
    if came:
        _deposit(pages, depths(came, _between(last.live, live)))
    return Demand(at_seconds, reads, live, tuple(pages), last.seconds * kept + passed)


def depths(came: Sequence[int], live: Sequence[float]) -> Iterable[tuple[float, float, float]]:
    """Pages read by age as (pages, least depth, greatest depth), with so much alive at each age."""
    above = 0.0
    for index, count in enumerate(came):
        below = above + (live[index] if index < len(live) else 0.0)
        if count:
            yield count, above, below
        above = below


def hit_share(came: Sequence[int], live: Sequence[float], ram_bytes: float) -> float:
    """Which part of these reads, 0 to 1, finds its page in so much RAM; 1 where nothing was read."""
    content = ram_bytes / RAM_PER_BYTE
    hits = total = 0.0
    for count, above, below in depths(came, live):
        total += count
        if below <= content:
            hits += count
        elif above < content:
            hits += count * (content - above) / (below - above)
    return hits / total if total else 1.0


def curve(demand: Demand) -> Curve:
    """The hull of what this demand says."""
    seconds = max(demand.seconds, LEAST_SECONDS)
    ends: list[float] = []
    gains: list[float] = []
    start = hits = 0.0
    for index, pages in enumerate(demand.pages):
        if pages <= 0:
            continue
        end, rate = _BOUNDS[index + 1] * RAM_PER_BYTE, pages / seconds
        hits += rate
        gain = rate / (end - start)
        while gains and gain >= gains[-1]:
            # Before it less was gained per byte: the hull goes straight from further back.
            ends.pop()
            slope = gains.pop()
            from_ = ends[-1] if ends else 0.0
            rate += slope * (start - from_)
            start = from_
            gain = rate / (end - start)
        ends.append(end)
        gains.append(gain)
        start = end
    return Curve(tuple(ends), tuple(gains), hits)


def hits(curve: Curve, ram_bytes: float) -> float:
    """Page reads per second that so much RAM serves, on the hull."""
    found = start = 0.0
    for end, gain in zip(curve.ends, curve.gains, strict=True):
        if ram_bytes <= start:
            break
        found += gain * (min(end, ram_bytes) - start)
        start = end
    return found


def misses(curve: Curve, ram_bytes: float) -> float:
    """Page reads per second that go to the store with so much RAM, on the hull."""
    return max(0.0, curve.reads - hits(curve, ram_bytes))


def gain(curve: Curve, ram_bytes: float) -> float:
    """Page reads per second that the next byte saves."""
    at = bisect.bisect_right(curve.ends, ram_bytes)
    return curve.gains[at] if at < len(curve.gains) else 0.0


def _between(before: Sequence[int], after: Sequence[int]) -> list[float]:
    # What was read may be freed at once, and what is there now was partly written meanwhile: the mean of
    # both.
    if before == after or len(before) != len(after):
        return [float(size) for size in after]
    return [(old + new) / 2 for old, new in zip(before, after, strict=True)]


def _deposit(pages: list[float], came: Iterable[tuple[float, float, float]]) -> None:
    """Add reads to the buckets of their depths; those of one age are spread evenly over its depths."""
    for count, above, below in came:
        first = min(ages.BUCKETS - 1, bisect.bisect_right(_EDGES, above) - 1)
        last = min(ages.BUCKETS - 1, max(first, bisect.bisect_left(_EDGES, below) - 1))
        if first == last:
            pages[first] += count
            continue
        density = count / (below - above)
        for index in range(first, last):
            pages[index] += density * (_EDGES[index + 1] - max(above, _EDGES[index]))
        pages[last] += density * (below - _EDGES[last])
