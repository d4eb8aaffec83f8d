"""`make bench`: measure the rows one after the other, print the table, write the result files.

One thread does everything in order.  What is started lives in context managers, so that Ctrl-C, SIGTERM or a
failure ends it; results are written only when the run is complete, all files or none.
"""

import contextlib
import dataclasses
import datetime
import fnmatch
import importlib
import importlib.util
import itertools
import math
import os
import pathlib
import shlex
import signal
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Final, NoReturn

import click
from rich.console import Console
from rich.table import Table

ROOT: Final = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from bench import figures, host, measure, progress, report  # noqa: E402

# Where the rows are, in the order in which they are measured; each module has ROWS.
MODULES: tuple[str, ...] = (
    "bench.rows_nbd",
    "bench.rows_cap",
    "bench.rows_packed",
    "bench.rows_reclaim",
    "bench.rows_remote",
    "bench.rows_guest",
    "bench.rows_memory",
    "bench.rows_cost",
    "bench.rows_scrape",
    "bench.rows_scale",
    "bench.rows_neighbour",
    "bench.rows_move",
)
RESULTS: Final = ROOT / "bench" / "results"
FULL: Final = measure.Plan(rounds=5, seconds=1.5, quick=False)
QUICK: Final = measure.Plan(rounds=2, seconds=0.5, quick=True)
# Not /tmp, which may be memory: the contenders' files belong on a disk.
SCRATCH: Final = "/var/tmp"
SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
# A table in a pipe has no width of its own.
PIPE_COLUMNS: Final = 120
LEAST_COLUMNS: Final = 80
MOST_COLUMNS: Final = 140


@dataclasses.dataclass(frozen=True)
class Options:
    """What the command line asks for; `patterns` are names or globs of rows, none means all."""

    plan: measure.Plan
    patterns: tuple[str, ...]
    out: pathlib.Path
    prints_json: bool

    @property
    def stem(self) -> str:
        """The name of the result files without suffix: only a full run may replace full.*"""
        if self.patterns:
            return "rows"
        return "quick" if self.plan.quick else "full"

    @property
    def command(self) -> str:
        """How to repeat the run, without places of this machine."""
        plan, usual = self.plan, QUICK if self.plan.quick else FULL
        words = ["bench/run.py", *(["--quick"] if plan.quick else [])]
        words += [word for pattern in self.patterns for word in ("--row", shlex.quote(pattern))]
        words += ["--rounds", str(plan.rounds)] if plan.rounds != usual.rounds else []
        words += ["--seconds", f"{plan.seconds:g}"] if plan.seconds != usual.seconds else []
        return " ".join(words)


# --- The rows -----------------------------------------------------------------------------------------------


def collect(modules: Iterable[str]) -> list[measure.Row]:
    """All rows there are.  Raises ImportError, and ValueError if two have one name."""
    rows = [row for name in modules for row in importlib.import_module(name).ROWS]
    names = [row.name for row in rows]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"two rows have the name {', '.join(twice)}")
    return rows


def select(rows: Sequence[measure.Row], patterns: Sequence[str]) -> list[measure.Row]:
    """The rows that a name or glob asks for, in their own order; all of them without patterns.

    Raises click.UsageError that lists what exists, if a pattern matches nothing.
    """
    for pattern in patterns:
        if not any(fnmatch.fnmatchcase(row.name, pattern) for row in rows):
            known = "\n".join(f"  {row.name}" for row in rows) or "  none"
            raise click.UsageError(f"no row is called {pattern!r}; there are:\n{known}")
    return [row for row in rows if not patterns or any(fnmatch.fnmatchcase(row.name, p) for p in patterns)]


def measure_row(row: measure.Row, lab: measure.Lab) -> report.RowResult:
    """One row's results; what it raises becomes its result as well."""
    started, error = time.monotonic(), None
    comparisons: tuple[figures.Comparison, ...] = ()
    try:
        comparisons = tuple(figures.evaluate(each) for each in row.measure(lab))
        error = None if comparisons else "it yielded nothing"
    except Exception as raised:  # whatever one row does, the others are worth having
        error = reason(raised)
    seconds = time.monotonic() - started
    return report.RowResult(row.name, row.group, row.title, round(seconds, 1), comparisons, error)


def reason(error: Exception) -> str:
    """An exception in one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}".rstrip(": ")


def measure_group(
    rows: Sequence[measure.Row], plan: measure.Plan, scratch: pathlib.Path, shown: progress.Progress
) -> list[report.RowResult]:
    """The rows of one group, which may share servers; what they started is ended before the next group."""
    results: list[report.RowResult] = []
    with tempfile.TemporaryDirectory(dir=scratch, ignore_cleanup_errors=True) as directory:
        try:
            with contextlib.ExitStack() as stack:
                lab = measure.Lab(plan, pathlib.Path(directory), stack, shown.tell)
                for row in rows:
                    shown.begin(row.name)
                    results.append(measure_row(row, lab))
                    shown.end(outcome(results[-1]))
        except Exception as raised:  # the servers' end; the figures are there, but something is wrong
            error = f"ending the servers: {reason(raised)}"
            results[-1] = dataclasses.replace(results[-1], error=results[-1].error or error)
            shown.tell(error)
    return results


def outcome(result: report.RowResult) -> str:
    """How a row went, in a few words."""
    if result.error is not None:
        return f"FAILED after {result.seconds:.1f} s: {result.error}"
    verdicts = [f"{each.measurement.metric} {each.verdict}" for each in result.comparisons if each.verdict]
    return f"{result.seconds:.1f} s, {', '.join(verdicts) or 'done'}"


def measure_all(
    rows: Sequence[measure.Row], options: Options, scratch: pathlib.Path, console: Console
) -> report.Report:
    """The whole run."""
    date = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")
    machine = host.read(scratch)
    results: list[report.RowResult] = []
    with progress.Progress(len(rows), console) as shown:
        for _, members in itertools.groupby(rows, key=lambda row: row.group):
            results += measure_group(list(members), options.plan, scratch, shown)
        seconds = round(shown.seconds, 1)
    return report.Report(date, options.command, options.plan, machine, seconds, tuple(results))


# --- The results --------------------------------------------------------------------------------------------


def write(results: report.Report, out: pathlib.Path, stem: str) -> list[str]:
    """Write the result files, all of them or none; returns their names.  Raises OSError."""
    with tempfile.TemporaryDirectory(dir=out, prefix=".") as directory:
        made = pathlib.Path(directory)
        (made / f"{stem}.md").write_text(report.markdown(results))
        (made / f"{stem}.json").write_text(report.to_json(results))
        if has_matplotlib():
            importlib.import_module("bench.plot").draw(results, made / f"{stem}.svg")
        names = sorted(path.name for path in made.iterdir())
        with ignoring_signals():
            (out / f"{stem}.svg").unlink(missing_ok=True)  # no plot is better than that of another run
            for name in names:
                os.replace(made / name, out / name)
    return names


def has_matplotlib() -> bool:
    """Whether plots can be drawn."""
    return importlib.util.find_spec("matplotlib") is not None


def check_writable(out: pathlib.Path) -> None:
    """Fail now and not in an hour.  Raises OSError."""
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=out):
        pass


def print_results(results: report.Report, prints_json: bool) -> None:
    """To standard output, as JSON or as tables."""
    if prints_json:
        print(report.to_json(results), end="")
        return
    console = Console()
    width = console.width if console.is_terminal else PIPE_COLUMNS
    console = Console(width=min(MOST_COLUMNS, max(LEAST_COLUMNS, width)), highlight=False)
    for shown in report.terminal(results):
        if isinstance(shown, Table):
            console.print(shown)
        else:
            console.print(shown, markup=False, soft_wrap=True)


# --- The command --------------------------------------------------------------------------------------------


@contextlib.contextmanager
def ignoring_signals() -> Iterator[None]:
    """Nothing interrupts what is in here."""
    before = {each: signal.signal(each, signal.SIG_IGN) for each in SIGNALS}
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


def interrupt(number: int, _frame: object) -> NoReturn:
    """The first signal unwinds everything; more of them must not stop the unwinding."""
    for each in SIGNALS:
        signal.signal(each, signal.SIG_IGN)
    raise KeyboardInterrupt(signal.Signals(number).name)


def run(options: Options) -> int:
    """Measure, print, write; returns the exit status: 1 if a row or swaptide failed."""
    say = Console(stderr=True, highlight=False)
    rows = select(collect(MODULES), options.patterns)
    check_writable(options.out)
    if not has_matplotlib():
        say.print("no plot: matplotlib is missing; `make bench` installs it")
    with tempfile.TemporaryDirectory(
        dir=SCRATCH, prefix="swaptide-bench-", ignore_cleanup_errors=True
    ) as scratch:
        results = measure_all(rows, options, pathlib.Path(scratch), say)
    names = write(results, options.out, options.stem)
    print_results(results, options.prints_json)
    say.print(f"{', '.join(names)} written; took {report.minutes(results.seconds)} minutes", soft_wrap=True)
    return 1 if report.failures(results) else 0


def show_list(context: click.Context, _parameter: click.Parameter, value: bool) -> None:
    """Print the rows and leave, if asked to."""
    if not value:
        return
    for row in collect(MODULES):
        click.echo(f"{row.name:<32} {row.group:<8} {row.title}")
    context.exit()


def finite(_context: click.Context, _parameter: click.Parameter, value: float | None) -> float | None:
    """A range lets NaN through."""
    if value is not None and math.isnan(value):
        raise click.BadParameter("nan is no number of seconds")
    return value


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--quick", is_flag=True, help="Fewer contenders, fewer and shorter rounds, smaller disks: five minutes."
)
@click.option("--row", "patterns", metavar="NAME_OR_GLOB", multiple=True, help="Only these; may be repeated.")
@click.option("--list", is_flag=True, expose_value=False, callback=show_list, help="Show the rows' names.")
@click.option("--rounds", type=click.IntRange(min=1), metavar="N", help="Rounds (5, quick 2).")
@click.option(
    "--seconds",
    type=click.FloatRange(min=0, min_open=True, max=3600),
    callback=finite,
    metavar="S",
    help="Length of one timed measurement (1.5, quick 0.5).",
)
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=pathlib.Path),
    default=RESULTS,
    help="Where the result files go [bench/results].",
)
@click.option("--json", "prints_json", is_flag=True, help="Print JSON, not a table.")
def command(
    quick: bool,
    patterns: tuple[str, ...],
    rounds: int | None,
    seconds: float | None,
    out: pathlib.Path,
    prints_json: bool,
) -> int:
    """Measure swaptide beside others and write the results as Markdown, JSON and a plot."""
    plan = QUICK if quick else FULL
    plan = dataclasses.replace(plan, rounds=rounds or plan.rounds, seconds=seconds or plan.seconds)
    return run(Options(plan, patterns, out, prints_json))


def main() -> int:
    """The command; exit status 0 only if every row and swaptide in all of them could be measured."""
    for each in SIGNALS:
        signal.signal(each, interrupt)
    try:
        return int(command.main(standalone_mode=False) or 0)
    except click.Abort as aborted:  # what click makes of KeyboardInterrupt
        print(f"interrupted by {aborted.__cause__ or 'Ctrl-C'}: nothing written", file=sys.stderr)
        return 130
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (OSError, ImportError, ValueError) as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
