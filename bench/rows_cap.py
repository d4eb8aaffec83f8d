"""Rows over NBD at the cap: disks larger than the RAM they may use, so that the disk below counts.

One thread; each row starts its own servers, lets them take turns, and ends them with their files.
"""

import contextlib
import dataclasses
import functools
import pathlib
import tempfile
from collections.abc import Callable, Iterator, Sequence
from typing import Final

from bench import fio, load, measure, ring, servers

# At least this share of the reads must have come from disk where a row says that they do.
SPILLED_SHARE: Final = 0.95
# Zeroes in each page where the data packs, in percent: what is packed and four times the cap still spills.
PACKS: Final = 60
_RANDREAD: Final = fio.Pattern("randread", 4096, 16)
_READ_METRICS: Final = (load.RATE, load.P99_US, load.CPU_US)
_WRITE_METRICS: Final = (load.P99_MS, load.MAX_MS, load.CPU_PER_GIB)
_DIRECT: Final = "fio direct"
_DIRECT_AGAIN: Final = "fio direct again"
# The noise floor of rows whose disk counts.
_FILE: Final = servers.nbdkit_file_none()
_AGAIN: Final = servers.nbdkit_file_none(again=True)


@dataclasses.dataclass(frozen=True)
class Scale:
    """How large and how long the rows are.

    A warm-up before each timing brings the caches to their cap again; `scatter_seconds` bounds the random
    overwrites before all of them.  `rounds` is of the rows that write, whose measurements are long.
    """

    cap_bytes: int
    seconds: float
    warm_seconds: float
    scatter_seconds: float
    rounds: int
    read_rounds: int

    @property
    def written_bytes(self) -> int:
        """The disk of the rows that write, and of the one that reads what is on disk only."""
        return 4 * self.cap_bytes

    @property
    def mixed_bytes(self) -> int:
        """The disk of which half is in RAM."""
        return 2 * self.cap_bytes


def scale(plan: measure.Plan) -> Scale:
    """Sizes and times for a plan."""
    if plan.quick:
        return Scale(64 * load.MIB, plan.seconds, 0.2, 3.0, 1, 1)
    # Longer than elsewhere: what the kernel or a cache can put off has to come due.
    return Scale(256 * load.MIB, max(plan.seconds, 5.0), 1.0, 20.0, min(plan.rounds, 3), plan.rounds)


@contextlib.contextmanager
def _ring(
    lab: measure.Lab, size_bytes: int, contenders: Sequence[servers.Contender], packs: int = 0
) -> Iterator[ring.Ring]:
    """All of `contenders`, running and filled, with a directory that goes with them."""
    with (
        tempfile.TemporaryDirectory(dir=lab.scratch, prefix="cap-") as name,
        contextlib.ExitStack() as stack,
    ):
        made = ring.Ring(lab, pathlib.Path(name), size_bytes, packs)
        made.start(contenders, stack)
        made.fill()
        yield made


def _write_at_cap(
    row: str, title: str, pattern: fio.Pattern, rate: load.Metric, lab: measure.Lab
) -> Sequence[measure.Measurement]:
    size = scale(lab.plan)
    contenders = [_FILE, _AGAIN, servers.nbdkit_file(size.cap_bytes), servers.swaptide(size.cap_bytes)]
    if not pattern.packs and not lab.plan.quick:  # these see no difference in what they are given
        more = (servers.qemu_nbd("none"), servers.nbdkit_memory(), servers.swaptide_plain(size.cap_bytes))
        contenders += more
    with _ring(lab, size.written_bytes, contenders, pattern.packs) as running:
        if pattern.rw == "randwrite":
            _age_log(running, size)

        def once(name: str) -> load.Sample:
            # Full caches first: what was written between two turns would otherwise be a gift.
            running.run(name, pattern, size.warm_seconds)
            sample = running.run(name, pattern, size.seconds)
            running.running[name].settle()
            return sample

        samples, failed = measure.take_turns(lab, list(running.running), size.rounds, once)
        _verify(running, size, samples, failed)
        return load.measurements(
            *(row, title, (rate, *_WRITE_METRICS), samples),
            {**running.failed, **failed},
            reference=(_FILE.name,),
            again=(_AGAIN.name, _FILE.name),
            notes=[_sizes(size, running, size.seconds), _contents(pattern, running), *running.notes],
        )


def _contents(pattern: fio.Pattern, running: ring.Ring) -> str:
    """What was written, and what our counters say of it, after all rounds."""
    if not pattern.packs:
        return ""
    counters = running.counters()
    packed, spilled = (counters.get(name, 0) for name in ("packed_total_pages", "spill_written_bytes"))
    return (
        f"{pattern.packs} % of each page are zeroes, the rest is random; swaptide packed"
        f" {packed * 4 >> 10} MiB of pages in all, and wrote {spilled >> 20} MiB to disk"
    )


def _age_log(running: ring.Ring, size: Scale) -> None:
    """Overwrite ours once at random: a log shows what cleaning costs only when it has no fresh space left.

    Disks that are written in place have no such debt.
    """
    for name in [each for each, server in running.running.items() if isinstance(server, servers.Swaptide)]:
        running.lab.tell(f"overwriting the disk of {name} at random")
        running.attempt(name, lambda server: running.scatter_one(server, size.scatter_seconds))
    running.notes.append("swaptide's disk was overwritten at random before, so that its log has to clean")


def _verify(
    running: ring.Ring, size: Scale, samples: dict[str, list[load.Sample]], failed: dict[str, str]
) -> None:
    """Write and read back twice the cap on ours, checked; wrong bytes cost it its figures."""
    ours = running.ours
    if ours is None or measure.OURS in failed:
        return
    running.lab.tell("verifying swaptide")
    amount = 2 * size.cap_bytes
    try:
        fio.verify(
            ours.uri,
            size_bytes=running.size_bytes,
            amount_bytes=amount,
            block_bytes=32 << 10,
            directory=running.directory,
        )
    except measure.ContenderError as error:
        failed[measure.OURS] = f"read back at the cap: {error}"
        del samples[measure.OURS]
        return
    running.notes.append(f"{amount >> 20} MiB written to swaptide at the cap were read back right (crc32c)")


def _read_spilled(row: str, title: str, lab: measure.Lab) -> Sequence[measure.Measurement]:
    size = scale(lab.plan)
    contenders = (
        *(_FILE, servers.qemu_nbd("none")),
        *(servers.swaptide(size.cap_bytes), servers.swaptide_plain(size.cap_bytes)),
    )
    with _ring(lab, size.written_bytes, contenders) as running:
        plain = _plain_file(running)
        running.each("emptying the cache of", _ebb)
        before = running.counters()

        def once(name: str) -> load.Sample:
            if name in (_DIRECT, _DIRECT_AGAIN):
                return _direct(running, plain, lab.plan.seconds)
            return running.run(name, _RANDREAD, lab.plan.seconds)

        names = [_DIRECT, _DIRECT_AGAIN, *running.running]
        samples, failed = measure.take_turns(lab, names, size.read_rounds, once)
        share = ring.missed(before, running.counters())
        _sift(share, samples, failed)
        notes = (
            f"{_DIRECT} is fio itself on a file of the same disk (libaio, O_DIRECT), without a server",
            f"disk {running.size_bytes >> 20} MiB, filled in order; swaptide's target at its floor",
            *(*running.notes, _said(share)),
        )
        return load.measurements(
            *(row, title, _READ_METRICS, samples),
            {**running.failed, **failed},
            reference=(_DIRECT,),
            again=(_DIRECT_AGAIN, _DIRECT),
            notes=notes,
        )


def _sift(share: float | None, samples: dict[str, list[load.Sample]], failed: dict[str, str]) -> None:
    """Ours has no figures of reads from disk if its reads did not come from there."""
    if share is not None and share < SPILLED_SHARE and measure.OURS in samples:
        del samples[measure.OURS]
        failed[measure.OURS] = f"only {share:.1%} of its reads came from disk"


def _read_mixed(row: str, title: str, lab: measure.Lab) -> Sequence[measure.Measurement]:
    size = scale(lab.plan)
    cached = servers.nbdkit_file(size.cap_bytes)
    contenders = (_FILE, _AGAIN, cached, servers.swaptide(size.cap_bytes))
    with _ring(lab, size.mixed_bytes, contenders) as running:
        running.each("waiting for", _quiet)
        before = running.counters()
        samples, failed = measure.take_turns(
            *(lab, list(running.running), size.read_rounds),
            lambda name: running.run(name, _RANDREAD, lab.plan.seconds),
        )
        share = ring.missed(before, running.counters())
        return load.measurements(
            *(row, title, _READ_METRICS, samples),
            {**running.failed, **failed},
            # The page cache is the peer, with as much RAM; the other one where no cgroup holds it.
            reference=(cached.name, _FILE.name),
            again=(_AGAIN.name, _FILE.name),
            notes=[_sizes(size, running, lab.plan.seconds), *running.notes, _said(share)],
        )


def _said(share: float | None) -> str:
    return "" if share is None else f"{share:.1%} of swaptide's reads came from disk"


def _ebb(server: servers.Server) -> None:
    """Have it hold nothing in RAM that it can do without."""
    if isinstance(server, servers.Swaptide):
        server.squeeze()
    else:
        server.forget()


def _quiet(server: servers.Server) -> None:
    if isinstance(server, servers.Swaptide):
        load.wait_quiet(server)


def _plain_file(running: ring.Ring) -> pathlib.Path:
    """A file with the same amount of data, for the row against the disk itself."""
    path = running.directory / "plain"
    pattern = fio.Pattern("write", load.MIB, 4)
    fio.direct(path, pattern, size_bytes=running.size_bytes, directory=running.directory)
    return path


def _direct(running: ring.Ring, path: pathlib.Path, seconds: float) -> load.Sample:
    result = fio.direct(
        path, _RANDREAD, size_bytes=running.size_bytes, directory=running.directory, seconds=seconds
    )
    return load.Sample(result, None)


def _sizes(size: Scale, running: ring.Ring, seconds: float) -> str:
    return f"disk {running.size_bytes >> 20} MiB, cap {size.cap_bytes >> 20} MiB, {seconds:g} s each"


def _row(
    name: str, title: str, run: Callable[..., Sequence[measure.Measurement]], *more: object
) -> measure.Row:
    return measure.Row(name, "cap", title, functools.partial(run, name, title, *more))


ROWS: Final[tuple[measure.Row, ...]] = (
    _row(
        "write-4k-d16-at-cap",
        "4 KiB random writes at the cap, depth 16, disk four times the cap",
        *(_write_at_cap, fio.Pattern("randwrite", 4096, 16), load.RATE),
    ),
    _row(
        "write-128k-d8-at-cap",
        "128 KiB writes in order at the cap, depth 8, disk four times the cap",
        *(_write_at_cap, fio.Pattern("write", 128 << 10, 8), load.SPEED),
    ),
    _row(
        "write-4k-d16-at-cap-packs",
        f"4 KiB random writes at the cap, depth 16, disk four times the cap, {PACKS} % zeroes",
        *(_write_at_cap, fio.Pattern("randwrite", 4096, 16, PACKS), load.RATE),
    ),
    _row(
        "write-128k-d8-at-cap-packs",
        f"128 KiB writes in order at the cap, depth 8, disk four times the cap, {PACKS} % zeroes",
        *(_write_at_cap, fio.Pattern("write", 128 << 10, 8, PACKS), load.SPEED),
    ),
    _row("read-spilled-4k-d16", "4 KiB random reads of pages that are on disk only, depth 16", _read_spilled),
    _row("read-mixed-4k-d16", "4 KiB random reads, half in RAM and half on disk, depth 16", _read_mixed),
)
