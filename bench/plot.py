"""The plot of a run: a panel for each row, a bar for each contender, as long as its ratio to the reference.

Needs matplotlib, through its figures alone: no window, no state of its own.  The same results give the
same bytes.
"""

import math
import pathlib
import textwrap
from collections.abc import Sequence
from typing import Any, Final

import matplotlib
from matplotlib import figure

from bench import figures, report

COLUMNS: Final = 2
WIDTH_INCHES: Final = 11.0
BAR_INCHES: Final = 0.21
PANEL_INCHES: Final = 0.85  # the title, the axis and the gap
HEADER_INCHES: Final = 0.5
TITLE_INCHES: Final = 0.45
TITLE_CHARACTERS: Final = 72
KEY: Final = (
    "swaptide orange, reference blue; a bar that reaches over the dotted line is better than the reference;"
    " whiskers: least to greatest"
)
# Bars end here, and their label tells the ratio: one contender far ahead must not flatten the others.
GREATEST: Final = 3.0
# Room for the labels beside the bars, as a share of the axis.
LABEL_ROOM: Final = 0.55
COLOURS: Final = {"ours": "#c2410c", "reference": "#1d4ed8", "other": "#94a3b8"}
STYLE: Final[dict[str, Any]] = {
    "svg.hashsalt": "swaptide",
    "svg.fonttype": "none",  # text stays text, to be searched and read aloud
    "font.family": "sans-serif",
    "font.size": 8,
    "axes.titlesize": 9,
    "text.parse_math": False,
}


def draw(results: report.Report, path: pathlib.Path) -> None:
    """Write the plot, in the format of the path's suffix (.svg, .png).  Raises OSError."""
    with matplotlib.rc_context(STYLE):
        drawn = picture(results)
        metadata = {"Date": None, "Creator": None} if path.suffix == ".svg" else {}
        # tight: labels beside the bars may be wider than the page
        drawn.savefig(path, metadata=metadata, dpi=110, bbox_inches="tight")


def picture(results: report.Report) -> Any:
    """The whole figure."""
    panels = report.primary(results)
    lines = [panels[at : at + COLUMNS] for at in range(0, len(panels), COLUMNS)] or [[]]
    heights = [PANEL_INCHES + BAR_INCHES * max((bars(each) for each in line), default=1) for line in lines]
    total = sum(heights) + HEADER_INCHES
    drawn = figure.Figure(figsize=(WIDTH_INCHES, total))
    drawn.text(0.01, 1 - 0.18 / total, report.headline(results), fontsize=9, va="center")
    drawn.text(0.01, 1 - 0.36 / total, KEY, fontsize=8, va="center")
    top = total - HEADER_INCHES
    for line, height in zip(lines, heights, strict=True):
        for column, comparison in enumerate(line):
            panel(drawn.add_axes(place(column, top, height, bars(comparison), total)), comparison)
        top -= height
    return drawn


def bars(comparison: figures.Comparison) -> int:
    """How many lines a panel has."""
    return max(1, len(comparison.figures))


def place(
    column: int, top: float, height: float, count: int, total: float
) -> tuple[float, float, float, float]:
    """Where a panel's axes are: left, bottom, width, height as shares of the figure."""
    width = 1 / COLUMNS
    below = (top - TITLE_INCHES - BAR_INCHES * count) / total
    return width * (column + 0.36), below, width * 0.61, BAR_INCHES * count / total


def panel(axes: Any, comparison: figures.Comparison) -> None:
    """One row of the benchmark."""
    names = list(comparison.figures)
    limit = axis_limit(comparison)
    for at, name in enumerate(names):
        bar(axes, comparison, name, at, limit)
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.set_xlim(0, limit * (1 + LABEL_ROOM))
    axes.set_xticks(ticks(limit))
    axes.tick_params(length=2)
    axes.spines[["top", "right"]].set_visible(False)
    axes.axvline(1, color="black", linewidth=0.8, linestyle=":", zorder=3)
    measured = comparison.measurement
    title = textwrap.fill(f"{measured.title}: {measured.metric}", TITLE_CHARACTERS)
    axes.set_title(title, loc="left", x=-0.56)


def axis_limit(comparison: figures.Comparison) -> float:
    """The greatest ratio that the axis has room for."""
    reach = [each.ratio.greatest for each in comparison.figures.values() if each.ratio is not None]
    return min(GREATEST, max([1.25, *reach]))


def ticks(limit: float) -> Sequence[float]:
    """Where the axis has numbers."""
    return [step / 2 for step in range(math.floor(limit * 2) + 1)]


def bar(axes: Any, comparison: figures.Comparison, name: str, at: int, limit: float) -> None:
    """One contender: bar, whisker, label."""
    found = comparison.figures[name].ratio
    axes.text(limit * 1.03, at, label(comparison, name), va="center", fontsize=7)
    if found is None:
        return
    ends = [min(each, limit) for each in (found.least, found.median, found.greatest)]
    axes.barh(at, ends[1], height=0.72, color=colour(comparison, name))
    if found.count > 1:
        axes.hlines(at, ends[0], ends[2], color="black", linewidth=1)
    if found.median > limit:
        axes.text(limit, at, "»", va="center", ha="right", color="white")


def colour(comparison: figures.Comparison, name: str) -> str:
    """Ours, the reference, or one of the rest."""
    if figures.is_ours(name):
        return COLOURS["ours"]
    return COLOURS["reference" if name == comparison.reference else "other"]


def label(comparison: figures.Comparison, name: str) -> str:
    """What stands at the end of a bar: the ratio, and the median in its unit."""
    found, unit = comparison.figures[name], comparison.measurement.unit
    if found.failed is not None:
        return "failed"
    if found.value is None:
        return figures.NOTHING
    median = figures.quantity(found.value.median, unit)
    return median if found.ratio is None else f"{figures.times(found.ratio.median)}× · {median}"
