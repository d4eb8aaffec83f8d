"""Rows of what guests on one host do to each other: reads of one disk beside another one at full speed.

A guest is a disk's process and the client that loads it, here fio; both go where the guest goes.  Each row
has another way of keeping the two apart.  One thread measures, another one keeps the neighbour at work.
"""

import contextlib
import dataclasses
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Final

from bench import fio, load, measure, servers, shares

MIB: Final = 1 << 20
QUIET_BYTES: Final = 128 * MIB
# So much that nothing of it is ever packed or spilled.
QUIET_RAM_BYTES: Final = 512 * MIB
LOUD_BYTES: Final = 512 * MIB
# Of the one that writes: less than it writes, so that it packs and spills all the time.
LOUD_RAM_BYTES: Final = 128 * MIB
# A timed load is so many times as long as in other rows: p99 needs many requests.
LONGER: Final = 3
ALONE: Final = "alone"
AGAIN: Final = "alone, again"
WRITER: Final = "swaptide, the other writes at its cap"
_KEPT: Final = "neighbour"
_READS: Final = fio.Pattern("randread", 4096, 4)
_LOUD_READS: Final = fio.Pattern("randread", 4096, 16)
_LOUD_WRITES: Final = fio.Pattern("randwrite", 4096, 16, 60)

Places = Callable[[contextlib.ExitStack], tuple[shares.Place, shares.Place]]


@dataclasses.dataclass(frozen=True)
class Street:
    """The disk that is measured, one whose RAM holds all of it, and one that has to pack and spill."""

    quiet: servers.Swaptide
    reader: servers.Swaptide
    writer: servers.Swaptide


def _street(lab: measure.Lab) -> Street:
    """The disks; the first row that asks starts them.  Raises ContenderError."""
    found = lab.kept.get(_KEPT)
    if not isinstance(found, Street):
        found = Street(
            _disk(lab, "quiet", QUIET_BYTES, QUIET_RAM_BYTES),
            _disk(lab, "reader", QUIET_BYTES, QUIET_RAM_BYTES),
            _disk(lab, "writer", LOUD_BYTES, LOUD_RAM_BYTES),
        )
        lab.kept[_KEPT] = found
    return found


def _disk(lab: measure.Lab, name: str, size_bytes: int, ram_bytes: int) -> servers.Swaptide:
    directory = lab.scratch / f"neighbour-{name}"
    directory.mkdir()
    server = lab.stack.enter_context(servers.serve_swaptide(directory, size_bytes, ram_bytes=ram_bytes))
    load.fill(server, size_bytes=size_bytes, directory=directory)
    return server


def _measure(name: str, places: Places, notes: Sequence[str], lab: measure.Lab) -> list[measure.Measurement]:
    """The quiet guest's reads in turns alone, and beside each neighbour."""
    street = _street(lab)
    with contextlib.ExitStack() as stack:
        here, there = places(stack)
        for server, place in ((street.quiet, here), (street.reader, there), (street.writer, there)):
            place.take(server.pid)
        rates: dict[str, list[float]] = {}

        def once(contender: str) -> load.Sample:
            with contextlib.ExitStack() as meanwhile:
                if contender == measure.OURS:
                    meanwhile.enter_context(_loud(lab, street.reader, _LOUD_READS, QUIET_BYTES, there, rates))
                elif contender == WRITER:
                    meanwhile.enter_context(_loud(lab, street.writer, _LOUD_WRITES, LOUD_BYTES, there, rates))
                result = fio.nbd(
                    street.quiet.uri,
                    _READS,
                    size_bytes=QUIET_BYTES,
                    seconds=lab.plan.seconds * LONGER,
                    directory=lab.scratch,
                    prefix=here.prefix,
                )
            return load.Sample(result, None)

        contenders = (measure.OURS, WRITER, ALONE, AGAIN)
        samples, failed = measure.take_turns(lab, contenders, lab.plan.rounds, once)
        for server in (street.quiet, street.reader, street.writer):
            shares.Place().take(server.pid)  # its cores; the groups empty themselves
    return load.measurements(
        *(name, TITLES[name], (load.P99_US, load.RATE), samples, failed),
        reference=(ALONE,),
        again=(AGAIN, ALONE),
        notes=[
            f"{measure.OURS}: beside a disk that is read, 4 KiB hits at random, depth 16; the other one is"
            " written, 4 KiB at random, depth 16, and is four times its RAM; a guest: its disk and its fio",
            *notes,
            *(
                f"the other did {min(each):.0f} to {max(each):.0f} requests/s, {who}"
                for who, each in rates.items()
            ),
        ],
    )


@contextlib.contextmanager
def _loud(
    lab: measure.Lab,
    server: servers.Swaptide,
    pattern: fio.Pattern,
    size_bytes: int,
    place: shares.Place,
    rates: dict[str, list[float]],
) -> Iterator[None]:
    """A disk at full speed meanwhile; raises ContenderError at the end if its load failed."""
    failed: list[measure.ContenderError] = []
    # It begins a little earlier and ends a little later than what is measured.
    seconds = lab.plan.seconds * LONGER + 1.0

    def work() -> None:
        try:
            result = fio.nbd(
                server.uri,
                pattern,
                size_bytes=size_bytes,
                seconds=seconds,
                directory=server.socket.parent,
                prefix=place.prefix,
            )
            rates.setdefault(pattern.rw, []).append(result.rate)
        except measure.ContenderError as error:
            failed.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        threading.Event().wait(0.5)
        yield
    finally:
        thread.join()
    if failed:
        raise failed[0]


# --- How they are kept apart --------------------------------------------------------------------------------


def _nothing(_stack: contextlib.ExitStack) -> tuple[shares.Place, shares.Place]:
    return shares.Place(), shares.Place()


def _weights(here: int, there: int) -> Places:
    def places(stack: contextlib.ExitStack) -> tuple[shares.Place, shares.Place]:
        mine, other = stack.enter_context(shares.weighted((here, there)))
        return shares.Place(mine), shares.Place(other)

    return places


def _cores(_stack: contextlib.ExitStack) -> tuple[shares.Place, shares.Place]:
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        raise measure.ContenderError("one core cannot be divided")
    half = len(cores) // 2
    return shares.Place(cores=frozenset(cores[:half])), shares.Place(cores=frozenset(cores[half:]))


def measure_free(lab: measure.Lab) -> Sequence[measure.Measurement]:
    """Nothing keeps them apart."""
    return _measure("neighbour-free", _nothing, (), lab)


def measure_equal(lab: measure.Lab) -> Sequence[measure.Measurement]:
    """Equal weights."""
    note = "two CPU cgroups of weight 100; alone it may use all cores, beside the other one half of them"
    return _measure("neighbour-equal", _weights(100, 100), (note,), lab)


def measure_weighted(lab: measure.Lab) -> Sequence[measure.Measurement]:
    """The quiet one weighs ten times as much."""
    note = "two CPU cgroups, of weight 1000 and, for the other one, 100"
    return _measure("neighbour-weighted", _weights(1000, 100), (note,), lab)


def measure_cores(lab: measure.Lab) -> Sequence[measure.Measurement]:
    """Half of the cores each, alone as well: an equal share of the CPU, and the same one in both."""
    note = "each has half of the cores, also when it is alone: what is left is what they share beside the CPU"
    return _measure("neighbour-cores", _cores, (note,), lab)


_WHAT: Final = "4 KiB random read hits, depth 4, beside a disk at full speed"
TITLES: Final = {
    "neighbour-free": _WHAT,
    "neighbour-equal": f"{_WHAT}, equal CPU weights",
    "neighbour-weighted": f"{_WHAT}, ten times its CPU weight",
    "neighbour-cores": f"{_WHAT}, half of the cores each",
}
ROWS: Final = tuple(
    measure.Row(name, "neighbour", TITLES[name], body)
    for name, body in (
        ("neighbour-free", measure_free),
        ("neighbour-equal", measure_equal),
        ("neighbour-weighted", measure_weighted),
        ("neighbour-cores", measure_cores),
    )
)
