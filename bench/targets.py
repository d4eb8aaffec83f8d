"""What swaptide is to reach, and how far a run got: one line for each, computed from the rows' figures.

Pure functions of figures.Comparison; nothing here is shared or kept.
"""

import dataclasses
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Final, Literal

from bench import figures, measure

Bound = Literal["at least", "at most", "under"]

MEMORY: Final = "nbdkit memory, best -t"
FILE: Final = "nbdkit file cache=none"
CAP: Final = "writes at the cap"
HELD: Final = "guest bytes held per byte of host RAM, real pages"
# A ratio that is to be 1 counts as reached from here on.
EQUAL: Final = figures.CLOSE


@dataclasses.dataclass(frozen=True)
class Target:
    """One line.  `row` and `metric` name the measurement, in which swaptide is the contender.

    Against its reference: a ratio of medians.  Without `against`: swaptide's own median, in `unit`.
    `at least` is of how many times better it is, `at most` of how many times worse.
    """

    what: str
    against: str
    bound: Bound
    needed: float
    row: str
    metric: str
    unit: str = ""


@dataclasses.dataclass(frozen=True)
class Line:
    """A target, and what a run says of it; where it was not measured, `measured` is why, `reached` None."""

    target: Target
    measured: str
    noise: str
    reached: bool | None


def _hit(what: str, row: str, needed: float = 1.0) -> Target:
    return Target(what, MEMORY, "at least", needed, row, "rate")


def _at_cap(what: str, row: str) -> tuple[Target, Target]:
    return (
        Target(what, FILE, "at least", 0.8, row, "rate"),
        Target(f"{what}: p99", "", "under", 20.0, row, "p99", "ms"),
    )


def _held(algorithm: str, metric: str, what: str) -> Target:
    return Target(
        f"{HELD}, {what}", f"zram {algorithm} on the same pages", "at least", 1.0, "held-guest", metric
    )


TARGETS: Final[tuple[Target, ...]] = (
    _hit("random read hits, 4 KiB, depth 1", "randread-4k-d1"),
    _hit("random read hits, 4 KiB, depth 16", "randread-4k-d16"),
    _hit("32 KiB read hits, depth 8, filled in order", "read-32k-d8-sequential-fill"),
    _hit("32 KiB read hits, depth 8, after random overwrites", "read-32k-d8-random-overwrites", 0.7),
    _hit("random writes, 4 KiB, depth 16, cap not reached", "randwrite-4k-d16"),
    _hit("128 KiB writes, depth 8, cap not reached", "write-128k-d8"),
    Target(
        *("random reads of packed pages, 4 KiB, depth 16", "nbdkit memory allocator=zstd", "at least", 1.0),
        *("randread-packed-4k-d16", "rate"),
    ),
    *_at_cap(f"4 KiB random {CAP}, depth 16", "write-4k-d16-at-cap"),
    *_at_cap(f"128 KiB {CAP}, depth 8", "write-128k-d8-at-cap"),
    *_at_cap(f"4 KiB random {CAP}, depth 16, data that packs", "write-4k-d16-at-cap-packs"),
    *_at_cap(f"128 KiB {CAP}, depth 8, data that packs", "write-128k-d8-at-cap-packs"),
    Target(
        *("random reads of spilled pages, 4 KiB, depth 16", "fio on the same disk, direct", "at least", 0.6),
        *("read-spilled-4k-d16", "rate"),
    ),
    _held("lz4", "guest bytes held", "lz4"),
    _held("lz4", "guest bytes held, whole process", "lz4, the empty process counted too"),
    _held("zstd", "guest bytes held, zstd", "zstd"),
    _held("zstd", "guest bytes held, zstd, whole process", "zstd, the empty process counted too"),
    Target(
        *("memory returned per second, half of it clean", "the disk's own direct write", "at least", 1.6),
        *("squeeze-half-clean", "returned"),
    ),
    Target(
        *("p99 of hits during that squeeze", "p99 at rest", "at most", 3.0),
        *("squeeze-half-clean-under-load", "hit p99"),
    ),
    Target(
        *("segments written to an NBD server", "nbdcopy onto such a server", "at least", 0.8),
        *("remote-spill", "written"),
    ),
    Target(
        *("random reads of pages on an NBD server, depth 16", "nbdkit nbd, as a proxy", "at least", 1.0),
        *("remote-read-4k-d16", "rate"),
    ),
    Target(
        *("the same, with a server 1 ms away", "no proxy", "at least", 0.8),
        *("remote-read-4k-d16-1ms", "rate"),
    ),
    Target(
        *("RAM for metadata per stored page, raw", "", "at most", 12.0),
        *("metadata", "metadata, raw", "bytes"),
    ),
    Target(
        *("RAM for metadata per stored page, packed", "", "at most", 12.0),
        *("metadata", "metadata, packed", "bytes"),
    ),
    Target(
        *("RAM for a page that was read and never written", "", "at most", 0.0),
        *("metadata", "metadata, read but never written", "bytes"),
    ),
    Target("a disk of 1 TiB: start", "", "under", 1.0, "disk-1tib", "start", "s"),
    Target("a disk of 1 TiB: RAM", "", "under", 64.0, "disk-1tib", "RAM", "MiB"),
    Target(
        *("host CPU seconds per GiB swapped, cap not reached", "nbdkit memory", "at most", 1.1),
        *("guest-swap", "host CPU"),
    ),
    Target("a scrape of 64 disks", "", "under", 50.0, "scrape-64", "scrape", "ms"),
    Target(
        *("read hits while 64 disks are scraped once a second", "the same, not scraped", "at least", 1.0),
        *("hits-while-scraped", "rate"),
    ),
    Target("64 disks: all of them started", "", "under", 20.0, "scale-64", "starting", "s"),
    Target(
        "64 disks: RAM of each at rest", "", "at most", 48.0, "scale-64", "RAM of a process at rest", "MiB"
    ),
    Target(
        *("p99 of hits beside a guest at full speed, equal CPU weights", "alone", "at most", 1.2),
        *("neighbour-equal", "p99"),
    ),
)


def evaluate(
    rows: Mapping[str, Sequence[figures.Comparison]], targets: Iterable[Target] = TARGETS
) -> list[Line]:
    """A line for each target whose row was part of the run; `rows` are the comparisons by the row's name."""
    return [_line(target, rows[target.row]) for target in targets if target.row in rows]


def _line(target: Target, comparisons: Sequence[figures.Comparison]) -> Line:
    found = [each for each in comparisons if each.measurement.metric == target.metric]
    if not found:
        return Line(target, "not measured: the row failed", figures.NOTHING, None)
    ours = found[0].ours
    if ours is None or ours.value is None:
        why = ours.failed if ours is not None and ours.failed is not None else "see the notes of its row"
        return Line(target, f"not measured: {why}", figures.NOTHING, None)
    if not target.against:
        value = ours.value.median
        text = figures.quantity(value, target.unit)
        return Line(target, text, figures.NOTHING, is_reached(target, value))
    ratio = ratio_of_medians(found[0])
    if ratio is None:
        return Line(target, "not measured: nothing to compare with", figures.NOTHING, None)
    noise = figures.ratio_text(found[0].noise)
    if target.bound == "at least":
        return Line(target, _with_spread(ratio, ours.ratio), noise, is_reached(target, ratio))
    worse = 1 / ratio
    spread = turned(ours.ratio)
    return Line(target, _with_spread(worse, spread), noise, is_reached(target, worse))


def ratio_of_medians(comparison: figures.Comparison) -> float | None:
    """How many times better our median is than the reference's; None without an answer."""
    measured, reference = comparison.measurement, comparison.reference
    if reference is None:
        return None
    ours, theirs = (statistics.median(measured.values[name]) for name in (measure.OURS, reference))
    return figures.ratio(ours, theirs, measured.better) or None


def is_reached(target: Target, value: float) -> bool:
    """Whether a ratio or value is what is needed; 0.95 counts as 1."""
    if target.bound == "at least":
        return value >= (EQUAL if target.needed == 1 else target.needed)
    return value < target.needed if target.bound == "under" else value <= target.needed


def turned(spread: figures.Spread | None) -> figures.Spread | None:
    """Of how many times worse, from how many times better."""
    if spread is None or not spread.least:
        return None
    return figures.Spread(1 / spread.median, 1 / spread.greatest, 1 / spread.least, spread.count)


def _with_spread(ratio: float, rounds: figures.Spread | None) -> str:
    """The ratio of medians, and the least and greatest ratio of a round."""
    if rounds is None or rounds.count == 1:
        return figures.times(ratio)
    return f"{figures.times(ratio)} ({figures.times(rounds.least)} to {figures.times(rounds.greatest)})"


def needed(target: Target) -> str:
    """The bound in words."""
    return f"{target.bound} {figures.quantity(target.needed, target.unit)}"


def cells(line: Line) -> list[str]:
    """A line of the table."""
    reached = {True: "yes", False: "**no**", None: figures.NOTHING}[line.reached]
    against = line.target.against or figures.NOTHING
    return [line.target.what, against, needed(line.target), line.measured, line.noise, reached]


HEAD: Final = ("what", "against", "needed", "measured", "noise floor", "reached")
EXPLAINED: Final = (
    "Measured is the ratio of the medians, and the least and the greatest ratio of a round; `at least` says",
    f"how many times better, `at most` how many times worse. {EQUAL:g} counts as 1.",
)
