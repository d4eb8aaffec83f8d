"""Rows of reclaim: how fast memory comes back when the cap falls, and what readers feel meanwhile.

One thread measures; in the row under load a second one waits for fio.
"""

import concurrent.futures
import contextlib
import dataclasses
import functools
import os
import pathlib
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Final, Literal

from bench import fio, load, measure, servers
from swaptide.cache import histogram

MIB: Final = 1 << 20
DISK: Final = "disk, direct write"
DISK_AGAIN: Final = "disk, direct write again"
PLAIN: Final = f"{measure.OURS}, not encrypted"
PAGE_CACHE: Final = "page cache, sync and drop"
AT_REST: Final = "swaptide at rest"
AT_REST_AGAIN: Final = "swaptide at rest again"
FAILED: Final = {"nbdkit memory": "gives nothing back before it ends"}
# As the movers write: whole segments, four in flight.
WRITE: Final = fio.Pattern("write", 2 * MIB, 4)
READ: Final = fio.Pattern("randread", 4096, 4)
ROUNDS: Final = 5
LOAD_ROUNDS: Final = 3
SQUEEZE_SECONDS: Final = 60.0
CLEAN_SECONDS: Final = 60.0
# Of the clean half, what must be there before the cap falls: the movers work in whole segments.
CLEAN_ENOUGH: Final = 0.95
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

    @property
    def cap(self) -> int:
        """Room for the disk's tables and a little more, so that nothing is spilled before its time."""
        return self.disk * 9 // 8

    @property
    def half_percent(self) -> int:
        """The share of the target that half of the disk is."""
        return self.disk * 50 // self.cap


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
    """One squeeze under load: bytes a second that came back, and the readers before (twice) and meanwhile."""

    speed: float
    rest: Window
    again: Window
    squeeze: Window


@dataclasses.dataclass(frozen=True)
class Kind:
    """Nothing clean when the cap falls, or half of the disk on disk as well as in RAM."""

    row: str
    half_clean: bool

    def tuning(self, sizes: Sizes, *, encrypt: bool = True) -> servers.Tuning:
        """How ours is set up for it."""
        percent = sizes.half_percent if self.half_clean else 0
        return servers.Tuning(encrypt=encrypt, clean_ahead_percent=percent)

    def title(self, what: str, sizes: Sizes) -> str:
        """What the row does."""
        ready = "half of it clean" if self.half_clean else "nothing on disk before"
        return f"{what}: cap {sizes.disk // MIB} to {sizes.low // MIB} MiB, {ready}"


def _sizes(lab: measure.Lab) -> Sizes:
    if lab.plan.quick:
        return Sizes(512 * MIB, 64 * MIB, 16 * MIB)
    return Sizes(2048 * MIB, 256 * MIB, 64 * MIB)


@contextlib.contextmanager
def _ours(
    lab: measure.Lab, sizes: Sizes, tuning: servers.Tuning
) -> Iterator[tuple[servers.Swaptide, pathlib.Path]]:
    """A disk of ours and its directory."""
    with tempfile.TemporaryDirectory(dir=lab.scratch) as name:
        directory = pathlib.Path(name)
        with servers.serve_swaptide(directory, sizes.disk, ram_bytes=sizes.cap, tuning=tuning) as server:
            yield server, directory


def _fill(server: servers.Swaptide, sizes: Sizes, kind: Kind, directory: pathlib.Path) -> None:
    """The whole disk in RAM, dirty or half of it clean, the hot part written last."""
    with server.face() as disk:
        disk.set_limits(cap_bytes=sizes.cap, target_bytes=sizes.cap)
    load.fill(server, size_bytes=sizes.disk, directory=directory)
    load.fill(server, size_bytes=sizes.hot, directory=directory)
    if kind.half_clean:
        _wait_clean(server, sizes)
    load.wait_quiet(server)


def _wait_clean(server: servers.Swaptide, sizes: Sizes) -> None:
    """Until half of the disk is clean; raises ContenderError."""
    deadline = time.monotonic() + CLEAN_SECONDS
    while (clean := server.counters()["clean_bytes"]) < CLEAN_ENOUGH * sizes.disk / 2:
        if time.monotonic() > deadline:
            raise measure.ContenderError(f"only {clean // MIB} MiB clean after {CLEAN_SECONDS:.0f} s")
        time.sleep(0.1)


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


def _rounds(lab: measure.Lab, most: int) -> int:
    return 1 if lab.plan.quick else min(lab.plan.rounds, most)


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
    rest_seconds, ahead = (0.4, 0.3) if lab.plan.quick else (1.5, 0.5)
    length = 2 * rest_seconds + ahead + (2.0 if lab.plan.quick else 5.0)
    with concurrent.futures.ThreadPoolExecutor(1) as pool, server.face() as disk:
        reading = pool.submit(fio.nbd, server.uri, READ, size_bytes=sizes.hot, directory=home, seconds=length)
        while not disk.histograms()["hit"].count and not reading.done():
            time.sleep(0.01)
        time.sleep(ahead)
        marks = [(time.monotonic(), disk.histograms()["hit"])]
        for _ in range(2):
            time.sleep(rest_seconds)
            marks.append((time.monotonic(), disk.histograms()["hit"]))
        speed = _squeeze(server, sizes)
        marks.append((time.monotonic(), disk.histograms()["hit"]))
        if reading.done():
            reading.result()
            raise measure.ContenderError("the readers ended before the memory was back")
        reading.result()
    windows = (
        Window(late[1] - early[1], late[0] - early[0]) for early, late in zip(marks, marks[1:], strict=False)
    )
    return Squeezed(speed, *windows)


def measure_squeeze(kind: Kind, lab: measure.Lab) -> Sequence[measure.Measurement]:
    """Memory returned a second, nobody reading."""
    sizes = _sizes(lab)
    with contextlib.ExitStack() as stack:
        server, directory = stack.enter_context(_ours(lab, sizes, kind.tuning(sizes)))
        ours = {measure.OURS: server}
        if not kind.half_clean:
            ours[PLAIN], _ = stack.enter_context(_ours(lab, sizes, kind.tuning(sizes, encrypt=False)))

        def one(name: str) -> float:
            if name == PAGE_CACHE:
                return _page_cache(directory, sizes)
            if name not in ours:
                return _direct(directory, sizes)
            _fill(ours[name], sizes, kind, directory)
            return _squeeze(ours[name], sizes)

        others = (DISK, DISK_AGAIN) if kind.half_clean else (DISK, PAGE_CACHE, PLAIN, DISK_AGAIN)
        values, failed = measure.take_turns(lab, (measure.OURS, *others), _rounds(lab, ROUNDS), one)
        return [_returned(kind, "memory returned, disk at rest", sizes, values, failed, server.notes)]


def measure_under_load(kind: Kind, lab: measure.Lab) -> Sequence[measure.Measurement]:
    """The same while readers read what stays in RAM at full speed, and what they feel."""
    sizes = _sizes(lab)
    with _ours(lab, sizes, kind.tuning(sizes)) as (server, directory):
        squeezes: list[Squeezed] = []

        def one(name: str) -> float:
            if name != measure.OURS:
                return _direct(directory, sizes)
            _fill(server, sizes, kind, directory)
            squeezes.append(_squeeze_under_load(lab, server, sizes, directory))
            return squeezes[-1].speed

        values, failed = measure.take_turns(
            lab, (measure.OURS, DISK, DISK_AGAIN), _rounds(lab, LOAD_ROUNDS), one
        )
        returned = _returned(kind, "memory returned under load", sizes, values, failed, server.notes)
        return [returned, *_hits(kind, sizes, squeezes, failed)]


def _returned(
    kind: Kind,
    what: str,
    sizes: Sizes,
    values: Mapping[str, Sequence[float]],
    failed: Mapping[str, str],
    notes: tuple[str, ...],
) -> measure.Measurement:
    data = f"disk {sizes.disk // MIB} MiB of bytes that nothing packs"
    clean = f"clean-ahead={sizes.half_percent}% of the target is half of the disk"
    cached = "page cache: the kernel may have begun to write before the clock was started"
    notes = (*notes, data, clean if kind.half_clean else cached)
    return measure.Measurement(
        row=kind.row,
        metric="returned",
        title=kind.title(what, sizes),
        unit="MiB/s",
        better="more",
        values={name: [value / MIB for value in several] for name, several in values.items()},
        reference=(DISK,),
        again=(DISK_AGAIN, DISK),
        failed=failed if kind.half_clean else {**FAILED, **failed},
        notes=notes,
    )


def _hits(
    kind: Kind, sizes: Sizes, squeezes: Sequence[Squeezed], failed: Mapping[str, str]
) -> Iterator[measure.Measurement]:
    """What the readers got, by the server's own histogram."""
    figures: tuple[tuple[str, str, Literal["more", "less"], Callable[[Window], float]], ...] = (
        ("hit p99", "µs", "less", Window.p99_us),
        ("hits", "k/s", "more", lambda window: window.rate),
    )
    for metric, unit, better, of in figures:
        values = {
            AT_REST: [of(each.rest) for each in squeezes],
            AT_REST_AGAIN: [of(each.again) for each in squeezes],
            measure.OURS: [of(each.squeeze) for each in squeezes],
        }
        yield measure.Measurement(
            row=kind.row,
            metric=metric,
            title=kind.title("hits of 4 KiB, depth 4, while memory comes back", sizes),
            unit=unit,
            better=better,
            values=values if squeezes else {},
            reference=(AT_REST,),
            again=(AT_REST_AGAIN, AT_REST),
            failed=failed,
            notes=(
                "the histogram's clock starts when the plugin has the interpreter;"
                " waiting for that shows in the hits a second",
            ),
        )


_WHAT: Final = "memory returned when the cap falls"
_LOAD: Final = "the same under load, and hits meanwhile"


def _row(
    name: str,
    title: str,
    of: Callable[[Kind, measure.Lab], Sequence[measure.Measurement]],
    half_clean: bool = False,
) -> measure.Row:
    return measure.Row(name, "reclaim", title, functools.partial(of, Kind(name, half_clean)))


ROWS: Final = (
    _row("squeeze", _WHAT, measure_squeeze),
    _row("squeeze-under-load", _LOAD, measure_under_load),
    _row("squeeze-half-clean", f"{_WHAT}, half of it clean", measure_squeeze, half_clean=True),
    _row("squeeze-half-clean-under-load", _LOAD, measure_under_load, half_clean=True),
)
