"""Rows of spilling to an NBD server: segments written to it, and pages read back from it.

Both are beside clients without a cache of their own, onto servers that are started alike.  One thread.
"""

import contextlib
import dataclasses
import functools
import os
import pathlib
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from typing import Final

from bench import fio, load, measure, process, servers
from swaptide.cache import geometry

MIB: Final = 1 << 20
DISK_BYTES: Final = 1024 * MIB
QUICK_DISK_BYTES: Final = 256 * MIB
PLAIN: Final = f"{measure.OURS}, not encrypted"
COPY: Final = "nbdcopy --flush"
PROXY: Final = "nbdkit nbd"
DIRECT: Final = "no proxy"
DIRECT_AGAIN: Final = "no proxy again"
READ: Final = fio.Pattern("randread", 4096, 16)
DELAY: Final = ("--filter=delay", "file", "{file}", "delay-read=1ms")
FILE: Final = ("file", "{file}")
_COPY_SECONDS: Final = 120.0
_CHUNK: Final = os.urandom(4 * MIB)


@dataclasses.dataclass(frozen=True)
class Export:
    """A running nbdkit on a file, and the directory that both are in."""

    directory: pathlib.Path
    uri: str


def _size(lab: measure.Lab) -> int:
    return QUICK_DISK_BYTES if lab.plan.quick else DISK_BYTES


@contextlib.contextmanager
def _export(lab: measure.Lab, words: Sequence[str], size_bytes: int) -> Iterator[Export]:
    """A server of `words` with room for the spill of a disk of `size_bytes`, allocated."""
    with tempfile.TemporaryDirectory(dir=lab.scratch) as name:
        directory = pathlib.Path(name)
        disk = directory / "disk"
        with open(disk, "wb") as file:
            os.posix_fallocate(file.fileno(), 0, geometry.of_size(size_bytes).spill_bytes)
        arguments = [str(disk) if word == "{file}" else word for word in words]
        command = ["nbdkit", "-f", "-t", str(servers.THREADS), "-U", "{socket}", *arguments]
        with process.running(directory, command) as (_, socket):
            yield Export(directory, f"nbd+unix:///?socket={socket}")


@contextlib.contextmanager
def _ours(lab: measure.Lab, export: Export, *, encrypt: bool = True) -> Iterator[servers.Swaptide]:
    """A disk of ours that spills there; all of it fits its RAM until it is squeezed."""
    size = _size(lab)
    tuning = servers.Tuning(encrypt=encrypt, compress="none", clean_ahead_percent=0, spill=export.uri)
    with (
        tempfile.TemporaryDirectory(dir=lab.scratch) as name,
        servers.serve_swaptide(pathlib.Path(name), size, ram_bytes=size * 9 // 8, tuning=tuning) as server,
    ):
        yield server


@contextlib.contextmanager
def _proxy(lab: measure.Lab, export: Export) -> Iterator[str]:
    """nbdkit's own client of the same server; its URI."""
    with tempfile.TemporaryDirectory(dir=lab.scratch) as name:
        command = ["nbdkit", "-f", "-t", str(servers.THREADS), "-U", "{socket}", "nbd", f"uri={export.uri}"]
        with process.running(pathlib.Path(name), command) as (_, socket):
            yield f"nbd+unix:///?socket={socket}"


def _spill(server: servers.Swaptide, size: int) -> float:
    """Fill it, then take all RAM away: bytes a second that went to the server."""
    with server.face() as disk:
        disk.set_limits(target_bytes=disk.limits().cap_bytes)
    load.fill(server, size_bytes=size, directory=server.state.parent)
    load.wait_quiet(server)
    before, begun = server.counters()["spill_written_bytes"], time.monotonic()
    server.squeeze()
    return (server.counters()["spill_written_bytes"] - before) / (time.monotonic() - begun)


def _copy(source: pathlib.Path, export: Export) -> float:
    """nbdcopy of a file that is in the page cache: bytes a second."""
    begun = time.monotonic()
    try:
        subprocess.run(
            ["nbdcopy", "--flush", str(source), export.uri],
            capture_output=True,
            check=True,
            timeout=_COPY_SECONDS,
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise measure.ContenderError(f"nbdcopy failed: {error}") from error
    return source.stat().st_size / (time.monotonic() - begun)


def measure_writes(lab: measure.Lab) -> Sequence[measure.Measurement]:
    """Segments written a second, sealed on the way, against a plain copy."""
    size = _size(lab)
    with contextlib.ExitStack() as stack:
        export = {name: stack.enter_context(_export(lab, FILE, size)) for name in (measure.OURS, PLAIN, COPY)}
        ours = {
            name: stack.enter_context(_ours(lab, export[name], encrypt=name != PLAIN))
            for name in (measure.OURS, PLAIN)
        }
        source = export[COPY].directory / "source"
        with open(source, "wb") as file:
            for _ in range(size // len(_CHUNK)):
                file.write(_CHUNK)

        def one(name: str) -> float:
            if name in ours:
                return _spill(ours[name], size)
            return _copy(source, export[COPY])

        values, failed = measure.take_turns(lab, (measure.OURS, PLAIN, COPY), lab.plan.rounds, one)
        return [
            measure.Measurement(
                row="remote-spill",
                metric="written",
                title=f"segments written to nbdkit file when {size // MIB} MiB of RAM are taken back",
                unit="MiB/s",
                better="more",
                values={name: [value / MIB for value in several] for name, several in values.items()},
                reference=(COPY,),
                failed=failed,
                notes=(
                    f"{COPY}: from a file in the page cache, onto a server started alike",
                    *ours[measure.OURS].notes,
                ),
            )
        ]


def measure_reads(
    row: str, words: Sequence[str], title: str, lab: measure.Lab
) -> Sequence[measure.Measurement]:
    """Misses through ours, beside whoever asks the same server for the same file."""
    size = _size(lab)
    with (
        _export(lab, words, size) as export,
        _ours(lab, export) as server,
        _proxy(lab, export) as proxy,
    ):
        load.fill(server, size_bytes=size, directory=export.directory)
        server.squeeze()
        load.wait_quiet(server)
        places = {measure.OURS: server.uri, PROXY: proxy, DIRECT: export.uri, DIRECT_AGAIN: export.uri}

        def one(name: str) -> float:
            found = fio.nbd(
                places[name], READ, size_bytes=size, seconds=lab.plan.seconds, directory=export.directory
            )
            return found.rate

        before = server.counters()
        values, failed = measure.take_turns(lab, tuple(places), lab.plan.rounds, one)
        after = server.counters()
        pages = after["hits"] + after["misses"] - before["hits"] - before["misses"]
        missed = (after["misses"] - before["misses"]) / max(1, pages)
        return [
            measure.Measurement(
                row=row,
                metric="rate",
                title=title,
                unit=load.RATE.unit,
                better="more",
                values={name: [value / 1000 for value in several] for name, several in values.items()},
                reference=(DIRECT,) if words is DELAY else (PROXY,),
                again=(DIRECT_AGAIN, DIRECT),
                failed=failed,
                notes=(
                    f"{missed:.0%} of what swaptide was asked for came from the server",
                    f"{PROXY}: nbdkit's nbd plugin before the same server",
                    *server.notes,
                ),
            )
        ]


def _reads(name: str, title: str, words: Sequence[str]) -> measure.Row:
    return measure.Row(name, "remote", title, functools.partial(measure_reads, name, words, title))


ROWS: Final = (
    measure.Row("remote-spill", "remote", "segments written to an NBD server", measure_writes),
    _reads("remote-read-4k-d16", "4 KiB random reads of pages on an NBD server, depth 16", FILE),
    _reads(
        "remote-read-4k-d16-1ms",
        "4 KiB random reads of pages on an NBD server that is 1 ms away, depth 16",
        DELAY,
    ),
)
