"""Rows over NBD in which swaptide's disk fits its RAM: every request is a hit, beside every other server.

One thread; all contenders are alive at once, shared by the rows through the lab, and take turns.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Final, Literal

from bench import fio, load, measure, ring, servers

# What a disk holds before the timing: all of it written in order, or then every page again in random order.
# Every row names one, so that it measures the same alone and after other rows.
Contents = Literal["sequential", "scattered"]

DISK_BYTES: Final = 512 * load.MIB
QUICK_DISK_BYTES: Final = 128 * load.MIB
# swaptide's RAM for a byte of disk: room for what is live and for as much dead space, so nothing spills.
RAM_FACTOR: Final = 2.4
# How long a slow contender may take for its overwrites before the timing.
SCATTER_SECONDS: Final = 10.0
QUICK_SCATTER_SECONDS: Final = 3.0
_KEPT: Final = "nbd"
_METRICS: Final = (load.RATE, load.P99_US, load.CPU_US)
_MEMORY: Final = (servers.nbdkit_memory(1), servers.nbdkit_memory(4), servers.nbdkit_memory(16))
_AGAIN: Final = servers.nbdkit_memory(16, again=True)


@dataclasses.dataclass(frozen=True)
class Work:
    """A pattern of requests, and what the disks hold before it."""

    name: str
    title: str
    pattern: fio.Pattern
    contents: Contents


@dataclasses.dataclass
class Fleet(ring.Ring):
    """All contenders; `contents` is what their disks hold (None: something else).

    `is_filled` is whether they were ever filled, `slow` names those that were not overwritten in full.
    """

    contents: Contents | None = None
    is_filled: bool = False
    slow: list[str] = dataclasses.field(default_factory=list)

    def prepare(self, wanted: Contents) -> None:
        """Make all disks hold what is wanted, outside the timing."""
        if self.contents == wanted:
            return
        # Random overwrites of disks that were filled once need no second fill.
        if not self.is_filled or wanted == "sequential":
            self.fill()
            self.is_filled = True
        if wanted == "scattered":
            self._scatter()
        self.contents = wanted

    def _scatter(self) -> None:
        patience = QUICK_SCATTER_SECONDS if self.lab.plan.quick else SCATTER_SECONDS
        self.slow = []
        for name in list(self.running):
            self.lab.tell(f"overwriting {name}")
            self.attempt(name, functools.partial(self._scatter_one, name, patience))

    def _scatter_one(self, name: str, patience: float, server: servers.Server) -> None:
        if not self.scatter_one(server, patience):
            self.slow.append(name)


def contenders(size_bytes: int, quick: bool = False) -> tuple[servers.Contender, ...]:
    """Every contender of these rows, in the order of their first turn; `quick` for those that count."""
    others = (
        servers.nbdkit_zstd(),
        servers.nbdkit_file(),
        servers.nbdkit_file_none(),
        servers.nbdkit_cache(),
        servers.qemu_nbd("writeback"),
        servers.qemu_nbd("none"),
    )
    ours = servers.swaptide(int(size_bytes * RAM_FACTOR))
    return (servers.null(), *_MEMORY, _AGAIN, *(() if quick else others), ours)


def _fleet(lab: measure.Lab) -> Fleet:
    """The running contenders; the first row that asks starts them."""
    found = lab.kept.get(_KEPT)
    if isinstance(found, Fleet):
        return found
    directory = lab.scratch / _KEPT
    directory.mkdir()
    fleet = Fleet(lab, directory, QUICK_DISK_BYTES if lab.plan.quick else DISK_BYTES)
    lab.kept[_KEPT] = fleet
    fleet.start(contenders(fleet.size_bytes, lab.plan.quick), lab.stack)
    return fleet


def _measure(work: Work, lab: measure.Lab) -> Sequence[measure.Measurement]:
    fleet = _fleet(lab)
    fleet.prepare(work.contents)
    before = fleet.counters()

    def once(name: str) -> load.Sample:
        sample = fleet.run(name, work.pattern, lab.plan.seconds)
        fleet.running[name].settle()
        return sample

    samples, failed = measure.take_turns(lab, list(fleet.running), lab.plan.rounds, once)
    if work.pattern.writes and not (fleet.contents == "scattered" and work.pattern.rw == "randwrite"):
        fleet.contents = None
    return load.measurements(
        *(work.name, work.title, _METRICS, samples),
        {**fleet.failed, **failed},
        reference=tuple(contender.name for contender in _MEMORY),
        again=(_AGAIN.name, _MEMORY[-1].name),
        notes=[_size(fleet), *fleet.notes, _slow(fleet, work), _served(before, fleet.counters())],
    )


def _size(fleet: Fleet) -> str:
    mib, ram = fleet.size_bytes >> 20, int(fleet.size_bytes * RAM_FACTOR) >> 20
    return f"disk {mib} MiB; swaptide may use {ram} MiB of RAM, so that nothing is spilled"


def _slow(fleet: Fleet, work: Work) -> str:
    if work.contents != "scattered" or not fleet.slow:
        return ""
    return f"too slow to be overwritten in full before the timing: {', '.join(fleet.slow)}"


def _served(before: Mapping[str, int], after: Mapping[str, int]) -> str:
    """What our counters say of the row: that nothing came from disk, and that all pages are data."""
    if not before or not after:
        return ""
    misses, same, stored = (
        after["misses"] - before["misses"],
        after["same_filled_pages"],
        after["stored_pages"],
    )
    return (
        f"swaptide read {misses} pages from disk during the row; {same} of its {stored} pages are same-filled"
    )


def _row(name: str, title: str, rw: str, block_kib: int, depth: int, contents: Contents) -> measure.Row:
    work = Work(name, title, fio.Pattern(rw, block_kib << 10, depth), contents)
    return measure.Row(name, "nbd", title, functools.partial(_measure, work))


# In an order that needs one fill and one round of overwrites.
ROWS: Final[tuple[measure.Row, ...]] = (
    _row("randread-4k-d1", "4 KiB random reads, depth 1", "randread", 4, 1, "sequential"),
    _row("randread-4k-d16", "4 KiB random reads, depth 16", "randread", 4, 16, "sequential"),
    _row(
        "read-32k-d8-sequential-fill",
        "32 KiB reads at random places, depth 8, of a disk filled in order",
        *("randread", 32, 8, "sequential"),
    ),
    _row(
        "read-32k-d8-random-overwrites",
        "32 KiB reads at random places, depth 8, after every 4 KiB page was overwritten in random order",
        *("randread", 32, 8, "scattered"),
    ),
    _row("randwrite-4k-d1", "4 KiB random writes, depth 1", "randwrite", 4, 1, "scattered"),
    _row("randwrite-4k-d16", "4 KiB random writes, depth 16", "randwrite", 4, 16, "scattered"),
    _row(
        "write-128k-d8",
        "128 KiB writes in order, depth 8, over pages that were written in random order",
        *("write", 128, 8, "scattered"),
    ),
)
