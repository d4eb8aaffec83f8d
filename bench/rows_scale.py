"""A row of what 64 disks of one daemon cost: until they are made, until they serve again, and at rest.

One thread; the row starts its own daemon, and ends it with its disks.
"""

import concurrent.futures
import dataclasses
import os
import pathlib
import signal
import subprocess
import time
from collections.abc import Sequence
from typing import Any, Final

from bench import measure
from swaptide.cache.errors import SwaptideError
from swaptide.host import client, protocol
from tests.vm import swaptided

MIB: Final = 1 << 20
DISKS: Final = 64
SIZE_BYTES: Final = 128 * MIB
RAM_BYTES: Final = 64 * MIB
ROUNDS: Final = 3
# Until the disks have seen that nobody wants anything, and for how long they are looked at then.
REST_SECONDS: Final = 25.0
LOOK_SECONDS: Final = 20.0
START_SECONDS: Final = 120.0
REMOVALS: Final = 4
_NS: Final = 1e9


@dataclasses.dataclass(frozen=True)
class Scale:
    """Of one daemon with its disks; all figures that are not of one disk are of all of them.

    Seconds to make them, and from the start of a daemon whose disks are all dead until half and all of them
    serve; memory of one process (Pss), bytes, the largest; CPU seconds per second, and wake-ups, at rest.
    """

    making_seconds: float
    half_seconds: float
    starting_seconds: float
    pss_bytes: int
    disks_cpu: float
    daemon_cpu: float
    wakes: float


def measure_scale(lab: measure.Lab) -> Sequence[measure.Measurement]:
    """Make, rest, kill, start."""
    rounds = 1 if lab.plan.quick else min(ROUNDS, lab.plan.rounds)
    found, failed = measure.take_turns(lab, (measure.OURS,), rounds, lambda _: _once(lab))
    ours = found.get(measure.OURS, [])
    notes = (
        f"{DISKS} disks of {SIZE_BYTES // MIB} MiB, each with a process of its own; making: four at a time;"
        " starting: the daemon and all processes killed, from the start of the next daemon until all"
        " serve; at rest: nobody connected, over 20 s, the daemon's own share with the balloon on",
    )
    values: dict[tuple[str, str], list[float]] = {
        ("making", "s"): [each.making_seconds for each in ours],
        ("starting, half of them", "s"): [each.half_seconds for each in ours],
        ("starting", "s"): [each.starting_seconds for each in ours],
        ("RAM of a process at rest", "MiB"): [each.pss_bytes / MIB for each in ours],
        ("CPU of all disks at rest", "ms/s"): [each.disks_cpu * 1000 for each in ours],
        ("CPU of the daemon at rest", "ms/s"): [each.daemon_cpu * 1000 for each in ours],
        ("wake-ups of a disk at rest", "1/s"): [each.wakes for each in ours],
    }
    return [
        measure.Measurement(
            row="scale-64",
            metric=metric,
            title=TITLE,
            unit=unit,
            better="less",
            values={measure.OURS: each} if each else {},
            reference=(),
            failed=failed,
            notes=notes,
        )
        for (metric, unit), each in values.items()
    ]


def _once(lab: measure.Lab) -> Scale:
    try:
        with swaptided.Daemon() as daemon:
            daemon.stop()
            daemon.configure(metrics="off", state_dir=str(daemon.root / "state"))
            daemon.start()
            return _measure(lab, daemon)
    except (swaptided.DaemonError, subprocess.SubprocessError, SwaptideError, OSError) as error:
        raise measure.ContenderError(" ".join(str(error).split())) from error


def _measure(lab: measure.Lab, daemon: swaptided.Daemon) -> Scale:
    names = [f"disk{number}" for number in range(DISKS)]
    with concurrent.futures.ThreadPoolExecutor(4) as several:
        try:
            begun = time.monotonic()
            wanted = [protocol.Add(name=name, size_bytes=SIZE_BYTES, ram_bytes=RAM_BYTES) for name in names]
            made = list(several.map(lambda each: client.call(daemon.run_dir, each), wanted))
            pids = [each["pid"] for each in made]
            making = time.monotonic() - begun
            lab.tell("64 disks at rest")
            time.sleep(REST_SECONDS)
            pss = max(map(_pss_bytes, pids))
            cpu, daemon_cpu, woken = _cpu(pids), _cpu([daemon.pid]), _wakes(pids)
            time.sleep(LOOK_SECONDS)
            cpu, daemon_cpu = _cpu(pids) - cpu, _cpu([daemon.pid]) - daemon_cpu
            woken = _wakes(pids) - woken
            daemon.stop(kill=True)
            for pid in pids:
                os.kill(pid, signal.SIGKILL)
            lab.tell("64 disks started")
            half, all_ = _start(daemon)
        finally:
            _remove_all(lab, daemon)
    return Scale(
        *(making, half, all_, pss),
        *(cpu / LOOK_SECONDS, daemon_cpu / LOOK_SECONDS, woken / LOOK_SECONDS / DISKS),
    )


def _remove_all(lab: measure.Lab, daemon: swaptided.Daemon) -> None:
    """One after the other; what a busy host was too slow to remove is tried again."""
    for _ in range(REMOVALS):
        left = [each["name"] for each in client.call(daemon.run_dir, protocol.List())]
        for name in left:
            try:
                client.call(daemon.run_dir, protocol.Remove(name=name, force=True))
            except SwaptideError as error:
                lab.tell(f"{name} is not removed: {error}")
        if not left:
            return


def _start(daemon: swaptided.Daemon) -> tuple[float, float]:
    """Seconds from the start of the daemon until half of its disks serve, and all of them."""
    begun = time.monotonic()
    daemon.start()
    half = None
    while True:
        shown: list[dict[str, Any]] = client.call(daemon.run_dir, protocol.List())
        serving = sum(each["state"] == "running" for each in shown)
        seconds = time.monotonic() - begun
        if half is None and serving >= DISKS // 2:
            half = seconds
        if serving == DISKS:
            return half or seconds, seconds
        if seconds > START_SECONDS:
            raise measure.ContenderError(f"{serving} of {DISKS} disks serve after {START_SECONDS:.0f} s")
        time.sleep(0.1)


def _pss_bytes(pid: int) -> int:
    for line in pathlib.Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) << 10
    return 0


def _cpu(pids: Sequence[int]) -> float:
    """CPU seconds of all threads so far, as the scheduler counts them."""
    files = [task / "schedstat" for pid in pids for task in pathlib.Path(f"/proc/{pid}/task").iterdir()]
    return sum(int(file.read_text().split()[0]) for file in files) / _NS


def _wakes(pids: Sequence[int]) -> int:
    """How often a thread waited for something so far."""
    files = [task / "status" for pid in pids for task in pathlib.Path(f"/proc/{pid}/task").iterdir()]
    lines = [line for file in files for line in file.read_text().splitlines()]
    return sum(int(line.split()[1]) for line in lines if line.startswith("voluntary_ctxt_switches"))


TITLE: Final = "64 disks on one daemon"
ROWS: Final = (measure.Row("scale-64", "scale", TITLE, measure_scale),)
