"""The figures that README compares with others are those of the benchmark's last whole run."""

import re

from bench import figures, report
from tests.hygiene import tree

README = (tree.ROOT / "README.md").read_text()
RESULTS = report.from_json((tree.ROOT / "bench/results/full.json").read_text())

HELD = "guest bytes held"
# For each line of the table: the benchmark's row and metric, and whose figure stands in each of its columns.
LINES: dict[str, tuple[str, str, tuple[str | None, ...]]] = {
    "memory given back, MiB/s": (
        "squeeze",
        "returned",
        ("swaptide", None, "page cache, sync and drop", None),
    ),
    "the same, half of it clean": ("squeeze-half-clean", "returned", ("swaptide", None, None, None)),
    "4 KiB writes at the cap, k/s": ("write-4k-d16-at-cap", "rate", ("swaptide", None, "nbdkit file", None)),
    "4 KiB reads from RAM, k/s": (
        "randread-4k-d16",
        "rate",
        ("swaptide", None, "nbdkit file", "nbdkit memory -t1"),
    ),
    "4 KiB reads from disk, k/s": (
        "read-spilled-4k-d16",
        "rate",
        ("swaptide", None, "qemu-nbd none", None),
    ),
    "guest bytes held per byte of RAM, LZ4": (
        "held-guest",
        HELD,
        ("swaptide", "zram lz4 (in guest)", "nbdkit file", "nbdkit memory -t16"),
    ),
    "the same, its 43 MiB process counted": (
        "held-guest",
        f"{HELD}, whole process",
        ("swaptide", "zram lz4 (in guest)", "nbdkit file", "nbdkit memory -t16"),
    ),
    "the same with zstd": (
        "held-guest",
        HELD,
        ("swaptide, zstd", "zram zstd (in guest)", None, "nbdkit memory zstd"),
    ),
    **{
        label: (
            "guest-swap",
            metric,
            ("swaptide", "zram lzo-rle (in guest)", "qemu file writeback", "nbdkit memory"),
        )
        for label, metric in (
            ("a guest that swaps hard (emulated), s", "wall clock"),
            ("host CPU for that, s/GiB", "host CPU"),
            ("host RAM for that, MiB", "host RAM"),
        )
    },
    "the same, cap a quarter, MiB": ("guest-swap", "host RAM", ("swaptide, cap a quarter", None, None, None)),
}


def told() -> dict[str, list[str]]:
    """The table's lines by what they are about."""
    lines = re.search(r"^\| \| swaptide \|.*\n\|[-:|]+\n((?:\|.*\n)+)", README, re.MULTILINE)
    assert lines is not None
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[1].splitlines()]
    return {first: rest for first, *rest in cells}


def measured(row: str, metric: str, contender: str) -> str:
    (found,) = [
        comparison
        for each in RESULTS.rows
        if each.name == row
        for comparison in each.comparisons
        if comparison.measurement.metric == metric
    ]
    return figures.value_text(found.figures[contender].value)


def test_every_line_is_checked() -> None:
    assert list(told()) == list(LINES)


def test_figures_are_those_of_the_run() -> None:
    wrong = []
    for label, (row, metric, contenders) in LINES.items():
        for cell, contender in zip(told()[label], contenders, strict=True):
            if contender is None:
                assert not re.search(r"\d", cell), (label, cell)
            elif cell.removesuffix(", uncached") != (value := measured(row, metric, contender)):
                wrong.append((label, contender, cell, value))
    assert not wrong


def test_sums_are_those_of_the_run() -> None:
    assert (said := re.search(r"Of (\d+) targets that the benchmark sets itself (\d+) are reached", README))
    full = (tree.ROOT / "bench/results/full.md").read_text()
    assert f"\n{said[2]} of {said[1]} are reached." in full
    assert (
        "| host CPU seconds per GiB swapped, cap not reached | nbdkit memory | at most 1.10 | 1.13 (" in full
    )
    assert "1.13 times what nbdkit's memory plugin takes" in README
