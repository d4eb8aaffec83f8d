"""A whole Debian: systemd switches swap on by fstab and label; Redis holds more than there is memory.

Redis judges by its own means: DEBUG DIGEST reads every record, and has to say what is computed here.
"""

import runpy
import signal
import time
from typing import Any

import pytest

from tests.vm import image, machine, needs, phases, report, swaptided

RECORDS: dict[str, Any] = runpy.run_path(str(image.ROOT / "vm-images" / "system" / "records.py"))
MIB = phases.MIB
DATA_MIB, MEMORY_MIB = 224, 256
# Emulated, beside other work.
BOOT_SECONDS = 300.0
STEP_SECONDS = 600.0
SEED, CHANGED_SEED = 1, 2

pytestmark = [pytest.mark.guest, pytest.mark.long, pytest.mark.timeout(2400)]


def digests() -> tuple[str, str]:
    """What Redis has to say after the first writes, and after the second ones, which replace some of them."""
    before, after, changed = RECORDS["Digest"](), RECORDS["Digest"](), 0
    for record in RECORDS["records"](CHANGED_SEED, DATA_MIB * MIB // 4):
        after.add(*record)
        changed += 1
    for number, record in enumerate(RECORDS["records"](SEED, DATA_MIB * MIB)):
        before.add(*record)
        if number >= changed:
            after.add(*record)
    return before.text(), after.text()


def wait_phase(guest: machine.Machine, phase: str) -> report.Report:
    """Wait until the work says that it is there."""
    return guest.wait_for(
        lambda r: r.kind == "PROGRESS" and r.fields["phase"] == phase, f"phase {phase}", STEP_SECONDS
    )


def digest(guest: machine.Machine) -> str:
    """Have the guest go on; the next digest that it tells."""
    guest.say("go")
    return guest.wait_for(lambda r: r.kind == "DIGEST", "digest", STEP_SECONDS).fields["value"]


def test_debian_with_redis(daemon: swaptided.Daemon, accelerator: str) -> None:
    """Filled, squeezed, read, a quarter of it changed while the server is killed, read again, given up."""
    begun = time.monotonic()
    needs.guest("system")
    expected = digests()
    daemon.add(phases.DISK, size="1G", ram="192M", swap_label="tide")
    spec = machine.Spec(
        accelerator,
        guest="system",
        memory_mib=MEMORY_MIB,
        disk=daemon.qemu_arguments(phases.DISK),
        work={"mib": DATA_MIB},
    )
    with machine.Machine(spec) as guest:
        guest.wait_ready(BOOT_SECONDS)
        booted = time.monotonic() - begun
        swap = guest.wait_for(lambda r: r.kind == "SWAP", "swap area", phases.PHASE_SECONDS)
        assert (swap.fields["label"], swap.fields["rotational"]) == ("tide", "0")
        wait_phase(guest, "written")
        phases.squeeze(daemon, 32)
        assert digest(guest) == expected[0], guest.account("a wrong digest")
        guest.say("go")
        wait_phase(guest, "write")
        phases.replace_backend(daemon, signal.SIGKILL)
        assert digest(guest) == expected[1], guest.account("a wrong digest of what was changed")
        held = daemon.show(phases.DISK)["stored_pages"]
        # What the guest has no more in swap it gives back to the host only where nothing else lies beside it.
        given_up = wait_phase(guest, "given-up")
        assert int(given_up.fields["swapped_kib"]) * 1024 < held * 4096 // 4
        left = daemon.show(phases.DISK)["stored_pages"]
        guest.say("go")
        guest.wait_for(lambda r: r.kind == "RESULT", "result", phases.PHASE_SECONDS)
        guest.wait_off(phases.PHASE_SECONDS)
        assert guest.trouble == [], guest.account("the guest's kernel complains")
    phases.assert_spilled(daemon)
    phases.tell(guest, begun, f"; booted after {booted:.0f} s; of {held} pages held, {left} after FLUSHALL")
