"""Two guests, one that thrashes and one that idles: RAM goes where it is needed.

Each sees its balloon in its own /proc/meminfo; nobody tells the daemon which is which.
"""

import contextlib
import json
import pathlib
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest

from tests.vm import machine, swaptided

MIB = 1 << 20
PHASE_SECONDS = 240.0
BALLOON = ("-device", "virtio-balloon-pci")
BUSY_MIB, BUSY_BEGIN_MIB, BUSY_LEAST_MIB, BUSY_WORK_MIB = 256, 160, 144, 200
IDLE_MIB, IDLE_LEAST_MIB = 448, 256

pytestmark = [pytest.mark.guest, pytest.mark.long]


def guests(daemon: swaptided.Daemon) -> Mapping[str, dict[str, Any]]:
    """What the daemon knows of both, by name."""
    return {each["name"]: each for each in json.loads(daemon.command("guest", "ls", "--json"))}


def actual_mib(daemon: swaptided.Daemon, name: str) -> int:
    """A guest's logical size; 0 while it is not known."""
    return int(guests(daemon)[name]["actual_bytes"] or 0) // MIB


def follow(both: list[machine.Machine], condition: Callable[[], bool], what: str) -> None:
    """Read both consoles until `condition` holds."""
    deadline = time.monotonic() + PHASE_SECONDS
    while not condition():
        for guest in both:
            assert guest.is_running() and time.monotonic() < deadline, guest.account(f"no {what}")
            for _ in guest.reports(0.5):
                pass


def boot(
    stack: contextlib.ExitStack,
    accelerator: str,
    monitor: pathlib.Path,
    memory_mib: int,
    work: Mapping[str, str | int],
    disk: tuple[str, ...] = (),
) -> machine.Machine:
    """A guest with a balloon and a monitor for the daemon."""
    spec = machine.Spec(
        accelerator, memory_mib=memory_mib, cpus=1, devices=BALLOON, monitor=monitor, disk=disk, work=work
    )
    guest = stack.enter_context(machine.Machine(spec))
    guest.wait_ready()
    return guest


@contextlib.contextmanager
def busy_and_idle(daemon: swaptided.Daemon, accelerator: str) -> Iterator[list[machine.Machine]]:
    """Both running and registered; the busy one works on more than its balloon leaves it."""
    daemon.add("g1", size="512M", ram="256M")
    work: dict[str, str | int] = {"mib": BUSY_WORK_MIB, "rounds": 0, "seconds": 600, "order": "random"}
    with contextlib.ExitStack() as stack:
        disk = daemon.qemu_arguments("g1")
        busy = boot(stack, accelerator, daemon.root / "busy.qmp", BUSY_MIB, work, disk)
        busy.qmp("balloon", value=BUSY_BEGIN_MIB * MIB)
        follow([busy], lambda: 0 < busy.numbers.total_bytes < BUSY_BEGIN_MIB * MIB, "inflated balloon")
        quiet: dict[str, str | int] = {"swap": "none", "mib": 1, "rounds": 0, "seconds": 600}
        idle = boot(stack, accelerator, daemon.root / "idle.qmp", IDLE_MIB, quiet)
        for name, least, most in (("busy", BUSY_LEAST_MIB, BUSY_MIB), ("idle", IDLE_LEAST_MIB, IDLE_MIB)):
            words = ("--qmp", str(daemon.root / f"{name}.qmp"), "--min", f"{least}M", "--max", f"{most}M")
            daemon.command("guest", "add", name, *words)
        try:
            yield [busy, idle]
        finally:
            for name in ("busy", "idle"):
                daemon.command("guest", "rm", name)


def test_ram_follows_the_need(daemon: swaptided.Daemon, accelerator: str) -> None:
    """A guest that swaps gets its RAM back while the host has some; an idle one gives when it has none."""
    with busy_and_idle(daemon, accelerator) as both:
        busy, idle = both
        small = busy.numbers.total_bytes
        more = BUSY_BEGIN_MIB + 48  # with about so much it has what it works on
        follow(both, lambda: actual_mib(daemon, "busy") >= more, "RAM for the guest that thrashes")
        follow(both, lambda: busy.numbers.total_bytes >= small + 40 * MIB, "sign of it in the guest")
        # The other one was asked for nothing, since nothing was short.
        assert actual_mib(daemon, "idle") == IDLE_MIB
        before = idle.numbers.total_bytes

        # Now the host is short: nearly all that there is is to be left free.
        total_kib = int(pathlib.Path("/proc/meminfo").read_text().split()[1])
        daemon.stop()
        daemon.configure(host_reserve=f"{total_kib - 65536}K")
        daemon.start()
        follow(both, lambda: actual_mib(daemon, "idle") <= IDLE_MIB - 32, "RAM from the guest that idles")
        follow(both, lambda: idle.numbers.total_bytes <= before - 24 * MIB, "sign of it in the guest")
        follow(
            both,
            lambda: daemon.show("g1")["target_bytes"] == daemon.show("g1")["floor_bytes"],
            "cache at its floor",
        )
        assert actual_mib(daemon, "busy") >= BUSY_LEAST_MIB
        assert actual_mib(daemon, "idle") >= IDLE_LEAST_MIB
        for guest in both:
            guest.say("stop")
        for guest in both:
            result = guest.finish(PHASE_SECONDS)
            assert (result.wrong, result.died, guest.wrong, guest.trouble) == (0, 0, [], []), guest.account(
                "not sound"
            )
