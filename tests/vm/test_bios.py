"""A guest that has no system at all: 16-bit code that reads and writes our disk through the BIOS's driver.

SeaBIOS's virtio driver is not Linux's, and this guest runs under a KVM that may boot nothing else.
"""

import signal
import time

import pytest

from tests.vm import accel, machine, phases, swaptided

PAGES = 48 * 256
# The BIOS comes up in a second; where a KVM has to emulate 16-bit code, and other work goes on, in ten.
BOOT_SECONDS = 60.0

pytestmark = [pytest.mark.guest, pytest.mark.long]


def wait_booted(guest: machine.Machine, accelerator: str) -> None:
    """Wait until the guest runs; where no guest does under this host's KVM, that is why it is skipped."""
    try:
        guest.wait_ready(BOOT_SECONDS)
    except machine.GuestError:
        if accelerator == "tcg":
            raise
        why = guest.complaint() or f"nothing within {BOOT_SECONDS:.0f} s"
        pytest.skip(f"/dev/kvm is there, but a BIOS guest does not start under it: {why}")


@pytest.mark.parametrize("accelerator", accel.CHOICES)
def test_reads_and_writes_through_the_bios(daemon: swaptided.Daemon, accelerator: str) -> None:
    if accelerator == "kvm" and not accel.usable():
        pytest.skip("/dev/kvm is missing, or not to be opened by this user")
    begun = time.monotonic()
    daemon.add(phases.DISK, size="48M", ram="32M")
    daemon.command("disk", "set", phases.DISK, "--compress", "none")  # it would not have to spill
    spec = machine.Spec(
        accelerator, guest="bios", memory_mib=64, cpus=1, disk=daemon.qemu_arguments(phases.DISK)
    )
    with machine.Machine(spec) as guest:
        wait_booted(guest, accelerator)
        guest.wait_numbers(lambda n: n.filled >= PAGES // 2, "written pages", phases.PHASE_SECONDS)
        phases.squeeze(daemon, 18)
        guest.wait_numbers(lambda n: n.checked >= PAGES // 2, "checked pages", phases.PHASE_SECONDS)
        phases.replace_backend(daemon, signal.SIGKILL)
        guest.wait_numbers(lambda n: n.checked > PAGES, "a second round", phases.PHASE_SECONDS)
        guest.say("stop")
        result = guest.finish(phases.PHASE_SECONDS)
        assert (result.wrong, guest.wrong) == (0, []), guest.account("wrong pages")
    assert result.filled == PAGES and result.checked >= 2 * PAGES
    phases.assert_spilled(daemon)
    print(
        f"figures: SeaBIOS under {accelerator}: {result.checked} pages of 4 KiB checked, "
        f"{result.wrong} wrong; written {result.filled + result.rewritten}; {time.monotonic() - begun:.0f} s"
    )
