"""Medians, spreads, ratios and verdicts, from values whose answers are known."""

import math
from collections.abc import Mapping, Sequence

import pytest

from bench import figures, measure


def measurement(
    values: Mapping[str, Sequence[float]],
    better: figures.Better = "more",
    reference: tuple[str, ...] = ("memory",),
    again: tuple[str, str] | None = None,
    failed: Mapping[str, str] | None = None,
) -> measure.Measurement:
    return measure.Measurement("row", "rate", "A row", "k/s", better, values, reference, again, failed or {})


def test_spread_of_few_and_of_many_values() -> None:
    assert figures.spread([]) is None
    assert figures.spread([3.0]) == figures.Spread(3.0, 3.0, 3.0, 1)
    assert figures.spread([5.0, 1.0, 3.0]) == figures.Spread(3.0, 1.0, 5.0, 3)
    assert figures.spread([4.0, 1.0, 2.0, 3.0, 5.0]) == figures.Spread(3.0, 1.0, 5.0, 5, (2.0, 4.0))


def test_a_ratio_above_one_is_better() -> None:
    assert figures.ratio(20, 10, "more") == 2
    assert figures.ratio(20, 10, "less") == 0.5


def test_ratios_of_nothing() -> None:
    assert figures.ratio(0, 10, "more") == 0
    assert figures.ratio(10, 0, "more") is None
    assert figures.ratio(0, 10, "less") is None
    assert figures.ratio(0, 0, "more") == figures.ratio(0, 0, "less") == 1


def test_values_of_the_same_round_are_paired() -> None:
    # The machine's speed doubles from round to round: the medians say 1.0, the rounds 2, 2 and 0.5.
    found = figures.ratios([2, 4, 4], [1, 2, 8], "more")
    assert found == figures.Spread(2.0, 0.5, 2.0, 3)


def test_rounds_that_one_of_them_lacks_are_left_out() -> None:
    assert figures.ratios([2, 3], [1], "more") == figures.Spread(2.0, 2.0, 2.0, 1)
    assert figures.ratios([2, 3], [0, 1], "more") == figures.Spread(3.0, 3.0, 3.0, 1)
    assert figures.ratios([2, 3], [], "more") is None


@pytest.mark.parametrize(("better", "best"), [("more", "t4"), ("less", "t1")])
def test_the_best_of_several_references_counts(better: figures.Better, best: str) -> None:
    values = {"t1": [1.0, 9.0, 1.0], "t4": [3.0, 3.0, 3.0], "t16": [2.0, 2.0, 2.0], "swaptide": [3.0] * 3}
    found = figures.evaluate(measurement(values, better, ("t1", "t4", "t16")))
    assert found.reference == best
    assert found.figures[best].ratio == figures.Spread(1.0, 1.0, 1.0, 3)


def test_a_reference_that_failed_is_not_the_best() -> None:
    values = {"t1": [1.0], "swaptide": [2.0]}
    found = figures.evaluate(measurement(values, reference=("t1", "t4"), failed={"t4": "no socket"}))
    assert found.reference == "t1"
    assert found.figures["t4"] == figures.Figure(None, None, "no socket")
    assert found.verdict == "ahead"


def test_without_any_reference_there_is_no_verdict() -> None:
    found = figures.evaluate(measurement({"swaptide": [2.0]}, failed={"memory": "gone"}))
    assert (found.reference, found.verdict, found.figures["swaptide"].ratio) == (None, None, None)
    assert found.figures["swaptide"].value == figures.Spread(2.0, 2.0, 2.0, 1)


def test_without_us_there_is_no_verdict() -> None:
    found = figures.evaluate(measurement({"memory": [2.0]}, failed={"swaptide": "broke"}))
    assert (found.verdict, found.ours) == (None, figures.Figure(None, None, "broke"))
    assert figures.evaluate(measurement({"memory": [2.0]})).ours is None


def test_noise_floor_is_the_ratio_of_the_two_instances() -> None:
    values = {"memory": [10.0, 10.0], "memory again": [8.0, 11.0]}
    more = figures.evaluate(measurement(values, again=("memory again", "memory")))
    assert more.noise is not None and (more.noise.least, more.noise.greatest) == (0.8, 1.1)
    assert more.noise.median == pytest.approx(0.95)
    less = figures.noise_floor(measurement(values, "less", again=("memory again", "memory")))
    assert less is not None and less.greatest == 1.25
    gone = measurement({"memory": [1.0]}, again=("memory again", "memory"), failed={"memory again": "x"})
    assert figures.evaluate(gone).noise is None


def test_noise_band_is_the_same_whoever_is_first() -> None:
    one = figures.noise_band(figures.Spread(0.9, 0.8, 1.1, 2))
    other = figures.noise_band(figures.Spread(1.1, 1 / 1.1, 1.25, 2))
    assert one == pytest.approx((0.8, 1.25)) and other == pytest.approx(one)
    assert figures.noise_band(None) == pytest.approx((0.95, 1 / 0.95))


def test_one_bad_round_does_not_widen_the_band() -> None:
    noise = figures.spread([1.0, 1.02, 0.99, 1.01, 0.2])
    assert figures.noise_band(noise)[0] == pytest.approx(0.95)


@pytest.mark.parametrize(
    ("ratio", "noise", "verdict"),
    [
        (0.94, None, "behind"),
        (0.95, None, "equal"),
        (1.05, None, "equal"),
        (1.06, None, "ahead"),
        (0.85, (0.8, 1.0), "equal"),
        (0.79, (0.8, 1.0), "behind"),
        (1.2, (0.8, 1.0), "equal"),
        (1.3, (0.8, 1.0), "ahead"),
    ],
)
def test_verdict(ratio: float, noise: tuple[float, float] | None, verdict: str) -> None:
    floor = figures.Spread(sum(noise) / 2, *noise, 2) if noise else None
    assert figures.verdict(figures.spread([ratio]), floor) == verdict


@pytest.mark.parametrize("wrong", [math.nan, math.inf, -1.0])
def test_what_is_no_measured_value_is_refused(wrong: float) -> None:
    with pytest.raises(ValueError, match="rate of memory"):
        figures.evaluate(measurement({"memory": [1.0, wrong]}))


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (0.01234, "0.0123"), (1.2, "1.20"), (9.999, "10.0"), (45.64, "45.6"), (999.6, "1,000")]
    + [(12345, "12,300"), (0.0009996, "0.00100")],
)
def test_numbers_have_three_digits(value: float, text: str) -> None:
    assert figures.number(value) == text


def test_quantities_and_ratios_as_text() -> None:
    assert figures.quantity(118.84, "k/s") == "119 k/s"
    assert figures.quantity(2, "") == "2.00"
    assert figures.ratio_text(None) == "–"
    assert figures.ratio_text(figures.spread([1.5])) == "1.50"
    assert figures.ratio_text(figures.spread([0.01, 1.5, 250])) == "1.50 (0.0100 to 250)"


def test_whose_failures_are_ours() -> None:
    assert figures.is_ours("swaptide") and figures.is_ours("swaptide, cap a quarter")
    assert figures.is_ours("swaptide again") and not figures.is_ours("nbdkit memory")
    failed = {"swaptide again": "broke", "memory": "gone"}
    found = figures.evaluate(measurement({}, failed=failed))
    assert figures.failures_of_ours([found]) == ["swaptide again: broke"]
