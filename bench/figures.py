"""What the values of a measurement say: medians, spreads, ratios of each round, the noise floor, a verdict.

Pure functions of measure.Measurement; nothing here is shared or kept.
"""

import dataclasses
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Final, Literal

from bench import measure

Better = Literal["more", "less"]
Verdict = Literal["ahead", "equal", "behind"]

# A ratio this close to 1 counts as equal, however quiet the run was.
CLOSE: Final = 0.95
# Fewer values than this have no quartiles worth the name.
QUARTILES_FROM: Final = 4
DIGITS: Final = 3
NOTHING: Final = "–"


@dataclasses.dataclass(frozen=True)
class Spread:
    """The median of `count` values, the least and the greatest, and the quartiles of four values or more."""

    median: float
    least: float
    greatest: float
    count: int
    quartiles: tuple[float, float] | None = None


@dataclasses.dataclass(frozen=True)
class Figure:
    """One contender: its values in the measurement's unit, and its ratio to the reference.

    Both are None when there is nothing to say, and `failed` says why if the contender failed.
    """

    value: Spread | None
    ratio: Spread | None
    failed: str | None = None


@dataclasses.dataclass(frozen=True)
class Comparison:
    """A measurement, evaluated.  `reference` is the best of its references, None if none has values.

    A ratio above 1 always means that the contender is better than the reference, also where less is better.
    `noise` is the ratio of the two instances of one contender.
    """

    measurement: measure.Measurement
    figures: Mapping[str, Figure]
    reference: str | None
    noise: Spread | None
    verdict: Verdict | None

    @property
    def ours(self) -> Figure | None:
        """Our own figure, None where we were not measured."""
        return self.figures.get(measure.OURS)


def is_ours(contender: str) -> bool:
    """Whether it is swaptide, or swaptide with other settings ("swaptide, cap a quarter")."""
    return contender == measure.OURS or contender.startswith((f"{measure.OURS} ", f"{measure.OURS},"))


def spread(values: Sequence[float]) -> Spread | None:
    """Median and spread; None without values."""
    if not values:
        return None
    quartiles = None
    if len(values) >= QUARTILES_FROM:
        lower, _, upper = statistics.quantiles(values, n=4, method="inclusive")
        quartiles = lower, upper
    return Spread(statistics.median(values), min(values), max(values), len(values), quartiles)


def ratio(contender: float, reference: float, better: Better) -> float | None:
    """How many times better the contender is; None where a division by zero leaves no answer."""
    above, below = (contender, reference) if better == "more" else (reference, contender)
    if above == below:
        return 1.0
    return above / below if below else None


def ratios(contender: Sequence[float], reference: Sequence[float], better: Better) -> Spread | None:
    """The spread of the ratios of each round.

    Values of the same round are paired, because the machine's speed drifts from round to round.  Rounds
    that only one of the two has are left out.
    """
    pairs = zip(contender, reference, strict=False)
    found = (ratio(first, second, better) for first, second in pairs)
    return spread([each for each in found if each is not None])


def best_reference(measurement: measure.Measurement) -> str | None:
    """The reference with the best median; None if all of them failed or were left out."""
    measured = [name for name in measurement.reference if measurement.values.get(name)]
    if not measured:
        return None
    best = max if measurement.better == "more" else min
    return best(measured, key=lambda name: statistics.median(measurement.values[name]))


def noise_floor(measurement: measure.Measurement) -> Spread | None:
    """The ratio of the contender that was measured twice; None if there is none, or if it failed."""
    if measurement.again is None:
        return None
    first, second = (measurement.values.get(name, ()) for name in measurement.again)
    return ratios(first, second, measurement.better)


def noise_band(noise: Spread | None) -> tuple[float, float]:
    """The ratios that say nothing, least and greatest: they are as close to 1 as the noise floor is.

    The quartiles where there are some: a median is judged by it, and one bad round must not excuse it.
    Which of the two instances was called the first one makes no difference.
    """
    low, high = (1.0, 1.0) if noise is None else noise.quartiles or (noise.least, noise.greatest)
    least = min(CLOSE, low, 1 / high if high > 0 else low)
    return least, 1 / least if least > 0 else math.inf


def verdict(ours: Spread | None, noise: Spread | None) -> Verdict | None:
    """Our median ratio beside the noise; None without a ratio."""
    if ours is None:
        return None
    low, high = noise_band(noise)
    if ours.median < low:
        return "behind"
    return "ahead" if ours.median > high else "equal"


def evaluate(measurement: measure.Measurement) -> Comparison:
    """All that can be said of a measurement.  Raises ValueError for negative values and for no numbers."""
    check(measurement)
    reference = best_reference(measurement)
    beside = measurement.values[reference] if reference is not None else ()
    figures = {
        name: Figure(spread(values), ratios(values, beside, measurement.better))
        for name, values in measurement.values.items()
        if name not in measurement.failed
    }
    figures |= {name: Figure(None, None, reason) for name, reason in measurement.failed.items()}
    noise = noise_floor(measurement)
    ours = figures.get(measure.OURS)
    return Comparison(measurement, figures, reference, noise, verdict(ours.ratio if ours else None, noise))


def check(measurement: measure.Measurement) -> None:
    """Raises ValueError unless all values are finite and not negative."""
    for name, values in measurement.values.items():
        if wrong := [value for value in values if not math.isfinite(value) or value < 0]:
            raise ValueError(f"{measurement.metric} of {name}: {wrong[0]}")


def number(value: float) -> str:
    """Three significant digits, without an exponent: 0.0123, 1.20, 45.6, 12,300."""
    if value == 0:
        return "0"
    # Rounded first: 9.999 has one digit more before the point once it is 10.0.
    rounded = float(f"{value:.{DIGITS - 1}e}")
    decimals = max(0, DIGITS - 1 - math.floor(math.log10(abs(rounded))))
    return f"{rounded:,.{decimals}f}"


def quantity(value: float, unit: str) -> str:
    """A number with its unit, if it has one."""
    return f"{number(value)} {unit}".rstrip()


def times(value: float) -> str:
    """A ratio: two decimals, or three digits where those would be too few or too many."""
    return f"{value:.2f}" if 0.095 <= value < 100 or value == 0 else number(value)


def ratio_text(found: Spread | None) -> str:
    """A ratio with its spread (least to greatest), as far as there is one."""
    if found is None:
        return NOTHING
    if found.count == 1:
        return times(found.median)
    return f"{times(found.median)} ({times(found.least)} to {times(found.greatest)})"


def value_text(found: Spread | None) -> str:
    """A median without its unit."""
    return NOTHING if found is None else number(found.median)


def failures_of_ours(comparisons: Iterable[Comparison]) -> list[str]:
    """Why swaptide, in whatever settings, could not be measured."""
    return [
        f"{name}: {figure.failed}"
        for comparison in comparisons
        for name, figure in comparison.figures.items()
        if is_ours(name) and figure.failed is not None
    ]
