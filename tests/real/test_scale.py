"""Many disks on one daemon: what each costs while nobody uses it; that all of them start, serve and end."""

import concurrent.futures
import os
import pathlib
import time
from typing import Any

import nbd
import pytest

from swaptide.cache import cgroup
from swaptide.host import client, protocol
from tests.real import daemons

MIB = daemons.MIB
DISKS = 64
SIZE = 32 * MIB
# What a disk that nobody uses may take, all that its process shares with others by share.
MOST_BYTES = 48 * MIB
# Request buffers that nbdkit's threads have made, which a test must see to have shown anything.
BUFFERS_BYTES = 15 * MIB
CALM_SECONDS = 90.0
WINDOW_SECONDS = 10.0
# In that time: one look of the movers and one of the governor in five seconds, and twice as much again; and
# CPU, of which they take two milliseconds.  A loop that never waits shows in the second alone.
MOST_WAKES = 8
MOST_CPU_SECONDS = 0.1

daemon = daemons.shared()


def rollup(pid: int, field: str) -> int:
    """A field of the sum of a process's mappings, in bytes."""
    for line in pathlib.Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        name, _, value = line.partition(":")
        if name == field:
            return int(value.split()[0]) << 10
    raise KeyError(field)


def wakes(pid: int) -> int:
    """How often a thread of the process waited for something."""
    total = 0
    for task in pathlib.Path(f"/proc/{pid}/task").iterdir():
        lines = (task / "status").read_text().splitlines()
        total += next(int(line.split()[1]) for line in lines if line.startswith("voluntary_ctxt_switches"))
    return total


def cpu_seconds(pid: int) -> float:
    """CPU time of all threads of the process, as the scheduler counts it."""
    tasks = pathlib.Path(f"/proc/{pid}/task").iterdir()
    return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e9


def add(daemon: daemons.Daemon, name: str) -> dict[str, Any]:
    """Make a small disk as the command does, without a process for each."""
    wanted = protocol.Add(name=name, size_bytes=SIZE, ram_bytes=32 * MIB)
    report: dict[str, Any] = client.call(daemon.run_dir, wanted)
    return report


def remove(daemon: daemons.Daemon, name: str) -> None:
    """Remove it."""
    client.call(daemon.run_dir, protocol.Remove(name=name))


def grow_request_buffers(handle: nbd.NBD, pid: int) -> None:
    """Write zeros, which take no RAM, in the largest requests until nbdkit's threads have their buffers."""
    before, buffer = rollup(pid, "Anonymous"), nbd.Buffer.from_bytearray(bytearray(MIB))

    def have_grown() -> bool:
        if handle.aio_in_flight() < 32:
            # Its completion is nobody's business: it retires itself.
            handle.aio_pwrite(buffer, 0, lambda _error: 1)
        else:
            handle.poll(100)
        return rollup(pid, "Anonymous") - before >= BUFFERS_BYTES

    def has_ended() -> bool:
        handle.poll(100)
        return handle.aio_in_flight() == 0

    daemons.wait_for(have_grown, lambda: "nbdkit makes no request buffers")
    daemons.wait_for(has_ended)


def test_an_idle_disk_of_a_guest_that_used_it_takes_at_most_48_mib(daemon: daemons.Daemon) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root reads the smaps of a process that is not dumpable")
    report = add(daemon, "used")
    try:
        with daemons.client(report) as handle:
            grow_request_buffers(handle, report["pid"])
            deadline = time.monotonic() + CALM_SECONDS
            # Program files are shared by all disks, and count below, where there are many.
            while (taken := rollup(report["pid"], "Pss") - rollup(report["pid"], "Pss_File")) > MOST_BYTES:
                assert time.monotonic() < deadline, f"{taken / MIB:.1f} MiB"
                time.sleep(0.5)
            print(f"{taken / MIB:.1f} MiB")
    finally:
        remove(daemon, "used")


def test_a_disk_that_nobody_uses_hardly_wakes(daemon: daemons.Daemon) -> None:
    if cgroup.Headroom().bytes() is not None:
        pytest.skip("in a memory cgroup with a limit disks watch it")
    pid = add(daemon, "idle")["pid"]
    try:
        deadline, quiet = time.monotonic() + CALM_SECONDS, 0
        while True:
            before, cpu_before = wakes(pid), cpu_seconds(pid)
            time.sleep(WINDOW_SECONDS)
            woken, cpu = wakes(pid) - before, cpu_seconds(pid) - cpu_before
            # Two in a row: the first one may end just before it rests.
            quiet = quiet + 1 if woken <= MOST_WAKES and cpu <= MOST_CPU_SECONDS else 0
            if quiet == 2:
                return
            why = f"{woken} wake-ups and {cpu:.3f} s of CPU in {WINDOW_SECONDS:.0f} s"
            assert time.monotonic() < deadline, why
    finally:
        remove(daemon, "idle")


def test_a_disk_on_a_file_loads_nothing_that_others_need(daemon: daemons.Daemon) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root reads the maps of a process that is not dumpable")
    report = add(daemon, "plain")
    try:
        maps = pathlib.Path(f"/proc/{report['pid']}/maps").read_text()
        assert "moves.cpython" in maps
        for library in ("libnbd.so", "_ssl.cpython", "libxml2"):
            assert library not in maps, library
    finally:
        remove(daemon, "plain")


def test_64_disks_start_serve_and_end(daemon: daemons.Daemon) -> None:
    names = [f"disk{number}" for number in range(DISKS)]
    before = daemon.files()
    with concurrent.futures.ThreadPoolExecutor(4) as several:
        reports = list(several.map(lambda name: add(daemon, name), names))
        try:
            assert {report["state"] for report in reports} == {"running"}
            for number, report in enumerate(reports):
                with daemons.client(report) as handle:
                    handle.pwrite(bytes([number + 1]), number * 4096)
            for number, report in enumerate(reports):
                with daemons.client(report) as handle:
                    assert handle.pread(1, number * 4096) == bytes([number + 1])
            if os.geteuid() == 0:
                taken = {report["name"]: rollup(report["pid"], "Pss") for report in reports}
                assert max(taken.values()) <= MOST_BYTES, taken
        finally:
            list(several.map(lambda name: remove(daemon, name), names))
    assert daemon.files() == before
    assert not [report["pid"] for report in reports if daemons.is_alive(report["pid"])]
