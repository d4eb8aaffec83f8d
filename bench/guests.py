"""A guest that swaps on one contender, and what that took of the host, read from outside.

One thread starts the guest, waits for it and reads; nothing is sampled while it works.
"""

import contextlib
import dataclasses
import os
import pathlib
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping
from typing import Final

from bench import measure, servers
from tests.vm import machine, report

PAGE_BYTES: Final = report.PAGE_BYTES
MIB: Final = 1 << 20
DISK_BYTES: Final = 512 * MIB
# Patience, for a loaded machine; zstd takes longest, since an emulated CPU has to pack.
WORK_SECONDS: Final = 300.0
_TICKS: Final = os.sysconf("SC_CLK_TCK")
_TOOL_SECONDS: Final = 20


@dataclasses.dataclass(frozen=True)
class Disk:
    """What a guest swaps on: QEMU's arguments, and what of the host is behind them."""

    arguments: tuple[str, ...] = ()
    server: servers.Server | None = None
    files: tuple[pathlib.Path, ...] = ()


@dataclasses.dataclass(frozen=True)
class Contender:
    """A way to swap.  `disk` takes an empty directory; `parameters` are the guest's (vm-images/README.md)."""

    name: str
    disk: Callable[[pathlib.Path], contextlib.AbstractContextManager[Disk]]
    parameters: Mapping[str, str | int] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Run:
    """One guest's work.  CPU seconds of QEMU and server, of the server alone (None without one), of the host.

    `notes` are facts of this run that a reader needs beside the figures.
    """

    seconds: float
    pages_in: int
    pages_out: int
    cpu_seconds: float
    server_seconds: float | None
    host_seconds: float
    held_bytes: int
    notes: tuple[str, ...] = ()

    @property
    def moved_gib(self) -> float:
        """What was swapped in and out, in GiB."""
        return (self.pages_in + self.pages_out) * PAGE_BYTES / (1 << 30)


@dataclasses.dataclass(frozen=True)
class Times:
    """CPU seconds since boot or start, at one moment."""

    qemu: float
    server: float | None
    host: float

    def until(self, end: "Times") -> tuple[float, float | None, float]:
        """Of QEMU and server, of the server, of the host, between the two moments."""
        server = None if self.server is None or end.server is None else end.server - self.server
        return end.qemu - self.qemu + (server or 0.0), server, end.host - self.host


# --- The contenders' disks ----------------------------------------------------------------------------------


@contextlib.contextmanager
def served(directory: pathlib.Path, contender: servers.Contender) -> Iterator[Disk]:
    """A disk behind an NBD server."""
    with contender.serve(directory, DISK_BYTES) as server:
        yield Disk(machine.nbd_disk(server.socket), server, server.files)


@contextlib.contextmanager
def on_file(directory: pathlib.Path, direct: bool) -> Iterator[Disk]:
    """A preallocated raw file that QEMU opens itself."""
    path = directory / "disk"
    with open(path, "wb") as disk:
        os.posix_fallocate(disk.fileno(), 0, DISK_BYTES)
    yield Disk(machine.file_disk(path, direct=direct), files=(path,))


@contextlib.contextmanager
def inside(_directory: pathlib.Path) -> Iterator[Disk]:
    """No disk: the guest swaps within its own memory."""
    yield Disk()


# --- The run ------------------------------------------------------------------------------------------------


def run(contender: Contender, spec: machine.Spec, scratch: pathlib.Path) -> Run:
    """Boot, work, measure, power off; raises ContenderError, also if a page came back wrong."""
    try:
        with contextlib.ExitStack() as stack:
            directory = stack.enter_context(tempfile.TemporaryDirectory(dir=scratch))
            disk = stack.enter_context(contender.disk(pathlib.Path(directory)))
            work = {**spec.work, **contender.parameters, "hold": 1}
            spec = dataclasses.replace(spec, disk=disk.arguments, work=work)
            guest = stack.enter_context(machine.Machine(spec))
            return watch(guest, disk)
    except machine.GuestError as error:
        raise measure.ContenderError(" ".join(str(error).split())[:300]) from error


def watch(guest: machine.Machine, disk: Disk) -> Run:
    """The work alone, from when swap is on until the last page was checked and all is still held."""
    guest.wait_for(lambda r: r.kind == "SWAP", "swap", machine.BOOT_SECONDS)
    before = times(guest.pid, disk.server)
    result = guest.wait_for(lambda r: r.kind == "RESULT", "result", WORK_SECONDS)
    cpu, server, host = before.until(times(guest.pid, disk.server))
    held = held_bytes(guest.pid, disk)
    notes = facts(guest.console, disk.server)
    guest.say("stop")
    judge(guest.finish(machine.STOP_SECONDS), guest.trouble)
    seconds = result.number("ms") / 1000
    return Run(seconds, result.number("pswpin"), result.number("pswpout"), cpu, server, host, held, notes)


def judge(result: report.Numbers, trouble: list[str]) -> None:
    """Raise ContenderError unless everything came back right and went over the swap disk."""
    if result.wrong or result.died:
        raise measure.ContenderError(f"{result.wrong} wrong pages, {result.died} workers died")
    if trouble:
        raise measure.ContenderError(f"the guest's kernel complains: {trouble[0]}")
    if not result.pswpin or not result.pswpout:
        raise measure.ContenderError("the guest did not swap")


def facts(console: list[str], server: servers.Server | None) -> tuple[str, ...]:
    """What zram says of itself, and how much swaptide wrote to disk."""
    found = [said for line in console if (said := report.parse(line)) is not None and said.kind == "ZRAM"]
    notes = [zram_note(said) for said in found]
    if isinstance(server, servers.Swaptide):
        counters = server.counters()
        spilled, stored = counters["spill_written_bytes"] // MIB, counters["stored_pages"] * PAGE_BYTES // MIB
        notes.append(f"{stored} MiB on the disk in the end, {spilled} MiB written to the spill file")
    return tuple(notes)


def zram_note(said: report.Report) -> str:
    """mm_stat, in words."""
    stored, taken = said.number("orig"), said.number("used")
    ratio = stored / taken if taken else 0.0
    return (
        f"{stored / MIB:.0f} MiB in {taken / MIB:.0f} MiB of the guest's memory in the end, {ratio:.1f} to 1"
    )


# --- The host, from outside ---------------------------------------------------------------------------------


def times(qemu: int, server: servers.Server | None) -> Times:
    """Now; raises ContenderError if the server is gone."""
    lone = servers.Server(qemu, pathlib.Path())  # what is read of a process is the same
    stat = pathlib.Path("/proc/stat").read_text(encoding="ascii")
    return Times(lone.cpu_seconds(), server.cpu_seconds() if server else None, busy_seconds(stat))


def busy_seconds(stat: str) -> float:
    """From /proc/stat: user, nice, system, irq and softirq time of all CPUs; guests are part of user time."""
    user, nice, system, _idle, _wait, irq, softirq = map(int, stat.split(maxsplit=8)[1:8])
    return (user + nice + system + irq + softirq) / _TICKS


def held_bytes(qemu: int, disk: Disk) -> int:
    """RAM of the host: what is QEMU's and the server's own, the state file, the page cache of the files."""
    own = private_bytes(smaps(qemu)) + (private_bytes(smaps(disk.server.pid)) if disk.server else 0)
    state = disk.server.state.stat().st_blocks * 512 if isinstance(disk.server, servers.Swaptide) else 0
    return own + state + sum(map(cached_bytes, disk.files))


def smaps(pid: int) -> str:
    """A process's memory, summed up by the kernel."""
    return pathlib.Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii")


def private_bytes(rollup: str) -> int:
    """Pss without shared memory: the blocks of a state file count it, mapped or not."""
    kib = _kib(rollup)
    return (kib["Pss"] - kib["Pss_Shmem"]) << 10


def anonymous_bytes(rollup: str) -> int:
    """What a process has allocated; programs' own pages come and go with others that use them."""
    return _kib(rollup)["Pss_Anon"] << 10


def _kib(rollup: str) -> dict[str, int]:
    return {line.split(":")[0]: int(line.split()[1]) for line in rollup.splitlines()[1:]}


def cached_bytes(path: pathlib.Path) -> int:
    """How much of a file is in the page cache."""
    command = ["fincore", "--bytes", "--noheadings", "--output", "RES", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=_TOOL_SECONDS, check=True)
    return int(done.stdout)
