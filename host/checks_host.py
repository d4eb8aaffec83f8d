"""What `swaptide doctor` looks at on a host: programs, kernel, memory, store.  Pure functions of a sight."""

import os
import pathlib
from collections.abc import Iterator
from typing import Final

from swaptide.cache import geometry
from swaptide.host import diagnosis, sizes, snippet
from swaptide.host.diagnosis import Finding, bad, ok, warn
from swaptide.host.sight import Sight

_NBDKIT: Final = (1, 32)
# MADV_POPULATE_WRITE, without which no memory is ever made.
_KERNEL: Final = (5, 14)
_KERNEL_NOSWAP: Final = (6, 4)
_SLOW_CLOCKS: Final = ("hpet", "acpi_pm", "pit", "jiffies")
_SYS_RESOURCE: Final = 24  # capabilities(7)
_SMALL_SPACE: Final = 1 << 30
_THP: Final = "sys/kernel/mm/transparent_hugepage/shmem_enabled"


def nbdkit(sight: Sight) -> Iterator[Finding]:
    """nbdkit, and the plugin in it that loads ours."""
    install = "install the Debian packages nbdkit and nbdkit-plugin-python"
    said = sight.says(sight.config.nbdkit, "--version")
    if said is None:
        yield bad("nbdkit", f"{sight.config.nbdkit} is missing", install)
        return
    version = said.removeprefix("nbdkit ").split()[0]
    if diagnosis.version_of(version) < _NBDKIT:
        yield bad(
            "nbdkit", f"version {version} is too old", "install nbdkit 1.32 or later (Debian 12 has it)"
        )
        return
    told = sight.says(sight.config.nbdkit, "python", "--dump-plugin")
    if told is None:
        yield bad("nbdkit", f"version {version}, but its Python plugin is missing", install)
        return
    python = next((line for line in told.splitlines() if line.startswith("python_version=")), "=")
    loads = python.partition("=")[2]
    if diagnosis.version_of(loads)[:2] != sight.python:
        ours = ".".join(map(str, sight.python))
        yield bad(
            "nbdkit",
            f"its plugin has Python {loads}, swaptide was installed for {ours}",
            "install swaptide with the system's own /usr/bin/python3",
        )
        return
    yield ok("nbdkit", f"{version}, with Python {loads}")


def libnbd(sight: Sight) -> Iterator[Finding]:
    """The binding that empties disks at a guest's reset; the core has the library linked."""
    found = sight.libnbd()
    if found is None:
        yield warn(
            "libnbd",
            "its Python binding is missing: --clear-on-reset cannot work",
            "install the Debian package python3-libnbd, and swaptide where it sees system packages",
        )
    else:
        yield ok("libnbd", found)


def kernel(sight: Sight) -> Iterator[Finding]:
    """What memory is made with."""
    release = sight.text("proc/sys/kernel/osrelease") or "unknown"
    if diagnosis.version_of(release)[:2] < _KERNEL:
        yield bad(
            "kernel", f"Linux {release} is too old", "Linux 5.14 or later makes memory as swaptide asks"
        )
    else:
        yield ok("kernel", f"Linux {release}")


def kvm(sight: Sight) -> Iterator[Finding]:
    """Whether guests can run at speed; no concern of the disks themselves."""
    why = sight.opens("dev/kvm")
    if why is None:
        yield ok("kvm", "/dev/kvm opens; that it runs a guest, only booting one tells")
    else:
        yield warn(
            "kvm",
            f"/dev/kvm: {why}; guests of this user are emulated",
            "load kvm_intel or kvm_amd, switch virtualization on in the firmware, or join the group kvm",
        )


def huge_pages(sight: Sight) -> Iterator[Finding]:
    """Whether the caches lie in huge pages: a quarter of a second for giving 1 GiB back without."""
    choice = sight.text(_THP)
    if choice is None:
        yield warn(
            "huge pages",
            "this kernel has no transparent huge pages: giving memory back is slower",
            "run a kernel with CONFIG_TRANSPARENT_HUGEPAGE",
        )
        return
    chosen = choice.partition("[")[2].partition("]")[0]
    mounted = sight.space(_memory_dir(sight)) if sight.status(_memory_dir(sight)) is not None else None
    options = frozenset[str]() if mounted is None else mounted.options
    if chosen == "deny":
        yield warn("huge pages", f"/{_THP} is deny", f"echo within_size > /{_THP}")
    elif any(each.startswith("huge=") and each != "huge=never" for each in options):
        yield ok("huge pages", "in use on the tmpfs of the disks")
    elif chosen in ("always", "within_size", "force"):
        yield ok("huge pages", f"{chosen}, for all shared memory")
    elif mounted is None and sight.uid == 0 and sight.config.memory_dir is None:
        yield ok("huge pages", "to be had: the daemon mounts its tmpfs with huge=within_size")
    else:
        yield warn(
            "huge pages",
            f"none for shared memory ({chosen}), and no tmpfs of the daemon's own",
            f"run the daemon as root, mount memory_dir with huge=within_size, or echo within_size > /{_THP}",
        )


def memory(sight: Sight) -> Iterator[Finding]:
    """The tmpfs of the state files."""
    directory = _memory_dir(sight)
    if sight.status(directory) is None:
        if sight.config.memory_dir is not None:
            yield bad("tmpfs", f"memory_dir {directory} is not there", f"mount a tmpfs at {directory}")
        elif sight.uid == 0:
            yield ok("tmpfs", f"the daemon mounts one at {directory} when it starts")
        else:
            shared = "state files go to /dev/shm, without huge pages of their own"
            yield warn("tmpfs", shared, "run the daemon as root")
        return
    found = sight.space(directory)
    if found is None or found.kind not in ("tmpfs", "ramfs"):
        kind = "nothing that tells" if found is None else found.kind
        yield bad("tmpfs", f"{directory} is on {kind}, not in memory", f"mount a tmpfs at {directory}")
        return
    caps = sum(disk["cap_bytes"] for disk in sight.daemon.disks)
    if found.kind == "tmpfs" and caps > found.total_bytes:
        yield warn(
            "tmpfs",
            f"{directory} holds {sizes.show(found.total_bytes)}, the disks may use {sizes.show(caps)}",
            f"mount -o remount,size=100% {directory}",
        )
        return
    yield ok("tmpfs", f"{directory}, of {sizes.show(found.total_bytes)}")


def swap(sight: Sight) -> Iterator[Finding]:
    """The host's own swap, which could take the caches."""
    lines = (sight.text("proc/swaps") or "").splitlines()[1:]
    if not lines:
        yield ok("host swap", "none")
        return
    names = ", ".join(line.split()[0] for line in lines)
    directory = _memory_dir(sight)
    mounted = sight.space(directory) if sight.status(directory) is not None else None
    if mounted is not None and "noswap" in mounted.options:
        yield ok("host swap", f"{names}; the tmpfs of the disks is kept out of it (noswap)")
        return
    release = diagnosis.version_of(sight.text("proc/sys/kernel/osrelease") or "")
    if mounted is None and release[:2] >= _KERNEL_NOSWAP and sight.uid == 0:
        yield ok("host swap", f"{names}; the daemon keeps its tmpfs out of it (noswap)")
        return
    remedy = "swapoff, or set vm.swappiness low; Linux 6.4 keeps the tmpfs of a daemon of root out of it"
    yield warn("host swap", f"{names}: the caches themselves may be swapped out", remedy)


def pressure(sight: Sight) -> Iterator[Finding]:
    """PSI, one of what wakes the daemon."""
    if sight.text("proc/pressure/memory") is None:
        yield warn(
            "PSI",
            "the kernel tells no memory pressure: only free memory is looked at, four times a second",
            "boot the host with psi=1",
        )
    elif sight.uid == 0 and not sight.has_capability(_SYS_RESOURCE):
        yield ok("PSI", "told, but without CAP_SYS_RESOURCE only every 2 s; free memory is looked at oftener")
    else:
        yield ok("PSI", "told")


def clock(sight: Sight) -> Iterator[Finding]:
    """What each request reads twice."""
    source = sight.text("sys/devices/system/clocksource/clocksource0/current_clocksource") or "unknown"
    if source in _SLOW_CLOCKS:
        yield warn(
            "clock",
            f"clocksource {source} takes a microsecond or more, and each request reads it twice",
            "find out why the kernel gave up tsc or kvm-clock (dmesg | grep clocksource)",
        )
    else:
        yield ok("clock", source)


def spill(sight: Sight) -> Iterator[Finding]:
    """Where spill files go that nobody gave a place."""
    directory = sight.config.spill_dir
    found = sight.space(directory)
    elsewhere = "set spill_dir in the configuration, or give --spill to `swaptide disk add`"
    if found is None:
        yield bad("spill space", f"{directory} does not tell what is free", elsewhere)
    elif found.kind in ("tmpfs", "ramfs"):
        yield bad("spill space", f"{directory} is itself in memory ({found.kind})", elsewhere)
    elif not sight.may(sight.nearest(directory), os.W_OK | os.X_OK):
        yield bad(
            "spill space", f"you may not write to {directory}", "run the daemon as root, or " + elsewhere
        )
    elif found.free_bytes < _SMALL_SPACE:
        said = f"{sizes.show(found.free_bytes)} free in {directory}"
        yield warn("spill space", said, f"free some there, or {elsewhere}")
    else:
        room = _largest_disk(found.free_bytes)
        yield ok(
            "spill space",
            f"{sizes.show(found.free_bytes)} free in {directory}, for {sizes.show(room)} of disks more",
        )


def users(sight: Sight) -> Iterator[Finding]:
    """Whether each disk can have a user of its own."""
    if sight.uid != 0:
        yield ok("users", "looked at as another user than root: nothing to see")
        return
    if sight.config.user is not None:
        yield ok("users", f"{sight.config.user} serves all disks, as configured")
        return
    why = "setpriv is missing" if not sight.has("setpriv") else sight.overlap()
    if why is None:
        yield ok("users", "each disk has one of its own")
    else:
        remedy = (
            "install the Debian package util-linux" if "setpriv" in why else "configure another range (uids)"
        )
        yield warn("users", f"disks cannot have users of their own: {why}", remedy)


def libvirt(sight: Sight) -> Iterator[Finding]:
    """Whether libvirt has guests survive the death of a disk's process."""
    said = sight.says("virsh", "--version")
    if said is None:
        return
    if diagnosis.version_of(said)[:2] < snippet.LIBVIRT_RECONNECTS:
        yield warn(
            "libvirt",
            f"{said} drops <reconnect> from disks: a restart of one's process may be I/O errors in its guest",
            "use `swaptide snippet NAME --format libvirt-args`, or libvirt 9.2",
        )
    else:
        yield ok("libvirt", said)


def _memory_dir(sight: Sight) -> pathlib.Path:
    return sight.config.memory_dir or sight.config.run_dir / "mem"


def _largest_disk(free_bytes: int) -> int:
    """The size, in whole GiB or MiB, of one disk whose spill file fits."""
    slots = (free_bytes - geometry.SPILL_HEADER_BYTES) // geometry.SEGMENT_BYTES - geometry.SLACK_SEGMENTS
    size = max(0, slots * 8 // 9) * geometry.PIECES_PER_SEGMENT * geometry.PAGE_BYTES
    unit = 1 << 30 if size >= 1 << 30 else 1 << 20
    return size // unit * unit


ALL: Final = (
    nbdkit,
    libnbd,
    kernel,
    kvm,
    clock,
    pressure,
    memory,
    huge_pages,
    swap,
    spill,
    users,
    libvirt,
)
