"""What is to be reached, judged from made-up figures; and that each target's row exists."""

import pathlib

import pytest

from bench import figures, measure, report, rows_guest, rows_memory, run, targets

AT_LEAST = targets.Target("reads", "memory", "at least", 1.0, "reads", "rate")
AT_MOST = targets.Target("p99", "at rest", "at most", 3.0, "reads", "p99")
UNDER = targets.Target("start", "", "under", 1.0, "reads", "start", "s")


def compared(
    metric: str,
    ours: list[float],
    theirs: list[float] | None = None,
    *,
    less: bool = False,
    failed: str | None = None,
) -> figures.Comparison:
    """A measurement of ours beside one other."""
    values = {} if failed else {measure.OURS: ours}
    values |= {"memory": theirs, "memory again": theirs} if theirs else {}
    return figures.evaluate(
        measure.Measurement(
            row="reads",
            metric=metric,
            title="Reads",
            unit="s",
            better="less" if less else "more",
            values=values,
            reference=("memory",) if theirs else (),
            again=("memory again", "memory") if theirs else None,
            failed={measure.OURS: failed} if failed else {},
        )
    )


def judged(target: targets.Target, *comparisons: figures.Comparison) -> targets.Line:
    [line] = targets.evaluate({"reads": comparisons}, [target])
    return line


def test_the_ratio_is_that_of_the_medians() -> None:
    # By rounds the ratios are 2, 0.5 and 1; of the medians it is 1.5.
    line = judged(AT_LEAST, compared("rate", [20.0, 15.0, 10.0], [10.0, 30.0, 10.0]))
    assert line.measured == "1.50 (0.50 to 2.00)"
    assert line.noise == "1.00 (1.00 to 1.00)" and line.reached is True


@pytest.mark.parametrize(
    ("needed", "ratio", "reached"),
    [(1.0, 0.95, True), (1.0, 0.94, False), (0.7, 0.7, True), (0.7, 0.69, False), (1.6, 1.59, False)],
)
def test_almost_one_is_one_and_nothing_else_is_almost(needed: float, ratio: float, reached: bool) -> None:
    target = targets.Target("reads", "memory", "at least", needed, "reads", "rate")
    assert targets.is_reached(target, ratio) is reached


@pytest.mark.parametrize(("p99", "reached"), [(3.0, True), (3.2, False), (0.5, True)])
def test_at_most_is_of_how_many_times_worse(p99: float, reached: bool) -> None:
    line = judged(AT_MOST, compared("p99", [p99, p99], [1.0, 1.0], less=True))
    assert line.measured == f"{p99:.2f} ({p99:.2f} to {p99:.2f})"
    assert line.reached is reached


def test_spread_of_how_many_times_worse() -> None:
    line = judged(AT_MOST, compared("p99", [1.0, 2.0, 4.0], [1.0, 1.0, 1.0], less=True))
    assert line.measured == "2.00 (1.00 to 4.00)"


@pytest.mark.parametrize(("seconds", "reached"), [(0.9, True), (1.0, False)])
def test_a_value_of_its_own(seconds: float, reached: bool) -> None:
    line = judged(UNDER, compared("start", [seconds], less=True))
    assert line.reached is reached and line.measured == figures.quantity(seconds, "s")
    assert targets.cells(line)[1:3] == [figures.NOTHING, "under 1.00 s"]


def test_what_was_not_measured_says_why() -> None:
    assert judged(AT_LEAST).measured == "not measured: the row failed"
    failed = compared("rate", [], [1.0], failed="no memory")
    assert judged(AT_LEAST, failed).measured == "not measured: no memory"
    alone = compared("rate", [1.0])
    assert judged(AT_LEAST, alone).measured == "not measured: nothing to compare with"
    line = judged(UNDER, figures.evaluate(measure.Measurement("reads", "start", "", "s", "less", {}, ())))
    assert line.measured == "not measured: see the notes of its row"
    assert (line.reached, targets.cells(line)[-1]) == (None, figures.NOTHING)


def test_rows_that_were_not_asked_for_are_left_out() -> None:
    assert targets.evaluate({}) == []


def test_every_target_has_a_row_and_its_metric() -> None:
    rows = {row.name for row in run.collect(run.MODULES)}
    assert {target.row for target in targets.TARGETS} <= rows
    names = [(target.row, target.metric) for target in targets.TARGETS]
    assert len(set(names)) == len(names)
    held = rows_memory.measurements("guest", "pages", 1 << 20, {}, {}, ())
    metrics = {each.metric for each in held} | {each.name for each in rows_guest.METRICS}
    wanted = {each.metric for each in targets.TARGETS if each.row in ("held-guest", rows_guest.ROW)}
    assert wanted <= metrics


def test_the_table_is_at_the_top() -> None:
    recorded = pathlib.Path(__file__).parents[2] / "bench" / "results" / "full.json"
    results = report.from_json(recorded.read_text())
    text = report.markdown(results)
    assert text.index("## Targets") < text.index("## nbd")
    assert "| random read hits, 4 KiB, depth 1 | nbdkit memory, best -t | at least 1.00 | 0." in text
