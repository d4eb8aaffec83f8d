"""What a contender takes of the host's RAM for a corpus of pages, read from outside.

One thread fills one contender at a time, reads its memory, reads everything back and ends it.
"""

import contextlib
import dataclasses
import pathlib
import tempfile
import time
from collections.abc import Iterator
from typing import Final

import nbd

from bench import guests, measure, servers, squeezing

MIB: Final = 1 << 20
REQUEST_BYTES: Final = 128 << 10
SETTLE_SECONDS: Final = 5.0
SETTLE_STEP_SECONDS: Final = 0.4
# What was written in the last seconds is kept as it is (cache/planning.py): let them pass.
COOL_SECONDS: Final = 4.0


@dataclasses.dataclass(frozen=True)
class Corpus:
    """Pages to hold.  `notes` say what they are."""

    path: pathlib.Path
    size_bytes: int
    notes: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Taken:
    """RAM that a server takes, in bytes: its own memory, our state file, the page cache of its files."""

    private_bytes: int
    state_bytes: int
    cached_bytes: int

    @property
    def whole_bytes(self) -> int:
        """All of it."""
        return self.private_bytes + self.state_bytes + self.cached_bytes

    def beyond(self, empty: "Taken") -> int:
        """What came to it since it was empty; the state file counts from its first block."""
        grown = self.private_bytes - empty.private_bytes + self.cached_bytes - empty.cached_bytes
        return grown + self.state_bytes


@dataclasses.dataclass(frozen=True)
class Held:
    """What a contender took for the corpus, in bytes of RAM: beyond what it took empty, and as a whole.

    `note` is a fact for the notes; `strays_bytes` of the corpus were on disk.
    """

    host_bytes: int
    whole_bytes: int
    note: str
    strays_bytes: int = 0


def taken_by(server: servers.Server) -> Taken:
    """RAM of the host that it takes now; raises ContenderError if it is gone."""
    try:
        private = guests.private_bytes(guests.smaps(server.pid))
    except OSError as error:
        raise measure.ContenderError(f"the server is gone: {error.strerror}") from error
    return Taken(private, state_bytes(server), sum(map(guests.cached_bytes, server.files)))


def settled(server: servers.Server) -> Taken:
    """RAM that it takes once that no longer changes: swaptide readies empty segments in the background."""
    deadline, before = time.monotonic() + SETTLE_SECONDS, taken_by(server)
    while True:
        time.sleep(SETTLE_STEP_SECONDS)
        now = taken_by(server)
        if abs(now.whole_bytes - before.whole_bytes) < MIB or time.monotonic() > deadline:
            return now
        before = now


def state_bytes(server: servers.Server) -> int:
    """The blocks of swaptide's state file, mapped or not."""
    return server.state.stat().st_blocks * 512 if isinstance(server, servers.Swaptide) else 0


@contextlib.contextmanager
def client(server: servers.Server) -> Iterator[nbd.NBD]:
    """A connection; raises ContenderError for what NBD refuses."""
    handle = nbd.NBD()
    try:
        handle.connect_unix(str(server.socket))
        yield handle
        handle.shutdown()
    except nbd.Error as error:
        raise measure.ContenderError(f"NBD: {error}") from error


def offsets(size_bytes: int) -> range:
    """Where requests start; corpora are whole MiB."""
    return range(0, size_bytes, REQUEST_BYTES)


def fill(handle: nbd.NBD, corpus: Corpus) -> None:
    """Write the corpus from the disk's start on."""
    with open(corpus.path, "rb") as source:
        for offset in offsets(corpus.size_bytes):
            handle.pwrite(source.read(REQUEST_BYTES), offset)


def verify(handle: nbd.NBD, corpus: Corpus) -> None:
    """Read everything back; raises ContenderError at the first difference."""
    with open(corpus.path, "rb") as source:
        for offset in offsets(corpus.size_bytes):
            if handle.pread(REQUEST_BYTES, offset) != source.read(REQUEST_BYTES):
                raise measure.ContenderError(f"other bytes came back from offset {offset}")


def over_nbd(contender: servers.Contender, corpus: Corpus, scratch: pathlib.Path) -> Held:
    """Start, fill, measure, check, end; raises ContenderError."""
    with contextlib.ExitStack() as stack:
        directory = stack.enter_context(tempfile.TemporaryDirectory(dir=scratch))
        server = stack.enter_context(contender.serve(pathlib.Path(directory), corpus.size_bytes))
        empty = settled(server)
        with client(server) as handle:
            fill(handle, corpus)
            full, strays = settled(server), 0
            if isinstance(server, servers.Swaptide):
                if server.counters()["spill_written_bytes"]:
                    raise measure.ContenderError("pages went to disk that should be in RAM")
                time.sleep(COOL_SECONDS)
                full, strays = squeezing.to_the_edge(server, lambda: taken_by(server))
            verify(handle, corpus)
    note = f"{empty.whole_bytes / MIB:.1f} MiB when empty"
    note += f", {strays / MIB:.1f} MiB on disk at the edge" if strays else ""
    return Held(full.beyond(empty), full.whole_bytes, note, strays)
