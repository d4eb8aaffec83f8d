"""Miss-ratio curves: depths by hand, the hull, and what is forgotten."""

import itertools

import hypothesis
import pytest
from hypothesis import strategies as st

from swaptide.balloon import curves
from swaptide.cache import ages
from tests.unit.hosts import GIB, MIB, ages_of, examples

COUNTS = st.lists(st.integers(0, 10**6), min_size=ages.BUCKETS, max_size=ages.BUCKETS)
SIZES = st.lists(st.integers(0, 64 * GIB), min_size=ages.BUCKETS, max_size=ages.BUCKETS)


def demand(reads: list[int], live: list[int], seconds: float = 10.0) -> curves.Demand:
    """What a disk shows that has read so much in this time."""
    first = curves.observe(None, 0.0, [0] * ages.BUCKETS, live)
    return curves.observe(first, seconds, reads, live)


def test_a_read_is_as_deep_as_what_lives_and_is_younger() -> None:
    live = list(ages_of((3, GIB), (10, 2 * GIB), (40, GIB)))
    found = list(curves.depths(ages_of((3, 5), (40, 7)), live))
    assert found == [(5, 0, GIB), (7, 3 * GIB, 4 * GIB)]


def test_hits_are_what_fits() -> None:
    live = list(ages_of((3, GIB), (10, GIB)))
    came = ages_of((3, 300), (10, 100))
    shares = [
        curves.hit_share(came, live, size * curves.RAM_PER_BYTE) for size in (0, GIB // 2, GIB, 3 * GIB // 2)
    ]
    assert shares == pytest.approx([0.0, 150 / 400, 300 / 400, 350 / 400])
    assert curves.hit_share(came, live, 4 * GIB) == 1.0
    assert curves.hit_share(ages_of(), live, 0) == 1.0


def test_a_working_set_shows_where_it_ends() -> None:
    """One GiB read evenly: nothing is gained beyond it, and within it all bytes are alike."""
    curve = curves.curve(demand(list(ages_of((12, 10_000))), list(ages_of((12, GIB), (50, 4 * GIB)))))
    assert curve.reads == pytest.approx(1000)
    assert curves.misses(curve, 0) == pytest.approx(1000)
    assert curves.misses(curve, GIB * curves.RAM_PER_BYTE / 2) == pytest.approx(500, rel=0.01)
    assert curves.misses(curve, GIB * curves.RAM_PER_BYTE) == pytest.approx(0, abs=1)
    assert curves.gain(curve, 2 * GIB) == 0
    assert curves.gain(curve, 0) == pytest.approx(1000 / (GIB * curves.RAM_PER_BYTE), rel=0.01)


def test_a_cliff_is_crossed_by_its_hull() -> None:
    """All reads go to what lies behind a GIB that nobody reads: the curve is flat at first, its hull is
    not.
    """
    live = list(ages_of((12, GIB), (30, 256 * MIB)))
    curve = curves.curve(demand(list(ages_of((30, 10_000))), live))
    assert curves.gain(curve, 0) > 0
    assert curves.misses(curve, 1280 * MIB * curves.RAM_PER_BYTE) == pytest.approx(0, abs=1)


def test_the_depth_stays_though_ages_move_on() -> None:
    """A clump that is read evenly while it grows older is one working set, not many."""
    found = curves.observe(None, 0.0, ages_of(), ages_of((10, GIB)))
    counts = [0] * ages.BUCKETS
    for second, bucket in enumerate(range(10, 40), start=1):
        counts[bucket] += 1000
        found = curves.observe(found, float(second), counts, ages_of((bucket, GIB)))
    curve = curves.curve(found)
    assert curves.misses(curve, GIB / 2 * curves.RAM_PER_BYTE) == pytest.approx(curve.reads / 2, rel=0.05)


def test_half_is_forgotten_in_a_half_life() -> None:
    found = demand(list(ages_of((10, 1000))), list(ages_of((10, GIB))))
    later = curves.observe(found, 10.0 + curves.HALF_LIFE_SECONDS, found.reads, found.live)
    assert sum(later.pages) == pytest.approx(sum(found.pages) / 2)


def test_a_cleared_disk_begins_anew() -> None:
    found = demand(list(ages_of((10, 1000), (11, 5))), list(ages_of((10, GIB))))
    again = curves.observe(found, 20.0, ages_of((10, 2), (11, 50)), found.live)
    assert sum(again.pages) == 0 and again.reads == ages_of((10, 2), (11, 50))


def test_a_first_look_is_no_storm() -> None:
    """What came in a tenth of a second is not taken for ten times as much per second."""
    found = demand(list(ages_of((10, 100))), list(ages_of((10, GIB))), seconds=0.1)
    assert curves.curve(found).reads == pytest.approx(100 / curves.LEAST_SECONDS)


@hypothesis.given(COUNTS, SIZES)
@examples(100)
def test_the_hull_is_convex_and_loses_nothing(reads: list[int], live: list[int]) -> None:
    found = demand(reads, live)
    assert sum(found.pages) == pytest.approx(sum(reads))
    curve = curves.curve(found)
    assert curve.reads == pytest.approx(sum(reads) / 10)
    assert all(one < two for one, two in itertools.pairwise(curve.ends))
    assert all(one >= two for one, two in itertools.pairwise(curve.gains))
    assert all(gain > 0 for gain in curve.gains)
    everything = curve.ends[-1] if curve.ends else 0
    assert curves.misses(curve, everything) == pytest.approx(0, abs=1e-6 * max(1, curve.reads))


@hypothesis.given(COUNTS, SIZES, st.integers(0, 1 << 42))
@examples(100)
def test_the_hull_is_never_above_the_curve(reads: list[int], live: list[int], ram: int) -> None:
    """The hull promises at least the hits that the buckets show, rounded to the buckets of depth."""
    found = demand(reads, live)
    curve = curves.curve(found)
    served = sum(
        pages
        for index, pages in enumerate(found.pages)
        if index + 1 < ages.BUCKETS and ages.youngest(index + 1) * (2 << 20) * curves.RAM_PER_BYTE <= ram
    )
    assert curves.hits(curve, ram) >= served / 10 - 1e-6 * max(1, curve.reads)
