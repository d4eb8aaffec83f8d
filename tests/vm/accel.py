"""Which accelerator the guests get: KVM where a Linux guest really boots under it, else TCG.

That /dev/kvm opens proves nothing (some hosts offer a KVM that only runs guests built for it), so the guest
image itself is booted, once per kernel image and host boot.  No concurrency: two probes at once only cost.
"""

import dataclasses
import json
import os
import pathlib
import tempfile
from typing import Final

from tests.vm import image, machine

PROBE_SECONDS: Final = 15.0
KVM: Final = pathlib.Path("/dev/kvm")
CHOICES: Final = ("kvm", "tcg")


class ProbeError(Exception):
    """ACCEL asks for something that does not exist."""


@dataclasses.dataclass(frozen=True)
class Accel:
    """The choice (`kvm` or `tcg`) and why, in words for the user."""

    name: str
    why: str

    def __str__(self) -> str:
        return f"accelerator: {self.name} ({self.why})"


def usable() -> bool:
    """Whether /dev/kvm may be opened, which does not say what boots under it."""
    return os.access(KVM, os.R_OK | os.W_OK)


def choose() -> Accel:
    """Decide; raises ProbeError if ACCEL holds anything but kvm or tcg.

    A forced accelerator is not probed: if it does not work, the guest's own deadline says so.
    """
    forced = os.environ.get("ACCEL")
    if forced:
        if forced not in CHOICES:
            raise ProbeError(f"ACCEL={forced}: must be kvm or tcg, or unset for a probe")
        return Accel(forced, f"forced by ACCEL={forced}")
    if not KVM.exists():
        return Accel("tcg", "this host has no /dev/kvm; guests are emulated, which is slower")
    if not usable():
        return Accel("tcg", "no permission to use /dev/kvm; join its group, or go on emulated")
    return _remembered() or _probe()


def _memory_key() -> str:
    boot_id = pathlib.Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    return f"{image.ensure().kernel_package} {boot_id}"


def _remembered() -> Accel | None:
    try:
        kept = json.loads((image.CACHE / "accel.json").read_text(encoding="utf-8"))
        if kept["key"] == _memory_key():
            return Accel(kept["name"], kept["why"])
    except (OSError, ValueError, KeyError):
        pass
    return None


def _remember(choice: Accel) -> None:
    content = json.dumps({"key": _memory_key(), "name": choice.name, "why": choice.why}) + "\n"
    with tempfile.NamedTemporaryFile("w", dir=image.CACHE, prefix=".accel-", delete=False) as out:
        out.write(content)
    os.replace(out.name, image.CACHE / "accel.json")


def _probe() -> Accel:
    print(f"accelerator: trying KVM by booting a guest, for at most {PROBE_SECONDS:.0f} s", flush=True)
    choice = Accel("kvm", "a guest boots under it")
    with machine.Machine(machine.Spec("kvm", memory_mib=128, work={"probe": 1})) as guest:
        try:
            guest.wait_ready(PROBE_SECONDS)
        except machine.GuestError:
            slow = f"a Linux guest did not start under it within {PROBE_SECONDS:.0f} s"
            said = slow if guest.is_running() else f"QEMU ended with: {guest.complaint()}"
            choice = Accel("tcg", f"/dev/kvm is there, but {said}; guests are emulated, which is slower")
    _remember(choice)
    return choice
