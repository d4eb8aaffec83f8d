"""Real pages: boots the Debian guest, lets its programs fill their memory, keeps its anonymous pages.

One process at a time (a lock file), one thread; QEMU is reaped whatever happens.  The result appears by
renaming and is kept until an input changes or `--refresh`.  Prints the directory, which holds `pages`
(4096 bytes each, in the order of the guest's physical memory) and `manifest.json`.

Only anonymous pages are taken, by the guest's own /proc/kpageflags: these are what a guest swaps.  Pages
that are all zero are left out, and counted: they would flatter whoever recognizes them.
"""

import base64
import contextlib
import dataclasses
import fcntl
import hashlib
import json
import os
import pathlib
import shutil
import sys
import tempfile
import time
import zlib
from collections.abc import Iterator
from typing import Any, BinaryIO, Final

HERE: Final = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

import build  # noqa: E402

sys.path.insert(0, str(HERE.parent))

import debian  # noqa: E402
import tools  # noqa: E402
from qemu.qmp import QMPError  # noqa: E402

from bench import core  # noqa: E402
from tests.vm import accel, image, machine  # noqa: E402

MEMORY_MIB: Final = 1024
# About a minute on two free cores, under emulation.
SETTLE_SECONDS: Final = 600.0
DUMP_SECONDS: Final = 120.0
# What vm-images/programs/ say on the console.
KINDS: Final = ("READY", "NOTE", "PAGES", "SETTLED")


class DumpError(Exception):
    """The guest's memory could not be had; str() says why."""


@dataclasses.dataclass
class Count:
    """Pages seen: `anonymous` in all, of them `zero` (left out) and `same_filled` (kept)."""

    anonymous: int = 0
    zero: int = 0
    same_filled: int = 0


def disk_arguments(guest: pathlib.Path) -> tuple[str, ...]:
    """QEMU's arguments for the Debian disk, read-only, and for the initramfs that mounts it."""
    file = str(guest / "disk").replace(",", ",,")
    # Of two -initrd options QEMU takes the last, so this one replaces the small guest's.
    return (
        *("-initrd", str(guest / "initrd")),
        *("-blockdev", f"driver=file,node-name=root0,read-only=on,filename={file}"),
        *("-device", "virtio-blk-pci,drive=root0"),
    )


def settle(guest: machine.Machine) -> tuple[bytes, dict[str, str]]:
    """Wait for the programs; returns the bitmap of anonymous frames and the guest's own figures.

    Raises GuestError if they are not done in time.
    """
    said = []
    deadline = time.monotonic() + SETTLE_SECONDS
    while (left := deadline - time.monotonic()) > 0:
        found = guest.wait_for(lambda report: report.kind in KINDS, "end of the guest's work", left)
        if found.kind == "PAGES":
            said.append(found.text)
        elif found.kind == "SETTLED":
            return zlib.decompress(base64.b64decode("".join(said))), found.fields
        else:
            print(f"guest pages: {found.text}", file=sys.stderr)
    raise machine.GuestError(guest.account("the guest's programs were not done in time"))


def write_core(guest: machine.Machine, target: pathlib.Path) -> None:
    """Dump the guest's physical memory into a file; raises DumpError, or what QMP raises."""
    guest.qmp("stop")
    guest.qmp("dump-guest-memory", paging=False, protocol=f"file:{target}", detach=True)
    deadline = time.monotonic() + DUMP_SECONDS
    while (state := guest.qmp("query-dump")["status"]) != "completed":
        if state != "active" or time.monotonic() > deadline:
            raise DumpError(f"QEMU's dump is {state} after at most {DUMP_SECONDS:.0f} s")
        time.sleep(0.1)


def select(source: BinaryIO, bitmap: bytes, target: BinaryIO) -> Count:
    """Write the anonymous pages that are not all zero; raises CoreError."""
    layout, count = core.segments(source), Count()
    for frame in core.frames(bitmap):
        content = core.page(source, layout, frame)
        count.anonymous += 1
        if core.is_zero(content):
            count.zero += 1
            continue
        count.same_filled += core.is_same_filled(content)
        target.write(content)
    return count


def account(guest: pathlib.Path, chosen: str, count: Count, figures: dict[str, str]) -> dict[str, Any]:
    """The manifest: where the pages are from, and what was left out."""
    kept = count.anonymous - count.zero
    return {
        **json.loads((guest / "manifest.json").read_text(encoding="utf-8")),
        "accelerator": chosen,
        "guest_memory_mib": MEMORY_MIB,
        "guest_meminfo_kib": figures,
        "selection": "anonymous pages, all-zero ones left out",
        "anonymous_pages": count.anonymous,
        "zero_pages_left_out": count.zero,
        "pages": kept,
        "same_filled_share": round(count.same_filled / max(kept, 1), 4),
    }


def take(guest: pathlib.Path, work: pathlib.Path) -> None:
    """Boot, wait, dump and select into `work`; raises DumpError, GuestError, CoreError."""
    chosen = accel.choose()
    spec = machine.Spec(chosen.name, memory_mib=MEMORY_MIB, disk=disk_arguments(guest))
    raw = work / "core"
    with machine.Machine(spec) as running:
        bitmap, figures = settle(running)
        write_core(running, raw)
    with open(raw, "rb") as source, open(work / "pages", "wb") as target:
        count = select(source, bitmap, target)
    raw.unlink()
    facts = account(guest, chosen.name, count, figures)
    (work / "manifest.json").write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")


@contextlib.contextmanager
def only_one() -> Iterator[None]:
    """Hold the lock of the dumps; the builder's own is taken by the builders that are called within."""
    tools.CACHE.mkdir(parents=True, exist_ok=True)
    with open(tools.CACHE / "pages.lock", "w", encoding="ascii") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for stale in tools.CACHE.glob(".dump-*"):  # of one that was killed outright
            shutil.rmtree(stale, ignore_errors=True)
        yield


def pages_key(guest: pathlib.Path) -> str:
    """A digest of all that goes into the pages."""
    digest = hashlib.sha256(f"{guest.name} {MEMORY_MIB}".encode())
    for path in (pathlib.Path(__file__), pathlib.Path(core.__file__)):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def ensure(refresh: bool) -> pathlib.Path:
    """The directory of the pages, made if an input changed or `refresh` is wanted; older ones are removed."""
    with only_one():
        guest = debian.ensure(refresh)
        kept = tools.CACHE / f"pages-{pages_key(guest)}"
        if kept.is_dir() and not refresh:
            return kept
        print("guest pages: booting Debian and its programs, about two minutes", file=sys.stderr)
        with tempfile.TemporaryDirectory(prefix=".dump-", dir=tools.CACHE) as name:
            work = pathlib.Path(name) / "pages"
            work.mkdir()
            take(guest, work)
            for old in tools.CACHE.glob("pages-*"):
                shutil.rmtree(old, ignore_errors=True)
            os.rename(work, kept)
    return kept


EXPECTED: Final = (
    DumpError,
    accel.ProbeError,
    core.CoreError,
    image.ImageError,
    machine.GuestError,
    QMPError,
)


def main() -> int:
    """Make what is missing and print the directory of the pages."""
    refresh = "install the newest packages and dump again"
    return build.command(__doc__, "guest pages", refresh, ensure, *EXPECTED)


if __name__ == "__main__":
    sys.exit(main())
