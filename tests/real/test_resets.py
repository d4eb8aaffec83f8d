"""A real QEMU is reset: its disk is emptied in place under it, or left alone where that could harm."""

import pathlib
import shlex
import signal
from typing import Any

import pytest

from tests.real import daemons, machines

PAGE = 4096
PATTERN = bytes(range(256)) * 16


def qemu_words(daemon: daemons.Daemon, name: str = "g1") -> list[str]:
    return shlex.split(daemon.ok("snippet", name).replace("\\\n", " "))


def fill(report: dict[str, Any], first: bytes | None = None) -> None:
    """Write here and there, and what the disk begins with."""
    with daemons.client(report) as handle:
        if first is not None:
            handle.pwrite(first, 0)
        for at in range(PAGE, report["size_bytes"], 4 << 20):
            handle.pwrite(PATTERN, at)


def contents(report: dict[str, Any]) -> tuple[bytes, int]:
    """The first page, and how many of the written places still hold what was written."""
    with daemons.client(report) as handle:
        first = bytes(handle.pread(PAGE, 0))
        places = range(PAGE, report["size_bytes"], 4 << 20)
        return first, sum(bytes(handle.pread(PAGE, at)) == PATTERN for at in places)


def outcome(daemon: daemons.Daemon, vm: machines.Qemu, name: str = "g1") -> str:
    """Reset the guest; what the daemon says has become of the disk."""
    before = daemon.log.read_text().count(f"disk after reset name={name}")
    vm.ask("system_reset")
    daemons.wait_for(
        lambda: daemon.log.read_text().count(f"disk after reset name={name}") > before, daemon.log.read_text
    )
    daemons.wait_for(lambda: vm.ask("query-status")["running"])
    told = [line for line in daemon.log.read_text().splitlines() if f"disk after reset name={name}" in line]
    return told[before].partition("outcome=")[2]


def ends_with(magic: bytes) -> bytes:
    return b"\1" * (PAGE - 10) + magic


@pytest.mark.parametrize(
    ("first", "kept"),
    [
        (ends_with(b"SWAPSPACE2"), True),
        (b"\0" * 510 + b"\x55\xaa" + b"\0" * (PAGE - 512), False),
        (None, False),
    ],
    ids=["swap", "partitions", "nothing"],
)
def test_a_reset_empties_the_disk_in_place(daemon: daemons.Daemon, first: bytes | None, kept: bool) -> None:
    report = daemon.add()
    fill(report, first)
    full = daemon.show()["ram_bytes"]
    with machines.running(daemon.root, *qemu_words(daemon)) as vm:
        vm.wait_until_booted()
        daemon.ok("guest", "add", "vm", "--qmp", str(vm.qmp), "--disk", "g1", "--clear-on-reset")
        assert outcome(daemon, vm) == "'emptied'"
        # Whoever empties it is a client too, and comes again if the firmware resets the guest once more.
        daemons.wait_for(lambda: daemon.show()["connections"] == 1)
        assert daemon.show()["id"] == report["id"]
    found, held = contents(report)
    assert held == 0 and found == (first if kept and first is not None else b"\0" * PAGE)
    assert daemon.show()["stored_pages"] <= 1 and daemon.show()["ram_bytes"] <= full


def test_a_ready_made_swap_area_stays_one(daemon: daemons.Daemon) -> None:
    report = daemon.add("g1", "--swap-label", "tide")
    with daemons.client(report) as handle:
        header = bytes(handle.pread(PAGE, 0))
    fill(report)
    with machines.running(daemon.root, *qemu_words(daemon)) as vm:
        vm.wait_until_booted()
        daemon.ok("guest", "add", "vm", "--qmp", str(vm.qmp), "--disk", "g1", "--clear-on-reset")
        assert outcome(daemon, vm) == "'emptied'"
    assert contents(report) == (header, 0)


def test_a_hibernated_system_is_left_alone(daemon: daemons.Daemon) -> None:
    report = daemon.add()
    fill(report, ends_with(b"S1SUSPEND\0"))
    with machines.running(daemon.root, *qemu_words(daemon)) as vm:
        vm.wait_until_booted()
        daemon.ok("guest", "add", "vm", "--qmp", str(vm.qmp), "--disk", "g1", "--clear-on-reset")
        assert "hibernated" in outcome(daemon, vm)
    assert contents(report)[1] == 16


@pytest.mark.parametrize("page_bytes", [16384, 65536])
def test_larger_pages_keep_their_swap_area(daemon: daemons.Daemon, page_bytes: int) -> None:
    """An arm64 guest's: the signature ends its first page, wherever that is, and all of the page is kept."""
    report = daemon.add()
    fill(report)
    header = b"\1" * (page_bytes - 10) + b"SWAPSPACE2"
    with daemons.client(report) as handle:
        handle.pwrite(header, 0)
    with machines.running(daemon.root, *qemu_words(daemon)) as vm:
        vm.wait_until_booted()
        daemon.ok("guest", "add", "vm", "--qmp", str(vm.qmp), "--disk", "g1", "--clear-on-reset")
        assert outcome(daemon, vm) == "'emptied'"
        assert daemon.show()["stored_pages"] <= page_bytes // PAGE
        with daemons.client(report) as handle:
            assert bytes(handle.pread(page_bytes, 0)) == header
            handle.pwrite(b"S1SUSPEND\0", page_bytes - 10)
            handle.pwrite(PATTERN, 4 << 20)
        assert "hibernated" in outcome(daemon, vm)
    with daemons.client(report) as handle:
        assert bytes(handle.pread(PAGE, 4 << 20)) == PATTERN


def test_what_was_not_chosen_is_left_alone(daemon: daemons.Daemon) -> None:
    report, other = daemon.add(), daemon.add("g2")
    fill(report)
    fill(other)
    with machines.running(daemon.root, *qemu_words(daemon)) as vm:
        vm.wait_until_booted()
        daemon.ok("guest", "add", "vm", "--qmp", str(vm.qmp), "--disk", "g1")
        vm.ask("system_reset")
        vm.wait_until_booted(2)
        daemon.ok("guest", "rm", "vm")
        # g2 is named by mistake, and is in no guest.
        words = ("--disk", "g2", "--disk", "g1", "--clear-on-reset")
        daemon.ok("guest", "add", "vm", "--qmp", str(vm.qmp), *words)
        assert contents(other)[1] == 16
        assert "not in this guest" in outcome(daemon, vm, "g2")
        assert "disk after reset name=g1 guest=vm outcome='emptied'" in daemon.log.read_text()
    assert contents(other)[1] == 16 and contents(report)[1] == 0


def test_a_disk_with_a_second_client_is_left_alone(daemon: daemons.Daemon) -> None:
    report = daemon.add()
    fill(report)
    # Until the guest ends: its firmware may reset it once more, and then the disk would be emptied.
    with daemons.client(report), machines.running(daemon.root, *qemu_words(daemon)) as vm:
        vm.wait_until_booted()
        daemon.ok("guest", "add", "vm", "--qmp", str(vm.qmp), "--disk", "g1", "--clear-on-reset")
        assert "2 clients" in outcome(daemon, vm)
    assert contents(report)[1] == 16


def test_a_guest_that_a_killed_daemon_left_paused_goes_on(daemon: daemons.Daemon) -> None:
    daemon.add()
    with machines.running(daemon.root, *qemu_words(daemon)) as vm:
        daemon.ok("guest", "add", "vm", "--qmp", str(vm.qmp), "--disk", "g1", "--clear-on-reset")
        daemon.stop(signal.SIGKILL)
        vm.ask("stop")  # where it was killed
        marker = pathlib.Path(daemon.run_dir / "vm.paused")
        marker.touch()
        daemon.start()
        daemons.wait_for(lambda: vm.ask("query-status")["running"], daemon.log.read_text)
        daemons.wait_for(lambda: not marker.exists())
        # One that somebody else has paused stays paused.
        daemon.stop(signal.SIGKILL)
        vm.ask("stop")
        daemon.start()
        daemons.wait_for(lambda: '"paused"' in daemon.ok("guest", "ls", "--json"))
        assert not vm.ask("query-status")["running"]
