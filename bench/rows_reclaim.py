"""Rows of reclaim: how fast memory comes back when the cap falls, and what readers feel meanwhile.

One thread measures; in the row under load a second one waits for fio.
"""

import concurrent.futures
import contextlib
import dataclasses
import os
import pathlib
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Final, Literal

from bench import fio, load, measure, servers
from swaptide.cache import histogram

MIB: Final = 1 << 20
DISK: Final = "disk, direct write"
DISK_AGAIN: Final = "disk, direct write again"
PLAIN: Final = f"{measure.OURS}, not encrypted"
PAGE_CACHE: Final = "page cache, sync and drop"
AT_REST: Final = "swaptide at rest"
FAILED: Final = {"nbdkit memory": "gives nothing back before it ends"}
# As the movers write: whole segments, four in flight.
WRITE: Final = fio.Pattern("write", 2 * MIB, 4)
READ: Final = fio.Pattern("randread", 4096, 4)
SQUEEZE_SECONDS: Final = 60.0
_CHUNK: Final = os.urandom(4 * MIB)


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Bytes: the disk, which is also the cap before; the cap after; what the readers read, written last."""

    disk: int
    low: int
    hot: int

    @property
    def returned(self) -> int:
        """What has to come back, about."""
        return self.disk - self.low


@dataclasses.dataclass(frozen=True)
class Window:
    """What readers got in a stretch of time."""

    hits: histogram.Histogram
    seconds: float

    @property
    def rate(self) -> float:
        """Hits in thousands a second."""
        return self.hits.count / self.seconds / 1000

    def p99_us(self) -> float:
        """The server's own figure, in µs; raises ContenderError without hits."""
        found = self.hits.quantile_seconds(0.99)
        if found is None:
            raise measure.ContenderError("no hits while the memory came back")
        return found * 1e6


@dataclasses.dataclass(frozen=True)
class Squeezed:
    """One squeeze under load: bytes a second that came back, and the readers before and meanwhile."""

    speed: float
    rest: Window
    squeeze: Window


def _sizes(lab: measure.Lab) -> Sizes:
    if lab.plan.quick:
        return Sizes(512 * MIB, 64 * MIB, 16 * MIB)
    return Sizes(2048 * MIB, 256 * MIB, 64 * MIB)


def _title(what: str, sizes: Sizes) -> str:
    return f"{what}: cap {sizes.disk // MIB} to {sizes.low // MIB} MiB, nothing on disk before"


@contextlib.contextmanager
def _ours(
    lab: measure.Lab, sizes: Sizes, *, encrypt: bool = True
) -> Iterator[tuple[servers.Swaptide, pathlib.Path]]:
    """A disk of ours and its directory.

    The cap has room for the disk's tables and a little more, so that nothing is spilled before its time.
    """
    with tempfile.TemporaryDirectory(dir=lab.scratch) as name:
        directory = pathlib.Path(name)
        ram_bytes = sizes.disk * 9 // 8
        with servers.serve_swaptide(directory, sizes.disk, ram_bytes=ram_bytes, encrypt=encrypt) as server:
            yield server, directory


def _fill(server: servers.Swaptide, sizes: Sizes, directory: pathlib.Path) -> None:
    """The whole disk in RAM and dirty, the hot part written last."""
    with server.face() as disk:
        disk.set_limits(cap_bytes=sizes.disk * 9 // 8, target_bytes=sizes.disk * 9 // 8)
    load.fill(server, size_bytes=sizes.disk, directory=directory)
    load.fill(server, size_bytes=sizes.hot, directory=directory)
    load.wait_quiet(server)


def _squeeze(server: servers.Swaptide, sizes: Sizes) -> float:
    """Lower the cap and wait until it holds; bytes that came back, a second."""
    with server.face() as disk:
        before, begun = disk.ram_bytes(), time.monotonic()
        disk.set_limits(cap_bytes=sizes.low, target_bytes=sizes.low)
        while (now := disk.ram_bytes()) > sizes.low:
            if time.monotonic() > begun + SQUEEZE_SECONDS:
                raise measure.ContenderError(f"still {now // MIB} MiB after {SQUEEZE_SECONDS:.0f} s")
            time.sleep(0.001)
        return (before - now) / (time.monotonic() - begun)


def _direct(directory: pathlib.Path, sizes: Sizes) -> float:
    """The disk's own sequential write of as much, over a file that is there already; bytes a second."""
    path = directory / "direct"
    if not path.exists():
        fio.direct(path, WRITE, size_bytes=sizes.returned, directory=directory)
    return fio.direct(path, WRITE, size_bytes=sizes.returned, directory=directory).bytes_per_second


def _page_cache(directory: pathlib.Path, sizes: Sizes) -> float:
    """Write as much into the page cache, then have it written and dropped; bytes that came back, a second."""
    fd = os.open(directory / "cached", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        for offset in range(0, sizes.returned, len(_CHUNK)):
            os.pwrite(fd, _CHUNK, offset)
        begun = time.monotonic()
        os.fdatasync(fd)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        return sizes.returned / (time.monotonic() - begun)
    finally:
        os.close(fd)


def _squeeze_under_load(
    lab: measure.Lab, server: servers.Swaptide, sizes: Sizes, home: pathlib.Path
) -> Squeezed:
    """Readers at full speed on the hot part; after a while at rest the cap falls."""
    rest_seconds, ahead = (0.7, 0.3) if lab.plan.quick else (2.0, 0.5)
    length = rest_seconds + ahead + (2.0 if lab.plan.quick else 5.0)
    with concurrent.futures.ThreadPoolExecutor(1) as pool, server.face() as disk:
        reading = pool.submit(fio.nbd, server.uri, READ, size_bytes=sizes.hot, directory=home, seconds=length)
        while not disk.histograms()["hit"].count and not reading.done():
            time.sleep(0.01)
        time.sleep(ahead)
        marks = [(time.monotonic(), disk.histograms()["hit"])]
        time.sleep(rest_seconds)
        marks.append((time.monotonic(), disk.histograms()["hit"]))
        speed = _squeeze(server, sizes)
        marks.append((time.monotonic(), disk.histograms()["hit"]))
        if reading.done():
            reading.result()
            raise measure.ContenderError("the readers ended before the memory was back")
        reading.result()
    rest, squeeze = (
        Window(late[1] - early[1], late[0] - early[0]) for early, late in zip(marks, marks[1:], strict=False)
    )
    return Squeezed(speed, rest, squeeze)


def measure_squeeze(lab: measure.Lab) -> Sequence[measure.Measurement]:
    """Memory returned a second, nobody reading."""
    sizes = _sizes(lab)
    with _ours(lab, sizes) as (server, directory), _ours(lab, sizes, encrypt=False) as (plain, _):
        ours = {measure.OURS: server, PLAIN: plain}

        def one(name: str) -> float:
            if name == PAGE_CACHE:
                return _page_cache(directory, sizes)
            if name not in ours:
                return _direct(directory, sizes)
            _fill(ours[name], sizes, directory)
            return _squeeze(ours[name], sizes)

        names = (measure.OURS, DISK, PAGE_CACHE, PLAIN, DISK_AGAIN)
        values, failed = measure.take_turns(lab, names, lab.plan.rounds, one)
        return [_returned("squeeze", "memory returned, disk at rest", sizes, values, failed, server.notes)]


def measure_under_load(lab: measure.Lab) -> Sequence[measure.Measurement]:
    """The same while readers read what stays in RAM at full speed, and what they feel."""
    sizes = _sizes(lab)
    rounds = min(lab.plan.rounds, 3)
    with _ours(lab, sizes) as (server, directory):
        squeezes: list[Squeezed] = []

        def one(name: str) -> float:
            if name != measure.OURS:
                return _direct(directory, sizes)
            _fill(server, sizes, directory)
            squeezes.append(_squeeze_under_load(lab, server, sizes, directory))
            return squeezes[-1].speed

        values, failed = measure.take_turns(lab, (measure.OURS, DISK, DISK_AGAIN), rounds, one)
        row = "squeeze-under-load"
        returned = _returned(row, "memory returned under load", sizes, values, failed, server.notes)
        return [returned, *_hits(row, sizes, squeezes, failed)]


def _returned(
    row: str,
    what: str,
    sizes: Sizes,
    values: Mapping[str, Sequence[float]],
    failed: Mapping[str, str],
    notes: tuple[str, ...],
) -> measure.Measurement:
    return measure.Measurement(
        row=row,
        metric="returned",
        title=_title(what, sizes),
        unit="MiB/s",
        better="more",
        values={name: [value / MIB for value in several] for name, several in values.items()},
        reference=(DISK,),
        again=(DISK_AGAIN, DISK),
        failed={**FAILED, **failed},
        notes=(*notes, "page cache: the kernel may have begun to write before the clock was started"),
    )


def _hits(
    row: str, sizes: Sizes, squeezes: Sequence[Squeezed], failed: Mapping[str, str]
) -> Iterator[measure.Measurement]:
    """What the readers got, by the server's own histogram."""
    figures: tuple[tuple[str, str, Literal["more", "less"], list[float], list[float]], ...] = (
        (
            "hit p99",
            "µs",
            "less",
            [s.rest.p99_us() for s in squeezes],
            [s.squeeze.p99_us() for s in squeezes],
        ),
        ("hits", "k/s", "more", [s.rest.rate for s in squeezes], [s.squeeze.rate for s in squeezes]),
    )
    for metric, unit, better, rest, squeeze in figures:
        yield measure.Measurement(
            row=row,
            metric=metric,
            title=_title("hits of 4 KiB, depth 4, while memory comes back", sizes),
            unit=unit,
            better=better,
            values={AT_REST: rest, measure.OURS: squeeze} if squeezes else {},
            reference=(AT_REST,),
            failed=failed,
            notes=(
                "the histogram's clock starts when the plugin has the interpreter;"
                " waiting for that shows in the hits a second",
            ),
        )


ROWS: Final = (
    measure.Row("squeeze", "reclaim", "memory returned when the cap falls", measure_squeeze),
    measure.Row(
        "squeeze-under-load", "reclaim", "the same under load, and hits meanwhile", measure_under_load
    ),
)
