"""What `swaptide simulate` prints: a line for each window of time and a summary, or all of it as data."""

from collections.abc import Sequence
from typing import Any, Final

import click
import msgspec

from swaptide.balloon import tally
from swaptide.host import durations, sizes

# More lines than this nobody reads: windows get wider instead.
ROWS: Final = 10_000
# With more disks than this a line tells of all of them together.
_DISKS: Final = 4
_NOTHING: Final = "-"


def as_json(summary: tally.Summary, rows: tally.Windows) -> dict[str, Any]:
    """Everything, sizes in bytes and times in seconds."""
    return {
        "summary": {**msgspec.to_builtins(summary), "disks": _disks(summary.disks)},
        "window_seconds": rows.width_seconds,
        "rows": [{**msgspec.to_builtins(row), "disks": _disks(row.disks)} for row in rows.all],
    }


def show(summary: tally.Summary, rows: tally.Windows) -> None:
    """Print the table and the summary."""
    names = sorted({name for row in rows.all for name in row.disks})
    one_by_one = len(names) <= _DISKS
    guests = sorted({name for row in rows.all for name in row.guests})[:_DISKS]
    shown = names if one_by_one else [f"{len(names)} DISKS"]
    header = ["TIME", "FREE", "SPARE", "PRESSED", "WHY"]
    header += [f"{name}: RAM/TARGET HITS" for name in shown] + [f"{name}: SIZE" for name in guests]
    first = rows.all[0].at_seconds
    lines = [header]
    for row in rows.all:
        disks = [row.disks.get(name) for name in names] if one_by_one else [tally.total(row.disks.values())]
        line = [f"{row.at_seconds - first:.6g}s", _size(row.free_bytes), _size(row.spare_bytes)]
        line += [str(row.pressed or _NOTHING), row.reason]
        line += [_disk(disk) for disk in disks]
        lines.append(line + [_size(row.guests[name]) if name in row.guests else _NOTHING for name in guests])
    _table(lines)
    for text in _summary(summary):
        click.echo(text)


def _summary(summary: tally.Summary) -> Sequence[str]:
    reasons = ", ".join(f"{count} {reason}" for reason, count in summary.reasons.items())
    texts = [
        "",
        f"{summary.samples} samples in {durations.show(summary.seconds)}: {reasons}",
        f"least free {_size(summary.free_least_bytes)}, least beyond the reserve"
        f" {_size(summary.spare_least_bytes)}; below it for {durations.show(summary.short_seconds)},"
        f" {durations.show(summary.longest_short_seconds)} at the longest",
        f"{summary.pressed} pressure triggers, {summary.turns} times a target changed its direction",
    ]
    for name, disk in sorted(summary.disks.items()):
        texts.append(f"{name}: {disk.reads:.0f} pages read, {_ratio(disk)} of them from RAM")
    if summary.free_least_bytes < 0:
        texts.append("this host would have run out of memory")
    return texts


def _disks(disks: dict[str, tally.DiskTally]) -> dict[str, Any]:
    return {name: {**msgspec.to_builtins(disk), "hit_ratio": disk.hit_ratio} for name, disk in disks.items()}


def _disk(disk: tally.DiskTally | None) -> str:
    if disk is None:
        return _NOTHING
    return f"{_size(disk.ram_bytes)}/{_size(disk.target_bytes)} {_ratio(disk)}"


def _ratio(disk: tally.DiskTally) -> str:
    return _NOTHING if disk.hit_ratio is None else f"{100 * disk.hit_ratio:.0f}%"


def _size(size: int) -> str:
    return sizes.show(size) if size >= 0 else f"-{sizes.show(-size)}"


def _table(lines: Sequence[Sequence[str]]) -> None:
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        cells = [cell.ljust(width) for cell, width in zip(line, widths, strict=True)]
        click.echo("  ".join(cells).rstrip())
