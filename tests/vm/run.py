"""`make run`: the main job, seen.  A guest swaps, the host takes its RAM back and gives it again.

One thread does everything in order: it consumes the guest's reports, samples the disk, and starts the next
act when the last one has had its time.  All that is started lives in context managers, so that Ctrl-C or a
failure ends it; the last line is always the verdict.
"""

import contextlib
import dataclasses
import pathlib
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Final, NoReturn

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))

from tests.vm import accel, image, machine, report, swaptided, view  # noqa: E402

DISK: Final = "demo"
SIZE: Final = "1G"
RAM_MIB: Final = 512
SQUEEZED_MIB: Final = RAM_MIB // 4
MEMORY_MIB: Final = 192
WORK_MIB: Final = 384
MIB: Final = 1 << 20
SAMPLE_SECONDS: Final = 1.5
OPEN_SECONDS: Final = 8.0
SQUEEZED_SECONDS: Final = 25.0
RELIEF_SECONDS: Final = 10.0
# What the guest itself keeps to, and what we wait for it at most.
GUEST_SECONDS: Final = 110
PATIENCE_SECONDS: Final = 165.0


class RunError(Exception):
    """The job did not go as it must; str() is what the verdict says."""


@dataclasses.dataclass
class Job:
    """The running pieces, and what was seen so far."""

    daemon: swaptided.Daemon
    guest: machine.Machine
    view: view.View
    act: str = "boot"
    returned_bytes: int = 0
    sampled: float = 0.0

    def watch(self, until: Callable[[], bool], what: str, seconds: float) -> None:
        """Follow the guest until `until`; raises RunError if it ends first or `seconds` pass."""
        deadline = time.monotonic() + seconds
        while not until():
            ended = not self.guest.is_running()  # asked first: its last words are still to be read
            self.step()
            if ended and not until():
                raise RunError(self.guest.account(f"the guest ended before {what}"))
            if time.monotonic() > deadline:
                raise RunError(self.guest.account(f"no {what} within {seconds:.0f} s"))

    def watch_for(self, seconds: float) -> None:
        """Follow the guest for a while, or until its work is over."""
        end = time.monotonic() + seconds
        self.watch(lambda: time.monotonic() >= end or self.guest.result is not None, "its time", seconds + 5)

    def step(self) -> None:
        """Take in what the guest says within a moment, and show a sample when one is due."""
        for said in self.guest.reports(0.25):
            if said.kind in ("READY", "SWAP", "WRONG", "ERROR"):
                self.view.tell(f"guest: {said.kind.lower()} {said.text}")
        if time.monotonic() - self.sampled >= SAMPLE_SECONDS:
            self.sampled = time.monotonic()
            self.view.show(view.Moment(self.view.seconds, self.act, self.guest.numbers, self.disk()))

    def disk(self) -> dict[str, int]:
        """The disk's figures."""
        return self.daemon.show(DISK)

    def set_ram(self, mib: int) -> None:
        """Change the cap while the view goes on; tells how long it took and what came back."""
        before, started = int(self.disk()["ram_bytes"]), time.monotonic()
        with self.daemon.begin_set_ram(DISK, f"{mib}M") as command:
            try:
                self.watch(lambda: command.poll() is not None, "end of `disk set`", 75)
            finally:
                command.kill()
                said = command.communicate()[0].strip()
        took = time.monotonic() - started
        self.view.tell(f"`disk set --ram {mib}M`: {said}")
        if command.returncode:
            raise RunError(f"disk set --ram {mib}M failed: {said}")
        returned = before - int(self.disk()["ram_bytes"])
        if returned > 0:
            self.returned_bytes += returned
            self.view.tell(f"{returned // MIB} MiB went back to the host in {took:.1f} s")


def perform(job: Job) -> report.Numbers:
    """The acts, in order; returns the guest's own result.  Raises RunError or GuestError."""
    job.watch(lambda: job.guest.numbers.phase != "boot", "start of the work", machine.BOOT_SECONDS)
    job.act = "fill"
    job.watch(lambda: job.guest.numbers.filled >= WORK_MIB * 256, "filled memory", 60)
    job.act = "open"
    job.watch_for(OPEN_SECONDS)
    job.act = "squeeze"
    job.view.tell(f"the host wants its RAM: cap {RAM_MIB} -> {SQUEEZED_MIB} MiB, the guest works on")
    job.set_ram(SQUEEZED_MIB)
    job.act = "squeezed"
    job.watch_for(SQUEEZED_SECONDS)
    job.act = "relief"
    job.view.tell(f"the host has RAM again: cap {SQUEEZED_MIB} -> {RAM_MIB} MiB")
    job.set_ram(RAM_MIB)
    job.watch_for(RELIEF_SECONDS)
    job.act = "last checks"
    job.guest.say("stop")
    job.watch(lambda: job.guest.result is not None, "result", PATIENCE_SECONDS - job.view.seconds)
    return job.guest.finish(machine.STOP_SECONDS)


def judge(job: Job, result: report.Numbers, disk: dict[str, int]) -> str:
    """The verdict's words after `ok`; raises RunError if anything the job must show is missing."""
    facts = (
        f"wrong pages {result.wrong}, pages swapped {result.pswpout} out {result.pswpin} in,"
        f" spilled {disk['spill_written_bytes'] // MIB} MiB,"
        f" returned to the host {job.returned_bytes // MIB} MiB"
    )
    sound = result.wrong == 0 and result.died == 0 and not job.guest.trouble
    moved = result.pswpout and result.pswpin and disk["spill_written_bytes"] and job.returned_bytes
    if not sound or not moved:
        raise RunError("; ".join([facts, *job.guest.trouble[:3]]))
    return facts


def run(stack: contextlib.ExitStack) -> str:
    """Set up, perform, judge; `stack` ends what was started."""
    image.ensure()
    choice = accel.choose()
    print(choice, flush=True)
    daemon = stack.enter_context(swaptided.Daemon())
    print(daemon.add(DISK, size=SIZE, ram=f"{RAM_MIB}M").strip(), flush=True)
    spec = machine.Spec(
        choice.name,
        memory_mib=MEMORY_MIB,
        disk=daemon.qemu_arguments(DISK),
        work={"mib": WORK_MIB, "rounds": 0, "seconds": GUEST_SECONDS, "seed": int(time.time())},
    )
    print(
        f"guest: {MEMORY_MIB} MiB of memory, works on {WORK_MIB} MiB; disk: {SIZE}, {RAM_MIB} MiB of host RAM"
    )
    guest = stack.enter_context(machine.Machine(spec))
    with view.View(MEMORY_MIB, WORK_MIB) as shown:
        job = Job(daemon, guest, shown)
        result = perform(job)
        return judge(job, result, job.disk())


def interrupt(number: int, _frame: object) -> NoReturn:
    """The first signal unwinds everything; more of them must not stop the unwinding."""
    for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(each, signal.SIG_IGN)
    raise KeyboardInterrupt(signal.Signals(number).name)


EXPECTED: Final = (
    RunError,
    accel.ProbeError,
    image.ImageError,
    machine.GuestError,
    swaptided.DaemonError,
    swaptided.LeftBehindError,
    subprocess.SubprocessError,
    OSError,
)


def main() -> int:
    """Run it; exit status 0 only with the verdict ok."""
    for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(each, interrupt)
    try:
        with contextlib.ExitStack() as stack:
            facts = run(stack)
    except EXPECTED as error:
        headline, _, rest = str(error).partition("\n")
        print(*filter(None, [rest, f"verdict: FAILED, {headline}"]), sep="\n")
        return 1
    except KeyboardInterrupt as signalled:
        print(f"\nverdict: FAILED, interrupted by {signalled}")
        return 130
    print(f"verdict: ok, {facts}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
