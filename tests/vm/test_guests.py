"""The daemon and its guests: balloons that move, disks that are plugged in and out, guests that are reset.

What the guest's own kernel says counts, as everywhere here.
"""

import asyncio
import concurrent.futures
import contextlib
import json
import pathlib
import random
import re
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import pytest

from swaptide.balloon import guests, samples, watch
from tests.vm import machine, swaptided

MIB = 1 << 20
PHASE_SECONDS = 180.0
DISK = "g1"
BALLOON = ("-device", "virtio-balloon-pci")
PORT = ("-device", "pcie-root-port,id=port1,chassis=1")

pytestmark = pytest.mark.guest


class Hand:
    """The registry of guests on a loop of its own, so that a test can ask it in between."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="registry", daemon=True)
        self.registry = guests.Guests()

    def __enter__(self) -> "Hand":
        self._thread.start()
        return self

    def __exit__(self, *rest: object) -> None:
        self._do(self.registry.leave())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def add(self, entry: watch.Entry) -> None:
        """Watch a guest."""

        async def body() -> None:
            await self.registry.add(entry).tried(60)

        self._do(body())

    def apply(self, **balloons: int) -> None:
        """Tell balloons their sizes."""

        async def body() -> None:
            self.registry.apply(balloons)

        self._do(body())

    def samples(self) -> tuple[samples.Guest, ...]:
        """What the policy would see."""

        async def body() -> tuple[samples.Guest, ...]:
            return self.registry.samples()

        found: tuple[samples.Guest, ...] = self._do(body())
        return found

    def _do(self, work: Coroutine[Any, Any, Any]) -> Any:
        future: concurrent.futures.Future[Any] = asyncio.run_coroutine_threadsafe(work, self._loop)
        return future.result(90)


def wait_until(guest: machine.Machine, condition: Callable[[], bool], what: str) -> None:
    """Follow the guest's console until `condition` holds."""
    deadline = time.monotonic() + PHASE_SECONDS
    while not condition():
        assert time.monotonic() < deadline and guest.is_running(), guest.account(f"no {what}")
        for _ in guest.reports(0.5):
            pass


def test_balloon_inflates_and_deflates(tmp_path: pathlib.Path, accelerator: str) -> None:
    """The guest's MemTotal follows, and the host gets to know what the guest says of its memory."""
    monitor = tmp_path / "qmp"
    spec = machine.Spec(
        accelerator,
        memory_mib=256,
        cpus=1,
        devices=BALLOON,
        monitor=monitor,
        work={"swap": "none", "mib": 8, "rounds": 0, "seconds": 240},
    )
    with machine.Machine(spec) as guest, Hand() as hand:
        guest.wait_ready()
        hand.add(watch.Entry("g", monitor, 128 * MIB, 1024 * MIB))
        before = guest.wait_numbers(lambda n: n.total_bytes > 0, "figures", PHASE_SECONDS)
        wait_until(guest, lambda: any(s.available_bytes for s in hand.samples()), "statistics")
        (said,) = hand.samples()
        assert (said.actual_bytes, said.max_bytes) == (256 * MIB, 256 * MIB)
        assert said.age_seconds is not None and said.swapped_in_bytes == 0
        assert said.available_bytes is not None and 64 * MIB < said.available_bytes < 256 * MIB

        hand.apply(g=160 * MIB)
        wait_until(guest, lambda: hand.samples()[0].actual_bytes == 160 * MIB, "inflated balloon")
        small = guest.wait_numbers(
            lambda n: n.total_bytes < before.total_bytes - 90 * MIB, "less memory in the guest", PHASE_SECONDS
        )
        assert small.total_bytes > before.total_bytes - 110 * MIB
        wait_until(
            guest,
            lambda: (hand.samples()[0].available_bytes or 0) < before.total_bytes - 90 * MIB,
            "statistics",
        )

        hand.apply(g=10 * MIB)  # never below its minimum
        wait_until(guest, lambda: hand.samples()[0].actual_bytes == 128 * MIB, "balloon at its minimum")

        hand.apply(g=1024 * MIB)
        wait_until(guest, lambda: hand.samples()[0].actual_bytes == 256 * MIB, "deflated balloon")
        guest.wait_numbers(
            lambda n: n.total_bytes == before.total_bytes, "all memory in the guest again", PHASE_SECONDS
        )
        guest.say("stop")
        result = guest.finish(PHASE_SECONDS)
    assert (result.wrong, result.died, guest.trouble) == (0, 0, [])
    assert guest.wrong == []


@pytest.mark.parametrize("board", ["q35", pytest.param("pc", marks=pytest.mark.long)])
def test_disk_is_plugged_in_swapped_on_swapped_off_and_unplugged(
    daemon: swaptided.Daemon, accelerator: str, board: str
) -> None:
    monitor = daemon.root / "qmp"
    daemon.add(DISK, size="512M", ram="96M")
    spec = machine.Spec(
        accelerator,
        memory_mib=128,
        board=board,
        devices=PORT if board == "q35" else (),
        monitor=monitor,
        work={"hotplug": 1, "mib": 192, "rounds": 0, "seconds": 240, "swapoff": 1},
    )
    with machine.Machine(spec) as guest:
        guest.wait_ready()
        daemon.command("guest", "add", "vm", "--qmp", str(monitor))
        attached = json.loads(daemon.command("attach", DISK, "--guest", "vm", "--json"))
        assert attached["id"] == daemon.show(DISK)["id"] and daemon.show(DISK)["connections"] == 1
        print(f"attached on {attached['bus']} after {attached['elapsed_seconds']:.1f} s")
        with pytest.raises(swaptided.DaemonError, match="attached to this guest already"):
            daemon.command("attach", DISK, "--guest", "vm")
        guest.wait_for(lambda r: r.kind == "SWAP", "swap area", PHASE_SECONDS)
        guest.wait_numbers(lambda n: n.filled == 192 * 256, "filled memory", PHASE_SECONDS)
        with pytest.raises(swaptided.DaemonError, match="is using disk g1 right now"):
            daemon.command("detach", DISK, "--guest", "vm")
        daemon.set_ram(DISK, "32M")
        guest.wait_numbers(lambda n: n.pswpin > 5_000, "pages read back", PHASE_SECONDS)
        guest.say("stop")
        off = guest.wait_for(lambda r: r.kind == "SWAPOFF", "end of swapoff", PHASE_SECONDS)
        assert off.fields["errno"] == "0"
        guest.wait_for(lambda r: r.kind == "RESULT", "result", PHASE_SECONDS)
        detached = json.loads(daemon.command("detach", DISK, "--guest", "vm", "--json"))
        print(f"detached after {detached['elapsed_seconds']:.1f} s")
        guest.wait_for(lambda r: r.kind == "UNPLUGGED", "sign that the disk is gone", PHASE_SECONDS)
        assert daemon.show(DISK)["connections"] == 0
        guest.say("stop")
        result = guest.finish(PHASE_SECONDS)
        daemon.command("guest", "rm", "vm")
        assert (result.wrong, guest.wrong, guest.trouble) == (0, [], []), guest.account("not sound")
    assert result.pswpout > 0 and result.pswpin > 0


@contextlib.contextmanager
def rebooting(daemon: swaptided.Daemon, accelerator: str) -> Iterator[machine.Machine]:
    """A guest that swaps on our disk, which is to be emptied when it is reset."""
    monitor = daemon.root / "qmp"
    daemon.add(DISK, size="512M", ram="192M")
    spec = machine.Spec(
        accelerator,
        memory_mib=128,
        reboots=True,
        disk=daemon.qemu_arguments(DISK),
        monitor=monitor,
        work={"mib": 192, "rounds": 0, "seconds": 300, "workers": 2},
    )
    with machine.Machine(spec) as guest:
        guest.wait_ready()
        daemon.command("guest", "add", "vm", "--qmp", str(monitor), "--disk", DISK, "--clear-on-reset")
        try:
            yield guest
        finally:
            daemon.command("guest", "rm", "vm")


def swapped_out(guest: machine.Machine, pages: int) -> None:
    """Wait until the guest has swapped so many pages out."""
    guest.wait_numbers(lambda n: n.pswpout > pages, "pages on their way out", PHASE_SECONDS)


def reset(daemon: swaptided.Daemon, guest: machine.Machine) -> None:
    """Reset the guest and wait until it has booted; if it does not, say where it stands."""
    guest.qmp("system_reset")
    try:
        guest.wait_ready(PHASE_SECONDS)
    except machine.GuestError as error:
        registers = guest.qmp("human-monitor-command", **{"command-line": "info registers -a"})
        error.add_note(f"{daemon.log_tail()}\n{registers}")
        raise


@pytest.mark.parametrize("resets", [1, pytest.param(8, marks=pytest.mark.long)])
def test_reset_empties_the_disk_and_harms_nobody(
    daemon: swaptided.Daemon, accelerator: str, resets: int
) -> None:
    """The next boot swaps on the same disk at once, and none of its pages is lost."""
    draw = random.Random(resets)
    with rebooting(daemon, accelerator) as guest:
        for _ in range(resets):
            swapped_out(guest, draw.randrange(5_000, 20_000))
            full, before = daemon.show(DISK)["stored_pages"], daemon.show(DISK)["id"]
            assert full > 1000
            reset(daemon, guest)
            swap = guest.wait_for(lambda r: r.kind == "SWAP", "swap area", PHASE_SECONDS)
            assert swap.fields["made"] == "0"  # the page that makes it one is kept
            shown = daemon.show(DISK)
            assert (shown["id"], shown["connections"]) == (before, 1)
        log = (daemon.root / "daemon.log").read_text()
        outcomes = re.findall(r"disk after reset .* outcome='(.*)'", log)
        print(
            f"of {len(outcomes)} resets {outcomes.count('emptied')} emptied the disk: {sorted(set(outcomes))}"
        )
        assert "emptied" in outcomes, log
        guest.wait_numbers(lambda n: n.filled == 192 * 256, "filled memory", PHASE_SECONDS)
        guest.say("stop")
        result = guest.finish(PHASE_SECONDS)
        sound = (result.wrong, result.died, guest.wrong, guest.trouble) == (0, 0, [], [])
        assert sound, guest.account(f"{result}, {guest.wrong}, {guest.trouble}")
    assert result.pswpin > 0
