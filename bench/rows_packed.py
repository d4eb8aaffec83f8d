"""The row of packed pages: everything is in RAM and packed, and read at random.

One thread; the row starts its own servers, lets them take turns, and ends them.
"""

import contextlib
import pathlib
import tempfile
from collections.abc import Mapping, Sequence
from typing import Final

from bench import fio, load, measure, ring, servers, squeezing

ROW: Final = "randread-packed-4k-d16"
TITLE: Final = "4 KiB random reads of packed pages, depth 16"
DISK_BYTES: Final = 512 * load.MIB
QUICK_DISK_BYTES: Final = 128 * load.MIB
# Zeroes in each page, in percent: LZ4 and zstd both leave a little more than the rest.
PACKS: Final = 60
# Ours packs the coldest, so the disk's beginning; so much of it is packed, and a part of that is read.
PACKED_SHARE: Final = 0.85
READ_SHARE: Final = 0.75
# At least this share of the pages read must have been packed.
HIT_SHARE: Final = 0.98
_NOTE: Final = f"all disks hold pages that are {PACKS} % zeroes and else random, written in order"
_ZSTD: Final = servers.nbdkit_zstd("allocator=zstd packs 32 KiB at a time")
_AGAIN: Final = servers.nbdkit_zstd("", again=True)
_STRONG: Final = f"{measure.OURS}, zstd"


def contenders(size_bytes: int) -> tuple[servers.Contender, ...]:
    """Those that pack, and one that does not."""
    ram_bytes = 2 * size_bytes
    return (
        *(_ZSTD, _AGAIN, servers.nbdkit_memory()),
        servers.swaptide(ram_bytes, tuning=servers.Tuning(compress="lz4", clean_ahead_percent=0)),
        servers.swaptide(ram_bytes, _STRONG, servers.Tuning(compress="zstd", clean_ahead_percent=0)),
    )


def measure_packed(lab: measure.Lab) -> Sequence[measure.Measurement]:
    """All contenders in turn; ours has no figures if what it read was not packed."""
    size_bytes = QUICK_DISK_BYTES if lab.plan.quick else DISK_BYTES
    with (
        tempfile.TemporaryDirectory(dir=lab.scratch, prefix="packed-") as name,
        contextlib.ExitStack() as stack,
    ):
        running = ring.Ring(lab, pathlib.Path(name), size_bytes, PACKS)
        running.start(contenders(size_bytes), stack)
        running.fill()
        running.each("packing", _pack)
        before = running.counters()
        samples, failed = measure.take_turns(
            *(lab, list(running.running), lab.plan.rounds), lambda name: _read(running, name)
        )
        after = running.counters()
        if (why := unpacked(before, after)) and measure.OURS in samples:
            del samples[measure.OURS]
            failed[measure.OURS] = why
        return load.measurements(
            *(ROW, TITLE, (load.RATE, load.P99_US, load.CPU_US), samples),
            {**running.failed, **failed},
            reference=(_ZSTD.name,),
            again=(_AGAIN.name, _ZSTD.name),
            notes=(_NOTE, _read_note(size_bytes), *running.notes, said(before, after)),
        )


def _pack(server: servers.Server) -> None:
    if isinstance(server, servers.Swaptide):
        squeezing.until_packed(server, PACKED_SHARE)
        load.wait_quiet(server)


def _read(running: ring.Ring, name: str) -> load.Sample:
    return load.run(
        running.running[name],
        fio.Pattern("randread", 4096, 16),
        size_bytes=read_bytes(running.size_bytes),
        seconds=running.lab.plan.seconds,
        directory=running.directory,
    )


def read_bytes(size_bytes: int) -> int:
    """How much of the disk, from its beginning, is read."""
    return int(size_bytes * READ_SHARE)


def _read_note(size_bytes: int) -> str:
    return (
        f"the first {read_bytes(size_bytes) >> 20} of {size_bytes >> 20} MiB are read; swaptide's target was"
        f" lowered until {PACKED_SHARE:.0%} of its pages were packed, the coldest first, 1 % at most on disk"
    )


def unpacked(before: Mapping[str, int], after: Mapping[str, int]) -> str | None:
    """Why the reads between two readings of our counters were not of packed pages; None if they were."""
    if not before or not after:
        return None
    share = packed_share(before, after)
    return None if share >= HIT_SHARE else f"only {share:.1%} of the pages read were packed"


def packed_share(before: Mapping[str, int], after: Mapping[str, int]) -> float:
    """The share of the pages read that were packed."""
    packed, hits, misses = (after[name] - before[name] for name in ("packed_hits", "hits", "misses"))
    return packed / (hits + misses) if hits + misses else 0.0


def said(before: Mapping[str, int], after: Mapping[str, int]) -> str:
    """What our counters say of the row."""
    if not before or not after:
        return ""
    taken = after["packed_bytes"] / max(1, after["packed_pages"])
    return (
        f"{packed_share(before, after):.1%} of the pages that swaptide read were packed, to {taken:.0f} bytes"
        f" each; {after['spilled_bytes'] >> 20} MiB of it are on disk"
    )


ROWS: Final = (measure.Row(ROW, "cap", TITLE, measure_packed),)
