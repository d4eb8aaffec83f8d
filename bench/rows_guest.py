"""The row in a guest: the same image does the same work on each contender's swap.

One guest at a time; figures are read by the thread that waits for it.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Final, Literal

from bench import guests, measure, servers
from tests.vm import accel, image, machine

ROW: Final = "guest-swap"
MEMORY: Final = "nbdkit memory"
AGAIN: Final = f"{measure.OURS} again"
ROUNDS: Final = 3
MIB: Final = 1 << 20
# Tried: lzo-rle then packs 3 to 1, as it does with real guests.
COMPRESSIBLE_PERCENT: Final = 95
CPUS: Final = 2
RAM_BYTES: Final = 2 * guests.DISK_BYTES


@dataclasses.dataclass(frozen=True)
class Work:
    """How much a guest of `memory_mib` works on, and in which order it checks that."""

    memory_mib: int
    work_mib: int
    order: str

    @property
    def quarter_mib(self) -> int:
        """A quarter of what the disk holds in the end: a page that came back keeps its place there."""
        return self.work_mib // 4

    @property
    def parameters(self) -> dict[str, str | int]:
        """The guest's, the same for every contender; not rotational is what zram says of itself."""
        fixed: dict[str, str | int] = {"rounds": 1, "workers": CPUS, "seed": 7, "rotational": 0}
        return {"mib": self.work_mib, "order": self.order, "compress": COMPRESSIBLE_PERCENT, **fixed}


FULL: Final = Work(memory_mib=192, work_mib=256, order="both")
QUICK: Final = Work(memory_mib=128, work_mib=128, order="sequential")


@dataclasses.dataclass(frozen=True)
class Metric:
    """A figure of a run; None where a contender has no such thing."""

    name: str
    unit: str
    of: Callable[[guests.Run], float | None]
    better: Literal["more", "less"] = "less"


def _per_gib(seconds: float | None, run: guests.Run) -> float | None:
    return None if seconds is None else seconds / run.moved_gib


METRICS: Final = (
    Metric("wall clock", "s", lambda run: run.seconds),
    Metric("pages moved", "pages", lambda run: run.pages_in + run.pages_out),
    Metric("CPU of QEMU and server", "s/GiB", lambda run: _per_gib(run.cpu_seconds, run)),
    Metric("CPU of the server", "s/GiB", lambda run: _per_gib(run.server_seconds, run)),
    Metric("host CPU", "s/GiB swapped", lambda run: _per_gib(run.host_seconds, run)),
    Metric("host RAM", "MiB", lambda run: run.held_bytes / MIB),
)


def contenders(work: Work, quick: bool = False) -> tuple[guests.Contender, ...]:
    """All of them, the cheapest promise first; `quick` for those that count."""

    def nbd(name: str, server: servers.Contender) -> guests.Contender:
        return guests.Contender(name, functools.partial(guests.served, contender=server))

    def file(name: str, direct: bool) -> guests.Contender:
        return guests.Contender(name, functools.partial(guests.on_file, direct=direct))

    def zram(algorithm: str) -> guests.Contender:
        parameters: dict[str, str | int] = {
            "swap": "zram",
            "zram": algorithm,
            "zram_mib": guests.DISK_BYTES // MIB,
        }
        return guests.Contender(f"zram {algorithm} (in guest)", guests.inside, parameters)

    whole = servers.swaptide(RAM_BYTES)
    files = (file("qemu file writeback", direct=False), file("qemu file none", direct=True))
    return (
        *(() if quick else files),
        nbd(MEMORY, servers.nbdkit_memory()),
        *(() if quick else (zram("lzo-rle"), zram("zstd"))),
        nbd(measure.OURS, whole),
        nbd(AGAIN, whole),
        nbd(f"{measure.OURS}, cap a quarter", servers.swaptide(work.quarter_mib * MIB)),
    )


def measure_swap(lab: measure.Lab) -> list[measure.Measurement]:
    """All contenders in turn; raises what image and accelerator raise if no guest boots at all."""
    work, rounds = (QUICK, 1) if lab.plan.quick else (FULL, min(ROUNDS, lab.plan.rounds))
    image.ensure()
    choice = accel.choose()
    spec = machine.Spec(choice.name, memory_mib=work.memory_mib, cpus=CPUS, work=work.parameters)
    every = {each.name: each for each in contenders(work, lab.plan.quick)}
    runs, failed = measure.take_turns(
        lab, list(every), rounds, lambda name: guests.run(every[name], spec, lab.scratch)
    )
    return measurements(work, runs, failed, notes(work, choice, runs))


def measurements(
    work: Work, runs: Mapping[str, Sequence[guests.Run]], failed: Mapping[str, str], said: tuple[str, ...]
) -> list[measure.Measurement]:
    """One for each metric; a contender without the metric is left out of it."""
    title = f"a guest of {work.memory_mib} MiB works on {work.work_mib} MiB"
    return [
        measure.Measurement(
            row=ROW,
            metric=metric.name,
            title=title,
            unit=metric.unit,
            better=metric.better,
            values=values_of(metric, runs),
            reference=(MEMORY,),
            again=(AGAIN, measure.OURS),
            failed=failed,
            notes=said,
        )
        for metric in METRICS
    ]


def values_of(metric: Metric, runs: Mapping[str, Sequence[guests.Run]]) -> dict[str, list[float]]:
    """A metric's values, of the contenders that have it."""
    found = {name: [metric.of(run) for run in done] for name, done in runs.items()}
    whole = {name: [value for value in values if value is not None] for name, values in found.items()}
    return {name: values for name, values in whole.items() if values}


def notes(work: Work, choice: accel.Accel, runs: Mapping[str, Sequence[guests.Run]]) -> tuple[str, ...]:
    """What the figures mean, and what each contender said in its last round."""
    emulated = "; emulation slows the guest's own CPU, zram's packing included, many times over the host's"
    passes = {"both": "in order and at random", "sequential": "in order"}[work.order]
    general = (
        f"guest: {CPUS} CPUs, accelerator {choice.name}{emulated if choice.name == 'tcg' else ''}",
        f"work: {CPUS} processes fill {work.work_mib} MiB and check it {passes}, writing a quarter anew;"
        f" {COMPRESSIBLE_PERCENT} % of each page is compressible; the disk counts as not rotational",
        "host RAM: of QEMU (the guest's memory included) and server, swaptide's state file, the page cache of"
        " the file, when the work is done and all is held; zram uses none beside the guest's",
        "host CPU: busy time of all CPUs while the guest works; it has the kernel's writeback in"
        " it, as far as that was done by then, and whatever else the machine did",
        f"{measure.OURS}: up to {RAM_BYTES // MIB} MiB of RAM for a disk of {guests.DISK_BYTES // MIB} MiB:"
        " nothing is spilled, and dead space may stay in RAM",
        f"{measure.OURS}, cap a quarter: {work.quarter_mib} MiB of RAM for the disk, the rest spilled",
    )
    last = [(name, done[-1].notes) for name, done in runs.items() if done]
    return (*general, *(f"{name}: {note}" for name, said in last for note in said))


ROWS: Final = (
    measure.Row(
        ROW, "guest", "a guest swaps: wall clock, pages moved, CPU and RAM of the host", measure_swap
    ),
)
