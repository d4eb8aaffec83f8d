"""What the command prints for people: aligned plain text, and tables and bars on a terminal."""

import contextlib
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from swaptide.host import sizes

# Shown where the table has room for it.
_PACKED = ("PACKED", "packed_bytes")
_COLUMNS = (
    ("NAME", "name"),
    ("SIZE", "size_bytes"),
    ("CAP", "cap_bytes"),
    ("TARGET", "target_bytes"),
    ("RAM", "ram_bytes"),
    _PACKED,
    ("SPILLED", "spilled_bytes"),
    ("CLIENTS", "connections"),
    ("PID", "pid"),
    ("STATE", "state"),
)

_GUEST_COLUMNS = (
    ("NAME", "name"),
    ("STATE", "state"),
    ("MEMORY", "memory_bytes"),
    ("HAS", "actual_bytes"),
    ("MIN", "min_bytes"),
    ("MAX", "max_bytes"),
    ("AVAILABLE", "available_bytes"),
    ("TOLD", "age_seconds"),
    ("DISKS", "disks"),
)

_LINE_CHARS = 80

Report = dict[str, Any]
Step = Callable[[dict[str, Any]], None]


def disks(reports: Sequence[Report]) -> None:
    """Print one line for each disk, and below it why one is degraded."""
    headers, rows = _columns(reports, _COLUMNS)
    if _width([headers, *rows]) > _LINE_CHARS:
        headers, rows = _columns(reports, [column for column in _COLUMNS if column != _PACKED])
    if sys.stdout.isatty():
        _rich_table(headers, rows)
    else:
        _plain_table([headers, *rows])
    for report in reports:
        if report["state"] == "degraded" and report["error"]:
            print(f"{report['name']}: {report['error']}")


def guests(reports: Sequence[Report]) -> None:
    """Print one line for each guest, and below it why one cannot be reached."""
    headers, rows = _columns(reports, _GUEST_COLUMNS)
    if sys.stdout.isatty():
        _rich_table(headers, rows)
    else:
        _plain_table([headers, *rows])
    for report in reports:
        if report["error"]:
            print(f"{report['name']}: {report['error']}")


def disk(report: Report) -> None:
    """Print everything about one disk, a line for each thing."""
    rows = [[_label(key), _cell(key, value)] for key, value in report.items() if key != "latency"]
    if report.keys() >= {"raw_hits", "packed_hits", "misses"}:
        rows.append(["pages read from", _tiers(report["raw_hits"], report["packed_hits"], report["misses"])])
    for kind, found in (report["latency"] or {}).items():
        rows.append([f"{kind} latency", _latency(found)])
    _plain_table(rows)


@contextlib.contextmanager
def _bar(words: str) -> Iterator[Callable[[str, int, int], None]]:
    """On a terminal a bar with a clock, gone at the end; elsewhere nothing.

    Takes words, how much is done, and of how much: 0 where nobody knows.
    """
    if not sys.stderr.isatty():
        yield lambda words, done, total: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}", markup=False), BarColumn(20), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(words, total=None)
        yield lambda words, done, total: bar.update(
            task, description=words, completed=done, total=total or None
        )


@contextlib.contextmanager
def squeezing(name: str) -> Iterator[Step]:
    """Show on a terminal how a disk's memory nears its target; elsewhere nothing."""
    with _bar(f"{name}: waiting") as update:

        def show(step: dict[str, Any]) -> None:
            ram, target = sizes.show(step["ram_bytes"]), sizes.show(step["target_bytes"])
            words = f"{name}: {ram} of RAM in use, going to {target}"
            update(words, step["returned_bytes"], step["wanted_bytes"])

        yield show


@contextlib.contextmanager
def doing(words: str) -> Iterator[Step]:
    """Show on a terminal what a long call is at, and how far (host.steps); elsewhere nothing."""
    with _bar(words) as update:

        def show(step: dict[str, Any]) -> None:
            done, total = step["done_bytes"], step["total_bytes"]
            far = f", {sizes.show(done)} of {sizes.show(total)}" if total else ""
            update(f"{words}: {step['doing']}{far}", done, total)

        yield show


@contextlib.contextmanager
def working(words: str) -> Iterator[Callable[[str], None]]:
    """Show on a terminal that something takes its time, and at what it is; elsewhere nothing."""
    with _bar(words) as update:
        yield lambda step: update(f"{words}: {step}", 0, 0)


@contextlib.contextmanager
def reserving(size_bytes: int) -> Iterator[Step]:
    """Show on a terminal how much of what is asked for is there; elsewhere nothing."""
    with _bar(f"reserving {sizes.show(size_bytes)}") as update:

        def show(step: dict[str, Any]) -> None:
            there = max(0, step["available_bytes"] - step["held_bytes"])
            update(_there(there, size_bytes), min(there, size_bytes), size_bytes)

        yield show


def reservations(found: Sequence[Report]) -> None:
    """Print one line for each reservation."""
    headers = ["ID", "SIZE", "LEFT", "EXPIRES"]
    rows = [
        [
            each["id"],
            sizes.show(each["size_bytes"]),
            sizes.show(each["left_bytes"]),
            f"in {each['expires_in_seconds']:.0f} s",
        ]
        for each in found
    ]
    if sys.stdout.isatty():
        _rich_table(headers, rows)
    else:
        _plain_table([headers, *rows])


def _there(there: int, size_bytes: int) -> str:
    return f"{sizes.show(there)} of {sizes.show(size_bytes)} available"


def _columns(
    reports: Sequence[Report], columns: Sequence[tuple[str, str]]
) -> tuple[list[str], list[list[str]]]:
    rows = [[_cell(key, report[key]) for _, key in columns] for report in reports]
    return [header for header, _ in columns], rows


def _tiers(raw: int, packed: int, disk: int) -> str:
    total = raw + packed + disk
    if not total:
        return "none yet"
    return f"RAM {raw / total:.1%}, packed in RAM {packed / total:.1%}, disk {disk / total:.1%}"


def _label(key: str) -> str:
    key = key.replace("_bytes_per_second", "_speed")
    return key.removesuffix("_bytes").removesuffix("_percent").replace("_", " ")


def _cell(key: str, value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ",".join(value) or "-"
    if key == "age_seconds":
        return f"{value:.0f} s ago"
    if key.endswith("_percent"):
        return f"{value}%"
    # A speed is a size too, of what is done in a second.
    if key.endswith("_bytes_per_second"):
        return f"{sizes.show(value)}/s"
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


def _width(rows: Sequence[Sequence[str]]) -> int:
    widths = _widths(rows)
    return sum(widths) + 2 * (len(widths) - 1)


def _widths(rows: Sequence[Sequence[str]]) -> list[int]:
    return [max(map(len, column)) for column in zip(*rows, strict=True)]


def _plain_table(rows: Sequence[Sequence[str]]) -> None:
    widths = _widths(rows)
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
