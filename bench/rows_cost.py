"""Rows of what a disk of ours costs by itself: RAM beside the pages, and a disk of 1 TiB that holds nothing.

One thread; each row starts its own disks and ends them with their files.
"""

import contextlib
import dataclasses
import os
import pathlib
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from bench import fio, guests, held, load, measure, servers, squeezing
from swaptide.cache import geometry

MIB: Final = 1 << 20
DISK_BYTES: Final = 1024 * MIB
QUICK_DISK_BYTES: Final = 256 * MIB
# Filled before the process's memory is looked at first: most of its request buffers have grown by then.
WARM_SHARE: Final = 1 / 8
PACKS: Final = 60
PACKED_SHARE: Final = 0.85
# Behind each piece of a segment in RAM: which page it is.
REVERSE_MAP_BYTES: Final = 4
# What the process keeps of each segment, RAM slot and disk slot: the arrays of cache/*.pyx that end with it.
ARRAYS_BYTES: Final = (29, 12, 8)
HUGE_BYTES: Final = 1 << 40
# Beside its floor, which has its tables in full.
HUGE_ROOM_BYTES: Final = 1024 * MIB
ROUNDS: Final = 3
TOOL_SECONDS: Final = 20


# --- Metadata -----------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Cost:
    """Bytes of RAM beside the pages: tables in the state file, reverse maps, the process's own arrays.

    `pages` are those that are stored.
    """

    tables: int
    reverse_maps: int
    arrays: int
    pages: int

    @property
    def per_page(self) -> float:
        """Bytes for each page stored."""
        return (self.tables + self.reverse_maps + self.arrays) / self.pages

    @property
    def told(self) -> str:
        """The parts, for each page."""
        parts = {"tables": self.tables, "reverse maps": self.reverse_maps, "arrays": self.arrays}
        return ", ".join(f"{name} {nbytes / self.pages:.2f}" for name, nbytes in parts.items())


def arrays_bytes(shape: geometry.Geometry) -> int:
    """The process's arrays in full; what is never used of them costs nothing in truth."""
    counts = (shape.segments, shape.ram_slots, shape.disk_slots)
    return sum(count * each for count, each in zip(counts, ARRAYS_BYTES, strict=True))


def cost(counters: Mapping[str, int], state_bytes: int, process_bytes: int) -> Cost:
    """From our counters, the blocks of the state file, and the process's arrays.

    Raises ContenderError for a disk that stores nothing.
    """
    pages = counters["stored_pages"]
    if not pages:
        raise measure.ContenderError("it stores no page")
    in_ram = pages - counters["spilled_bytes"] // geometry.PAGE_BYTES
    tables = state_bytes - counters["ram_slots_used"] * geometry.SEGMENT_BYTES
    return Cost(tables, in_ram * REVERSE_MAP_BYTES, process_bytes, pages)


@dataclasses.dataclass(frozen=True)
class Costs:
    """Of one disk: with all pages raw, and packed; bytes for each page that was read and never written.

    `grown` is what its process allocated while the disk was filled, request buffers and all.
    """

    raw: Cost
    packed: Cost
    unwritten: float
    grown: int


def measure_metadata(lab: measure.Lab) -> Sequence[measure.Measurement]:
    """Fill a disk, and pack it."""
    size_bytes = QUICK_DISK_BYTES if lab.plan.quick else DISK_BYTES
    rounds = 1 if lab.plan.quick else min(ROUNDS, lab.plan.rounds)
    found, failed = measure.take_turns(lab, (measure.OURS,), rounds, lambda _: _costs(lab, size_bytes))
    ours = found.get(measure.OURS, [])
    notes = (
        f"a disk of {size_bytes // MIB} MiB, full; tables: the blocks of the state file without its pool;"
        " reverse maps: 4 bytes for each page in RAM; arrays: of the process, in full",
        *(f"{name}: {each.told} bytes" for name, each in _last(ours)),
        *(
            f"the process allocated {each.grown >> 10} KiB after {WARM_SHARE:.1%} of it were written, request"
            " buffers included, which are counted nowhere here"
            for each in ours[-1:]
        ),
    )
    values = {
        "metadata, raw": [each.raw.per_page for each in ours],
        "metadata, packed": [each.packed.per_page for each in ours],
        "metadata, read but never written": [each.unwritten for each in ours],
    }
    return [
        _alone("metadata", name, "bytes/page", several, failed, notes) for name, several in values.items()
    ]


def _last(found: Sequence[Costs]) -> Iterator[tuple[str, Cost]]:
    for each in found[-1:]:
        yield "raw", each.raw
        yield "packed", each.packed


def _costs(lab: measure.Lab, size_bytes: int) -> Costs:
    tuning = servers.Tuning(compress="lz4", clean_ahead_percent=0)
    with tempfile.TemporaryDirectory(dir=lab.scratch, prefix="metadata-") as name:
        directory = pathlib.Path(name)
        with servers.serve_swaptide(directory, size_bytes, ram_bytes=2 * size_bytes, tuning=tuning) as server:
            empty = _tables(server)
            fio.nbd(server.uri, fio.Pattern("read", MIB, 4), size_bytes=size_bytes, directory=directory)
            unwritten = (_tables(server) - empty) / (size_bytes // geometry.PAGE_BYTES)
            load.fill(server, size_bytes=int(size_bytes * WARM_SHARE), directory=directory, packs=PACKS)
            warm = _allocated(server)
            load.fill(server, size_bytes=size_bytes, directory=directory, packs=PACKS)
            load.wait_quiet(server)
            raw, grown = _cost(server), max(0, _allocated(server) - warm)
            squeezing.until_packed(server, PACKED_SHARE)
            return Costs(raw, _cost(server), max(0.0, unwritten), grown)


def _cost(server: servers.Swaptide) -> Cost:
    counters, state = steady(server)
    with server.face() as disk:
        arrays = arrays_bytes(geometry.of_size(disk.identity.size_bytes))
    return cost(counters, state, arrays)


def _tables(server: servers.Swaptide) -> int:
    counters, state = steady(server)
    return state - counters["ram_slots_used"] * geometry.SEGMENT_BYTES


def steady(server: servers.Swaptide) -> tuple[Mapping[str, int], int]:
    """Counters and the state file's blocks of one moment; raises ContenderError if they never agree."""
    for _ in range(100):
        before, state, after = server.counters(), held.state_bytes(server), server.counters()
        if before["ram_slots_used"] == after["ram_slots_used"]:
            return after, state
    raise measure.ContenderError("its memory never rests")


def _allocated(server: servers.Swaptide) -> int:
    return guests.anonymous_bytes(guests.smaps(server.pid))


def _alone(
    row: str,
    metric: str,
    unit: str,
    values: Sequence[float],
    failed: Mapping[str, str],
    notes: tuple[str, ...],
) -> measure.Measurement:
    return measure.Measurement(
        row=row,
        metric=metric,
        title=TITLES[row],
        unit=unit,
        better="less",
        values={measure.OURS: values} if values else {},
        reference=(),
        failed=failed,
        notes=notes,
    )


# --- 1 TiB --------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Started:
    """How long a disk took from its process's start to its first answer, and its RAM after that."""

    seconds: float
    held_bytes: int


def measure_huge(lab: measure.Lab) -> Sequence[measure.Measurement]:
    """Start a disk of 1 TiB several times; without root there are no figures, but a note."""
    started, failed, why = _start_all(lab)
    notes = (
        "the spill store is a loop device over a sparse file; from the start of nbdkit to the end of a"
        " client's first handshake; RAM: all of the process's own, and the state file",
        f"not measured: {why}" if why else "",
    )
    said = tuple(note for note in notes if note)
    seconds = [each.seconds for each in started]
    mib = [each.held_bytes / MIB for each in started]
    return [
        _alone("disk-1tib", "start", "s", seconds, failed, said),
        _alone("disk-1tib", "RAM", "MiB", mib, failed, said),
    ]


def _start_all(lab: measure.Lab) -> tuple[Sequence[Started], Mapping[str, str], str | None]:
    if os.geteuid():
        return (), {}, "it needs root, for a loop device"
    shape = geometry.of_size(HUGE_BYTES)
    rounds = 1 if lab.plan.quick else min(ROUNDS, lab.plan.rounds)
    with tempfile.TemporaryDirectory(dir=lab.scratch, prefix="huge-") as name:
        directory = pathlib.Path(name)
        sparse = directory / "sparse"
        try:
            with open(sparse, "wb") as made:
                made.truncate(shape.spill_bytes)
            with _loop(sparse) as device:
                found, failed = measure.take_turns(
                    *(lab, (measure.OURS,), rounds), lambda _: _start_one(directory, device, shape)
                )
        except OSError as error:
            return (), {}, f"no loop device: {error.strerror}"
    return found.get(measure.OURS, []), failed, None


def _start_one(directory: pathlib.Path, device: pathlib.Path, shape: geometry.Geometry) -> Started:
    ram_bytes = shape.working_minimum_bytes + HUGE_ROOM_BYTES
    tuning = servers.Tuning(spill=device)
    with (
        tempfile.TemporaryDirectory(dir=directory) as name,
        servers.serve_swaptide(pathlib.Path(name), HUGE_BYTES, ram_bytes=ram_bytes, tuning=tuning) as server,
    ):
        return Started(server.start_seconds, held.settled(server).whole_bytes)


@contextlib.contextmanager
def _loop(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """A loop device over a file; raises OSError where there is none to be had."""
    device = pathlib.Path(_losetup("--find", "--show", str(path)))
    try:
        yield device
    finally:
        _losetup("--detach", str(device))


def _losetup(*words: str) -> str:
    done = subprocess.run(
        ["losetup", *words], capture_output=True, text=True, timeout=TOOL_SECONDS, check=False
    )
    if done.returncode:
        raise OSError(done.returncode, " ".join(done.stderr.split()))
    return done.stdout.strip()


TITLES: Final = {
    "metadata": "RAM beside the pages",
    "disk-1tib": "a disk of 1 TiB that holds nothing",
}
ROWS: Final = (
    measure.Row("metadata", "memory", TITLES["metadata"], measure_metadata),
    measure.Row("disk-1tib", "memory", TITLES["disk-1tib"], measure_huge),
)
