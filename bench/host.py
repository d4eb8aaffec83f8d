"""What the benchmark ran on: the machine and the versions, without the names or places of one machine.

Read once, before anything is measured; runs short commands one after the other.
"""

import dataclasses
import importlib.metadata
import os
import pathlib
import platform
import re
import subprocess
from typing import Final

ROOT: Final = pathlib.Path(__file__).resolve().parents[1]
TOOL_SECONDS: Final = 20
UNKNOWN: Final = "unknown"
SYS: Final = pathlib.Path("/sys")
CPU: Final = SYS / "devices/system/cpu/cpu0/cpufreq/scaling_governor"
CLOCK: Final = SYS / "devices/system/clocksource/clocksource0/current_clocksource"
# By the first letters of the kernel's name for a disk.
DEVICES: Final = {
    "nvme": "NVMe disk",
    "vd": "virtio disk",
    "xvd": "Xen disk",
    "sd": "SCSI or SATA disk",
    "mmcblk": "memory card",
    "dm-": "device mapper",
    "md": "software RAID",
    "loop": "loop device",
}
TOOLS: Final = {
    "nbdkit": ["nbdkit", "--version"],
    "fio": ["fio", "--version"],
    "libnbd": ["nbdinfo", "--version"],
    "qemu": ["qemu-system-x86_64", "--version"],
    "qemu-nbd": ["qemu-nbd", "--version"],
}
VERSION: Final = re.compile(r"\b\d+(?:\.\d+)+\b")


@dataclasses.dataclass(frozen=True)
class Host:
    """The machine.  `load` is the load average of 1, 5 and 15 minutes when the run began."""

    cpu: str
    cores: int
    memory_bytes: int
    architecture: str
    kernel: str
    clocksource: str
    governor: str | None
    is_virtual: bool
    scratch_filesystem: str
    scratch_device: str
    load: tuple[float, float, float]
    versions: dict[str, str]


def read(scratch: pathlib.Path) -> Host:
    """Look at the machine; `scratch` is the directory that the contenders' files are in."""
    cpuinfo = pathlib.Path("/proc/cpuinfo").read_text()
    return Host(
        cpu=cpu_model(cpuinfo),
        cores=len(os.sched_getaffinity(0)),
        memory_bytes=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        architecture=platform.machine(),
        kernel=platform.release(),
        clocksource=first_line(CLOCK) or UNKNOWN,
        governor=first_line(CPU),
        is_virtual=re.search(r"^flags\s*:.*\bhypervisor\b", cpuinfo, re.MULTILINE) is not None,
        scratch_filesystem=filesystem(scratch),
        scratch_device=device(scratch),
        load=os.getloadavg(),
        versions=versions(),
    )


def cpu_model(cpuinfo: str) -> str:
    """The processor's own name."""
    found = re.search(r"^model name\s*: *(.+)$", cpuinfo, re.MULTILINE)
    return " ".join(found[1].split()) if found else UNKNOWN


def first_line(path: pathlib.Path) -> str | None:
    """What a file of /sys says; None if it does not exist here."""
    try:
        return path.read_text().strip()
    except OSError:
        return None


def filesystem(directory: pathlib.Path) -> str:
    """The type of the file system that a directory is in."""
    # --target resolves the mount as the kernel does; the type only, the source names a machine's own things.
    return said(["findmnt", "-n", "-o", "FSTYPE", "--target", str(directory)]) or UNKNOWN


def device(directory: pathlib.Path) -> str:
    """What kind of disk a directory is on."""
    number = directory.stat().st_dev
    node = SYS / "dev/block" / f"{os.major(number)}:{os.minor(number)}"
    if not node.exists():
        return "no disk of its own"
    node = node.resolve()
    disk = node if (node / "queue").exists() else node.parent  # a partition has its queue in the disk
    turns = first_line(disk / "queue/rotational") == "1"
    return f"{disk_kind(disk.name)}, {'rotational' if turns else 'not rotational'}"


def disk_kind(name: str) -> str:
    """What the kernel's name of a disk tells."""
    return next((kind for prefix, kind in DEVICES.items() if name.startswith(prefix)), "disk")


def said(command: list[str]) -> str | None:
    """What a command prints, without line end; None if it is not there or fails."""
    try:
        done = subprocess.run(
            command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=TOOL_SECONDS
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def tool_version(words: str | None) -> str:
    """The first version in what a tool says of itself."""
    if words is None:
        return "missing"
    found = VERSION.search(words)
    return found[0] if found else UNKNOWN


def versions() -> dict[str, str]:
    """Of all programs that take part."""
    found = {"swaptide": our_version(), "Python": platform.python_version()}
    return found | {name: tool_version(said(command)) for name, command in TOOLS.items()}


def our_version() -> str:
    """The commit, marked if the tree has changes; outside git the version of the package."""
    # A checkout may belong to another user than the one who measures it.
    described = said(["git", "-c", "safe.directory=*", "describe", "--always", "--tags", "--dirty"])
    return described or importlib.metadata.version("swaptide")
