"""Guests of a real QEMU: registered, remembered, watched; disks plugged in, and undone where that fails."""

import json
import os
import signal
import socket
import subprocess
from typing import Any

import pytest

from tests.real import daemons, interrupts, machines

MIB = 1 << 20


def guests(daemon: daemons.Daemon) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(daemon.ok("guest", "ls", "--json"))
    return found


def wait_state(daemon: daemons.Daemon, state: str) -> dict[str, Any]:
    daemons.wait_for(lambda: guests(daemon)[0]["state"] == state, lambda: str(guests(daemon)))
    return guests(daemon)[0]


def fails(done: subprocess.CompletedProcess[str], *words: str, status: int = 1) -> None:
    assert done.returncode == status, done
    assert done.stdout == "" and done.stderr.count("\n") == 1, done
    assert done.stderr.startswith("swaptide: ")
    for word in words:
        assert word in done.stderr, done.stderr


def half_attached(
    daemon: daemons.Daemon, vm: machines.Qemu, report: dict[str, Any]
) -> "subprocess.Popen[str]":
    """`swaptide attach` under way: QEMU has the device, the guest, which runs nothing, does not take it."""
    vm.wait_until_booted()
    words = ["attach", "g1", "--qmp", str(vm.qmp), "--deadline", "10m", "--run-dir", str(daemon.run_dir)]
    command = subprocess.Popen([*daemons.COMMAND, *words], stderr=subprocess.PIPE, text=True)
    daemons.wait_for(lambda: f"swaptide-{report['id'][:8]}" in vm.devices())
    return command


# -- registered guests


def test_a_guest_is_watched_and_remembered(daemon: daemons.Daemon) -> None:
    with machines.running(daemon.root, *machines.BALLOON) as vm:
        said = daemon.ok("guest", "add", "vm", "--qmp", str(vm.qmp), "--min", "32M", "--max", "1G")
        assert "guest vm is watched, it is running" in said
        found = guests(daemon)[0]
        assert (found["actual_bytes"], found["memory_bytes"]) == (64 * MIB, 64 * MIB)
        assert (found["min_bytes"], found["max_bytes"], found["balloon"]) == (32 * MIB, 1024 * MIB, True)
        # SeaBIOS has no driver for it.
        assert (found["age_seconds"], found["available_bytes"], found["error"]) == (None, None, None)
        path = "/machine/peripheral/balloon0"
        assert vm.ask("qom-get", path=path, property="guest-stats-polling-interval") == 2
        for how in (signal.SIGTERM, signal.SIGKILL):
            daemon.stop(how)
            daemon.start()
            found = wait_state(daemon, "running")
            assert (found["name"], found["min_bytes"], found["max_bytes"]) == ("vm", 32 * MIB, 1024 * MIB)
        assert "vm " in daemon.ok("guest", "ls")
        daemon.ok("guest", "rm", "vm")
        assert guests(daemon) == []
        daemon.stop()
        assert not [*daemon.state_dir.rglob("guests"), *daemon.state_dir.rglob("*.json")]
        daemon.start()
        assert guests(daemon) == []


def test_a_guest_that_comes_goes_and_comes_back(daemon: daemons.Daemon) -> None:
    vm = machines.Qemu(daemon.root, "vm")
    said = daemon.ok("guest", "add", "vm", "--qmp", str(vm.qmp))
    assert "as soon as it can be reached" in said and "not there" in said
    try:
        for _ in range(2):
            vm.start(*machines.BALLOON)
            wait_state(daemon, "running")
            vm.ask("stop")
            wait_state(daemon, "paused")
            vm.stop()
            found = wait_state(daemon, "unreachable")
            assert found["error"] and found["actual_bytes"] is None
    finally:
        vm.stop()


def test_a_monitor_that_somebody_else_has(daemon: daemons.Daemon) -> None:
    with machines.running(daemon.root) as vm:
        with socket.socket(socket.AF_UNIX) as first:
            first.connect(str(vm.qmp))
            assert b"QMP" in first.recv(4096)
            said = daemon.ok("guest", "add", "vm", "--qmp", str(vm.qmp))
            assert "is another client connected to this monitor?" in said
        assert wait_state(daemon, "running")["error"] is None
        assert vm.process is not None and vm.process.poll() is None


@pytest.mark.parametrize(
    ("words", "names", "status"),
    [
        (("guest", "add", "a/b", "--qmp", "/x"), ("guest name 'a/b'",), 1),
        (("guest", "add", "g"), ("--qmp",), 2),
        (("guest", "add", "g", "--qmp", ""), ("--qmp", "empty"), 2),
        (("guest", "add", "g", "--qmp", "/" + "x" * 120), ("107",), 1),
        (("guest", "add", "g", "--qmp", "/x", "--min", "1G"), ("--min and --max",), 1),
        (("guest", "add", "g", "--qmp", "/x", "--max", "1G"), ("--min and --max",), 1),
        (("guest", "add", "g", "--qmp", "/x", "--min", "2G", "--max", "1G"), ("--min is more",), 1),
        (("guest", "add", "g", "--qmp", "/x", "--min", "0", "--max", "1G"), ("--min", "zero"), 2),
        (("guest", "add", "g", "--qmp", "/x", "--disk", "nope"), ("'nope'",), 1),
        (("guest", "add", "g", "--qmp", "/x", "--clear-on-reset"), ("--disk",), 1),
        (("guest", "rm", "nope"), ("'nope'", "the guests are: none"), 1),
        (("attach", "g1", "--guest", "nope"), ("'nope'",), 1),
        (("attach", "nope", "--qmp", "/x"), ("'nope'",), 1),
        (("attach", "g1"), ("--qmp", "--guest"), 2),
        (("attach", "g1", "--qmp", "/x", "--guest", "y"), ("either",), 2),
        (("attach", "g1", "--qmp", "/no/such/qmp"), ("/no/such/qmp", "is the guest running"), 1),
        (("detach", "g1", "--qmp", "/no/such/qmp"), ("/no/such/qmp", "is the guest running"), 1),
        (("detach", "g1"), ("--qmp", "--guest"), 2),
    ],
)
def test_mistakes(
    shared: daemons.Daemon, words: tuple[str, ...], names: tuple[str, ...], status: int
) -> None:
    fails(shared.run(*words), *names, status=status)
    assert guests(shared) == [] and shared.show()["connections"] == 0


shared = daemons.shared(daemons.Daemon.add)


def test_two_guests_cannot_share_name_or_monitor(daemon: daemons.Daemon) -> None:
    daemon.ok("guest", "add", "g", "--qmp", str(daemon.root / "qmp"))
    fails(daemon.run("guest", "add", "g", "--qmp", "/other"), "guest g exists", "guest rm g")
    fails(daemon.run("guest", "add", "h", "--qmp", str(daemon.root / "qmp")), "guest g's")


# -- disks plugged in and out


def clean(vm: machines.Qemu, report: dict[str, Any]) -> bool:
    """Whether nothing of a disk is left in the guest."""
    mine = f"swaptide-{report['id'][:8]}"
    return mine not in vm.nodes() and mine not in vm.devices()


def test_attach_that_nobody_takes_is_undone(daemon: daemons.Daemon) -> None:
    """SeaBIOS is past looking for devices: the disk is plugged in, not taken, and all of it taken back."""
    report = daemon.add()
    with machines.running(daemon.root, *machines.PORT, *machines.NATIVE) as vm:
        vm.wait_until_booted()
        for _ in range(2):
            done = daemon.run("attach", "g1", "--qmp", str(vm.qmp), "--deadline", "2s")
            fails(done, "has not taken disk g1 within ", "virtio-blk")
            assert clean(vm, report)
            daemons.wait_for(lambda: daemon.show()["connections"] == 0)
        fails(daemon.run("detach", "g1", "--qmp", str(vm.qmp)), "not attached to this guest")
    daemon.ok("disk", "rm", "g1")


def test_what_the_guest_keeps_is_cleared_away_when_it_lets_go(daemon: daemons.Daemon) -> None:
    """With ACPI ports the guest has to answer before QEMU takes a device back; a reset counts."""
    report = daemon.add()
    with machines.running(daemon.root, *machines.PORT) as vm:
        daemon.ok("guest", "add", "vm", "--qmp", str(vm.qmp))
        vm.wait_until_booted()
        done = daemon.run("attach", "g1", "--guest", "vm", "--deadline", "1s")
        fails(done, "has not taken disk g1", "until the guest answers or is reset")
        assert not clean(vm, report)
        done = daemon.run("attach", "g1", "--guest", "vm", "--deadline", "1s")
        fails(done, "attached to this guest already")
        vm.ask("system_reset")
        daemons.wait_for(lambda: clean(vm, report), daemon.log.read_text)
        daemons.wait_for(lambda: daemon.show()["connections"] == 0)
        daemons.wait_for(lambda: "after the guest let go" in daemon.log.read_text(), daemon.log.read_text)


@pytest.mark.parametrize("how", interrupts.SIGNALS)
def test_a_command_that_is_interrupted_undoes_it(daemon: daemons.Daemon, how: signal.Signals) -> None:
    report = daemon.add()
    with machines.running(daemon.root, *machines.PORT, *machines.NATIVE) as vm:
        command = half_attached(daemon, vm, report)
        command.send_signal(how)
        said = command.communicate(timeout=daemons.WAIT_SECONDS)[1]
        assert command.returncode == 130 and "taken out again" in said, said
        daemons.wait_for(lambda: clean(vm, report), daemon.log.read_text)


def test_a_daemon_that_ends_undoes_it(daemon: daemons.Daemon) -> None:
    report = daemon.add()
    with machines.running(daemon.root, *machines.PORT, *machines.NATIVE) as vm:
        command = half_attached(daemon, vm, report)
        daemon.stop()
        assert command.communicate(timeout=daemons.WAIT_SECONDS)[1] and command.returncode == 1
        assert clean(vm, report)


def test_what_a_killed_daemon_left_half_done_is_in_nobodys_way(daemon: daemons.Daemon) -> None:
    report = daemon.add()
    mine = f"swaptide-{report['id'][:8]}"
    with machines.running(daemon.root, *machines.PORT, *machines.NATIVE) as vm:
        vm.wait_until_booted()
        server = {"type": "unix", "path": report["socket"]}
        vm.ask(
            "blockdev-add", driver="nbd", **{"node-name": mine}, server=server, export=report["id"]
        )  # as far as it had come
        done = daemon.run("attach", "g1", "--qmp", str(vm.qmp), "--deadline", "1s")
        fails(done, "has not taken disk g1")
        assert clean(vm, report)
        vm.ask("blockdev-add", driver="nbd", **{"node-name": mine}, server=server, export=report["id"])
        daemon.ok("detach", "g1", "--qmp", str(vm.qmp))
        assert clean(vm, report)


def test_a_guest_that_is_paused_is_told(daemon: daemons.Daemon) -> None:
    report = daemon.add()
    with machines.running(daemon.root, *machines.PORT, "-S") as vm:
        fails(daemon.run("attach", "g1", "--qmp", str(vm.qmp)), "the guest is prelaunch")
        assert clean(vm, report)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ((), ("does not support hotplug", "pcie-root-port")),
        ((*machines.PORT, "-device", "virtio-rng-pci,bus=port1"), ("none of the guest's 1", "spare")),
        (("-device", "pcie-root-port,id=port1,chassis=1,hotplug=off"), ("none of the guest's 1", "spare")),
    ],
    ids=["none", "taken", "not-for-plugging"],
)
def test_no_port_is_free(daemon: daemons.Daemon, more: tuple[str, ...], words: tuple[str, ...]) -> None:
    report = daemon.add()
    with machines.running(daemon.root, *more) as vm:
        fails(daemon.run("attach", "g1", "--qmp", str(vm.qmp)), *words)
        assert clean(vm, report)


def test_a_bus_that_is_chosen_or_is_not_there(daemon: daemons.Daemon) -> None:
    report = daemon.add()
    ports = [*machines.PORT, "-device", "pcie-root-port,id=port2,chassis=2", *machines.NATIVE]
    with machines.running(daemon.root, *ports) as vm:
        fails(daemon.run("attach", "g1", "--qmp", str(vm.qmp), "--bus", "nope"), "nope")
        assert clean(vm, report)
        vm.wait_until_booted()
        words = ["attach", "g1", "--qmp", str(vm.qmp), "--bus", "port2", "--deadline", "10m"]
        command = subprocess.Popen(
            [*daemons.COMMAND, *words, "--run-dir", str(daemon.run_dir)], stderr=subprocess.PIPE
        )
        try:
            behind = "/machine/peripheral/port2/port2"
            daemons.wait_for(
                lambda: any(each["name"] == "child[0]" for each in vm.ask("qom-list", path=behind))
            )
        finally:
            command.send_signal(signal.SIGINT)
            command.communicate(timeout=daemons.WAIT_SECONDS)
        daemons.wait_for(lambda: clean(vm, report))


def test_a_pc_without_ports_takes_it_on_its_root_bus(daemon: daemons.Daemon) -> None:
    report = daemon.add()
    with machines.running(daemon.root, board="pc") as vm:
        vm.wait_until_booted()
        fails(daemon.run("attach", "g1", "--qmp", str(vm.qmp), "--deadline", "1s"), "has not taken disk g1")
        assert not clean(vm, report)  # it hangs on ACPI there
        vm.ask("system_reset")
        daemon.ok("detach", "g1", "--qmp", str(vm.qmp))
        assert clean(vm, report)


def test_a_disk_is_never_in_two_guests(daemon: daemons.Daemon) -> None:
    report = daemon.add()
    with machines.running(daemon.root, *machines.PORT) as vm, daemons.client(report):
        fails(daemon.run("attach", "g1", "--qmp", str(vm.qmp)), "1 client(s) connected", "detach it")
        assert clean(vm, report)


def test_a_disk_that_qemu_may_not_open_is_told(daemon: daemons.Daemon) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root, to have a QEMU of another user")
    report = daemon.add()
    daemon.root.chmod(0o777)
    with machines.running(daemon.root, *machines.PORT, "-runas", "nobody") as vm:
        daemon.root.chmod(0o711)
        done = daemon.run("attach", "g1", "--qmp", str(vm.qmp))
        fails(done, "Permission denied", "--socket-owner")
        assert clean(vm, report)


def test_a_guest_that_dies_while_a_disk_is_attached(daemon: daemons.Daemon) -> None:
    report = daemon.add()
    with machines.running(daemon.root, *machines.PORT, *machines.NATIVE) as vm:
        command = half_attached(daemon, vm, report)
        vm.stop()
        said = command.communicate(timeout=daemons.WAIT_SECONDS)[1]
        assert command.returncode == 1 and said.startswith("swaptide: ") and said.count("\n") == 1, said
    daemons.wait_for(lambda: daemon.show()["connections"] == 0)
    assert daemon.show()["state"] == "running"
