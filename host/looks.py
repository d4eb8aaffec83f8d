"""What two looks at a daemon say together: rates, hit rates, latencies, what is wrong.  Pure functions.

A look is what protocol.Look answers.  Sizes are in bytes, times in seconds; None is what cannot be said, as a
rate after one look only, or a hit rate where nothing was read.
"""

import dataclasses
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

from swaptide.cache import geometry, histogram

Look = Mapping[str, Any]
Report = Mapping[str, Any]

_READS = ("hit", "miss")
_FINE = ("running", "starting")
# What is said to swap, but told nothing for so long, is not known to be well.
_STALE_SECONDS = 30.0
_RAM_SLACK_BYTES = geometry.SEGMENT_BYTES
_PRESSURE_PERCENT = 10.0
_STORE_SHARE = 0.95


@dataclasses.dataclass(frozen=True)
class Disk:
    """One disk.  `raw_bytes` to `same_bytes` are the guest's bytes, by where they are.

    Rates are per second between the two looks: `returned` is what the guest read, `taken` what it wrote;
    `stall_seconds_per_second` how long its writes waited for memory.
    """

    name: str
    state: str
    error: str | None
    size_bytes: int
    cap_bytes: int
    target_bytes: int
    ram_bytes: int
    raw_bytes: int
    packed_bytes: int
    spilled_bytes: int
    same_bytes: int
    packing_ratio: float | None
    hit_share: float | None = None
    read_p50_seconds: float | None = None
    read_p99_seconds: float | None = None
    write_p99_seconds: float | None = None
    stall_seconds_per_second: float | None = None
    returned_bytes_per_second: float | None = None
    taken_bytes_per_second: float | None = None


@dataclasses.dataclass(frozen=True)
class Wrong:
    """Something that an operator should know of: what it is about, and what it is."""

    subject: str
    why: str


@dataclasses.dataclass(frozen=True)
class View:
    """Everything that is shown.  `host` and `guests` are as the daemon tells them."""

    interval_seconds: float | None
    host: Mapping[str, Any]
    disks: tuple[Disk, ...]
    guests: tuple[Mapping[str, Any], ...]
    wrong: tuple[Wrong, ...]

    @property
    def ram_bytes(self) -> int:
        """What all disks take of the host's RAM."""
        return sum(disk.ram_bytes for disk in self.disks)

    def as_dict(self) -> dict[str, Any]:
        """The same for JSON."""
        return dataclasses.asdict(self)


def compare(before: Look | None, after: Look) -> View:
    """What there is, and what came since `before`."""
    seconds = None if before is None else after["at_seconds"] - before["at_seconds"]
    if seconds is not None and seconds <= 0:
        before, seconds = None, None
    old = {} if before is None else {report["name"]: report for report in before["disks"]}
    disks = tuple(_disk(old.get(report["name"]), report, seconds) for report in after["disks"])
    return View(
        interval_seconds=seconds,
        host=after["host"],
        disks=disks,
        guests=tuple(after["guests"]),
        wrong=tuple(_wrong(after)),
    )


def chosen(view: View, names: Collection[str], order: Callable[[Disk], Any]) -> View:
    """The disks of these names, all where there are none, in order; the first of equals by name."""
    disks = [disk for disk in view.disks if not names or disk.name in names]
    return dataclasses.replace(view, disks=tuple(sorted(disks, key=lambda disk: (order(disk), disk.name))))


def quantile_seconds(counts: Mapping[int, int], quantile: float) -> float | None:
    """The latency that a share `quantile` of requests, counted by bucket, stayed below; None without any."""
    latency = tuple(counts.get(bucket, 0) for bucket in range(histogram.LATENCY_BUCKETS))
    return histogram.Histogram(latency, 0, (), 0).quantile_seconds(quantile)


def _disk(before: Report | None, after: Report, seconds: float | None) -> Disk:
    now = Disk(
        name=after["name"],
        state=after["state"],
        error=after["error"],
        size_bytes=after["size_bytes"],
        cap_bytes=after["cap_bytes"],
        target_bytes=after["target_bytes"],
        ram_bytes=after["ram_bytes"],
        raw_bytes=after["raw_bytes"],
        packed_bytes=after["packed_pages"] * geometry.PAGE_BYTES,
        spilled_bytes=after["spilled_bytes"],
        same_bytes=after["same_filled_pages"] * geometry.PAGE_BYTES,
        packing_ratio=after["packing_ratio"],
    )
    if before is None or seconds is None or not _is_later(before, after):
        return now
    grown = {key: after[key] - before[key] for key in ("hits", "misses", "read_bytes", "write_bytes")}
    pages = grown["hits"] + grown["misses"]
    reads = _since(before, after, *_READS)
    return dataclasses.replace(
        now,
        hit_share=grown["hits"] / pages if pages else None,
        read_p50_seconds=quantile_seconds(reads, 0.5),
        read_p99_seconds=quantile_seconds(reads, 0.99),
        write_p99_seconds=quantile_seconds(_since(before, after, "write"), 0.99),
        stall_seconds_per_second=max(0.0, _stalled(after) - _stalled(before)) / seconds,
        returned_bytes_per_second=grown["read_bytes"] / seconds,
        taken_bytes_per_second=grown["write_bytes"] / seconds,
    )


def _is_later(before: Report, after: Report) -> bool:
    """Whether both are of one disk: one that was cleared is another, and begins anew."""
    same = before["id"] == after["id"] is not None and bool(before["latency_counts"])
    return same and all(after[key] >= before[key] for key in ("hits", "misses", "read_bytes", "write_bytes"))


def _since(before: Report, after: Report, *kinds: str) -> dict[int, int]:
    """Requests of these kinds between two reports, by bucket."""
    found: dict[int, int] = {}
    for kind in kinds:
        old = _counts(before, kind)
        for bucket, count in _counts(after, kind).items():
            found[bucket] = found.get(bucket, 0) + max(0, count - old.get(bucket, 0))
    return found


def _counts(report: Report, kind: str) -> dict[int, int]:
    """JSON has no keys but strings."""
    return {int(bucket): count for bucket, count in report["latency_counts"].get(kind, {}).items()}


def _stalled(report: Report) -> float:
    """Seconds that requests waited for memory since the disk was made."""
    stall = (report["latency"] or {}).get("stall")
    return stall["count"] * stall["mean_seconds"] if stall and stall["count"] else 0.0


def _wrong(look: Look) -> Iterator[Wrong]:
    yield from _wrong_of_host(look["host"])
    for report in look["disks"]:
        for why in _wrong_of_disk(report):
            yield Wrong(f"disk {report['name']}", why)
    for guest in look["guests"]:
        if guest["error"]:
            yield Wrong(f"guest {guest['name']}", guest["error"])
        elif guest["age_seconds"] is not None and guest["age_seconds"] > _STALE_SECONDS:
            yield Wrong(f"guest {guest['name']}", f"told nothing of itself for {guest['age_seconds']:.0f} s")


def _wrong_of_host(host: Mapping[str, Any]) -> Iterator[Wrong]:
    for room in host["rooms"]:
        if room["free_bytes"] < room["reserve_bytes"]:
            yield Wrong(room["name"], "less memory is free than is to be kept")
    percent = host["pressure_percent"]
    if percent is not None and percent >= _PRESSURE_PERCENT:
        yield Wrong("host", f"tasks stood still for want of memory {percent:.0f} % of the last 10 s")


def _wrong_of_disk(report: Report) -> Iterator[str]:
    if report["state"] not in _FINE:
        yield f"{report['state']}: {report['error']}" if report["error"] else report["state"]
    if report["degraded"] and report["state"] != "degraded":
        yield "its store fails"
    if report["ram_blocked"]:
        yield "the host refuses it memory below its target"
    if report["ram_bytes"] > report["cap_bytes"] + _RAM_SLACK_BYTES:
        yield "it uses more RAM than its cap"
    slots = report["reserved_bytes"] // geometry.SEGMENT_BYTES
    if slots and report["disk_slots_used"] > _STORE_SHARE * slots:
        yield f"{report['disk_slots_used'] / slots:.0%} of its spill space are in use"
