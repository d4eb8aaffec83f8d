"""What the command prints for people: aligned plain text, and tables and bars on a terminal."""

import contextlib
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from swaptide.host import sizes

_COLUMNS = (
    ("NAME", "name"),
    ("SIZE", "size_bytes"),
    ("CAP", "cap_bytes"),
    ("TARGET", "target_bytes"),
    ("RAM", "ram_bytes"),
    ("SPILLED", "spilled_bytes"),
    ("CLIENTS", "connections"),
    ("PID", "pid"),
    ("STATE", "state"),
)

Report = dict[str, Any]
Step = Callable[[dict[str, Any]], None]


def disks(reports: Sequence[Report]) -> None:
    """Print one line for each disk."""
    rows = [[_cell(key, report[key]) for _, key in _COLUMNS] for report in reports]
    headers = [header for header, _ in _COLUMNS]
    if sys.stdout.isatty():
        _rich_table(headers, rows)
    else:
        _plain_table([headers, *rows])


def disk(report: Report) -> None:
    """Print everything about one disk, a line for each thing."""
    rows = [[_label(key), _cell(key, value)] for key, value in report.items() if key != "latency"]
    for kind, found in (report["latency"] or {}).items():
        rows.append([f"{kind} latency", _latency(found)])
    _plain_table(rows)


@contextlib.contextmanager
def squeezing(name: str) -> Iterator[Step]:
    """Show on a terminal how a disk's memory nears its target; elsewhere nothing."""
    if not sys.stderr.isatty():
        yield lambda step: None
        return
    from rich.console import Console

    with Console(stderr=True).status(f"{name}: waiting") as status:

        def show(step: dict[str, Any]) -> None:
            ram, target = sizes.show(step["ram_bytes"]), sizes.show(step["target_bytes"])
            status.update(f"{name}: {ram} of RAM in use, going to {target}, {step['elapsed_seconds']:.0f} s")

        yield show


def _label(key: str) -> str:
    return key.removesuffix("_bytes").replace("_", " ")


def _cell(key: str, value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return sizes.show(value) if key.endswith("_bytes") else str(value)


def _latency(found: Report) -> str:
    if not found["count"]:
        return "no requests yet"
    return (
        f"median {_time(found['p50_seconds'])}, p99 {_time(found['p99_seconds'])}"
        f" of {found['count']} requests since the disk was made"
    )


def _time(seconds: float) -> str:
    """Three digits and a unit."""
    for unit, scale in (("µs", 1e6), ("ms", 1e3)):
        if seconds * scale < 999.5:  # would be shown as 1e+03
            return f"{seconds * scale:.3g} {unit}"
    return f"{seconds:.3g} s"


def _plain_table(rows: Sequence[Sequence[str]]) -> None:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _rich_table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(*headers, box=box.SIMPLE_HEAD)
    for row in rows:
        table.add_row(*row)
    Console().print(table)
