"""What a run is told as: Markdown, a table for the terminal, JSON.

Pure; one Report goes in, text comes out.  The JSON is the Report itself, field by field:

    schema     2 when a field changes its meaning; 1 now
    date       when the run began, ISO 8601, UTC
    command    how to repeat it
    plan       rounds, seconds (of one timed measurement), quick
    seconds    duration of the whole run
    host       host.Host: the machine and the versions
    rows       one for each row, in the order measured:
      name, group, title, seconds (duration), error (null, or why the row has no results)
      comparisons   one for each metric, the row's main one first (figures.Comparison):
        measurement   measure.Measurement, with all values by contender and round
        reference     the contender that ratios are taken against, or null
        figures       by contender: value and ratio (median, least, greatest, count, quartiles), failed
        noise         the ratio of two instances of one contender, or null
        verdict       "ahead", "equal", "behind", or null without a ratio
"""

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

import msgspec
from rich import box
from rich.table import Table

from bench import figures, host, measure, targets

SCHEMA: Final = 1
GIB: Final = 1 << 30


@dataclasses.dataclass(frozen=True)
class RowResult:
    """One row: what it yielded, or why it yielded nothing.  `seconds` is how long that took."""

    name: str
    group: str
    title: str
    seconds: float
    comparisons: tuple[figures.Comparison, ...] = ()
    error: str | None = None


@dataclasses.dataclass(frozen=True)
class Report:
    """A complete run.  `date` is ISO 8601 in UTC, `seconds` the duration of all of it."""

    date: str
    command: str
    plan: measure.Plan
    host: host.Host
    seconds: float
    rows: tuple[RowResult, ...]
    schema: int = SCHEMA


def to_json(results: Report) -> str:
    """The whole run, as documented above, indented."""
    return msgspec.json.format(msgspec.json.encode(results), indent=1).decode() + "\n"


def from_json(text: str) -> Report:
    """The run that was written.  Raises msgspec.ValidationError for something else."""
    return msgspec.json.decode(text, type=Report)


def primary(results: Report) -> list[figures.Comparison]:
    """The main metric of each row that has one."""
    return [row.comparisons[0] for row in results.rows if row.comparisons]


def failures(results: Report) -> list[str]:
    """What makes the run a failure: rows that raised, and swaptide itself failing."""
    found = []
    for row in results.rows:
        found += [f"{row.name}: {row.error}"] if row.error is not None else []
        found += [f"{row.name}: {why}" for why in dict.fromkeys(figures.failures_of_ours(row.comparisons))]
    return found


def groups(results: Report) -> dict[str, list[RowResult]]:
    """The rows by group, in the order measured."""
    found: dict[str, list[RowResult]] = {}
    for row in results.rows:
        found.setdefault(row.group, []).append(row)
    return found


def headline(results: Report) -> str:
    """When, on what, which version: one line."""
    machine = results.host
    what = f"swaptide {machine.versions.get('swaptide', host.UNKNOWN)}"
    return f"{what}, {results.date}, {machine.cores} cores of {machine.cpu}, Linux {machine.kernel}"


def minutes(seconds: float) -> str:
    """A duration as 0:42, 12:05 or 62:10, in minutes and seconds."""
    whole = round(seconds)
    return f"{whole // 60}:{whole % 60:02d}"


# --- Markdown -----------------------------------------------------------------------------------------------


def markdown(results: Report) -> str:
    """The document that is committed."""
    lines = ["# Benchmark results", "", *header(results), ""]
    if failed := failures(results):
        lines += ["**This run failed:**", "", *(f"- {in_line(why)}" for why in failed), ""]
    lines += target_table(results)
    for group, rows in groups(results).items():
        lines += [f"## {group}", "", *group_table(rows), *notes(rows)]
    lines += ["## Details", "", *details(results)]
    return "\n".join(lines).rstrip() + "\n"


# What all rows have in common; what a contender has beside it is in its name and in the notes of its row.
SETTINGS: Final = (
    "rows over NBD: fio's nbd engine, one connection over a Unix socket, on the same machine, nothing pinned;"
    " nbdkit with -t 16 where the name says nothing else, and no filter but in `nbdkit cache filter`"
)


def header(results: Report) -> Iterator[str]:
    """The settings and the machine."""
    machine, plan = results.host, results.plan
    governor = f", governor {machine.governor}" if machine.governor else ""
    kind = "virtual machine" if machine.is_virtual else "bare metal"
    yield f"`{results.command}`, {results.date}, took {minutes(results.seconds)} minutes."
    yield ""
    size = "quick" if plan.quick else "full"
    yield f"- plan: {size}, {plan.rounds} rounds, {figures.number(plan.seconds)} s for each measurement"
    memory = f"{machine.memory_bytes / GIB:.0f} GiB"
    yield f"- machine: {machine.cpu}, {machine.cores} cores, {memory}, {machine.architecture}, {kind}"
    yield f"- kernel: Linux {machine.kernel}, clock {machine.clocksource}{governor}"
    yield f"- files on: {machine.scratch_filesystem}, {machine.scratch_device}"
    yield f"- load average when it began: {' '.join(f'{each:.2f}' for each in machine.load)}"
    yield f"- versions: {', '.join(f'{name} {version}' for name, version in machine.versions.items())}"
    yield f"- {SETTINGS}"
    yield ""
    yield "A ratio is taken in each round, and is above 1 where the contender is better than the reference,"
    yield "the best of the contenders that the row names for that; the median over the rounds is shown, and"
    yield "the least and the greatest. The noise floor is the ratio of two instances of the same contender. A"
    band = "quartiles, or least and greatest of fewer than four rounds"
    yield f"verdict is `equal` within the noise floor ({band}) or within {1 - figures.CLOSE:.0%} of 1."


def target_table(results: Report) -> list[str]:
    """What is to be reached, and how far this run got; nothing if none of its rows was measured."""
    lines = targets.evaluate({row.name: row.comparisons for row in results.rows})
    if not lines:
        return []
    reached = sum(line.reached is True for line in lines)
    table = table_lines(targets.HEAD, map(targets.cells, lines))
    told = f"{reached} of {len(lines)} are reached."
    return ["## Targets", "", *table, "", told, *targets.EXPLAINED, ""]


def group_table(rows: Sequence[RowResult]) -> list[str]:
    """Rows and contenders, the medians, and how we compare."""
    found = [each for row in rows for each in row.comparisons]
    broken = [f"- {row.name} failed: {in_line(row.error)}" for row in rows if row.error is not None]
    if not found:
        return [*broken, ""]
    names = list(dict.fromkeys(name for each in found for name in each.figures))
    head = ["work", "metric", *names, f"{measure.OURS} / reference", "noise floor", "verdict"]
    body = [group_line(each, names) for each in found]
    return [*table_lines(head, body), "", *broken, *([""] if broken else [])]


def group_line(comparison: figures.Comparison, names: Iterable[str]) -> list[str]:
    """One metric of one row."""
    measured, ours = comparison.measurement, comparison.ours
    versus = figures.ratio_text(ours.ratio if ours else None)
    if comparison.reference is not None:
        versus += f" of {comparison.reference}"
    medians = [short(comparison, name) for name in names]
    noise = figures.ratio_text(comparison.noise)
    verdict = comparison.verdict or figures.NOTHING
    return [measured.title, metric(measured), *medians, versus, noise, verdict]


def short(comparison: figures.Comparison, name: str) -> str:
    """A contender's median, as a cell; ours is bold."""
    figure = comparison.figures.get(name)
    if figure is None:
        return figures.NOTHING
    if figure.failed is not None:
        return "failed"
    text = figures.value_text(figure.value)
    return f"**{text}**" if figures.is_ours(name) and figure.value is not None else text


def metric(measured: measure.Measurement) -> str:
    """The metric and its unit."""
    return ", ".join(filter(None, [measured.metric, measured.unit]))


def notes(rows: Sequence[RowResult]) -> list[str]:
    """What the rows say of themselves, each once."""
    said = dict.fromkeys(note for row in rows for each in row.comparisons for note in each.measurement.notes)
    return [*(f"- {in_line(note)}" for note in said), ""] if said else []


def details(results: Report) -> Iterator[str]:
    """A table for each row and metric, with all contenders."""
    for row in results.rows:
        for comparison in row.comparisons:
            measured = comparison.measurement
            yield f"### {measured.title}: {metric(measured)}"
            yield ""
            against = f"against {comparison.reference}" if comparison.reference else "no reference"
            noise = figures.ratio_text(comparison.noise)
            yield f"Row `{measured.row}`, {measured.better} is better, {against}, noise floor {noise}."
            yield ""
            head = ["contender", "median", "least", "quartiles", "greatest", "rounds", "ratio"]
            yield from table_lines(head, (detail_line(*each) for each in comparison.figures.items()))
            yield ""


def detail_line(name: str, figure: figures.Figure) -> list[str]:
    """One contender's figures; its failure stands where they would."""
    found = figure.value
    if found is None:
        return [name, f"failed: {figure.failed}" if figure.failed is not None else figures.NOTHING, *[""] * 5]
    quartiles = " to ".join(figures.number(each) for each in found.quartiles or ()) or figures.NOTHING
    least, greatest = figures.number(found.least), figures.number(found.greatest)
    ratio = figures.ratio_text(figure.ratio)
    return [name, figures.number(found.median), least, quartiles, greatest, str(found.count), ratio]


def table_lines(head: Sequence[str], body: Iterable[Sequence[str]]) -> Iterator[str]:
    """A table in Markdown; words to the left, figures to the right."""
    yield f"| {' | '.join(map(in_line, head))} |"
    yield f"|---|{'---:|' * (len(head) - 1)}"
    for line in body:
        yield f"| {' | '.join(map(in_line, line))} |"


def in_line(text: str) -> str:
    """Text that keeps its place in a table or a list."""
    return " ".join(text.split()).replace("|", "\\|")


# --- Terminal -----------------------------------------------------------------------------------------------


def terminal(results: Report) -> list[Table | str]:
    """What is shown in the end: a table for each group, then what failed."""
    shown: list[Table | str] = [terminal_table(*each) for each in groups(results).items()]
    lines = [f"FAILED  {why}" for why in failures(results)]
    for row in results.rows:
        for comparison in row.comparisons[:1]:
            lines += [f"{row.name}: {why}" for why in others_that_failed(comparison)]
    return [*shown, *(" ".join(line.split()) for line in lines)]


def others_that_failed(comparison: figures.Comparison) -> Iterator[str]:
    """The contenders, without us, that could not be measured."""
    for name, figure in comparison.figures.items():
        if figure.failed is not None and not figures.is_ours(name):
            yield f"{name} failed: {figure.failed}"


def terminal_table(group: str, rows: Sequence[RowResult]) -> Table:
    """Us beside the best reference; fits 80 columns."""
    shown = Table(title=group, title_justify="left", box=box.SIMPLE, pad_edge=False)
    shown.add_column("work")
    shown.add_column("metric")
    shown.add_column("reference")
    for name in ("median", measure.OURS, "ratio", "noise floor", "verdict"):
        shown.add_column(name, justify="right")
    for row in rows:
        for at, comparison in enumerate(row.comparisons):
            shown.add_row("" if at else row.name, *terminal_line(comparison))
        if row.error is not None:
            shown.add_row(row.name, "failed")
    return shown


def terminal_line(comparison: figures.Comparison) -> list[str]:
    """A comparison's cells after the name of the row."""
    ours, reference = comparison.ours, comparison.figures.get(comparison.reference or "")
    median = (
        "failed" if ours and ours.failed is not None else figures.value_text(ours.value if ours else None)
    )
    return [
        metric(comparison.measurement),
        comparison.reference or figures.NOTHING,
        figures.value_text(reference.value if reference else None),
        median,
        figures.ratio_text(ours.ratio if ours else None),
        figures.ratio_text(comparison.noise),
        comparison.verdict or figures.NOTHING,
    ]
