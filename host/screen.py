"""The live view as it looks on a terminal: what `looks` found, in lines and bars.  Pure functions of rich."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from swaptide.host import looks

NARROW_CHARS = 80
_WIDE_CHARS = 104
_NAME_CHARS = 12
_LEAST_BAR_CHARS = 8
# What is said of a room at most.
_ROOM_CHARS = len("99.9G of 99.9G free, keeps 99.9G, disks have 99.9G")
# Headers and widths; the second where there is room for it.
_NUMBERS = (("RAM", 5), ("TARGET", 6), ("HIT", 5), ("P99", 5), ("STALL", 5), ("OUT", 5), ("IN", 5))
_MORE_NUMBERS = (("CAP", 5), ("RATIO", 5), ("P50", 5), ("WR99", 5))
_MOST_WRONG = 4
_AROUND_LINES = 6  # blank, header and rule, how many more, blank, legend

_RAW, _PACKED, _SPILLED, _SAME = "green", "cyan", "blue", "magenta"
_BAD, _FAINT = "bold red", "dim"


@dataclasses.dataclass(frozen=True)
class Glyphs:
    """What bars are drawn with: full, packed, on disk, next to nothing, none."""

    raw: str
    packed: str
    spilled: str
    same: str
    rest: str


BLOCKS = Glyphs("█", "▓", "▒", "░", "·")
PLAIN = Glyphs("#", "+", "-", "o", ".")


@dataclasses.dataclass(frozen=True)
class Frame:
    """The terminal: its size in characters, and what it can draw.  `lines` is None where there is no end."""

    chars: int = NARROW_CHARS
    lines: int | None = None
    glyphs: Glyphs = BLOCKS


def draw(view: looks.View, frame: Frame, *, title: str = "swaptide", note: str = "") -> RenderableType:
    """Everything, in `frame`; `note` is said in the first line, as that the daemon is gone."""
    parts: list[RenderableType] = [_title(view, title, note), *_host(view, frame), *_wrong(view, frame)]
    guests = _guests(view, frame)
    room = None if frame.lines is None else frame.lines - _height(parts) - _height(guests) - _AROUND_LINES
    shown = view.disks if room is None else view.disks[: max(1, room)]
    if view.disks:
        parts += [Text(), _disks(shown, frame)]
    else:
        parts += [Text(), Text("no disks; make one with `swaptide disk add`")]
    if len(shown) < len(view.disks):
        parts.append(Text(f"and {len(view.disks) - len(shown)} more; name those to be shown", _FAINT))
    return Group(*parts, *guests, Text(), _legend(frame.glyphs))


def size(size_bytes: float | None) -> str:
    """At most five characters: `512`, `9.5M`, `128M`, `1.5T`."""
    if size_bytes is None:
        return "-"
    return _short(
        size_bytes, tuple((unit, 1024.0**power) for power, unit in enumerate(("", "K", "M", "G", "T")))
    )


def time(seconds: float | None) -> str:
    """At most five characters: `850µs`, `1.2ms`, `12s`."""
    return "-" if seconds is None else _short(seconds, (("µs", 1e-6), ("ms", 1e-3), ("s", 1.0)))


def _short(value: float, units: Sequence[tuple[str, float]]) -> str:
    """In the first unit that takes three digits, or the last one."""
    if value == 0:
        return "0"
    unit, scale = next((each for each in units if value / each[1] < 999.5), units[-1])
    number = value / scale
    digits = 1 if unit not in ("", "s") and number < 9.95 else 0
    return f"{number:.{digits}f}{unit}"


def share(part: float | None) -> str:
    """Four characters at most; 100 % only if it is all."""
    if part is None:
        return "-"
    return "100%" if part >= 1 else f"{min(part * 100, 99.9):.3g}%" if part > 0.9 else f"{part:.0%}"


def bar(parts: Sequence[tuple[str, str, float]], whole: float, chars: int, rest: str) -> Text:
    """`chars` characters for `whole`; each part is its glyph, style and size.  What there is, is seen."""
    drawn, done, at = Text(), 0.0, 0
    for glyph, style, part in parts:
        done += max(0.0, part)
        end = round(done / whole * chars) if whole > 0 else 0
        end = min(chars, max(end, at + (part > 0)))
        drawn.append(glyph * max(0, end - at), style)
        at = max(at, end)
    drawn.append(rest * (chars - at), _FAINT)
    return drawn


def _title(view: looks.View, title: str, note: str) -> Text:
    count = f"{len(view.disks)} disk{'' if len(view.disks) == 1 else 's'}"
    raw, packed = _sum(view, "raw_bytes"), _sum(view, "packed_bytes")
    spilled, same = _sum(view, "spilled_bytes"), _sum(view, "same_bytes")
    all_bytes = size(raw + packed + spilled + same)
    text = Text.assemble(
        (title, "bold"),
        f"  {count} with {all_bytes} of guest pages: ",
        (f"{size(raw)} raw", _RAW),
        ", ",
        (f"{size(packed)} packed", _PACKED),
        ", ",
        (f"{size(spilled)} on disk", _SPILLED),
    )
    return Text(note, _BAD, no_wrap=True, overflow="ellipsis") if note else text


def _sum(view: looks.View, key: str) -> int:
    return sum(getattr(disk, key) for disk in view.disks)


def _host(view: looks.View, frame: Frame) -> list[RenderableType]:
    glyphs = frame.glyphs
    table = Table.grid(padding=(0, 1))
    table.add_column(max_width=_NAME_CHARS, no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    chars = _bar_chars(frame, _NAME_CHARS + 2 + _ROOM_CHARS)
    for room in view.host["rooms"]:
        whole, free, kept = room["size_bytes"], room["free_bytes"], room["reserve_bytes"]
        ours = min(view.ram_bytes, max(0, whole - free))
        parts = ((glyphs.raw, "yellow", whole - free - ours), (glyphs.packed, _RAW, ours))
        said = Text(f"{size(free)} of {size(whole)} free, keeps {size(kept)}, disks have {size(ours)}")
        low = free < kept
        said.stylize(_BAD if low else "")
        table.add_row(room["name"].rpartition("/")[2] or "host", bar(parts, whole, chars, glyphs.rest), said)
    return [table, _pressure(view.host)]


def _pressure(host: Any) -> Text:
    percent = host["pressure_percent"]
    words = ["pressure " + ("unknown" if percent is None else f"{percent:.1f}%")]
    words.append("balloon off" if not host["balloon"] else f"balloon {host['reason'] or 'starting'}")
    if host["held_bytes"]:
        words.append(f"reserved {size(host['held_bytes'])}")
    if host["wanted_bytes"]:
        words.append(f"asked for {size(host['wanted_bytes'])}")
    return Text(", ".join(words))


def _wrong(view: looks.View, frame: Frame) -> list[RenderableType]:
    most = _MOST_WRONG if frame.lines is None else max(1, min(_MOST_WRONG, (frame.lines - 8) // 4))
    lines: list[RenderableType] = [
        Text(f"! {each.subject}: {each.why}", _BAD, no_wrap=True, overflow="ellipsis")
        for each in view.wrong[:most]
    ]
    if len(view.wrong) > most:
        lines.append(Text(f"! and {len(view.wrong) - most} more", _BAD))
    return lines


def _disks(disks: Sequence[looks.Disk], frame: Frame) -> Table:
    wide = frame.chars >= _WIDE_CHARS
    numbers = (*_NUMBERS, *_MORE_NUMBERS) if wide else _NUMBERS
    chars = _bar_chars(frame, _NAME_CHARS + 2 + sum(width + 1 for _, width in numbers))
    table = Table(box=box.SIMPLE_HEAD, padding=0, show_edge=False, pad_edge=False)
    table.add_column("DISK", width=_NAME_CHARS, no_wrap=True, overflow="ellipsis")
    table.add_column("WHERE IT IS", width=chars, no_wrap=True)
    for header, width in numbers:
        table.add_column(header, justify="right", no_wrap=True, width=width)
    for disk in disks:
        table.add_row(*_row(disk, chars, frame.glyphs)[: 2 + len(numbers)])
    return table


def _row(disk: looks.Disk, chars: int, glyphs: Glyphs) -> list[RenderableType]:
    parts = (
        (glyphs.raw, _RAW, disk.raw_bytes),
        (glyphs.packed, _PACKED, disk.packed_bytes),
        (glyphs.spilled, _SPILLED, disk.spilled_bytes),
        (glyphs.same, _SAME, disk.same_bytes),
    )
    over = disk.ram_bytes > disk.target_bytes
    ratio = "-" if disk.packing_ratio is None else f"{min(disk.packing_ratio, 9999):.3g}"
    return [
        Text(disk.name, "" if disk.state == "running" else _BAD),
        bar(parts, disk.size_bytes, chars, glyphs.rest),
        Text(size(disk.ram_bytes), "yellow" if over else ""),
        size(disk.target_bytes),
        share(disk.hit_share),
        time(disk.read_p99_seconds),
        Text(time(disk.stall_seconds_per_second), "yellow" if disk.stall_seconds_per_second else ""),
        size(disk.taken_bytes_per_second),
        size(disk.returned_bytes_per_second),
        size(disk.cap_bytes),
        ratio,
        time(disk.read_p50_seconds),
        time(disk.write_p99_seconds),
    ]


def _guests(view: looks.View, frame: Frame) -> list[RenderableType]:
    if not view.guests:
        return []
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False, pad_edge=False)
    table.add_column("GUEST", max_width=_NAME_CHARS, no_wrap=True, overflow="ellipsis")
    table.add_column("STATE", max_width=_NAME_CHARS, no_wrap=True, overflow="ellipsis")
    for header in ("HAS", "MIN", "MAX", "AVAILABLE", "TOLD"):
        table.add_column(header, justify="right", no_wrap=True)
    for guest in view.guests:
        sizes = (guest[f"{key}_bytes"] for key in ("actual", "min", "max", "available"))
        age = guest["age_seconds"]
        told = "-" if age is None else f"{age:.0f} s ago"
        table.add_row(guest["name"], guest["state"], *map(size, sizes), told)
    return [Text(), table]


def _legend(glyphs: Glyphs) -> Text:
    """What the bars mean, and the two directions."""
    return Text.assemble(
        *((glyphs.raw, _RAW), (" raw ", _FAINT)),
        *((glyphs.packed, _PACKED), (" packed ", _FAINT)),
        *((glyphs.spilled, _SPILLED), (" on disk ", _FAINT)),
        *((glyphs.same, _SAME), (" same-filled ", _FAINT)),
        *((glyphs.rest, _FAINT), (" empty  STALL OUT IN: each second", _FAINT)),
    )


def _bar_chars(frame: Frame, others: int) -> int:
    return max(_LEAST_BAR_CHARS, min(60, frame.chars - others))


def _height(parts: Sequence[RenderableType]) -> int:
    """Lines that these take."""
    return sum(
        each.row_count + 2 if isinstance(each, Table) and each.show_header else _rows(each) for each in parts
    )


def _rows(part: RenderableType) -> int:
    return part.row_count if isinstance(part, Table) else 1
