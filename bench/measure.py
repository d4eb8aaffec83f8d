"""What a row of the benchmark is, what it yields, and how contenders take turns.

One thread measures; contenders are never measured at the same time.
"""

import contextlib
import dataclasses
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Literal, TypeVar

T = TypeVar("T")

# The contender that is us, in every row.
OURS = "swaptide"


class ContenderError(Exception):
    """A contender could not be started or measured; str() says why, in a line."""


@dataclasses.dataclass(frozen=True)
class Plan:
    """How much to measure.  `seconds` is the length of one timed measurement of a request pattern."""

    rounds: int
    seconds: float
    quick: bool


@dataclasses.dataclass(frozen=True)
class Measurement:
    """One figure of one row, for all contenders: `values` by contender, one for each round.

    A contender whose name stands in `failed` has no values there but a reason.  `reference` is the contender
    that ratios are taken against, or the names of several of which the best one counts (nbdkit memory
    with several numbers of threads).  `again` names the contender that is another instance of one of the
    others: the ratio of the two is the noise floor.
    """

    row: str
    metric: str
    title: str
    unit: str
    better: Literal["more", "less"]
    values: Mapping[str, Sequence[float]]
    reference: tuple[str, ...]
    again: tuple[str, str] | None = None
    failed: Mapping[str, str] = dataclasses.field(default_factory=dict)
    notes: tuple[str, ...] = ()


@dataclasses.dataclass
class Lab:
    """What a row works with.

    `scratch` is an empty directory on a real file system, removed in the end with all that is in it.
    `stack` ends what was started; a row may leave servers in it for the next row (see `kept`).
    `tell` shows a line of progress.
    """

    plan: Plan
    scratch: pathlib.Path
    stack: contextlib.ExitStack
    tell: Callable[[str], None]
    kept: dict[str, object] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of work.  `measure` yields its figures; `group` names the rows that may share servers."""

    name: str
    group: str
    title: str
    measure: Callable[[Lab], Sequence[Measurement]]


def take_turns(
    lab: Lab, names: Sequence[str], rounds: int, measure: Callable[[str], T]
) -> tuple[dict[str, list[T]], dict[str, str]]:
    """Measure each contender once a round; returns the values and the failures, by name.

    The order rotates from round to round, so that no contender always comes right after the same other one.
    A contender that fails is left out from then on, and loses the values it had.
    """
    values: dict[str, list[T]] = {name: [] for name in names}
    failed: dict[str, str] = {}
    for turn in range(rounds):
        for step in range(len(names)):
            name = names[(turn + step) % len(names)]
            if name in failed:
                continue
            lab.tell(f"round {turn + 1} of {rounds}, {name}")
            try:
                values[name].append(measure(name))
            except ContenderError as error:
                failed[name] = str(error)
                del values[name]
    return values, failed
