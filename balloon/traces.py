"""Traces on disk: one samples.Sample a line, as JSON, in the order of their times.

Read line by line, so that a trace may be longer than memory; whatever is wrong is told with its line.
"""

import math
import pathlib
from collections.abc import Iterable, Iterator
from typing import Final

import msgspec

from swaptide.balloon import outlook, samples
from swaptide.cache import ages
from swaptide.cache.errors import UsageError

# Some hundred times what a host with 64 disks writes.
LINE_BYTES: Final = 8 << 20
_SHOWN_CHARS: Final = 120


def read(path: pathlib.Path) -> Iterator[samples.Sample]:
    """The samples of a trace; raises UsageError that names the line, OSError if it cannot be read."""
    decoder = msgspec.json.Decoder(samples.Sample)
    last = -math.inf
    with open(path, "rb") as file:
        number = 0
        while line := file.readline(LINE_BYTES + 1):
            number += 1
            where = f"{path}: line {number}"
            if len(line) > LINE_BYTES:
                raise UsageError(f"{where} is longer than {LINE_BYTES >> 20} MiB; this is no trace")
            try:
                sample = decoder.decode(line)
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
                raise UsageError(f"{where} is no sample: {_short(str(error))}") from error
            problem = fault(sample)
            if problem is None and sample.at_seconds < last:
                problem = f"its time {sample.at_seconds:g} is before the last one's {last:g}"
            if problem is not None:
                raise UsageError(f"{where}: {_short(problem)}")
            last = sample.at_seconds
            yield sample
    if number == 0:
        raise UsageError(f"{path} is empty; record a trace, or make one with --make")


def fault(sample: samples.Sample) -> str | None:
    """What no host would say; None where nothing is wrong."""
    if not (math.isfinite(sample.at_seconds) and abs(sample.at_seconds) < 1e12):
        return f"the time {sample.at_seconds:g} is out of range"
    if not sample.rooms:
        return "no room is in it; give one at least, such as the host"
    for things in (sample.rooms, sample.disks, sample.guests):
        names = [thing.name for thing in things]
        if len(set(names)) < len(names):
            return f"the name {next(name for name in names if names.count(name) > 1)!r} comes twice"
    for thing in (sample, *sample.rooms, *sample.disks, *sample.guests):
        for field, value in msgspec.structs.asdict(thing).items():
            if (problem := _out_of_range(value)) is not None:
                return f"{getattr(thing, 'name', 'the sample')}: {field} {problem}"
    return None


def write(path: pathlib.Path, trace: Iterable[samples.Sample]) -> int:
    """Write a new trace, and how many samples it has.  Raises UsageError if the file is there, or OSError."""
    encoder = msgspec.json.Encoder()
    count = 0
    try:
        file = open(path, "xb")  # noqa: SIM115
    except FileExistsError as error:
        raise UsageError(f"{path} exists; remove it, or name another file") from error
    try:
        with file:
            for sample in trace:
                file.write(encoder.encode(sample) + b"\n")
                count += 1
    except BaseException:  # an interrupt as well: half a trace is none
        path.unlink(missing_ok=True)
        raise
    return count


def _out_of_range(value: object) -> str | None:
    if isinstance(value, tuple):
        if value and not isinstance(value[0], int):
            return None
        if len(value) > ages.BUCKETS:
            return f"has {len(value)} buckets; there are {ages.BUCKETS}"
        return next((problem for each in value if (problem := _out_of_range(each)) is not None), None)
    if isinstance(value, int) and not 0 <= value <= outlook.MOST_BYTES:
        return f"is {value}; it must be from 0 to {outlook.MOST_BYTES}"
    return None


def _short(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= _SHOWN_CHARS else f"{text[:_SHOWN_CHARS]}..."
