"""A measured load on a server, and how samples of several contenders become the figures of a row.

One thread, no state.
"""

import dataclasses
import pathlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Final, Literal

from bench import fio, measure, servers

MIB: Final = 1 << 20
GIB: Final = 1 << 30


@dataclasses.dataclass(frozen=True)
class Sample:
    """What a client saw of one contender, and the CPU time its server took; None where there is no server."""

    result: fio.Result
    server_cpu_seconds: float | None


@dataclasses.dataclass(frozen=True)
class Metric:
    """One figure of a sample; `of` returns None where the contender has no such figure."""

    name: str
    unit: str
    better: Literal["more", "less"]
    of: Callable[[Sample], float | None]


def _cpu_us(sample: Sample) -> float | None:
    seconds = sample.server_cpu_seconds
    return None if seconds is None else seconds * 1e6 / sample.result.requests


def _cpu_per_gib(sample: Sample) -> float | None:
    seconds = sample.server_cpu_seconds
    return None if seconds is None else seconds * GIB / sample.result.transferred_bytes


RATE: Final = Metric("rate", "k/s", "more", lambda sample: sample.result.rate / 1000)
SPEED: Final = Metric("rate", "MiB/s", "more", lambda sample: sample.result.bytes_per_second / MIB)
P99_US: Final = Metric("p99", "µs", "less", lambda sample: sample.result.p99_us)
P99_MS: Final = Metric("p99", "ms", "less", lambda sample: sample.result.p99_us / 1000)
MAX_MS: Final = Metric("max", "ms", "less", lambda sample: sample.result.max_us / 1000)
CPU_US: Final = Metric("server CPU", "µs/request", "less", _cpu_us)
CPU_PER_GIB: Final = Metric("server CPU", "s/GiB", "less", _cpu_per_gib)


def run(
    server: servers.Server, pattern: fio.Pattern, *, size_bytes: int, seconds: float, directory: pathlib.Path
) -> Sample:
    """One timed load on a server; raises ContenderError."""
    before = server.cpu_seconds()
    result = fio.nbd(server.uri, pattern, size_bytes=size_bytes, seconds=seconds, directory=directory)
    return Sample(result, server.cpu_seconds() - before)


def fill(server: servers.Server, *, size_bytes: int, directory: pathlib.Path, packs: int = 0) -> None:
    """Write the whole disk once, 128 KiB by 128 KiB in order; raises ContenderError."""
    pattern = fio.Pattern("write", 128 << 10, 8, packs)
    fio.nbd(server.uri, pattern, size_bytes=size_bytes, directory=directory)


def scatter(
    server: servers.Server,
    *,
    size_bytes: int,
    at_most_seconds: float,
    directory: pathlib.Path,
    packs: int = 0,
) -> bool:
    """Write each 4 KiB page once, in random order; False if the time was not enough.

    Raises ContenderError.
    """
    pattern = fio.Pattern("randwrite", 4096, 16, packs)
    done = fio.nbd(
        server.uri, pattern, size_bytes=size_bytes, at_most_seconds=at_most_seconds, directory=directory
    )
    return done.transferred_bytes >= size_bytes


def measurements(
    row: str,
    title: str,
    metrics: Sequence[Metric],
    samples: Mapping[str, Sequence[Sample]],
    failed: Mapping[str, str],
    *,
    reference: tuple[str, ...],
    again: tuple[str, str] | None = None,
    notes: Sequence[str] = (),
) -> list[measure.Measurement]:
    """One measurement for each metric, of the contenders that have it."""
    return [
        measure.Measurement(
            row=row,
            metric=metric.name,
            title=title,
            unit=metric.unit,
            better=metric.better,
            values=_values(metric, samples),
            reference=reference,
            again=again,
            failed=failed,
            notes=tuple(dict.fromkeys(note for note in notes if note)),
        )
        for metric in metrics
    ]


def _values(metric: Metric, samples: Mapping[str, Sequence[Sample]]) -> dict[str, list[float]]:
    values = {
        name: [value for sample in several if (value := metric.of(sample)) is not None]
        for name, several in samples.items()
    }
    return {name: several for name, several in values.items() if several}


def wait_quiet(server: servers.Swaptide, seconds: float = 10.0) -> None:
    """Wait until ours neither writes nor packs any more, or for `seconds`; raises ContenderError."""
    deadline = time.monotonic() + seconds
    written: tuple[int, ...] = ()
    while time.monotonic() < deadline:
        counters = server.counters()
        now = tuple(counters[name] for name in ("spill_written_bytes", "pack_tried_pages"))
        if now == written:
            return
        written = now
        time.sleep(0.2)
