"""The balloon with real processes: an eater and two disks in one memory cgroup, and no one is killed."""

import contextlib
import json
import pathlib
import subprocess
import threading
import time
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest

from swaptide.balloon import samples
from tests.real import daemons, driver, eater, test_cgroup

MIB = daemons.MIB
# The daemon, two nbdkit processes and their buffers, beside the caches.
PROCESSES_MIB = 320
NAMES = ("g1", "g2")


class Watch:
    """Follows what a cgroup uses, a hundred times a second, without the page cache that goes by itself."""

    def __init__(self, group: pathlib.Path, limit_bytes: int, reserve_bytes: int) -> None:
        self.group = group
        self.highest = 0
        self._bound = limit_bytes - reserve_bytes
        self._over = threading.Event()
        self._crossings: list[tuple[float, bool]] = []
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def longest_seconds(self, since: float) -> float:
        """How long at a stretch, at most, the reserve was touched since then."""
        longest, begun = 0.0, None
        for at, touched in [*self._crossings, (time.monotonic(), False)]:
            if touched:
                begun = max(at, since)
            elif begun is not None:
                longest, begun = max(longest, at - begun), None
        return longest

    def end(self) -> None:
        """Look no more."""
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        before = False
        while not self._over.wait(0.01):
            lines = (self.group / "memory.stat").read_text().splitlines()
            stat = dict(line.split() for line in lines)
            used = eater.figure(self.group, "memory.usage_in_bytes")
            used -= int(stat["total_active_file"]) + int(stat["total_inactive_file"])
            self.highest = max(self.highest, used)
            if (used > self._bound) is not before:
                before = not before
                self._crossings.append((time.monotonic(), before))


@contextlib.contextmanager
def watching(group: pathlib.Path, limit_bytes: int, reserve_bytes: int) -> Iterator[Watch]:
    """A watch, ended."""
    watch = Watch(group, limit_bytes, reserve_bytes)
    try:
        yield watch
    finally:
        watch.end()


@contextlib.contextmanager
def confined(limit_bytes: int, **settings: Any) -> Iterator[tuple[daemons.Daemon, pathlib.Path]]:
    """A daemon and its disks in a v1 memory cgroup, which nobody is killed in."""
    with test_cgroup.limited(limit_bytes) as group, daemons.directory() as root:
        try:
            with daemons.serving(root, prefix=eater.inside(group), **settings) as daemon:
                yield daemon, group
        finally:
            daemons.wait_for(lambda: not (group / "cgroup.procs").read_text())


@contextlib.contextmanager
def traced(limit_bytes: int, **settings: Any) -> Iterator[tuple[daemons.Daemon, pathlib.Path, pathlib.Path]]:
    """The same, with the file that samples are recorded in."""
    with daemons.directory() as aside, confined(limit_bytes, trace=str(aside / "trace"), **settings) as found:
        yield *found, aside / "trace"


def arrears(trace: pathlib.Path, since: float, until: float) -> float:
    """Seconds at a stretch, at most, in which a disk was above a target that had been lowered for the eater.

    That is from where pressure was noticed to where all of the memory was back, in the controller's steps.
    """
    decoder = msgspec.json.Decoder(samples.Sample)
    longest, begun = 0.0, None
    for line in trace.read_bytes().splitlines():
        sample = decoder.decode(line)
        above = any(disk.ram_bytes > disk.target_bytes for disk in sample.disks)
        if above and begun is None and since <= sample.at_seconds <= until:
            begun = sample.at_seconds
        elif not above and begun is not None:
            longest, begun = max(longest, sample.at_seconds - begun), None
    return longest


def check_replay(trace: pathlib.Path) -> None:
    """The simulator, told what this host saw, takes the caches down for the eater and up again after it."""
    done = subprocess.run(
        [*daemons.COMMAND, "simulate", str(trace), "--json"],
        capture_output=True,
        text=True,
        check=False,
        timeout=90,
    )
    assert done.returncode == 0, done.stderr
    replayed = json.loads(done.stdout)
    assert set(replayed["summary"]["disks"]) == set(NAMES)
    assert replayed["summary"]["free_least_bytes"] > 0
    assert {"shrink", "grow"} <= set(replayed["summary"]["reasons"]), replayed["summary"]["reasons"]


def load_of(daemon: daemons.Daemon, name: str, size: int, seed: int) -> driver.Driver:
    """A disk that is full of what the model knows."""
    report = daemon.show(name)
    load = driver.Driver(f"nbd+unix:///{report['id']}?socket={report['socket']}", size, seed, connections=1)
    noise = load.random.randbytes(MIB)
    for at in range(0, size, MIB):
        chunk = b"%016d" % at + noise[16:]
        load.model[at : at + MIB] = chunk
        load._handles[0].pwrite(chunk, at)
    return load


def rams(daemon: daemons.Daemon) -> dict[str, int]:
    """What each disk takes."""
    return {report["name"]: report["ram_bytes"] for report in json.loads(daemon.ok("disk", "ls", "--json"))}


def targets(daemon: daemons.Daemon) -> dict[str, int]:
    """What each disk may take."""
    return {r["name"]: r["target_bytes"] for r in json.loads(daemon.ok("disk", "ls", "--json"))}


@pytest.mark.parametrize(
    ("cap_mib", "eaten_mib", "speed"),
    [
        pytest.param(256, 320, 200),
        pytest.param(1024, 1400, 500, marks=pytest.mark.long),
    ],
)
def test_caches_shrink_before_their_cgroup_is_full(cap_mib: int, eaten_mib: int, speed: int) -> None:
    limit = (2 * cap_mib + PROCESSES_MIB + eaten_mib // 3) * MIB
    cap, size = cap_mib * MIB, (cap_mib + cap_mib // 4) * MIB
    with traced(limit, cgroup_reserve="10%") as (daemon, group, trace):
        for name in NAMES:
            daemon.add(name, "--compress", "none", size=size, ram=f"{cap_mib}M")
        loads = [load_of(daemon, name, size, seed) for seed, name in enumerate(NAMES)]
        daemons.wait_for(lambda: min(rams(daemon).values()) > cap * 3 // 4, lambda: str(rams(daemon)))
        before = sum(rams(daemon).values())
        with watching(group, limit, limit // 10) as watch:
            with eater.eating(group, eaten_mib, speed) as eating:
                for load in loads:
                    load.run(200)
                took = eating.finish()
                for load in loads:
                    load.run(200)
                daemons.wait_for(lambda: before - sum(rams(daemon).values()) > eaten_mib * MIB // 4)
                print(
                    f"{eaten_mib} MiB eaten in {took:.2f} s:"
                    f" caches {before >> 20} -> {sum(rams(daemon).values()) >> 20} MiB;"
                    f" from pressure to relief {arrears(trace, eating.begun, eating.begun + took):.2f} s;"
                    f" reserve touched for {watch.longest_seconds(eating.begun):.2f} s at most,"
                    f" {watch.highest / limit:.1%} of the limit used at most,"
                    f" {eater.figure(group, 'memory.failcnt')} times at the limit"
                )
                assert test_cgroup.oom_kills(group) == 0
            # The eater is gone.
            daemons.wait_for(lambda: set(targets(daemon).values()) == {cap}, lambda: str(targets(daemon)))
            for load in loads:
                load.run(300)
                load.check_all()
                load.close()
            assert test_cgroup.oom_kills(group) == 0
            assert watch.highest < limit
            check_replay(trace)
