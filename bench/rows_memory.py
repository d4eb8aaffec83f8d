"""Rows of memory: guest bytes held per byte of host RAM, on real pages, random pages and text.

One thread fills one contender at a time, reads its memory from outside, reads everything back and ends it.
"""

import functools
import json
import pathlib
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any, Final, TypeVar

from bench import held, measure, pages, servers
from tests.vm import accel, image, machine, report

T = TypeVar("T")

MIB: Final = 1 << 20
FULL_BYTES: Final = 1024 * MIB
QUICK_BYTES: Final = 64 * MIB
# What packs and what holds raw pages are each as good in every round.
ROUNDS: Final = 2
DUMP: Final = pathlib.Path(__file__).resolve().parents[1] / "vm-images" / "dump.py"
DUMP_SECONDS: Final = 900
# Patience, for a loaded machine: an emulated CPU packs 512 MiB by zstd in less than half of it.
ZRAM_SECONDS: Final = 480.0
# The guest itself, and what zsmalloc needs more than the bytes that it holds.
ZRAM_GUEST_MIB: Final = 128
# struct zram_table_entry of Linux 6.1; mm_stat leaves the table out.
ZRAM_ENTRY_BYTES: Final = 16
ZRAM_PREFIX: Final = "zram "
ZRAM_SUFFIX: Final = " (in guest)"
ZRAM_ALGORITHMS: Final = ("lz4", "lzo-rle", "zstd")
REFERENCES: Final = {name: f"{ZRAM_PREFIX}{name}{ZRAM_SUFFIX}" for name in ("lz4", "zstd")}
# Ours by algorithm; what is measured twice tells the noise floor.
PACKING: Final = {"lz4": measure.OURS, "zstd": f"{measure.OURS}, zstd"}
AGAIN: Final = " again"
METRIC: Final = "guest bytes held"
WHOLE: Final = ", whole process"
COUNTED: Final = (
    "host bytes: what the server's own memory grew by since it started empty (Pss without shared memory),"
    " all blocks of swaptide's state file, the page cache of the files behind it; whole process: with what it"
    " had when it was empty",
    "swaptide packs page by page; its target is lowered step by step (1/128), and the figure is the last one"
    " with every page in RAM but for 1 % at most, which does not count as held",
    "zram: mem_used_total of mm_stat and 16 bytes of table for each page, in the guest's own memory",
)


# --- The corpora --------------------------------------------------------------------------------------------


def guest_pages(lab: measure.Lab) -> pathlib.Path:
    """The directory of the dumped pages, made if need be, which takes minutes; raises ContenderError."""
    if "guest pages" not in lab.kept:
        lab.tell("pages of a booted guest (three minutes the first time)")
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


def corpus(lab: measure.Lab, kind: str, directory: pathlib.Path) -> held.Corpus:
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
    return held.Corpus(path, size_bytes, (told, *about))


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


def contenders(size_bytes: int, again: bool = False) -> dict[str, servers.Contender]:
    """Those behind NBD, by name; `again` for ours twice.  swaptide has RAM for all pages at first."""
    chosen = [servers.nbdkit_memory(), servers.nbdkit_zstd("allocator=zstd packs 32 KiB at a time")]
    chosen.append(servers.nbdkit_file())
    ram_bytes = 2 * size_bytes + 128 * MIB
    for suffix in ("", AGAIN) if again else ("",):
        for algorithm, name in PACKING.items():
            tuning = servers.Tuning(compress=algorithm, clean_ahead_percent=0)
            chosen.append(servers.swaptide(ram_bytes, name + suffix, tuning))
    return {each.name: each for each in chosen}


# --- zram in a guest ----------------------------------------------------------------------------------------


class Zram:
    """zram in the small guest, filled with the corpus by each algorithm in turn, in one boot."""

    def __init__(self, corpus: held.Corpus) -> None:
        """Nothing is booted before the first figure is asked for."""
        self._corpus = corpus
        self._left: dict[str, held.Held] = {}

    def take(self, algorithm: str) -> held.Held:
        """The figure of a boot; asking again for the same algorithm boots again.  Raises ContenderError."""
        if algorithm not in self._left:
            self._left = self._boot()
        return self._left.pop(algorithm)

    def _boot(self) -> dict[str, held.Held]:
        memory_mib = ZRAM_GUEST_MIB + self._corpus.size_bytes * 9 // 8 // MIB
        work = {"zram_fill": "/dev/vda", "zram_algorithms": ",".join(ZRAM_ALGORITHMS)}
        try:
            chosen = accel.choose().name
            spec = machine.Spec(chosen, memory_mib=memory_mib, disk=read_only(self._corpus.path), work=work)
            with machine.Machine(spec) as guest:
                return dict(self._figure(guest) for _ in ZRAM_ALGORITHMS)
        except (machine.GuestError, image.ImageError, accel.ProbeError) as error:
            raise measure.ContenderError(" ".join(str(error).split())[:300]) from error

    def _figure(self, guest: machine.Machine) -> tuple[str, held.Held]:
        said = guest.wait_for(lambda found: found.kind == "ZRAM", "figures of zram", ZRAM_SECONDS)
        return said.fields["algorithm"], held_by_zram(said, self._corpus.size_bytes)


def held_by_zram(said: report.Report, size_bytes: int) -> held.Held:
    """From a GUEST-ZRAM report; raises ContenderError if the disk was not filled."""
    # By its documentation orig_data_size leaves out same-filled pages, Linux 6.1 counts them in.
    orig, same_bytes = said.number("orig"), said.number("same") * report.PAGE_BYTES
    if size_bytes not in (orig, orig + same_bytes):
        raise measure.ContenderError(f"zram holds {orig} bytes instead of {size_bytes}")
    table = size_bytes // report.PAGE_BYTES * ZRAM_ENTRY_BYTES
    free_kib = said.number("memfree_kib_before") - said.number("memfree_kib_after")
    note = f"MemFree fell by {free_kib / 1024:.1f} MiB, mem_used_total is {said.number('used') / MIB:.1f} MiB"
    host_bytes = said.number("used") + table
    return held.Held(host_bytes, host_bytes, note)


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
        content = corpus(lab, kind, pathlib.Path(name))
        # Real pages are what a target is set for: there the noise floor counts.
        served, zram = contenders(content.size_bytes, again=kind == "guest"), Zram(content)

        def one(contender: str) -> held.Held:
            if contender in served:
                return held.over_nbd(served[contender], content, lab.scratch)
            return zram.take(contender.removeprefix(ZRAM_PREFIX).removesuffix(ZRAM_SUFFIX))

        # Booting its guest is most of a quick row.
        algorithms = ZRAM_ALGORITHMS if kind == "guest" or not lab.plan.quick else ()
        names = [*served, *(f"{ZRAM_PREFIX}{each}{ZRAM_SUFFIX}" for each in algorithms)]
        found, failed = measure.take_turns(
            lab, names, min(lab.plan.rounds, 1 if lab.plan.quick else ROUNDS), one
        )
    facts = tuple(f"{name}: {samples[-1].note}" for name, samples in found.items())
    notes = (*content.notes, *COUNTED, *facts)
    return measurements(kind, title, content.size_bytes, found, failed, notes)


def measurements(
    kind: str,
    title: str,
    size_bytes: int,
    found: Mapping[str, Sequence[held.Held]],
    failed: Mapping[str, str],
    notes: tuple[str, ...],
) -> list[measure.Measurement]:
    """Ours with LZ4 beside all others, then with zstd beside zstd; each by what was added, and as a whole."""
    made = []
    for algorithm, ours in PACKING.items():
        for whole in (False, True):
            values = {
                name: [per_byte(each, size_bytes, whole) for each in samples]
                for name, samples in found.items()
            }
            strong = algorithm == "zstd"
            made.append(
                measure.Measurement(
                    row=f"held-{kind}",
                    metric=METRIC + (f", {algorithm}" if strong else "") + (WHOLE if whole else ""),
                    title=title,
                    unit="per byte of host RAM",
                    better="more",
                    values=ours_is(ours, values) if strong else values,
                    reference=(REFERENCES[algorithm],),
                    again=(measure.OURS + AGAIN, measure.OURS),
                    failed=ours_is(ours, failed) if strong else failed,
                    notes=notes,
                )
            )
    return made


def per_byte(taken: held.Held, size_bytes: int, whole: bool) -> float:
    """Guest bytes held in RAM for each byte of the host's."""
    return (size_bytes - taken.strays_bytes) / (taken.whole_bytes if whole else taken.host_bytes)


def ours_is(ours: str, by_name: Mapping[str, T]) -> dict[str, T]:
    """By contender: those that use zstd, `ours` and its second instance under the names of swaptide."""
    renamed = {ours: measure.OURS, ours + AGAIN: measure.OURS + AGAIN}
    others = {name: name for name in by_name if "zstd" in name and not name.startswith(measure.OURS)}
    return {new: by_name[old] for old, new in (renamed | others).items() if old in by_name}


TITLES: Final = {
    "guest": "anonymous pages of a guest that ran real programs",
    "text": "program sources",
    "random": "random bytes",
}
ROWS: Final = tuple(
    measure.Row(f"held-{kind}", "memory", f"Memory for {title}", functools.partial(measure_held, kind, title))
    for kind, title in TITLES.items()
)
