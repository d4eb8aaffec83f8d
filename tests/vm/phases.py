"""What most guest scenarios consist of: a guest that works, the phases it is waited for in, and the verdict.

The caller's thread owns guest and daemon, as everywhere here.
"""

import contextlib
import signal
import time
from collections.abc import Iterator

from tests.vm import machine, report, swaptided

MIB = 1 << 20
PHASE_SECONDS = 180.0
DISK = "g1"


@contextlib.contextmanager
def working_guest(
    daemon: swaptided.Daemon, accelerator: str, *, memory_mib: int, work_mib: int, **work: str | int
) -> Iterator[machine.Machine]:
    """A guest that works on `work_mib` until it is told to stop, at most some minutes long."""
    spec = machine.Spec(
        accelerator,
        memory_mib=memory_mib,
        disk=daemon.qemu_arguments(DISK),
        work={"mib": work_mib, "rounds": 0, "seconds": 240, "seed": work_mib, **work},
    )
    with machine.Machine(spec) as guest:
        guest.wait_ready()
        yield guest


def tell(guest: machine.Machine, begun: float, more: str = "", *, page_bytes: int = 4096) -> None:
    """Print what docs/guests.md has of a scenario that began at `begun` of the monotonic clock."""
    n = guest.numbers
    out_mib, in_mib = (pages * page_bytes // MIB for pages in (n.pswpout, n.pswpin))
    print(
        f"figures: kernel {guest.kernel}: {n.checked} pages of 4 KiB checked, {n.wrong} wrong; "
        f"swapped out {out_mib} MiB, in {in_mib} MiB; {time.monotonic() - begun:.0f} s{more}"
    )


def wait_filled(guest: machine.Machine, work_mib: int) -> None:
    """Wait until every page was written once."""
    guest.wait_numbers(lambda n: n.filled == work_mib * 256, "filled memory", PHASE_SECONDS)


def wait_checked(guest: machine.Machine, pages: int) -> None:
    """Wait until that many more pages were checked."""
    goal = guest.numbers.checked + pages
    guest.wait_numbers(lambda n: n.checked >= goal, f"{pages} more checked pages", PHASE_SECONDS)


def squeeze(daemon: swaptided.Daemon, ram_mib: int) -> None:
    """Lower the cap; when the command is back, it holds, within one segment."""
    daemon.set_ram(DISK, f"{ram_mib}M")
    shown = daemon.show(DISK)
    assert shown["cap_bytes"] == ram_mib * MIB
    assert shown["ram_bytes"] <= (ram_mib + 2) * MIB


def stop_and_judge(guest: machine.Machine) -> report.Numbers:
    """Let the guest finish; it swapped, nothing was lost, its kernel saw no error."""
    guest.say("stop")
    result = guest.finish(PHASE_SECONDS)
    assert (result.wrong, guest.wrong) == (0, []), guest.account("wrong pages")
    assert guest.trouble == [], guest.account("the guest's kernel complains")
    assert result.died == 0, guest.account("the work died")
    assert result.pswpin > 0
    assert result.pswpout > 0
    return result


def assert_spilled(daemon: swaptided.Daemon) -> None:
    """Bytes went to disk and came back."""
    shown = daemon.show(DISK)
    assert shown["spill_written_bytes"] > 0
    assert shown["spill_read_bytes"] > 0


def replace_backend(daemon: swaptided.Daemon, how: signal.Signals) -> None:
    """End the nbdkit and wait for the one that the daemon starts in its place."""
    daemon.wait_backend(DISK, not_pid=daemon.kill_backend(DISK, how))
