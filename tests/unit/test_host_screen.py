"""The live view in characters: fits its terminal, shows every tier, and what is wrong first."""

import io
from typing import Any

import pytest
from rich.console import Console

from swaptide.host import looks, screen
from tests.unit import test_host_looks as made

MIB = 1 << 20


def lines(
    *disks: dict[str, Any], frame: screen.Frame | None = None, note: str = "", **more: Any
) -> list[str]:
    """What is drawn of these reports, the second look of two."""
    after = made.look(6.0, *disks, **more)
    view = looks.compare({**after, "at_seconds": 5.0}, after)
    frame = frame or screen.Frame()
    out = io.StringIO()
    console = Console(file=out, width=frame.chars, height=frame.lines, color_system=None)
    console.print(screen.draw(view, frame, note=note))
    return out.getvalue().splitlines()


def full(name: str = "g1", **changed: Any) -> dict[str, Any]:
    tiers = {"raw_bytes": 256 * MIB, "packed_pages": 65536, "spilled_bytes": 256 * MIB}
    return made.disk(
        name,
        **{**tiers, "same_filled_pages": 32768, "ram_bytes": 900 * MIB, "cap_bytes": 1024 * MIB, **changed},
    )


def test_fits_eighty_columns_and_shows_every_tier() -> None:
    shown = lines(full("a-very-long-name-of-a-guest"), full("g2"))
    assert max(map(len, shown)) <= 80
    row = next(line for line in shown if line.startswith("a-very-long"))
    assert row.split()[1] == "██████▓▓▓▓▓▓▒▒▒▒▒░░░···"  # three quarters, and two eighths
    assert "…" in row and "900M" in row and "128M" in row  # its target
    header = next(line for line in shown if line.startswith("DISK"))
    assert header.split()[-7:] == ["RAM", "TARGET", "HIT", "P99", "STALL", "OUT", "IN"]
    assert "2 disks with 1.8G of guest pages: 512M raw, 512M packed, 512M on disk" in shown[0]


def test_a_wide_terminal_shows_more() -> None:
    shown = lines(full(), frame=screen.Frame(chars=130))
    header = next(line for line in shown if line.startswith("DISK"))
    assert header.split()[-4:] == ["CAP", "RATIO", "P50", "WR99"]
    assert max(map(len, shown)) <= 130


def test_plain_characters_where_the_terminal_has_no_others() -> None:
    shown = lines(full(), frame=screen.Frame(glyphs=screen.PLAIN))
    row = next(line for line in shown if line.startswith("g1"))
    assert row.split()[1] == "######++++++-----ooo..." and row.isascii()


def test_what_is_wrong_comes_before_the_disks() -> None:
    shown = lines(
        full(state="failed", error="x" * 200), *(full(f"g{n}", state="frozen") for n in range(2, 9))
    )
    wrong = [line for line in shown if line.startswith("! ")]
    assert wrong[0].startswith("! disk g1: failed: xxx") and wrong[0].endswith("…") and len(wrong[0]) == 80
    assert wrong[-1] == "! and 4 more" and len(wrong) == 5
    assert shown.index(wrong[-1]) < next(i for i, line in enumerate(shown) if line.startswith("DISK"))


@pytest.mark.parametrize("height", [12, 24, 40])
def test_no_more_lines_than_the_terminal_has(height: int) -> None:
    guest = dict.fromkeys(("actual_bytes", "min_bytes", "max_bytes", "available_bytes"), MIB)
    guests = [{"name": "vm1", "state": "running", "error": None, "age_seconds": 2.0, **guest}]
    disks = [full(f"g{n:02}") for n in range(60)]
    shown = lines(*disks, frame=screen.Frame(lines=height), guests=guests if height > 12 else [])
    assert len(shown) <= height
    rows = sum(line.startswith("g") for line in shown)
    assert rows >= 1 and f"and {60 - rows} more; name those to be shown" in shown
    assert height == 12 or any(line.startswith("vm1") for line in shown)


def test_without_disks_it_says_what_to_do() -> None:
    assert any("swaptide disk add" in line for line in lines())


def test_a_daemon_that_is_gone_is_told_first() -> None:
    assert lines(full(), note="no daemon answers")[0] == "no daemon answers"


def test_the_host_is_told() -> None:
    shown = lines(host={"held_bytes": 3 << 30, "wanted_bytes": 1 << 30, "pressure_percent": 1.25})
    assert "8.0G of 16G free, keeps 1.0G, disks have 0" in shown[1]
    assert shown[2] == "pressure 1.2%, balloon steady, reserved 3.0G, asked for 1.0G"
    off = lines(host={"balloon": False, "reason": None, "pressure_percent": None})
    assert off[2] == "pressure unknown, balloon off"


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (None, "-"),
        (0, "0"),
        (999, "999"),
        (1000, "1.0K"),
        (1536, "1.5K"),
        (10 * MIB, "10M"),
        (1000 * MIB, "1.0G"),
        (5 << 50, "5120T"),
    ],
)
def test_sizes_are_short(value: int | None, shown: str) -> None:
    assert screen.size(value) == shown


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (None, "-"),
        (0, "0"),
        (3.4e-6, "3.4µs"),
        (0.00085, "850µs"),
        (0.0012, "1.2ms"),
        (1, "1s"),
        (99.7, "100s"),
    ],
)
def test_times_are_short(value: float | None, shown: str) -> None:
    assert screen.time(value) == shown


@pytest.mark.parametrize(
    ("value", "shown"),
    [(None, "-"), (0, "0%"), (0.5, "50%"), (0.9876, "98.8%"), (0.99999, "99.9%"), (1, "100%")],
)
def test_all_is_only_said_of_all(value: float | None, shown: str) -> None:
    assert screen.share(value) == shown


def test_what_there_is_is_seen_however_little() -> None:
    parts = (("#", "", 1.0), ("+", "", 0.0), ("-", "", 1.0), ("o", "", 400.0))
    assert screen.bar(parts, 1000.0, 10, ".").plain == "#-oo......"
    assert screen.bar((("#", "", 5000.0),), 1000.0, 10, ".").plain == "#" * 10
    assert screen.bar((("#", "", 1.0),), 0, 10, ".").plain == "#" + "." * 9
