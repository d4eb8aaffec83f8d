"""Rows of memory: guest bytes held per byte of host RAM, on real pages, random pages and text.

One thread fills one contender at a time, reads its memory from outside, reads everything back and ends it.
"""

import contextlib
import dataclasses
import functools
import json
import pathlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

import nbd

from bench import guests, measure, pages, servers
from tests.vm import accel, image, machine, report

MIB: Final = 1 << 20
FULL_BYTES: Final = 256 * MIB
QUICK_BYTES: Final = 64 * MIB
# What packs and what holds raw pages are each as good in every round.
ROUNDS: Final = 2
REQUEST_BYTES: Final = 128 << 10
DUMP: Final = pathlib.Path(__file__).resolve().parents[1] / "vm-images" / "dump.py"
DUMP_SECONDS: Final = 900
SETTLE_SECONDS: Final = 5.0
SETTLE_STEP_SECONDS: Final = 0.4
# Patience, for a loaded machine: an emulated CPU packs 256 MiB by zstd in less than half of it.
ZRAM_SECONDS: Final = 240.0
# The guest itself, and what zsmalloc needs more than the bytes that it holds.
ZRAM_GUEST_MIB: Final = 128
# struct zram_table_entry of Linux 6.1; mm_stat leaves the table out.
ZRAM_ENTRY_BYTES: Final = 16
ZRAM_PREFIX: Final = "zram "
ZRAM_SUFFIX: Final = " (in guest)"
ZRAM_ALGORITHMS: Final = ("lz4", "lzo-rle", "zstd")
REFERENCE: Final = f"{ZRAM_PREFIX}lz4{ZRAM_SUFFIX}"
COUNTED: Final = (
    "host bytes: what the server's own memory grew by since it started empty (Pss without shared memory),"
    " the blocks of swaptide's state file, the page cache of the files behind it",
    "zram: mem_used_total of mm_stat and 16 bytes of table for each page, in the guest's own memory",
)


@dataclasses.dataclass(frozen=True)
class Corpus:
    """Pages to hold.  `notes` say what they are."""

    path: pathlib.Path
    size_bytes: int
    notes: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Held:
    """What a contender took for the corpus: bytes of RAM, and a fact for the notes."""

    host_bytes: int
    note: str


# --- The corpora --------------------------------------------------------------------------------------------


def guest_pages(lab: measure.Lab) -> pathlib.Path:
    """The directory of the dumped pages, made if need be, which takes two minutes; raises ContenderError."""
    if "guest pages" not in lab.kept:
        lab.tell("pages of a booted guest (two minutes the first time)")
        done = subprocess.run(
            [sys.executable, str(DUMP)], capture_output=True, text=True, timeout=DUMP_SECONDS
        )
        if done.returncode:
            raise measure.ContenderError(" ".join(done.stderr.split())[-300:])
        lab.kept["guest pages"] = pathlib.Path(done.stdout.strip().splitlines()[-1])
    found = lab.kept["guest pages"]
    assert isinstance(found, pathlib.Path)
    return found


def wanted_bytes(plan: measure.Plan, dumped_bytes: int) -> int:
    """The size of every corpus: what the plan has time for, or what the dump holds, in whole MiB."""
    return pages.whole_pieces(min(QUICK_BYTES if plan.quick else FULL_BYTES, dumped_bytes))


def corpus(lab: measure.Lab, kind: str, directory: pathlib.Path) -> Corpus:
    """Write the corpus of this kind (`guest`, `text` or `random`); raises ContenderError."""
    dumped = guest_pages(lab)
    size_bytes = wanted_bytes(lab.plan, (dumped / "pages").stat().st_size)
    path = directory / kind
    with open(path, "w+b") as target:
        if kind == "guest":
            with open(dumped / "pages", "rb") as source:
                pages.spread(source, target, size_bytes)
        else:
            {"text": pages.text, "random": pages.random}[kind](target, size_bytes)
        target.seek(0)
        zero, same = pages.count_kinds(target)
    told = f"{size_bytes // MIB} MiB in 4 KiB pages, {zero} of them all zero, {same} another word repeated"
    about = (dump_note(json.loads((dumped / "manifest.json").read_text())),) if kind == "guest" else ()
    return Corpus(path, size_bytes, (told, *about))


def dump_note(manifest: Mapping[str, Any]) -> str:
    """Where the real pages are from."""
    packages = (line.split()[0] for line in manifest["programs"])
    programs = ", ".join(name for name in packages if not name.endswith("-dev"))
    return (
        f"pages: {manifest['selection']} ({manifest['zero_pages_left_out']} of"
        f" {manifest['anonymous_pages']}), of a Debian guest with {manifest['guest_memory_mib']} MiB that ran"
        f" {programs}; spread evenly over its memory"
    )


# --- Servers ------------------------------------------------------------------------------------------------


def contenders(size_bytes: int) -> dict[str, servers.Contender]:
    """Those behind NBD, by name.  swaptide has RAM for all pages, so that none goes to disk."""
    file, memory = servers.nbdkit_file(), servers.nbdkit_memory()
    chosen = (servers.swaptide(2 * size_bytes + 128 * MIB), memory, servers.nbdkit_zstd(), file)
    return {each.name: each for each in chosen}


def held_by(server: servers.Server) -> int:
    """RAM of the host that it takes now, in bytes; raises ContenderError if it is gone."""
    return guests.held_bytes(server.pid, guests.Disk(files=server.files)) + state_bytes(server)


def settled(server: servers.Server) -> int:
    """RAM that it takes once that no longer changes: swaptide readies empty segments in the background."""
    deadline, before = time.monotonic() + SETTLE_SECONDS, held_by(server)
    while True:
        time.sleep(SETTLE_STEP_SECONDS)
        now = held_by(server)
        if abs(now - before) < MIB or time.monotonic() > deadline:
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


def fill(handle: nbd.NBD, held: Corpus) -> None:
    """Write the corpus from the disk's start on."""
    with open(held.path, "rb") as source:
        for offset in offsets(held.size_bytes):
            handle.pwrite(source.read(REQUEST_BYTES), offset)


def verify(handle: nbd.NBD, held: Corpus) -> None:
    """Read everything back; raises ContenderError at the first difference."""
    with open(held.path, "rb") as source:
        for offset in offsets(held.size_bytes):
            if handle.pread(REQUEST_BYTES, offset) != source.read(REQUEST_BYTES):
                raise measure.ContenderError(f"other bytes came back from offset {offset}")


def held_over_nbd(contender: servers.Contender, held: Corpus, scratch: pathlib.Path) -> Held:
    """Start, fill, measure, check, end; raises ContenderError."""
    with contextlib.ExitStack() as stack:
        directory = stack.enter_context(tempfile.TemporaryDirectory(dir=scratch))
        server = stack.enter_context(contender.serve(pathlib.Path(directory), held.size_bytes))
        base = settled(server)
        with client(server) as handle:
            fill(handle, held)
            grown = settled(server) - base
            verify(handle, held)
        if isinstance(server, servers.Swaptide) and server.counters()["spill_written_bytes"]:
            raise measure.ContenderError("pages went to disk that should be in RAM")
    return Held(grown, f"{base / MIB:.1f} MiB when empty")


# --- zram in a guest ----------------------------------------------------------------------------------------


class Zram:
    """zram in the small guest, filled with the corpus by each algorithm in turn, in one boot."""

    def __init__(self, held: Corpus) -> None:
        """Nothing is booted before the first figure is asked for."""
        self._held = held
        self._left: dict[str, Held] = {}

    def take(self, algorithm: str) -> Held:
        """The figure of a boot; asking again for the same algorithm boots again.  Raises ContenderError."""
        if algorithm not in self._left:
            self._left = self._boot()
        return self._left.pop(algorithm)

    def _boot(self) -> dict[str, Held]:
        memory_mib = ZRAM_GUEST_MIB + self._held.size_bytes * 9 // 8 // MIB
        work = {"zram_fill": "/dev/vda", "zram_algorithms": ",".join(ZRAM_ALGORITHMS)}
        try:
            chosen = accel.choose().name
            spec = machine.Spec(chosen, memory_mib=memory_mib, disk=read_only(self._held.path), work=work)
            with machine.Machine(spec) as guest:
                return dict(self._figure(guest) for _ in ZRAM_ALGORITHMS)
        except (machine.GuestError, image.ImageError, accel.ProbeError) as error:
            raise measure.ContenderError(" ".join(str(error).split())[:300]) from error

    def _figure(self, guest: machine.Machine) -> tuple[str, Held]:
        said = guest.wait_for(lambda found: found.kind == "ZRAM", "figures of zram", ZRAM_SECONDS)
        return said.fields["algorithm"], held_by_zram(said, self._held.size_bytes)


def held_by_zram(said: report.Report, size_bytes: int) -> Held:
    """From a GUEST-ZRAM report; raises ContenderError if the disk was not filled."""
    # By its documentation orig_data_size leaves out same-filled pages, Linux 6.1 counts them in.
    orig, same_bytes = said.number("orig"), said.number("same") * report.PAGE_BYTES
    if size_bytes not in (orig, orig + same_bytes):
        raise measure.ContenderError(f"zram holds {orig} bytes instead of {size_bytes}")
    table = size_bytes // report.PAGE_BYTES * ZRAM_ENTRY_BYTES
    free_kib = said.number("memfree_kib_before") - said.number("memfree_kib_after")
    note = f"MemFree fell by {free_kib / 1024:.1f} MiB, mem_used_total is {said.number('used') / MIB:.1f} MiB"
    return Held(said.number("used") + table, note)


def read_only(path: pathlib.Path) -> tuple[str, ...]:
    """QEMU's arguments for a disk that the guest only reads."""
    name = str(path).replace(",", ",,")
    return (
        *("-blockdev", f"driver=file,node-name=pages0,read-only=on,filename={name}"),
        *("-device", "virtio-blk-pci,drive=pages0"),
    )


# --- The rows -----------------------------------------------------------------------------------------------


def measure_held(kind: str, title: str, lab: measure.Lab) -> Sequence[measure.Measurement]:
    """All contenders hold the corpus of one kind."""
    with tempfile.TemporaryDirectory(dir=lab.scratch) as name:
        held = corpus(lab, kind, pathlib.Path(name))
        served, zram = contenders(held.size_bytes), Zram(held)

        def one(contender: str) -> Held:
            if contender in served:
                return held_over_nbd(served[contender], held, lab.scratch)
            return zram.take(contender.removeprefix(ZRAM_PREFIX).removesuffix(ZRAM_SUFFIX))

        names = [*served, *(f"{ZRAM_PREFIX}{each}{ZRAM_SUFFIX}" for each in ZRAM_ALGORITHMS)]
        found, failed = measure.take_turns(
            lab, names, min(lab.plan.rounds, 1 if lab.plan.quick else ROUNDS), one
        )
    facts = tuple(f"{name}: {samples[-1].note}" for name, samples in found.items())
    return [
        measure.Measurement(
            row=f"held-{kind}",
            metric="guest bytes held",
            title=title,
            unit="per byte of host RAM",
            better="more",
            values={
                name: [held.size_bytes / sample.host_bytes for sample in samples]
                for name, samples in found.items()
            },
            reference=(REFERENCE,),
            failed=failed,
            notes=(*held.notes, *COUNTED, *facts),
        )
    ]


TITLES: Final = {
    "guest": "anonymous pages of a guest that ran real programs",
    "text": "program sources",
    "random": "random bytes",
}
ROWS: Final = tuple(
    measure.Row(f"held-{kind}", "memory", f"Memory for {title}", functools.partial(measure_held, kind, title))
    for kind, title in TITLES.items()
)
