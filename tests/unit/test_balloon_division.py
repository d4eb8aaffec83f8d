"""Dividing RAM: floors, caps, weights, gains; exact, continuous, and the same every time."""

import hypothesis
import pytest
from hypothesis import strategies as st

from swaptide.balloon import curves, division
from tests.unit.hosts import GIB, MIB, examples

FLOOR = 32 * MIB


def even(reads: float, size: int = GIB) -> curves.Curve:
    """A working set that is read evenly."""
    return curves.Curve((float(size),), (reads / size,), reads)


def falling(reads: float, pieces: int = 64, piece: int = 32 * MIB) -> curves.Curve:
    """Each piece is read half as often as the one at half its depth."""
    total = sum(1 / n for n in range(1, pieces + 1))
    ends = tuple(float(piece * n) for n in range(1, pieces + 1))
    gains = tuple(reads / total / n / piece for n in range(1, pieces + 1))
    return curves.Curve(ends, gains, reads)


def claim(curve: curves.Curve = curves.FLAT, weight: float = 100, high: int = 2 * GIB) -> division.Claim:
    return division.Claim(FLOOR, high, weight, curve)


def test_without_reads_weights_divide() -> None:
    one, two = division.divide([claim(weight=100), claim(weight=200)], 1536 * MIB)
    assert two == pytest.approx(2 * one, rel=1e-4)
    assert 1536 * MIB - 2 * 4096 <= one + two <= 1536 * MIB


def test_equal_disks_get_equal_parts() -> None:
    for curve in (even(1000), falling(1000), curves.FLAT):
        one, two = division.divide([claim(curve), claim(curve)], GIB)
        assert abs(one - two) <= 4096


def test_equal_disks_of_twice_the_weight_get_twice_where_gains_fall() -> None:
    one, two = division.divide([claim(falling(1000), 100), claim(falling(1000), 200)], GIB)
    assert two == pytest.approx(2 * one, rel=0.15)


def test_the_hot_one_gets_most() -> None:
    hot, cold = division.divide([claim(even(1000, 2 * GIB)), claim(even(10, 2 * GIB))], GIB)
    assert hot > 0.9 * GIB and cold >= FLOOR
    hot, cold = division.divide([claim(even(1000)), claim()], 1536 * MIB)
    assert hot >= GIB, "its whole working set first"


def test_a_little_more_heat_is_not_all_of_it() -> None:
    """Noise of two percent moves no more than a few percent of the RAM."""
    one, two = division.divide([claim(even(1020, 2 * GIB)), claim(even(1000, 2 * GIB))], GIB)
    assert abs(one - two) < GIB / 8


def test_a_weight_of_nothing_gets_its_floor() -> None:
    none, some = division.divide([claim(even(1000), 0), claim(weight=1)], GIB)
    assert none == pytest.approx(FLOOR, abs=MIB) and some == pytest.approx(GIB - FLOOR, abs=MIB)
    assert division.divide([claim(weight=0), claim(weight=1)], 3 * GIB)[0] == pytest.approx(GIB, abs=MIB)


def test_too_little_for_the_floors_is_the_floors() -> None:
    assert division.divide([claim(), claim()], 10) == [FLOOR, FLOOR]
    assert division.divide([], 10) == []


def test_the_price_goes_by_gain_and_not_by_order() -> None:
    """The last quarter of what goes by gain alone is the cold disk's, whoever is named first."""
    hot, cold = claim(even(1000)), claim(even(10))
    budget = 3 * GIB // 2
    price = division.price_of([hot, cold], budget)
    assert price == pytest.approx(division.price_of([cold, hot], budget))
    assert price == division.LEAST_PRICE, "a tenth of what ten reads a second are"


CURVES = st.lists(st.tuples(st.integers(1, 1 << 41), st.floats(0, 1e-3, allow_nan=False)), max_size=8).map(
    lambda found: curves.Curve(
        tuple(sorted({float(end) for end, _ in found})),
        tuple(sorted((gain for _, gain in found), reverse=True))[: len({end for end, _ in found})],
    )
)
CLAIMS = st.lists(
    st.builds(
        lambda low, more, weight, curve: division.Claim(low, low + more, weight, curve),
        st.integers(0, 1 << 40),
        st.integers(0, 1 << 40),
        st.one_of(st.integers(0, 10_000), st.floats(0, 1e12)),
        CURVES,
    ),
    max_size=12,
)


@hypothesis.given(CLAIMS, st.integers(0, 1 << 44))
@examples(100)
def test_exact_within_bounds_and_the_same_again(claims: list[division.Claim], budget: int) -> None:
    parts = division.divide(claims, budget)
    assert parts == division.divide(claims, budget)
    for part, each in zip(parts, claims, strict=True):
        assert each.low_bytes <= part <= each.high_bytes
    lows, highs = sum(each.low_bytes for each in claims), sum(each.high_bytes for each in claims)
    if lows <= budget:
        wanted = min(budget, highs)
        # Doubles have 53 bits: at terabytes a page is the exactness that there is.
        assert wanted - 4096 * (len(claims) + 1) <= sum(parts) <= wanted
    else:
        assert sum(parts) == lows


@hypothesis.given(CLAIMS, st.integers(0, 1 << 44), st.randoms(use_true_random=False))
@examples(100)
def test_the_order_does_not_matter(claims: list[division.Claim], budget: int, chance: object) -> None:
    order = list(range(len(claims)))
    chance.shuffle(order)  # type: ignore[attr-defined]
    parts = division.divide(claims, budget)
    again = division.divide([claims[at] for at in order], budget)
    assert [parts[at] for at in order] == pytest.approx(again, rel=1e-6, abs=8192)
