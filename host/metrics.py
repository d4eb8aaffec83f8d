"""What the daemon tells Prometheus: the catalogue of all metrics, and their values.

In two steps.  `gather` takes what the daemon knows by itself, on its loop, in no time.  `tell` reads the
state files, /proc and cgroups, which is memory, in whatever thread serves the scrape; never a store, nor
the disks' processes, and one disk that cannot be read does not hide the others.
"""

import dataclasses
import pathlib
import time
from collections.abc import Mapping, Sequence
from typing import Any, Final

from swaptide.balloon import pressure, rooms, stopwatch
from swaptide.cache import face, layout, metrics
from swaptide.cache.errors import StateError
from swaptide.cache.metrics import Metric, Sheet
from swaptide.host import steering, supervisor

RUNNING: Final = supervisor.State.RUNNING.value
DISK_STATES: Final = (
    "starting",
    "running",
    "degraded",
    "frozen",
    "restarting",
    "unstable",
    "failed",
    "stopped",
    *layout.GATES[1:],
)
GUEST_STATES: Final = ("running", "stopped", "unreachable")
REASONS: Final = ("steady", "grow", "shrink", "rebalance", "pressure", "reserve", "floors")
VERDICTS: Final = ("granted", "impossible", "late")

_STATE: Final = Metric(
    "swaptide_disk_state", "gauge", "What a disk is doing: 1 for one of the states.", ("disk", "state")
)
_READABLE: Final = Metric(
    "swaptide_disk_readable",
    "gauge",
    "1 if the disk's state file could be read; if not, what it would say is missing.",
)
_WEIGHT: Final = Metric("swaptide_disk_weight", "gauge", "Its weight where RAM is divided.")
_STARTS: Final = Metric(
    "swaptide_disk_process_starts_total", "counter", "Processes that this daemon started to serve the disk."
)
_DEATHS: Final = Metric(
    "swaptide_disk_process_deaths_total", "counter", "Deaths of its processes that nobody asked for."
)
_SQUEEZE: Final = Metric(
    "swaptide_disk_squeeze_duration_seconds",
    "histogram",
    "From a target that fell below the RAM in use to the moment when it holds.",
)
_LATE: Final = Metric(
    "swaptide_disk_squeezes_late_total", "counter", "Squeezes that did not hold when their deadline was over."
)
_SQUEEZING: Final = Metric(
    "swaptide_disk_squeezing", "gauge", "1 while a target that fell does not hold yet."
)


def _of_guest(name: str, text: str, kind: Any = "gauge") -> Metric:
    return Metric(f"swaptide_guest_{name}", kind, text, ("guest",))


_GUEST_STATE: Final = Metric(
    "swaptide_guest_state", "gauge", "What a guest is doing: 1 for one of the states.", ("guest", "state")
)
# By the words of a guest's report; what it does not say is missing.
_GUEST_WORDS: Final = {
    "memory_bytes": _of_guest("memory_bytes", "What it was started with, and what was plugged in since."),
    "actual_bytes": _of_guest("actual_bytes", "Its logical size: what its balloon leaves it."),
    "target_bytes": _of_guest("target_bytes", "What its balloon was last told."),
    "min_bytes": _of_guest("min_bytes", "The least that its balloon may be told."),
    "max_bytes": _of_guest("max_bytes", "The most that its balloon may be told."),
    "total_bytes": _of_guest("total_bytes", "Memory by its own figures."),
    "free_bytes": _of_guest("free_bytes", "Unused memory by its own figures."),
    "available_bytes": _of_guest("available_bytes", "Memory to be had without swapping, by its own figures."),
    "swapped_in_bytes": _of_guest(
        "swapped_in_bytes_total", "Swapped in since it booted, by its own figures.", "counter"
    ),
    "swapped_out_bytes": _of_guest(
        "swapped_out_bytes_total", "Swapped out since it booted, by its own figures.", "counter"
    ),
    "age_seconds": _of_guest("statistics_age_seconds", "How old its own figures are."),
}

_ROOM_SIZE: Final = Metric(
    "swaptide_room_size_bytes", "gauge", "The host's memory, or the limit of a memory cgroup.", ("room",)
)
_ROOM_FREE: Final = Metric("swaptide_room_free_bytes", "gauge", "What may still be taken.", ("room",))
_ROOM_RESERVE: Final = Metric("swaptide_room_reserve_bytes", "gauge", "What is to stay free.", ("room",))
_PRESSURE: Final = Metric(
    "swaptide_host_pressure_ratio",
    "gauge",
    "Share of the last ten seconds in which some task stalled for want of memory.",
    (),
)
_WAITING: Final = Metric(
    "swaptide_host_pressure_waiting_seconds_total",
    "counter",
    "How long some task stalled for want of memory.",
    (),
)
_STALLED: Final = Metric(
    "swaptide_host_pressure_stalled_seconds_total",
    "counter",
    "How long all tasks stalled for want of memory.",
    (),
)
_BALLOON: Final = Metric(
    "swaptide_balloon_enabled", "gauge", "1 if the daemon divides the RAM among the disks.", ()
)
_DECISIONS: Final = Metric(
    "swaptide_balloon_decisions_total", "counter", "Looks at the host, by what came of them.", ("reason",)
)
_PRESSED: Final = Metric("swaptide_balloon_pressed_total", "counter", "Looks that found pressure.", ())
_RESERVATIONS: Final = Metric("swaptide_reservations", "gauge", "Reservations that are granted.", ())
_HELD: Final = Metric("swaptide_reservations_held_bytes", "gauge", "What is kept free for them.", ())
_WANTED: Final = Metric(
    "swaptide_reservations_wanted_bytes", "gauge", "What reservations under way ask for.", ()
)
_ANSWERS: Final = Metric(
    "swaptide_reservation_answers_total", "counter", "Answers to who asked for memory.", ("verdict",)
)
_DISKS: Final = Metric("swaptide_disks", "gauge", "Disks that are defined.", ())
_SCRAPE: Final = Metric("swaptide_scrape_duration_seconds", "gauge", "What gathering this answer took.", ())

CATALOGUE: Final[tuple[Metric, ...]] = (
    *metrics.CATALOGUE,
    _STATE,
    _READABLE,
    _WEIGHT,
    _STARTS,
    _DEATHS,
    _SQUEEZE,
    _LATE,
    _SQUEEZING,
    _GUEST_STATE,
    *_GUEST_WORDS.values(),
    _ROOM_SIZE,
    _ROOM_FREE,
    _ROOM_RESERVE,
    _PRESSURE,
    _WAITING,
    _STALLED,
    _BALLOON,
    _DECISIONS,
    _PRESSED,
    _RESERVATIONS,
    _HELD,
    _WANTED,
    _ANSWERS,
    _DISKS,
    _SCRAPE,
)
_BOUNDS: Final = tuple(map(repr, stopwatch.BOUNDS_SECONDS))


@dataclasses.dataclass(frozen=True)
class DiskNow:
    """What the daemon knows of a disk by itself."""

    name: str
    state_path: pathlib.Path
    state: str
    weight: int
    starts: int
    deaths: int
    squeezing: bool
    squeezes: metrics.Distribution
    late: int


@dataclasses.dataclass(frozen=True)
class Snapshot:
    """What the daemon knows by itself at one moment; `guests` are their reports."""

    disks: tuple[DiskNow, ...]
    guests: tuple[Mapping[str, Any], ...]
    balloon: steering.Figures | None


def disk_now(keeper: supervisor.Keeper, squeezes: stopwatch.Stopwatch) -> DiskNow:
    """A disk at this moment."""
    disk = keeper.definition
    record = squeezes.record(disk.name)
    return DiskNow(
        disk.name,
        pathlib.Path(disk.state_path),
        keeper.state.value,
        disk.weight,
        keeper.starts,
        keeper.deaths.total,
        squeezes.is_falling(disk.name),
        _distribution(record),
        record.late,
    )


def tell(snapshot: Snapshot, found: rooms.Rooms, proc_dir: pathlib.Path) -> Sheet:
    """Everything, as it is now; any thread, but `found` is that thread's alone."""
    begun = time.monotonic()
    sheet = Sheet(CATALOGUE)
    metrics.put_build(sheet)
    for disk in snapshot.disks:
        _put_disk(sheet, disk)
    sheet.put(_DISKS, len(snapshot.disks))
    for guest in snapshot.guests:
        _put_guest(sheet, guest)
    _put_host(sheet, found, proc_dir)
    _put_balloon(sheet, snapshot.balloon)
    sheet.put(_SCRAPE, time.monotonic() - begun)
    return sheet


def _distribution(record: stopwatch.Record) -> metrics.Distribution:
    counts, below = [], 0
    for count in record.counts:
        below += count
        counts.append(below)
    return metrics.Distribution(_BOUNDS, tuple(counts), record.sum_seconds)


def _put_disk(sheet: Sheet, disk: DiskNow) -> None:
    state, readable = disk.state, True
    try:
        # One of its own: the keeper's belongs to the daemon's loop.
        with face.StateFace(disk.state_path) as file:
            counters = metrics.put_disk(sheet, disk.name, file)
            if state == RUNNING:
                state = "frozen" if file.is_frozen() else "degraded" if counters["degraded"] else RUNNING
                if (gate := file.gate()) != "open":
                    state = gate
    except FileNotFoundError:
        readable = False  # not made yet, or removed just now
    except (StateError, OSError):
        state, readable = supervisor.State.FAILED.value, False
    for each in DISK_STATES:
        sheet.put(_STATE, int(each == state), disk.name, each)
    sheet.put(_READABLE, int(readable), disk.name)
    sheet.put(_WEIGHT, disk.weight, disk.name)
    sheet.put(_STARTS, disk.starts, disk.name)
    sheet.put(_DEATHS, disk.deaths, disk.name)
    sheet.put(_SQUEEZE, disk.squeezes, disk.name)
    sheet.put(_LATE, disk.late, disk.name)
    sheet.put(_SQUEEZING, int(disk.squeezing), disk.name)


def _put_guest(sheet: Sheet, report: Mapping[str, Any]) -> None:
    name, state = report["name"], report["state"]
    if state not in ("running", "unreachable"):  # QEMU has many words for it
        state = "stopped"
    for each in GUEST_STATES:
        sheet.put(_GUEST_STATE, int(each == state), name, each)
    for word, metric in _GUEST_WORDS.items():
        if report[word] is not None:
            sheet.put(metric, report[word], name)


def _put_host(sheet: Sheet, found: rooms.Rooms, proc_dir: pathlib.Path) -> None:
    for room in found.read():
        sheet.put(_ROOM_SIZE, room.size_bytes, room.name)
        sheet.put(_ROOM_FREE, room.free_bytes, room.name)
        sheet.put(_ROOM_RESERVE, room.reserve_bytes, room.name)
    stalls = pressure.read(proc_dir / "pressure/memory")
    if stalls is not None:
        sheet.put(_PRESSURE, stalls.share)
        sheet.put(_WAITING, stalls.some_seconds)
        if stalls.full_seconds is not None:
            sheet.put(_STALLED, stalls.full_seconds)


def _put_balloon(sheet: Sheet, figures: steering.Figures | None) -> None:
    sheet.put(_BALLOON, int(figures is not None))
    if figures is None:
        return
    _put_counts(sheet, _DECISIONS, REASONS, figures.decisions)
    sheet.put(_PRESSED, figures.pressed)
    sheet.put(_RESERVATIONS, figures.granted)
    sheet.put(_HELD, figures.held_bytes)
    sheet.put(_WANTED, figures.wanted_bytes)
    _put_counts(sheet, _ANSWERS, VERDICTS, figures.answers)


def _put_counts(sheet: Sheet, metric: Metric, known: Sequence[str], counts: Mapping[str, int]) -> None:
    """All that are known from the first scrape on, as 0, so that a rate sees the first one."""
    for label in (*known, *sorted(counts.keys() - set(known))):
        sheet.put(metric, counts.get(label, 0), label)
