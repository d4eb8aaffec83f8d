"""A row of a disk that moves: ours, beside QEMU's mirror of it into the other disk's export.

One thread; each measurement starts two daemons, fills the one's disk as a guest does, moves it, and compares
both sides.
"""

import asyncio
import contextlib
import dataclasses
import functools
import json
import pathlib
import random
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from typing import Any, Final

import nbd
from qemu.qmp import QMPClient, QMPError

from bench import measure, process
from tests.vm import swaptided

MIB: Final = 1 << 20
PAGE: Final = 4096
SIZE_BYTES: Final = 1024 * MIB
QUICK_SIZE_BYTES: Final = 128 * MIB
ROUNDS: Final = 5
# Pages that came together go together: runs of 32 KiB.
RUN_PAGES: Final = 8
LEAST_MIB: Final = 48
MIRROR: Final = "QEMU's mirror"
DISK: Final = "g1"
MOVE_SECONDS: Final = 300.0
_SEED: Final = 11
_POLL_SECONDS: Final = 0.02


@dataclasses.dataclass(frozen=True)
class Move:
    """Seconds until the other disk has it all; bytes that were sent for that."""

    seconds: float
    sent_bytes: float


def measure_move(row: str, title: str, spilled: bool, lab: measure.Lab) -> Sequence[measure.Measurement]:
    """Fill, move, compare."""
    size = QUICK_SIZE_BYTES if lab.plan.quick else SIZE_BYTES
    rounds = min(ROUNDS, lab.plan.rounds)
    found, failed = measure.take_turns(
        lab, (measure.OURS, MIRROR), rounds, lambda name: _once(lab, name, size, spilled=spilled)
    )
    ram = f"{LEAST_MIB} MiB" if spilled else "half of it"
    notes = (
        f"a disk of {size // MIB} MiB with {ram} as RAM, nobody using it: a quarter dead,"
        " an eighth of one word, three eighths that pack to a third, a quarter random",
        f"{MIRROR}: blockdev-mirror of qemu-storage-daemon from export to export, sync=full, zeroes detected;"
        " what it sent is what the other disk was told to write",
        "both over unix sockets; every page compared afterwards",
    )
    figures = (
        ("moving", "s", {name: [move.seconds for move in moves] for name, moves in found.items()}),
        ("sent", "MiB", {name: [move.sent_bytes / MIB for move in moves] for name, moves in found.items()}),
    )
    return [
        measure.Measurement(
            row=row,
            metric=metric,
            title=title,
            unit=unit,
            better="less",
            values=values,
            reference=(MIRROR,),
            failed=failed,
            notes=notes,
        )
        for metric, unit, values in figures
    ]


def _once(lab: measure.Lab, name: str, size: int, *, spilled: bool) -> Move:
    try:
        with (
            swaptided.Daemon() as here,
            swaptided.Daemon() as there,
            tempfile.TemporaryDirectory(dir=lab.scratch) as place,
        ):
            for daemon in (here, there):
                daemon.add(DISK, size=f"{size // MIB}M", ram=f"{size // 2 // MIB}M")
            source, target = here.show(DISK), there.show(DISK)
            wanted = dict(_contents(size))
            with _client(source) as handle:
                for at, data in wanted.items():
                    handle.pwrite(data, at)
                # As a guest's freed swap: written once, and discarded.
                dead = bytes(range(256)) * (RUN_PAGES * PAGE // 256)
                for at in range(0, size, RUN_PAGES * PAGE):
                    if at not in wanted:
                        handle.pwrite(dead, at)
                        handle.trim(len(dead), at)
                before = _read(handle, size)
            if spilled:
                here.set_ram(DISK, f"{LEAST_MIB}M")
            move = (
                _migrate(here, there, pathlib.Path(place))
                if name == measure.OURS
                else _mirror(there, source, target, pathlib.Path(place))
            )
            with _client(target) as handle:
                if _read(handle, size) != before:
                    raise measure.ContenderError("the other disk holds something else")
            return move
    except (swaptided.DaemonError, subprocess.SubprocessError, nbd.Error, QMPError, OSError) as error:
        raise measure.ContenderError(" ".join(str(error).split())) from error


def _contents(size: int) -> Iterator[tuple[int, bytes]]:
    """Runs of pages and where they go: what the row's note says."""
    draw = random.Random(_SEED)
    run = RUN_PAGES * PAGE
    for at in range(0, size, run):
        kind = draw.random()
        if kind < 0.25:
            continue
        if kind < 0.375:
            yield at, draw.randbytes(4) * (run // 4)
        elif kind < 0.75:
            yield at, b"".join((draw.randbytes(PAGE // 3) * 4)[:PAGE] for _ in range(RUN_PAGES))
        else:
            yield at, draw.randbytes(run)


def _read(handle: nbd.NBD, size: int) -> int:
    """A hash of the whole disk, only for one process."""
    found = 0
    for at in range(0, size, MIB):
        found = hash((found, bytes(handle.pread(MIB, at))))
    return found


@contextlib.contextmanager
def _client(shown: dict[str, Any]) -> Iterator[nbd.NBD]:
    handle = nbd.NBD()
    handle.set_export_name(shown["id"])
    handle.connect_unix(shown["socket"])
    try:
        yield handle
    finally:
        handle.shutdown()


def _migrate(here: swaptided.Daemon, there: swaptided.Daemon, place: pathlib.Path) -> Move:
    address = f"unix:{place}/stream"
    words = ("receive", DISK, "--listen", address, "--run-dir", str(there.run_dir))
    with subprocess.Popen(
        [*swaptided.program(), *words], stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    ) as receiving:
        try:
            assert receiving.stderr is not None
            if "listening at" not in (line := receiving.stderr.readline()):
                raise measure.ContenderError(f"receive said: {line}")
            done = json.loads(here.command("migrate", DISK, "--to", address, "--json", seconds=MOVE_SECONDS))
            receiving.wait(MOVE_SECONDS)
        finally:
            receiving.kill()
    return Move(done["elapsed_seconds"], done["sent_bytes"])


def _mirror(
    there: swaptided.Daemon, source: dict[str, Any], target: dict[str, Any], place: pathlib.Path
) -> Move:
    monitor = place / "qmp"

    def node(name: str, shown: dict[str, Any], *more: str) -> tuple[str, str]:
        words = ("driver=nbd", f"node-name={name}", "server.type=unix", f"server.path={shown['socket']}")
        return "--blockdev", ",".join((*words, f"export={shown['id']}", *more))

    command = [
        "qemu-storage-daemon",
        *("--chardev", f"socket,id=qmp,path={monitor},server=on,wait=off", "--monitor", "chardev=qmp"),
        *node("source", source, "read-only=on"),
        *node("target", target, "discard=unmap", "detect-zeroes=unmap"),
    ]
    before = there.show(DISK)["write_bytes"]
    with process.begun(command, place / "log"):
        seconds = asyncio.run(_run_mirror(monitor))
    return Move(seconds, there.show(DISK)["write_bytes"] - before)


async def _run_mirror(monitor: pathlib.Path) -> float:
    client = QMPClient("swaptide-bench")
    async with asyncio.timeout(MOVE_SECONDS):
        while True:
            try:
                await client.connect(str(monitor))
                break
            except (QMPError, OSError):
                await asyncio.sleep(_POLL_SECONDS)
        try:
            begun = time.monotonic()
            given = {"job-id": "mirror", "device": "source", "target": "target", "sync": "full"}
            await client.execute("blockdev-mirror", given)
            while True:
                jobs: Any = await client.execute("query-jobs")
                job = jobs[0]
                if job["status"] in ("ready", "concluded", "aborting"):
                    break
                await asyncio.sleep(_POLL_SECONDS)
            if job["status"] != "ready":
                raise measure.ContenderError(f"the mirror failed: {job.get('error')}")
            return time.monotonic() - begun
        finally:
            await client.disconnect()


def _row(name: str, title: str, *, spilled: bool) -> measure.Row:
    return measure.Row(name, "move", title, functools.partial(measure_move, name, title, spilled))


ROWS: Final = (
    _row("move", "a swap disk moved to another daemon", spilled=False),
    _row("move-spilled", "a swap disk that is all but spilled moved to another daemon", spilled=True),
)
