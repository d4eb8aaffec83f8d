"""A replay as a picture: targets and RAM, hits, what is spare, and guests where there are some.

Give it some hundred windows at most: more make a file large and no line clearer.  Needs matplotlib, through
its figures alone: no window, no state of its own.  The same replay gives the same bytes.
"""

import pathlib
from collections.abc import Sequence
from typing import Any, Final

import matplotlib
from matplotlib import figure

from swaptide.balloon import tally

_GIB: Final = 1 << 30
_WIDTH_INCHES: Final = 8.0
_PANEL_INCHES: Final = 1.7
_COLOURS: Final = ("#c2410c", "#1d4ed8", "#15803d", "#7e22ce", "#b45309", "#0e7490", "#be185d", "#4b5563")
_STYLE: Final[dict[str, Any]] = {
    "svg.hashsalt": "swaptide",
    "svg.fonttype": "none",  # text stays text, to be searched and read aloud
    "font.family": "sans-serif",
    "font.size": 8,
    "axes.titlesize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "text.parse_math": False,
}


def draw(windows: Sequence[tally.Window], title: str, path: pathlib.Path) -> None:
    """Write the plot, in the format of the path's suffix (.svg, .png).  Raises OSError."""
    with matplotlib.rc_context(_STYLE):
        metadata = {"Date": None, "Creator": None} if path.suffix == ".svg" else {}
        drawn = picture(windows, title)
        draft = path.with_name(f".{path.name}.new")
        try:
            drawn.savefig(draft, format=path.suffix[1:], metadata=metadata, dpi=110, bbox_inches="tight")
            draft.replace(path)
        except BaseException:  # an interrupt as well: what was there stays
            draft.unlink(missing_ok=True)
            raise


def picture(windows: Sequence[tally.Window], title: str) -> Any:
    """The whole figure."""
    guests = sorted({name for window in windows for name in window.guests})
    count = 4 if guests else 3
    drawn = figure.Figure(figsize=(_WIDTH_INCHES, _PANEL_INCHES * count), layout="constrained")
    panels = drawn.subplots(count, 1, sharex=True)
    at = [window.at_seconds - windows[0].at_seconds for window in windows]
    _memory(panels[0], at, windows)
    _hits(panels[1], at, windows)
    _spare(panels[2], at, windows)
    for number, name in enumerate(guests):
        sizes = [window.guests[name] / _GIB if name in window.guests else None for window in windows]
        panels[3].plot(at, _gaps(sizes), color=_colour(number), label=name, linewidth=1)
    if guests:
        _finish(panels[3], "guests (GiB)")
    panels[0].set_title(title, loc="left")
    panels[-1].set_xlabel("seconds")
    return drawn


def _memory(axes: Any, at: Sequence[float], windows: Sequence[tally.Window]) -> None:
    for number, name in enumerate(_names(windows)):
        disks = [window.disks.get(name) for window in windows]
        ram = [None if disk is None else disk.ram_bytes / _GIB for disk in disks]
        targets = [None if disk is None else disk.target_bytes / _GIB for disk in disks]
        axes.plot(at, _gaps(ram), color=_colour(number), linewidth=1.4, label=f"{name}, RAM")
        axes.plot(
            at, _gaps(targets), color=_colour(number), linewidth=0.8, linestyle=":", label=f"{name}, target"
        )
    axes.set_ylim(bottom=0)
    _finish(axes, "disks (GiB)")


def _hits(axes: Any, at: Sequence[float], windows: Sequence[tally.Window]) -> None:
    for number, name in enumerate(_names(windows)):
        disks = [window.disks.get(name) for window in windows]
        ratios = [disk.hit_ratio if disk is not None else None for disk in disks]
        shown = [None if ratio is None else 100 * ratio for ratio in ratios]
        axes.plot(at, _gaps(shown), color=_colour(number), linewidth=1, label=name)
    axes.set_ylim(-3, 103)
    _finish(axes, "reads from RAM (%)")


def _spare(axes: Any, at: Sequence[float], windows: Sequence[tally.Window]) -> None:
    axes.plot(at, [window.spare_bytes / _GIB for window in windows], color="black", linewidth=1)
    axes.axhline(0, color="black", linewidth=0.6, linestyle=":")
    short = [window.spare_bytes < 0 for window in windows]
    axes.fill_between(
        at, [min(0.0, window.spare_bytes / _GIB) for window in windows], 0, where=short, color="#dc2626"
    )
    fired = [when for when, window in zip(at, windows, strict=True) if window.pressed]
    if fired:
        axes.plot(fired, [0] * len(fired), "v", color="#dc2626", markersize=4, label="pressure trigger")
    _finish(axes, "spare (GiB)")


def _finish(axes: Any, title: str) -> None:
    axes.set_ylabel(title)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)


def _names(windows: Sequence[tally.Window]) -> list[str]:
    return sorted({name for window in windows for name in window.disks})


def _colour(number: int) -> str:
    return _COLOURS[number % len(_COLOURS)]


def _gaps(values: Sequence[float | None]) -> list[float]:
    return [float("nan") if value is None else value for value in values]
