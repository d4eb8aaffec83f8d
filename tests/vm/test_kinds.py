"""Guests of every kind, unmodified: more queues, more disks, other kernels, other pages, hibernation.

The work is that of test_swap.py: patterned memory, more than the guest has, checked page by page.
"""

import signal
import time

import pytest

from tests.vm import machine, needs, phases, report, swaptided

pytestmark = [pytest.mark.guest, pytest.mark.long]


def interrupts(guest: machine.Machine) -> dict[str, int]:
    """By queue of each swap disk, how often it was heard of; the guest tells that after its result."""
    return {
        said.fields["name"]: said.number("interrupts")
        for said in map(report.parse, guest.console)
        if said is not None and said.kind == "QUEUE"
    }


def test_two_cpus_and_a_queue_for_each(daemon: swaptided.Daemon, accelerator: str) -> None:
    begun = time.monotonic()
    daemon.add(phases.DISK, size="512M", ram="192M")
    *blockdev, device = daemon.qemu_arguments(phases.DISK)
    spec = machine.Spec(
        accelerator,
        memory_mib=160,
        cpus=2,
        disk=(*blockdev, f"{device},num-queues=2"),
        work={"mib": 240, "rounds": 0, "seconds": 240, "workers": 4, "rewrite": 40},
    )
    with machine.Machine(spec) as guest:
        swap = guest.wait_for(lambda r: r.kind == "SWAP", "swap area", phases.PHASE_SECONDS)
        assert swap.fields["queues"] == "2"
        phases.wait_filled(guest, 240)
        phases.squeeze(daemon, 32)
        phases.replace_backend(daemon, signal.SIGKILL)
        phases.wait_checked(guest, 80_000)
        phases.stop_and_judge(guest)
        for _ in guest.reports(1):
            pass
        heard = interrupts(guest)
    assert len(heard) == 2 and min(heard.values()) > 100, heard
    phases.assert_spilled(daemon)
    phases.tell(guest, begun, f"; interrupts of the queues {sorted(heard.values())}")


def test_stripes_over_two_disks(daemon: swaptided.Daemon, accelerator: str) -> None:
    """Of equal priority: each takes about half, whatever happens to the one of them."""
    begun = time.monotonic()
    disks = (phases.DISK, "g2")
    for name in disks:
        daemon.add(name, size="256M", ram="96M")
    spec = machine.Spec(
        accelerator,
        memory_mib=160,
        disk=tuple(word for name in disks for word in daemon.qemu_arguments(name)),
        work={
            "device": "/dev/vda,/dev/vdb",
            **{"mib": 240, "rounds": 0, "seconds": 240, "workers": 2, "rewrite": 40},
        },
    )
    with machine.Machine(spec) as guest:
        for _ in disks:
            guest.wait_for(lambda r: r.kind == "SWAP", "swap area", phases.PHASE_SECONDS)
        phases.wait_filled(guest, 240)
        phases.squeeze(daemon, 24)  # of the first one only
        phases.replace_backend(daemon, signal.SIGKILL)
        phases.wait_checked(guest, 80_000)
        written = [daemon.show(name)["writes"] for name in disks]
        held = [daemon.show(name)["stored_pages"] for name in disks]
        phases.stop_and_judge(guest)
    phases.assert_spilled(daemon)
    assert min(written) > max(written) / 2, written
    assert min(held) > max(held) / 2, held
    phases.tell(guest, begun, f"; writes to the disks {written}, pages held {held}")


def test_hibernates_and_resumes(daemon: swaptided.Daemon, accelerator: str) -> None:
    """All of its memory goes onto the disk; another QEMU finds it there, behind another server."""
    begun = time.monotonic()
    daemon.add(phases.DISK, size="768M", ram="384M")
    spec = machine.Spec(
        accelerator,
        memory_mib=192,
        disk=daemon.qemu_arguments(phases.DISK),
        work={"mib": 256, "rounds": 0, "seconds": 240, "workers": 2, "resume": 1},
    )
    with machine.Machine(spec) as guest:
        phases.wait_filled(guest, 256)
        phases.wait_checked(guest, 10_000)
        guest.say("hibernate")
        guest.wait_for(lambda r: r.kind == "HIBERNATING", "sign of hibernation", phases.PHASE_SECONDS)
        guest.wait_off(phases.PHASE_SECONDS)
        assert (guest.wrong, guest.trouble) == ([], []), guest.account("not sound")
        before = guest.numbers.checked
    phases.squeeze(daemon, 32)
    phases.replace_backend(daemon, signal.SIGKILL)
    with machine.Machine(spec) as guest:
        guest.wait_ready()  # the kernel that looks for the other one
        back = guest.wait_for(lambda r: r.kind == "RESUMED", "the guest of before", phases.PHASE_SECONDS)
        assert back.fields["errno"] == "0"
        guest.wait_numbers(lambda n: n.checked > 0, "figures", phases.PHASE_SECONDS)
        assert guest.numbers.checked >= before  # it goes on, and did not begin anew
        phases.wait_checked(guest, 140_000)
        phases.stop_and_judge(guest)
    phases.assert_spilled(daemon)
    phases.tell(guest, begun)


def swap_through_squeeze_and_kill(
    daemon: swaptided.Daemon, accelerator: str, guest_name: str, page_bytes: int
) -> machine.Machine:
    """The whole of it in one: filled, squeezed, killed, checked; the guest makes its own swap signature."""
    begun = time.monotonic()
    daemon.add(phases.DISK, size="512M", ram="192M")
    spec = machine.Spec(
        accelerator,
        guest=guest_name,
        memory_mib=192,
        disk=daemon.qemu_arguments(phases.DISK),
        work={"mib": 256, "rounds": 0, "seconds": 300, "workers": 2, "rewrite": 40, "swapoff": 1},
    )
    with machine.Machine(spec) as guest:
        guest.wait_ready()
        swap = guest.wait_for(lambda r: r.kind == "SWAP", "swap area", phases.PHASE_SECONDS)
        assert (swap.fields["made"], swap.number("page")) == ("1", page_bytes)
        phases.wait_filled(guest, 256)
        phases.squeeze(daemon, 32)
        phases.replace_backend(daemon, signal.SIGKILL)
        phases.wait_checked(guest, 80_000)
        guest.say("stop")
        off = guest.wait_for(lambda r: r.kind == "SWAPOFF", "end of swapoff", phases.PHASE_SECONDS)
        assert off.fields["errno"] == "0"
        phases.stop_and_judge(guest)
    phases.assert_spilled(daemon)
    phases.tell(guest, begun, f"; pages of {page_bytes // 1024} KiB", page_bytes=page_bytes)
    return guest


def test_newer_kernel(daemon: swaptided.Daemon, accelerator: str) -> None:
    """Debian 13's: another swap code, another reclaim."""
    guest = swap_through_squeeze_and_kill(daemon, accelerator, needs.guest("trixie"), 4096)
    major, minor = guest.kernel.split(".")[:2]
    assert (int(major), int(minor)) >= (6, 12)


def test_arm64_with_larger_pages(daemon: swaptided.Daemon) -> None:
    """Swap area, slots and requests are in pages of 16 KiB, on a disk that has no idea of it."""
    needs.tool("qemu-system-aarch64", "qemu-system-arm")
    needs.tool("aarch64-linux-gnu-gcc", "gcc-aarch64-linux-gnu and libc6-dev-arm64-cross")
    swap_through_squeeze_and_kill(daemon, "tcg", needs.guest("arm64-16k"), 16384)
